"""The bundle: what a process needs to answer for a saved model, without torch and transformers.

    DIR/serving/<revision>/
      network.onnx          encoder and heads (network.py)
      constants.json        the model's constants and the tokenizer's vocabularies of actions and times
      item_table.npy        (V, H) float32, the rows of all tokens, item text included
      item_columns.npy      (H, N) float32, those of the items as columns, filled up with zeros: see `Catalog`
      *.npy                 the tables of the memory, of the pointer and of item text: see `MEMORY_ARRAYS` and below
      tokenizer.json, vocabulary.tsv    as in the model's folder
      golden.json           histories, questions and what the model itself answers
      manifest.json         SHA-256 of each of these files; written last

A bundle never changes: its name is a digest of the files that it was made from. Tables are mapped into memory, so
several processes share them. This file imports numpy alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST, CONSTANTS, NETWORK, GOLDEN = "manifest.json", "constants.json", "network.onnx", "golden.json"
ITEM_TABLE, ITEM_COLUMNS = "item_table.npy", "item_columns.npy"
# Rows of pairs by item: those of item x are row_starts[x] to row_starts[x + 1], ascending by neighbor.
MEMORY_ARRAYS = (
    "row_starts",  # (V' + 1,) int64
    "neighbors",  # (R,) int32
    "forward",  # (R,) int32: how often the neighbor came after x, in units of 1 / COUNT_UNIT
    "backward",  # (R,) int32: how often it came before x
    "item_counts",  # (V',) int64
    "recent",  # (V',) float64: recent events of each item, faded
    "link_ids",  # (L, 2) int32: a borrower, and an item with a similar text
    "link_weights",  # (L,) float32
)


# Biases of the pointer, (Q, n) float32 each, for the Q actions that may come next.
POINTER_ARRAYS = ("action_bias", "recency_bias", "count_bias", "done_bias", "gap_bias")

# The texts of the items, (V, D) int8 in units (D,) float32; D is 0 for a model without item text.
TEXT_ARRAYS = ("text_vectors", "text_unit")


@dataclass(frozen=True)
class Constants:
    """What the predictor reads of a model's configuration and of its tokenizer; the names are theirs.

    Attributes:
        revision: digest of the model's files; max_events: of a history; longest_row: length of the longest item vector.
    """

    revision: str
    vocab_size: int
    num_new_items: int
    num_actions: int
    max_events: int
    actions: list[str]
    time_edges: list[float]
    has_time: bool
    actions_without_item: list[int]
    action_weights: list[float]
    retired_items: list[int]
    action_temperature: float
    action_bias: list[list[float]]
    item_temperature: float
    longest_row: float
    time_temperature: float
    time_bias: list[float]
    item_set_limits: list[float]
    action_set_limits: list[float]
    memory_distance: int
    memory_decay: float
    memory_backward: float
    memory_degree_power: float
    memory_count_power: float
    memory_history: int
    memory_history_decay: float
    memory_neighbors: int
    memory_power: float
    memory_unit: float
    memory_share: float
    memory_text: float
    memory_trend: float
    memory_half_life: int
    memory_freshness: float
    text_strength: float
    # Events by action in the log that the model was trained from; None where the model's folder has no record of it.
    training_actions: dict[str, int] | None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        folder: where it lies.
        constants: of the model and its tokenizer.
        item_table: (V, H) float32; item_columns: (H, N) float32.
        memory, pointer, text: the arrays of `MEMORY_ARRAYS`, of `POINTER_ARRAYS` and of `TEXT_ARRAYS`.
    """

    folder: Path
    constants: Constants
    item_table: np.ndarray
    item_columns: np.ndarray
    memory: dict[str, np.ndarray]
    pointer: dict[str, np.ndarray]
    text: dict[str, np.ndarray]


def write_constants(folder: Path, constants: Constants) -> None:
    (folder / CONSTANTS).write_text(json.dumps(asdict(constants)))


def write_manifest(folder: Path) -> None:
    """Seals a bundle: the digests of all its files."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    (folder / MANIFEST).write_text(json.dumps({name: digest_of(folder / name) for name in names}, indent=1))


def open_bundle(folder: Path) -> Bundle:
    """The bundle in a folder.

    Raises:
        ValueError: a file is missing or is not what was written.
    """
    remedy = "delete the folder, and the bundle is made again from the model"
    try:
        manifest: dict[str, str] = json.loads((folder / MANIFEST).read_text())
        for name, digest in manifest.items():
            if digest_of(folder / name) != digest:
                raise ValueError(f"{folder / name} is damaged (its SHA-256 differs): {remedy}.")
        values: dict[str, Any] = json.loads((folder / CONSTANTS).read_text())
        known = {field.name for field in fields(Constants)}
        if set(values) != known:
            raise ValueError(f"{folder / CONSTANTS} was written by another version of this package: {remedy}.")
        memory = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in MEMORY_ARRAYS}
        pointer = {name: np.load(folder / f"{name}.npy") for name in POINTER_ARRAYS}
        text = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in TEXT_ARRAYS}
        table, columns = (np.load(folder / name, mmap_mode="r") for name in (ITEM_TABLE, ITEM_COLUMNS))
        return Bundle(folder, Constants(**values), table, columns, memory, pointer, text)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing, expected a whole bundle: {remedy}.") from error


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
