"""The model and the baselines on held-out events: a verdict in three lines, tables in a file, and JSON.

    python evaluate_behavior.py --model out/shop --events events.parquet
    python evaluate_behavior.py --model out/shop --events events.parquet --json evaluation.json
    python evaluate_behavior.py --model out/beauty --events beauty.parquet --split leave_one_out --max_targets 5000
    python evaluate_behavior.py --model out/shop --events events.parquet --update_memory
    python evaluate_behavior.py --model out/a --model out/b --ensemble --events events.parquet --json both.json
    next-behavior evaluate ...                          the same, once the package is installed

The split that is recorded with the model is used unless `--split` names another. Every target is ranked among the whole
catalog, ties against the ranker: once with the items that the user has seen as candidates (kept), and once without
(removed; then only targets that are new to the user count). `--update_memory` adds the model as it would be served: its
memory goes on counting the events before the targets, without training.

Several models are ranked on the same targets and compared with each other; `--ensemble` adds the mean of their
probabilities.

`--dump` writes every prediction, from which all numbers can be computed again (`evaluation/dump.py` has the columns).

A page to read is `evaluation.html` in the model's folder (`comparison.html` in the first one's for several models), or
beside the file that `--json` names. The tables are beside it, as `.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from next_behavior.data.read_options import add_event_arguments, options_from_arguments

# Blocks of targets between which the memory counts.
MEMORY_UPDATES = 100


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, action="append", help="folder of a trained model; again for each further model"
    )
    parser.add_argument(
        "--ensemble", action="store_true", help="with several models: add the mean of their probabilities as one more"
    )
    parser.add_argument(
        "--events",
        required=True,
        help="event log: a CSV, TSV, JSON Lines or Parquet file, a folder or glob of them, or USER/NAME on the Hub",
    )
    parser.add_argument("--split", choices=["time", "leave_one_out"], help="default: the one recorded with the model")
    parser.add_argument("--json", help="write the result here, and the page and the tables beside it, as .html and .md")
    parser.add_argument("--dump", help="write every prediction to this Parquet file, a row per target and ranker")
    parser.add_argument("--max_targets", type=int, help="about so many targets, of whole users drawn at random")
    parser.add_argument("--batch_size", type=int, help="rows scored at once at most")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the bootstrap")
    parser.add_argument(
        "--baselines",
        choices=["counting", "all"],
        default="counting",
        help="counting: those that train nothing; all: also LightGCN, which trains for five minutes at most",
    )
    parser.add_argument(
        "--update_memory",
        action="store_true",
        help="rank the model and the baselines once more while they count the events before the targets",
    )
    parser.add_argument(
        "--memory_updates",
        type=int,
        default=MEMORY_UPDATES,
        help="blocks of time between which that memory counts; leave_one_out has one",
    )
    add_event_arguments(parser)
    args = parser.parse_args(arguments)
    for name in ("max_targets", "batch_size", "memory_updates"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: expected at least 1")
    if args.seed < 0:
        parser.error(f"--seed {args.seed}: expected at least 0")
    if args.json is not None and Path(args.json).suffix in (".md", ".html"):
        parser.error(f"--json {args.json}: expected another ending: the tables and the page have that one")
    if args.ensemble and len(args.model) < 2:
        parser.error("--ensemble: got one --model, expected several: name each with a --model of its own")
    if args.update_memory and len(args.model) > 1:
        parser.error("--update_memory: got several models, expected one: evaluate each alone")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    models = [Path(model) for model in args.model]
    for model in models:
        if not model.is_dir():
            raise FileNotFoundError(f"got --model {model}; expected the folder of a trained model")

    from next_behavior.data.outputs import can_write, check_output_file

    options = options_from_arguments(args)
    if args.json is not None:
        check_output_file(args.json, "--json", {"--events": args.events})
    if args.dump is not None:
        check_output_file(args.dump, "--dump", {"--events": args.events, "--json": args.json})

    from next_behavior.data.events import read_events
    from next_behavior.data.files import write_whole
    from next_behavior.data.shown import to_width
    from next_behavior.evaluation.page import page_of
    from next_behavior.evaluation.tables import format_table
    from next_behavior.model.integrity import check_folder

    for model in models:
        check_folder(model)  # before the log, which may take minutes
    log = read_events(args.events, options)
    print(to_width(str(log.report)))
    result, says = evaluated(models, log.events, args)
    tables = models[0] / ("evaluation.md" if len(models) == 1 else "comparison.md")
    if args.json is not None:
        tables = Path(args.json).with_suffix(".md")
        write_whole(Path(args.json), json.dumps(result, indent=1, allow_nan=False))
    print(f"\n{says}")
    if args.json is None and not can_write(models[0]):  # a folder that others share
        print(f"\n{format_table(result)}")
        return
    name = ", ".join(model.resolve().name for model in models)
    write_whole(tables.with_suffix(".html"), page_of(result, name))
    write_whole(tables, format_table(result))
    print(f"To read in a browser: {tables.with_suffix('.html')}\nAll tables are in {tables}.")


def evaluated(models: Sequence[Path], events: Any, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The result on a log's events, a Polars frame, and what it says for the screen."""
    from next_behavior.data.splits import assign_parts
    from next_behavior.evaluation.evaluator import evaluate_folder, split_to_evaluate
    from next_behavior.evaluation.several_models import common_split, evaluate_folders
    from next_behavior.evaluation.summary import in_three_lines, of_several

    if len(models) > 1:
        split = common_split(models, events, args.split)
        result = evaluate_folders(
            models,
            assign_parts(events, split),
            split,
            ensemble=args.ensemble,
            batch_size=args.batch_size,
            max_targets=args.max_targets,
            seed=args.seed,
            baselines=args.baselines,
            dump=None if args.dump is None else Path(args.dump),
        )
        return result, of_several(result)
    split = split_to_evaluate(models[0], events, args.split)
    result = evaluate_folder(
        models[0],
        assign_parts(events, split),
        split,
        args.batch_size,
        args.max_targets,
        args.seed,
        memory_updates=args.memory_updates if args.update_memory else None,
        baselines=args.baselines,
        dump=None if args.dump is None else Path(args.dump),
    )
    return result, in_three_lines(result, args.model[0])
