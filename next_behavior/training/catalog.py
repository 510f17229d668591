"""Give a trained model new items and retire old ones, without training: what changes, and the folder that holds it.

model, tokenizer = load_trained(Path("out/shop"))
change = plan_change(model.config, tokenizer, read_items("new.csv"), retire=["84"])
apply_change(model, tokenizer, change, text_encoder=None)
save_changed(model, tokenizer, Path("out/shop"), Path("out/shop-today"), grown=bool(change.added))
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch

from next_behavior.data.files import whole_folder
from next_behavior.data.sequences import PREPARED
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.integrity import check_folder
from next_behavior.model.item_text import text_of_item
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer

# What evaluating and publishing read beside a model.
RECORDS = ("split.json", "run.json")


@dataclass(frozen=True)
class CatalogChange:
    """What is to change.

    Attributes:
        added: the table's rows of items that the vocabulary lacks.
        with_text: how many of them have text that the model reads.
        missing_columns: columns of the model's item text that the table lacks.
        coming_back: retired items that are in the table again.
        already_known: how many other items of the table the vocabulary holds.
        retire: items to retire; already_retired: how many of them are retired.
    """

    added: list[dict[str, Any]]
    with_text: int
    missing_columns: list[str]
    coming_back: list[str]
    already_known: int
    retire: list[str]
    already_retired: int


def load_trained(folder: Path) -> tuple[BertForNextBehavior, BehaviorTokenizer]:
    """The model and the tokenizer of a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds something else, or is damaged.
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
    check_folder(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = BertForNextBehavior.from_pretrained(folder)
    return model.to(device).eval(), BehaviorTokenizer.from_pretrained(folder)


def plan_change(
    config: BehaviorConfig, tokenizer: BehaviorTokenizer, items: pl.DataFrame | None, retire: list[str]
) -> CatalogChange:
    """What a table of items and a list of ids to retire change.

    Args:
        items: as `read_items` gives them.
        retire: distinct item ids; an item that is in both is retired.

    Raises:
        ValueError: there is nothing to do.
    """
    if items is None and not retire:
        raise ValueError("got neither items nor ids to retire; expected some: there is nothing to do")
    retired = {tokenizer.decode_item(index) for index in config.retired_items}
    names = [] if items is None else items["item_id"].to_list()
    coming_back = {name for name in names if name in retired} - set(retire)
    added: list[dict[str, Any]] = []
    if items is not None:
        added = items.filter(~pl.col("item_id").is_in(tokenizer.item_vocabulary)).to_dicts()
    columns = (config.text_columns or []) if config.text_size else []
    return CatalogChange(
        added=added,
        with_text=sum(text_of_item(row, columns, config.text_template) is not None for row in added),
        missing_columns=[column for column in columns if added and column not in added[0]],
        coming_back=sorted(coming_back),
        already_known=len(names) - len(added) - len(coming_back),
        retire=retire,
        already_retired=sum(name in retired for name in retire),
    )


def apply_change(
    model: BertForNextBehavior, tokenizer: BehaviorTokenizer, change: CatalogChange, text_encoder: str | None
) -> None:
    """Adds the new items, brings the retired ones back, then retires others.

    Args:
        text_encoder: where the model's text encoder is now, if not under its own name.

    Raises:
        ValueError: a text encoder that cannot be loaded, or for a model that reads no item text; an id to retire that
            the vocabulary does not hold.
    """
    config = model.config
    if text_encoder is not None and not config.text_size:
        raise ValueError(
            f"got --text_encoder {text_encoder} for a model that reads no item text; expected one trained with "
            "--items: leave the option out"
        )
    try:
        model.add_items(tokenizer, [*change.added, *({"item_id": name} for name in change.coming_back)], text_encoder)
    except OSError as error:
        raise ValueError(
            f"got a model that reads item text with {text_encoder or config.text_encoder}, which cannot be loaded; "
            f"expected a Hub id or a folder: pass --text_encoder, where it is now ({error})"
        ) from error
    model.retire_items(tokenizer, change.retire)


def save_changed(
    model: BertForNextBehavior, tokenizer: BehaviorTokenizer, source: Path, output: Path, grown: bool
) -> None:
    """Writes model and tokenizer to `output`, whole or not at all.

    In place, the folder's other files stay, except the prepared log if the vocabulary has grown. Another folder gets
    only the records that the other commands need.
    """
    source, output = source.resolve(), output.resolve()
    with whole_folder(output) as unfinished:
        tokenizer.save_pretrained(unfinished)
        model.save_pretrained(unfinished)
        if source == output:
            # The prepared log is in the ids of the old vocabulary, where ids above it stand for unknown items.
            outdated = shutil.ignore_patterns(PREPARED) if grown else None
            shutil.copytree(source, unfinished, symlinks=True, ignore=outdated, copy_function=keep, dirs_exist_ok=True)
        else:
            for name in RECORDS:
                if (source / name).is_file():
                    shutil.copyfile(source / name, unfinished / name)


def keep(source: str, target: str) -> None:
    """Links or copies a file into the folder that will replace its own, unless it was written anew."""
    if os.path.lexists(target):
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)
