"""python -m tokenizer_build EVENTS --output DIR [--items ITEMS]: an event log to tokenizer files.

python -m tokenizer_build events.csv --output out/tokenizer
python -m tokenizer_build events.parquet --output out/tokenizer --items items.parquet --min_item_count 5
"""

from __future__ import annotations

import argparse

from next_behavior.data.events import add_event_arguments, options_from_arguments, read_events, read_items
from next_behavior.training.vocabulary import build_tokenizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tokenizer_build", description="Event log to tokenizer files.")
    parser.add_argument("events", help="CSV, gzipped CSV, Parquet, or a folder of Parquet files")
    parser.add_argument("--output", required=True, help="folder for the tokenizer files")
    parser.add_argument("--items", help="item table with item_id and text columns; the title is kept for display")
    parser.add_argument("--min_item_count", type=int, default=1, help="leave out items with fewer events")
    parser.add_argument("--num_new_items", type=int, default=64, help="slots for unknown items of one history")
    parser.add_argument("--max_length", type=int, default=200, help="events of the longest window")
    add_event_arguments(parser)
    options = parser.parse_args(arguments)

    log = read_events(options.events, options_from_arguments(options))
    print(log.report)
    tokenizer = build_tokenizer(
        log.events,
        None if options.items is None else read_items(options.items),
        min_item_count=options.min_item_count,
        num_new_items=options.num_new_items,
        max_length=options.max_length,
    )
    tokenizer.save_pretrained(options.output)

    actions = ", ".join(tokenizer.action_vocabulary)
    print(f"items    {len(tokenizer.item_vocabulary):,}, ids from {tokenizer.first_item_id}")
    print(f"actions  {len(tokenizer.action_vocabulary)}: {actions}")
    print(f"time     {len(tokenizer.time_edges) + 1 if tokenizer.has_time else 'no'} buckets of the gap between events")
    print(f"saved to {options.output}; load it with")
    print(f"    AutoTokenizer.from_pretrained({options.output!r}, trust_remote_code=True)")


if __name__ == "__main__":
    main()
