"""A trained model as an HTTP service that answers in under a millisecond and learns from each event.

    next-behavior serve --model out/shop
    next-behavior serve --model USER/NAME --host 0.0.0.0 --token_file tokens.txt --store events.sqlite
    next-behavior serve --model out/shop --workers 4 --store redis://localhost:6379/0

    curl localhost:8000/v1/predict -H 'Content-Type: application/json' -d '{"events": [{"item": "84"}], "top_k": 3}'

The model is exported once and kept beside it; then this process needs neither torch nor transformers. Routes, limits
and what is durable: docs/serving.md.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXTRA = "pip install 'bert-for-next-behavior[serve]'"
STORE = "next-behavior-events.sqlite"
DAY = 86_400


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a trained model, or USER/NAME on the Hub")
    parser.add_argument("--revision", help="of the Hub repository: a branch, a tag or a commit")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others need --token_file")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free one, which the log says")
    parser.add_argument("--token_file", type=Path, help="bearer tokens, one a line; read again at each reload")
    parser.add_argument("--admin_token_file", type=Path, help="tokens for /admin/; default: those of --token_file")
    parser.add_argument("--engine", choices=["onnx", "torch"], default="onnx", help="torch: on a GPU; slower without")
    parser.add_argument("--device", help="of --engine torch: cuda, cpu, ...; default: cuda where there is one")
    parser.add_argument("--workers", type=int, default=1, help="processes behind the port; several need Redis")
    parser.add_argument("--threads", type=int, default=1, help="threads of one pass of the model")

    store = parser.add_argument_group("events")
    store.add_argument("--store", default=STORE, help="file of the event store, redis://HOST:PORT/NUMBER, or none")
    store.add_argument("--state_dir", type=Path, help="folder of the memory's snapshots; default: STORE.state")
    store.add_argument("--max_events_per_user", type=int, help="older ones are removed; default: all are kept")
    store.add_argument("--max_age_days", type=float, help="older events are removed; default: all are kept")
    store.add_argument(
        "--learn_from",
        choices=["end", "start"],
        default="end",
        help="where in the stored events the memory of a model that was not served before begins to count",
    )

    limits = parser.add_argument_group("limits")
    limits.add_argument("--max_waiting", type=int, default=256, help="questions that wait; more are answered by 429")
    limits.add_argument("--deadline_seconds", type=float, default=1.0, help="that a question waits; then 504")
    limits.add_argument(
        "--read_seconds", type=float, default=8.0, help="that a client has to send or to read a message"
    )
    limits.add_argument("--max_connections", type=int, default=1000, help="of one process")
    limits.add_argument("--drain_seconds", type=float, default=1.0, help="from SIGTERM to closing the port")
    limits.add_argument("--grace_seconds", type=float, default=10.0, help="for what is in flight after that")

    parser.add_argument("--no_page", action="store_true", help="serve no page for people at /")

    log = parser.add_argument_group("log")
    log.add_argument("--log_level", choices=["debug", "info", "warning", "error"], default="info", help=" ")
    log.add_argument("--no_request_log", action="store_true", help="no line for each request")
    # What the parent of several workers tells each of them.
    parser.add_argument("--worker_number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker_socket", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker_folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker_parent", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    for name in ("workers", "threads", "max_waiting", "max_connections", "max_events_per_user"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: expected at least 1")
    for name in ("deadline_seconds", "read_seconds", "grace_seconds", "max_age_days"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            parser.error(f"--{name} {getattr(args, name)}: expected a number above 0")
    if not 0 <= args.port < 65_536:
        parser.error(f"--port {args.port}: expected 0 to 65535")
    args.store = None if args.store == "none" else args.store
    if args.device is not None and args.engine != "torch":
        parser.error("--device is for --engine torch")
    if args.workers > 1 and args.store is not None and "://" not in args.store:
        parser.error("several --workers share one event store: expected --store redis://HOST:PORT/NUMBER, or none")
    return args


def state_of(args: argparse.Namespace) -> Path | None:
    """The folder of the memory's snapshots: beside the file of the store, or in this folder for Redis."""
    if args.store is None or args.state_dir is not None:
        return args.state_dir
    return Path("next-behavior-redis.state" if "://" in args.store else f"{args.store}.state")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    try:
        from next_behavior.serving import access_log, export, security, server
    except ImportError as error:
        raise ValueError(f"serving needs {error.name}, which is not installed: {EXTRA}") from error

    access_log.start_logging(args.log_level, not args.no_request_log)
    if args.worker_number is not None:
        serve_here(args, socket.socket(fileno=args.worker_socket))
        return
    for path in (args.token_file, args.admin_token_file):
        if path is not None:
            security.read_tokens(path)  # a mistake is said before anything starts
    security.check_host(args.host, args.token_file is not None)
    if Path(args.model).exists() or args.model.count("/") != 1:  # another could be on the Hub
        export.model_folder(args.model, None)
    with server.bind(args.host, args.port) as listening:
        access_log.log_start(listening.getsockname(), args.workers)
        if args.workers == 1:
            serve_here(args, listening)
            return
        given = list(sys.argv[1:] if arguments is None else arguments)
        status = server.supervise(given, args.workers, listening, args.drain_seconds + args.grace_seconds + 5)
    sys.exit(status)


def loader(args: argparse.Namespace) -> Callable[[Path], Any]:
    """What loads an exported model."""
    from next_behavior.serving.predictor import Predictor

    return lambda bundle: Predictor.load(bundle, threads=args.threads)


def torch_loader(device: str | None) -> Callable[[Path], Any]:
    """What loads a saved model in torch."""
    import torch

    from next_behavior.serving.torch_predictor import TorchPredictor

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return lambda folder: TorchPredictor.load(folder, chosen)


def serve_here(args: argparse.Namespace, listening: socket.socket) -> None:
    """Serves in this process, the only one or one of several workers."""
    from next_behavior.serving.export import bundle_for, model_folder
    from next_behavior.serving.metrics import Metrics
    from next_behavior.serving.server import Limits, serve
    from next_behavior.serving.service import Service, Settings

    settings = Settings(
        model=args.model,
        revision=args.revision,
        store=args.store,
        state=state_of(args),
        token_file=args.token_file,
        admin_token_file=args.admin_token_file,
        deadline=args.deadline_seconds,
        most_waiting=args.max_waiting,
        from_start=args.learn_from == "start",
        max_events_per_user=args.max_events_per_user,
        max_age=None if args.max_age_days is None else args.max_age_days * DAY,
        worker=args.worker_number or 0,
        page=not args.no_page,
        control=None if args.worker_folder is None else args.worker_folder / "control.json",
    )
    limits = Limits(
        read_seconds=args.read_seconds,
        most_connections=args.max_connections,
        drain_seconds=args.drain_seconds,
        grace_seconds=args.grace_seconds,
    )
    find, load = (bundle_for, loader(args)) if args.engine == "onnx" else (model_folder, torch_loader(args.device))
    service = Service(settings, Metrics(), find, load)
    serve(service, listening, limits, args.worker_parent)
