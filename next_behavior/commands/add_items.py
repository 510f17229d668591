"""Give a trained model new items, and retire old ones, without training.

    python add_items.py --model out/shop --items new.csv --output_dir out/shop-today
    python add_items.py --model out/shop --items catalog.csv --retire sold_out.txt --output_dir out/shop   # in place
    next-behavior add-items ...                       the same, once the package is installed

ITEMS is the item table that training reads: item_id and text columns. Items that the model knows already are passed
over. The others are candidates at once: by their text if the model was trained with `--items`, else from the mean of
all items. Retired items are never predicted; they come back when they are in ITEMS again.

The output folder is written whole or not at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from next_behavior.data.read_options import add_item_arguments

ITEMS = (
    "item table: item_id (or another usual name) and the text columns that the model was trained on, in a CSV, TSV, "
    "JSON Lines or Parquet file, a folder or glob of them; new items are added, retired ones in it come back"
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", required=True, type=Path, help="folder of a trained model")
    parser.add_argument("--items", help=ITEMS)
    parser.add_argument("--output_dir", required=True, type=Path, help="a new folder, or the model's own")
    parser.add_argument("--retire", type=Path, help="text file with the ids of items to retire, one on each line")
    parser.add_argument("--text_encoder", help="where the model's text encoder is now, if not under its own name")
    add_item_arguments(parser)
    args = parser.parse_args(arguments)
    if args.items is None and args.retire is None:
        parser.error("got neither --items nor --retire; expected one of them: there is nothing to do")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    in_place = args.output_dir.resolve() == args.model.resolve()
    if not in_place and args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        raise ValueError(
            f"got --output_dir {args.output_dir}, which is there already; expected a new folder, or the model's own to "
            "change it in place"
        )

    from next_behavior.data.id_lists import read_ids
    from next_behavior.data.outputs import check_output_folder

    retire = [] if args.retire is None else read_ids(args.retire, "--retire")
    check_output_folder(args.output_dir, "--output_dir", {} if in_place else {"--items": args.items})

    from transformers.utils.logging import disable_progress_bar

    from next_behavior.data.items import read_items
    from next_behavior.data.sequences import PREPARED
    from next_behavior.training.catalog import (
        apply_change,
        load_trained,
        plan_change,
        save_changed,
    )

    disable_progress_bar()
    model, tokenizer = load_trained(args.model)
    config = model.config
    items = None
    if args.items is not None:
        items = read_items(args.items, args.items_id_column, format=args.items_format, columns=args.items_columns)
    change = plan_change(config, tokenizer, items, retire)
    if change.missing_columns:
        print(
            f"note: the model was trained on the columns {', '.join(config.text_columns or [])}, and the table has no "
            f"{', '.join(change.missing_columns)}: the added items are known by the rest"
        )
    if change.with_text:
        print(f"reading the text of {change.with_text:,} items with {args.text_encoder or config.text_encoder} ...",
              flush=True)  # fmt: skip
    apply_change(model, tokenizer, change, args.text_encoder)
    had_log = (args.model / PREPARED).is_dir()
    save_changed(model, tokenizer, args.model, args.output_dir, grown=bool(change.added))

    added, without_text = len(change.added), len(change.added) - change.with_text
    how = f"{change.with_text:,} with text, {without_text:,} without" if config.text_size else "the model reads no text"
    already = f" ({change.already_retired:,} more were retired already)" if change.already_retired else ""
    print(f"added          {added:,} ({how})")
    print(f"came back      {len(change.coming_back):,}")
    print(f"already known  {change.already_known:,}")
    print(f"retired        {len(change.retire) - change.already_retired:,}{already}")
    if in_place and added and had_log:
        print("prepared/ was the log in the ids of the old vocabulary and is gone: publish with --events")
    if in_place and (args.output_dir / "adapter").is_dir():
        print("base/ and adapter/ keep the vocabulary that they were trained with")
    print(f"{len(tokenizer.item_vocabulary):,} items, {len(config.retired_items):,} of them retired, are in")
    print(f"  {args.output_dir}")
