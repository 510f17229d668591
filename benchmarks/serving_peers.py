"""Other servers, started as their documentation says, in environments of their own (`make peers-serving-install`)."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from benchmarks.serving_inputs import write_lines
from benchmarks.serving_process import ROOT, Running, environment, free_port, module, pinned

ONE_QUESTION = b'{"events": [], "top_k": 1, "of": "item"}'
USERS_ASKED = 2000


@dataclass(frozen=True)
class Embed:
    """LibRecommender's server: how it is started, and requests to it."""

    server: Callable[[], Running]
    bodies: Path


def python_of(environment_name: str) -> Path:
    python = ROOT / ".bench" / f"venv-{environment_name}" / "bin" / "python"
    if not python.exists():
        target = "peers-install" if environment_name == "peers" else "peers-serving-install"
        raise ValueError(f"got no {python}; expected it from `make {target}`")
    return python


def litserve(bundle: Path, core: int | None, log: Path, batch: int) -> Running:
    port, python = free_port(), python_of("litserve")
    arguments = ("--bundle", bundle, "--port", port, "--batch", batch)
    command = module("benchmarks.peers_serving.litserve_server", *arguments, python=python)
    return Running(command, port, core, log, ("POST", "/v1/predict", ONE_QUESTION))


def bentoml(bundle: Path, core: int | None, log: Path) -> Running:
    port, python = free_port(), python_of("bentoml")
    service = "benchmarks.peers_serving.bentoml_service:NextBehavior"
    command = module("bentoml", "serve", service, "--host", "127.0.0.1", "--port", port, python=python)
    variables = {"BUNDLE": str(bundle), "BENTOML_DO_NOT_TRACK": "1"}
    return Running(command, port, core, log, ("POST", "/v1/predict", ONE_QUESTION), variables=variables)


@contextlib.contextmanager
def librecommender(log_csv: Path, folder: Path, core: int | None, log: Path) -> Iterator[Embed]:
    """A model of the log is trained for an epoch and put into a Redis of its own, which ends with the context."""
    python, redis = python_of("librecommender"), shutil.which("redis-server")
    if redis is None:
        raise ValueError("got no redis-server; LibRecommender's server reads from one (Debian: redis-server)")
    port, redis_port, model = free_port(), free_port(), folder / "librecommender"
    data = folder / "librecommender-redis"
    for made in (model, data):
        shutil.rmtree(made, ignore_errors=True)
    data.mkdir()
    with log.open("a") as output:
        command = [redis, "--port", str(redis_port), "--save", "", "--dir", str(data)]
        store = subprocess.Popen(pinned(core, command), stdout=output, stderr=output)
        try:
            arguments = ("--log", log_csv, "--folder", model, "--redis_port", redis_port)
            training = module("benchmarks.peers_serving.librecommender_model", *arguments, python=python)
            done = subprocess.run(training, cwd=ROOT, env=environment(), stdout=output, stderr=output)
            if done.returncode:
                last = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise ValueError(f"LibRecommender's model could not be trained: {' | '.join(last)}")
            users = pl.read_csv(log_csv, schema_overrides={"user": pl.String})["user"].unique().sort().to_list()
            asked = random.Random(0).sample(users, min(USERS_ASKED, len(users)))
            lines = [json.dumps({"user": user, "n_rec": 10}) for user in asked]
            bodies = write_lines(folder / "librecommender.jsonl", iter(lines))
            app = "libserving.sanic_serving.embed_deploy:app"
            options = ("--host", "127.0.0.1", "--port", port, "--single-process", "--no-access-logs")
            serve = module("sanic", app, *options, python=python)
            ready = ("POST", "/embed/recommend", lines[0].encode())
            variables = {"REDIS_HOST": f"127.0.0.1:{redis_port}"}
            yield Embed(lambda: Running(serve, port, core, log, ready, variables=variables), bodies)
        finally:
            store.terminate()
            store.wait()
