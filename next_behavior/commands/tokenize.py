"""Build the tokenizer of an event log.

    python -m tokenizer_build events.csv --output out/tokenizer
    python -m tokenizer_build events.parquet --output out/tokenizer --items items.parquet --min_item_count 5
    next-behavior tokenize ...                          the same, once the package is installed

Training does this by itself. The files alone serve to look at a log's vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from next_behavior.data.read_options import add_event_arguments, add_item_arguments, options_from_arguments


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("events", help="CSV, Parquet or JSON Lines: a file, several, a pattern or a folder")
    parser.add_argument("--output", required=True, help="folder for the tokenizer files")
    parser.add_argument("--items", help="item table with item_id and text columns; the title is kept for display")
    parser.add_argument("--min_item_count", type=int, default=1, help="leave out items with fewer events")
    parser.add_argument("--num_new_items", type=int, default=64, help="slots for unknown items of one history")
    parser.add_argument("--max_length", type=int, default=200, help="events of the longest window")
    add_item_arguments(parser)
    add_event_arguments(parser)
    args = parser.parse_args(arguments)

    from next_behavior.data.outputs import check_output_folder

    options = options_from_arguments(args)
    check_output_folder(args.output, "--output", {"EVENTS": args.events, "--items": args.items})

    from next_behavior.data.events import read_events
    from next_behavior.data.files import whole_files
    from next_behavior.data.items import read_items
    from next_behavior.data.shown import shown, to_width
    from next_behavior.training.vocabulary import build_tokenizer

    log = read_events(args.events, options)
    print(to_width(str(log.report)))
    items = None
    if args.items is not None:
        items = read_items(args.items, args.items_id_column, format=args.items_format, columns=args.items_columns)
    tokenizer = build_tokenizer(
        log.events,
        items,
        min_item_count=args.min_item_count,
        num_new_items=args.num_new_items,
        max_length=args.max_length,
    )
    with whole_files(Path(args.output)) as unfinished:
        tokenizer.save_pretrained(unfinished)
    actions = ", ".join(map(shown, tokenizer.action_vocabulary))
    print(f"items    {len(tokenizer.item_vocabulary):,}, ids from {tokenizer.first_item_id}")
    print(to_width(f"actions  {len(tokenizer.action_vocabulary)}: {actions}"))
    print(f"time     {len(tokenizer.time_edges) + 1 if tokenizer.has_time else 'no'} buckets of the gap between events")
    print(f"saved to {args.output}; load it with")
    print(f"    AutoTokenizer.from_pretrained({args.output!r}, trust_remote_code=True)")
