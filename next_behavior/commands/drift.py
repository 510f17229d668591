"""What has changed since a model was trained, as a page to read and as JSON: is it time to train again?

    next-behavior drift --model out/shop --store next-behavior-events.sqlite --output drift.html
    next-behavior drift --model out/shop --store redis://localhost:6379/0 --output drift.html --json drift.json
    next-behavior drift --model out/shop --events events.parquet --since 2024-05-17 --output drift.html

The events are those that a service has stored, or a log. Events after the training are judged; earlier ones are only
histories. The store is read and not changed, also while a service writes to it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from next_behavior.data.read_options import add_event_arguments, options_from_arguments
from next_behavior.model.times import micros_of_text


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a trained model, or USER/NAME on the Hub")
    parser.add_argument("--revision", help="of the Hub repository: a branch, a tag or a commit")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--store", help="event store of a service: its file, or redis://HOST:PORT/NUMBER")
    source.add_argument("--events", help="event log: a CSV, TSV, JSON Lines or Parquet file, a folder or glob of them")
    parser.add_argument("--output", required=True, type=Path, help="the page to write, as HTML")
    parser.add_argument("--json", type=Path, help="write the same numbers here")
    parser.add_argument("--since", help="judge events after this time (ISO, UTC); default: after the training")
    parser.add_argument("--max_predictions", type=int, default=2000, help="events to predict, of users drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--threads", type=int, default=1, help="of the network")
    add_event_arguments(parser)
    args = parser.parse_args(arguments)
    for name in ("max_predictions", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: expected at least 1")
    if args.output.suffix not in (".html", ".htm"):
        parser.error(f"--output {args.output}: expected a name that ends in .html")
    if args.since is not None and micros_of_text(args.since) is None:
        parser.error(f"--since {args.since}: expected a date or a time, such as 2024-05-17 or 2024-05-17T08:30:00")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)

    from next_behavior.data.outputs import check_output_file

    for path, flag in ((args.output, "--output"), (args.json, "--json")):
        if path is not None:
            check_output_file(path, flag, {"--events": args.events})

    import json
    from dataclasses import asdict

    from tqdm import tqdm

    from next_behavior.data.events import read_events
    from next_behavior.data.files import write_whole
    from next_behavior.data.known import check_known
    from next_behavior.data.shown import to_width
    from next_behavior.serving.drift import events_in_store, measure_drift
    from next_behavior.serving.drift_report import page_of
    from next_behavior.serving.export import bundle_for, model_folder
    from next_behavior.serving.predictor import Predictor
    from next_behavior.serving.training_record import training_record

    record = training_record(model_folder(args.model, args.revision))
    bundle = bundle_for(args.model, args.revision, say=lambda line: print(line, flush=True))
    predictor = Predictor.load(bundle, args.threads)
    if args.store is not None:
        events = events_in_store(args.store)
    else:
        log = read_events(args.events, options_from_arguments(args))
        print(to_width(str(log.report)))
        events = log.events
    check_known(events, predictor.item_vocabulary(), predictor.info.actions)

    def progress(steps: Iterable[int], total: int, what: str) -> Iterable[int]:
        return tqdm(steps, desc=what, total=total, unit=" batches")

    since = micros_of_text(args.since) if args.since is not None else None
    drift = measure_drift(
        predictor,
        events,
        record,
        source="the event store" if args.store is not None else Path(args.events).name,
        since=None if since is None else since / 1_000_000,
        max_predictions=args.max_predictions,
        seed=args.seed,
        progress=progress,
    )
    write_whole(args.output, page_of(drift))
    if args.json is not None:
        write_whole(args.json, json.dumps(asdict(drift), indent=1, allow_nan=False))
    print(to_width("\n".join([drift.verdict.sentence, *(f"- {reason}" for reason in drift.verdict.reasons)])))
    print(f"The report is in {args.output}.")
