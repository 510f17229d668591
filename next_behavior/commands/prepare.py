"""Prepare an event log of any size for training: memory does not grow with the log.

    next-behavior prepare --events events.parquet --output out/prepared
    next-behavior train --prepared out/prepared --output_dir out/shop

Training by itself reads a log into memory, some 300 bytes for each event. This command cleans it, splits it and writes
its token ids in pieces. The model is the same. An interrupted preparation goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from next_behavior.data.read_options import SPLITS, add_event_arguments, add_item_arguments, options_from_arguments


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument(
        "--events", required=True, help="event log: a CSV, TSV, JSON Lines or Parquet file, a folder or glob of them"
    )
    parser.add_argument("--output", required=True, help="folder for the prepared log")
    parser.add_argument("--items", help="item table with item_id and text columns; the title is kept for display")
    parser.add_argument("--split", choices=SPLITS, default="time", help="what is held out (default: time)")
    parser.add_argument("--seed", type=int, default=0, help="of the users held out with --split none (default: 0)")
    parser.add_argument("--max_length", type=int, help="longest history in events (default: by the log's users)")
    parser.add_argument("--min_item_count", type=int, default=1, help="leave out items with fewer training events")
    parser.add_argument(
        "--partitions", type=int, help="parts of the log, of which one is in memory (default: by its rows)"
    )
    parser.add_argument(
        "--engine", choices=["one_machine", "spark"], default="one_machine",
        help="spark reads Parquet files, of an object store too, or a table by its name (default: one_machine)",
    )  # fmt: skip
    parser.add_argument("--master", help="of Spark, such as local[4] (default: as spark-submit says, or this machine)")
    add_item_arguments(parser)
    add_event_arguments(parser)
    args = parser.parse_args(arguments)

    from next_behavior.data.outputs import check_output_folder

    options = options_from_arguments(args)
    check_output_folder(args.output, "--output", {"--events": args.events, "--items": args.items})

    from next_behavior.data.items import read_items
    from next_behavior.data.shown import to_width
    from next_behavior.preparation.prepare import PrepareSettings, prepare

    settings = PrepareSettings(args.split, args.seed, args.max_length, args.min_item_count, args.partitions)
    items = None
    if args.items is not None:
        items = read_items(args.items, args.items_id_column, format=args.items_format, columns=args.items_columns)

    def say(text: str) -> None:
        print(to_width(text), flush=True)

    prepared = prepare(args.events, args.output, settings, options, items, say, args.engine, args.master)
    print(
        f"\n{prepared.events:,} events of {prepared.users:,} users are in {args.output} (split: {prepared.split}).\n"
        f"Train with\n  next-behavior train --prepared {args.output} --output_dir OUTPUT"
    )
