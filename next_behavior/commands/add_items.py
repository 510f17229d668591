"""Give a trained model new items, and retire old ones, without training.

    python add_items.py --model out/shop --items new.csv --output_dir out/shop-today
    python add_items.py --model out/shop --items catalogue.csv --retire sold_out.txt --output_dir out/shop   # in place

ITEMS is the item table that training reads: item_id and text columns, of which only the items count that the model does
not know. They are ranked at once: by their words if the model was trained with `--items`, else from the mean of all
items. Retired items are never answered; they come back when they stand in ITEMS again.

The output folder is written whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

from next_behavior.data.events import read_items
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.item_text import text_of_item
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.loop import replace_directory

# What `evaluate_behavior.py` and `publish.py` look for beside a model.
RECORDS = ("split.json", "run.json")
# The log in the token ids of the vocabulary it was read with; ids above it stand for unknown items.
OF_THE_OLD_VOCABULARY = "prepared"


@dataclass(frozen=True)
class Change:
    """How many items were concerned."""

    with_text: int
    without_text: int
    came_back: int
    already_known: int
    retired: int
    already_retired: int


def load(folder: Path) -> tuple[BertForNextBehavior, BehaviorTokenizer]:
    """The model and the tokenizer of a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: something else lies there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"got --model {folder}; expected the folder of a trained model: there is none")
    config = folder / "config.json"
    kind = json.loads(config.read_text()).get("model_type") if config.is_file() else None
    if kind != BehaviorConfig.model_type:
        remedy = "name the folder above it" if (folder / "adapter_config.json").is_file() else "check the path"
        raise ValueError(
            f"got --model {folder}, which holds {f'a model of the type {kind}' if kind else 'no config.json'}; "
            f"expected a trained BertForNextBehavior: {remedy}"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = BertForNextBehavior.from_pretrained(folder)
    return model.to(device).eval(), BehaviorTokenizer.from_pretrained(folder)


def read_ids(path: Path) -> list[str]:
    """The ids in a text file, one on each line, exactly as written; empty lines are passed over."""
    if not path.is_file():
        raise FileNotFoundError(f"got --retire {path}; expected a text file with an item id on each line")
    return list(dict.fromkeys(filter(None, path.read_text(encoding="utf-8-sig").split("\n"))))


def change_catalogue(
    model: BertForNextBehavior,
    tokenizer: BehaviorTokenizer,
    items: pl.DataFrame | None,
    retire: list[str],
    text_encoder: str | None = None,
) -> Change:
    """Adds the items that the vocabulary lacks, brings back those that were retired, then retires others.

    Args:
        items: as `read_items` gives them.
        retire: item ids; they win over `items`.
        text_encoder: where the model's text encoder lies now, if not under its own name.

    Raises:
        ValueError: nothing to do; a text encoder that cannot be loaded, or for a model that reads no words; an id to
            retire that the vocabulary does not hold.
    """
    if items is None and not retire:
        raise ValueError("got neither items nor ids to retire; expected some: there is nothing to do")
    config = model.config
    if text_encoder is not None and not config.text_size:
        raise ValueError(
            f"got --text_encoder {text_encoder} for a model that reads no words; expected one trained with --items: "
            "leave the option out"
        )
    retired = {tokenizer.decode_item(index) for index in config.retired_items}
    names = [] if items is None else items["item_id"].to_list()
    coming_back = {name for name in names if name in retired and name not in set(retire)}
    added: list[dict[str, Any]] = []
    if items is not None:
        added = items.filter(~pl.col("item_id").is_in(tokenizer.item_vocabulary)).to_dicts()
    texts = 0
    if config.text_size and added:
        columns = config.text_columns or []
        lacking = [column for column in columns if column not in added[0]]
        if lacking:
            print(
                f"note: the model was trained on the columns {', '.join(columns)}, and the table has no "
                f"{', '.join(lacking)}: the added items are known by the rest"
            )
        texts = sum(text_of_item(row, columns, config.text_template) is not None for row in added)
        if texts:
            print(f"reading the words of {texts:,} items with {text_encoder or config.text_encoder} ...", flush=True)
    try:
        model.add_items(tokenizer, [*added, *({"item_id": name} for name in coming_back)], text_encoder)
    except OSError as error:
        raise ValueError(
            f"got a model that reads words with {text_encoder or config.text_encoder}, which cannot be loaded; "
            f"expected a Hub id or a folder: say with --text_encoder where it lies ({error})"
        ) from error
    before = set(config.retired_items)
    model.retire_items(tokenizer, retire)
    return Change(
        with_text=texts,
        without_text=len(added) - texts,
        came_back=len(coming_back),
        already_known=len(names) - len(added) - len(coming_back),
        retired=len(set(config.retired_items) - before),
        already_retired=len(retire) - len(set(config.retired_items) - before),
    )


def save(model: BertForNextBehavior, tokenizer: BehaviorTokenizer, source: Path, output: Path, grown: bool) -> None:
    """Writes model and tokenizer to `output`, whole or not at all. What else lies in `source` stays when that is the
    folder itself, but for the prepared log if the vocabulary has grown; into another folder goes only what the other
    scripts need."""
    source, output = source.resolve(), output.resolve()
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    try:
        tokenizer.save_pretrained(unfinished)
        model.save_pretrained(unfinished)
        if source == output:
            outdated = shutil.ignore_patterns(OF_THE_OLD_VOCABULARY) if grown else None
            shutil.copytree(source, unfinished, symlinks=True, ignore=outdated, copy_function=keep, dirs_exist_ok=True)
        else:
            for name in RECORDS:
                if (source / name).is_file():
                    shutil.copyfile(source / name, unfinished / name)
        replace_directory(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def keep(source: str, target: str) -> None:
    """Links or copies a file into the folder that will take the place of its own, unless it was written anew."""
    if os.path.lexists(target):
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def summary(change: Change, reads_words: bool) -> str:
    """What was done, a line for each thing."""
    added = change.with_text + change.without_text
    how = (
        f"{change.with_text:,} with text, {change.without_text:,} without" if reads_words else "the model reads no text"
    )
    so_already = f" ({change.already_retired:,} more were so already)" if change.already_retired else ""
    return "\n".join(
        [
            f"added          {added:,} ({how})",
            f"came back      {change.came_back:,}",
            f"already known  {change.already_known:,}",
            f"retired        {change.retired:,}{so_already}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, type=Path, help="folder of a trained model")
    parser.add_argument("--items", help="item table with item_id and text columns: .csv, .csv.gz, .parquet or a folder")
    parser.add_argument("--output_dir", required=True, type=Path, help="a new folder, or the model's own")
    parser.add_argument("--retire", type=Path, help="text file with the ids of items that are gone, one on each line")
    parser.add_argument("--text_encoder", help="where the model's text encoder lies now, if not under its own name")
    args = parser.parse_args(arguments)
    if args.items is None and args.retire is None:
        parser.error("got neither --items nor --retire; expected one of them: there is nothing to do")
    in_place = args.output_dir.resolve() == args.model.resolve()
    if not in_place and args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        raise ValueError(
            f"got --output_dir {args.output_dir}, which is there already; expected a new folder, or the model's own to "
            "change it in place"
        )
    retire = [] if args.retire is None else read_ids(args.retire)
    disable_transformers_bars()
    model, tokenizer = load(args.model)
    items = None if args.items is None else read_items(args.items)
    change = change_catalogue(model, tokenizer, items, retire, args.text_encoder)
    grown = change.with_text + change.without_text > 0
    had_log = (args.model / OF_THE_OLD_VOCABULARY).is_dir()
    save(model, tokenizer, args.model, args.output_dir, grown)
    print(summary(change, bool(model.config.text_size)))
    if in_place and grown and had_log:
        print("prepared/ was the log in the ids of the old vocabulary and is gone: publish with --events")
    if in_place and (args.output_dir / "adapter").is_dir():
        print("base/ and adapter/ keep the vocabulary that they were trained with")
    print(f"{len(tokenizer.item_vocabulary):,} items, {len(model.config.retired_items):,} of them retired, are in")
    print(f"  {args.output_dir}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"add_items.py: {error}")
