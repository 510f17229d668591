"""Score every user of a log: what each does next, as Parquet.

    next-behavior score --model out/shop --events events.parquet --output top.parquet
    next-behavior score --model out/shop --events events.parquet --output buys.parquet --of item --action buy --top_k 20

The answers are those of the pipeline, by the same options. --output is a folder of Parquet files with the columns
user_id, rank, action, item_id and probability; pandas and polars read it whole (`pandas.read_parquet("top.parquet")`,
`polars.read_parquet("top.parquet/*.parquet")`). An interrupted run goes on when it is started again; one with
--engine spark begins anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from next_behavior.data.read_options import add_event_arguments, options_from_arguments


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=str(__doc__).split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a trained model, or a Hub id")
    parser.add_argument("--revision", help="of a Hub id: a branch, a tag or a commit")
    parser.add_argument(
        "--events",
        required=True,
        help="event log: a CSV, TSV, JSON Lines or Parquet file, a folder or glob of them, or USER/NAME on the Hub",
    )
    parser.add_argument("--output", required=True, help="folder for the answers, new or of the same run")
    parser.add_argument("--top_k", type=int, default=10, help="answers of each user")
    parser.add_argument("--of", default="pair", choices=["pair", "item", "action"], help="what is ranked")
    parser.add_argument("--action", help="answers given that this is the next action")
    parser.add_argument("--exclude_seen", action="store_true", help="leave out the items of the user's history")
    parser.add_argument("--allowed_items", type=Path, help="text file of item ids, one on each line: rank only these")
    parser.add_argument("--threads", type=int, default=1, help="of the network, on one machine")
    parser.add_argument(
        "--engine", choices=["one_machine", "spark"], default="one_machine",
        help="spark reads Parquet files, of an object store too, or a table by its name, and scores on its executors",
    )  # fmt: skip
    parser.add_argument("--master", help="of Spark, such as local[4] (default: as spark-submit says, or this machine)")
    parser.add_argument("--partitions", type=int, help="of Spark, that users are divided into (default: by the rows)")
    add_event_arguments(parser)
    args = parser.parse_args(arguments)
    for name in ("top_k", "threads", "partitions"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: expected at least 1")
    if args.engine != "spark" and (args.master is not None or args.partitions is not None):
        parser.error("--master and --partitions belong to --engine spark")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)

    from next_behavior.data.id_lists import read_ids

    question = {name: getattr(args, name) for name in ("top_k", "of", "action", "exclude_seen")}
    question["allowed_items"] = None if args.allowed_items is None else read_ids(args.allowed_items, "--allowed_items")
    (score_with_executors if args.engine == "spark" else score_here)(args, question)


def score_here(args: argparse.Namespace, question: dict[str, Any]) -> None:
    from next_behavior.data.outputs import check_output_folder

    options = options_from_arguments(args)
    check_output_folder(args.output, "--output", {"--events": args.events})

    from tqdm import tqdm

    from next_behavior.data.events import read_events
    from next_behavior.data.known import check_known
    from next_behavior.data.shown import to_width
    from next_behavior.serving.export import bundle_for
    from next_behavior.serving.predictor import Predictor
    from next_behavior.serving.score import Options, score_log

    bundle = bundle_for(args.model, args.revision, say=lambda line: print(line, flush=True))
    predictor = Predictor.load(bundle, args.threads)
    predictor.ask([], **question)  # a senseless question is refused before the log is read
    log = read_events(args.events, options)
    print(to_width(str(log.report)))
    check_known(log.events, predictor.item_vocabulary(), predictor.info.actions)

    def progress(steps: Iterable[int], total: int, what: str) -> Iterable[int]:
        return tqdm(steps, desc=what, total=total, unit=" batches" if what == "scoring" else " items")

    there = score_log(predictor, log.events, Path(args.output), Options(**question), progress)
    if there:
        print(f"{there:,} files were there already")
    print(f"the answers of {log.events['user_id'].n_unique():,} users are in {args.output}")


def score_with_executors(args: argparse.Namespace, question: dict[str, Any]) -> None:
    from next_behavior.data.shown import to_width
    from next_behavior.preparation.spark_source import start_session
    from next_behavior.serving.score import Options
    from next_behavior.serving.spark_scoring import check_new_folder, score_with_spark

    def say(text: str) -> None:
        print(to_width(text), flush=True)

    options = options_from_arguments(args)
    check_new_folder(args.output, start_session(args.master))
    answers = score_with_spark(
        args.model,
        args.events,
        Options(**question),
        options,
        revision=args.revision,
        partitions=args.partitions,
        say=say,
    )
    answers.write.parquet(args.output)
    print(f"the answers are in {args.output}")
