"""Cleaned events to token ids: one row per user, as a memory-mapped `datasets.Dataset`.

    dataset = tokenize_log(events, tokenizer)
    sequences = Sequences.from_dataset(dataset, ...)          # flat numpy arrays over the same memory map

Polars joins take the place of the tokenizer's Python loop: the same ids (a test compares them with
`BehaviorTokenizer`), an order of magnitude faster. Unknown items keep their identity. In a stored row every distinct
item outside the vocabulary has a code of its own at or above `vocab_size`. `batches.py` turns the codes of a window
into `[NEW_1]`, `[NEW_2]` ... exactly as the tokenizer does for a live history.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
import polars as pl
import pyarrow as pa

from next_behavior.data.files import replace_directory
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_GAP, FIRST_NEW, NO_GAP, NONE, UNKNOWN_ACTION

TRAIN, VALIDATION, TEST = 0, 1, 2
# The folder of a run's tokenized log, in its output folder. It holds user ids, so it is never published.
PREPARED = "prepared"
UNKNOWN_ITEMS = "unknown_items.parquet"
NO_TIME = -1  # the timestamp of an event whose time is not known

FEATURES = datasets.Features(
    {
        "user_id": datasets.Value("string"),
        "input_ids": datasets.LargeList(datasets.Value("int32")),
        "token_type_ids": datasets.LargeList(datasets.Value("int16")),
        "time_gap_ids": datasets.LargeList(datasets.Value("int16")),
        "timestamps": datasets.LargeList(datasets.Value("int64")),
        "part": datasets.LargeList(datasets.Value("int8")),
    }
)


def starts_of_runs(items: np.ndarray, users: np.ndarray) -> np.ndarray:
    """(N,) bool: where an event names another item than its user's event before it; (N,) items and users, in order."""
    starts = np.ones(len(items), dtype=bool)
    starts[1:] = (items[1:] != items[:-1]) | (users[1:] != users[:-1])
    return starts


def time_gaps(events: pl.DataFrame) -> np.ndarray:
    """Seconds from each event to the same user's next one, (N,) float64, where both times are known and differ."""
    gap = (pl.col("timestamp").dt.epoch("us") - pl.col("timestamp").dt.epoch("us").shift(1)) / 1e6
    same_user = pl.col("user_id") == pl.col("user_id").shift(1)
    return events.lazy().select(gap.filter(same_user & (gap > 0))).collect().to_series().to_numpy()


def encode_events(
    events: pl.DataFrame,
    *,
    item_vocabulary: list[str],
    first_item_id: int,
    action_vocabulary: list[str],
    time_edges: list[float],
) -> datasets.Dataset:
    """Token ids of every user's events.

    Args:
        events: the cleaned log, sorted by (user_id, timestamp, row), with the columns user_id, item_id, action,
            timestamp (Datetime in microseconds, UTC) and, from `splits.py`, part (Int8; absent means all train).
        item_vocabulary: item ids in token order; the first has the token id `first_item_id`.
        action_vocabulary: actions in token order; the first has the id FIRST_ACTION.
        time_edges: ascending bucket edges in seconds.

    Returns:
        One row per user in the order of `events`: user_id (string) and the equally long lists input_ids (int32),
        token_type_ids (int16), time_gap_ids (int16), timestamps (int64, microseconds since 1970, or NO_TIME) and
        part (int8). Unknown items have codes from `first_item_id + len(item_vocabulary)` upwards.
    """
    unknown = events["item_id"].drop_nulls().unique()
    unknown = unknown.filter(~unknown.is_in(pl.Series(item_vocabulary, dtype=pl.String).implode()))
    coding = Coding(item_codes(item_vocabulary, first_item_id, unknown), action_vocabulary, time_edges)
    return datasets.Dataset(encode_users(events, coding))


@dataclass(frozen=True)
class Coding:
    """What stands for the items, the actions and the times of a log.

    Attributes:
        items: item_id and input_ids, UInt32: every item of the log, unknown ones included.
        actions: in token order; the first has the id FIRST_ACTION.
        time_edges: ascending bucket edges in seconds.
    """

    items: pl.DataFrame
    actions: list[str]
    time_edges: list[float]


def item_codes(vocabulary: list[str], first_item_id: int, unknown: pl.Series) -> pl.DataFrame:
    """The items of a `Coding`: the vocabulary, then the distinct `unknown` items in the order of their texts."""
    items = pl.concat([pl.Series(vocabulary, dtype=pl.String), unknown.cast(pl.String).sort()])
    return pl.DataFrame({"item_id": items}).with_row_index("input_ids", offset=first_item_id)


def encode_users(events: pl.DataFrame, coding: Coding) -> pa.Table:
    """Token ids of whole users, one row for each, in the columns of FEATURES: `encode_events` has the rest."""
    if "part" not in events.columns:
        events = events.with_columns(pl.lit(TRAIN, dtype=pl.Int8).alias("part"))
    actions = pl.DataFrame(
        {"action": pl.Series(coding.actions, dtype=pl.String)},
    ).with_row_index("action_code", offset=FIRST_ACTION)
    coded = events.join(coding.items, on="item_id", how="left", maintain_order="left").join(
        actions, on="action", how="left", maintain_order="left"
    )
    seconds = pl.col("timestamp").dt.epoch("us") / 1e6
    gap = (seconds - seconds.shift(1)).clip(lower_bound=0.0)
    known_gap = (pl.col("user_id") == pl.col("user_id").shift(1)).fill_null(False) & gap.is_not_null()
    coded = coded.select(
        "user_id",
        pl.when(pl.col("item_id").is_null())
        .then(NONE)
        .otherwise(pl.col("input_ids"))
        .cast(pl.Int32)
        .alias("input_ids"),
        pl.col("action_code").fill_null(UNKNOWN_ACTION).cast(pl.Int16).alias("token_type_ids"),
        pl.when(known_gap).then(gap).alias("gap"),
        pl.col("timestamp").dt.epoch("us").fill_null(NO_TIME).alias("timestamps"),
        "part",
    )
    gaps = coded["gap"].to_numpy()
    buckets = np.searchsorted(np.asarray(coding.time_edges, dtype=np.float64), gaps, side="right") + FIRST_GAP
    time_gap_ids = np.where(np.isnan(gaps), NO_GAP, buckets).astype(np.int16)
    coded = coded.with_columns(pl.Series("time_gap_ids", time_gap_ids)).drop("gap")
    users = coded.group_by("user_id", maintain_order=True).agg(
        "input_ids", "token_type_ids", "time_gap_ids", "timestamps", "part"
    )
    return users.to_arrow().cast(FEATURES.arrow_schema)


class Vocabulary(Protocol):
    """What a tokenizer knows of a log."""

    @property
    def item_vocabulary(self) -> list[str]: ...
    @property
    def first_item_id(self) -> int: ...
    @property
    def action_vocabulary(self) -> list[str]: ...
    @property
    def time_edges(self) -> list[float]: ...


def tokenize_log(events: pl.DataFrame, vocabulary: Vocabulary) -> datasets.Dataset:
    """`encode_events` with the vocabulary of a tokenizer."""
    return encode_events(
        events,
        item_vocabulary=vocabulary.item_vocabulary,
        first_item_id=vocabulary.first_item_id,
        action_vocabulary=vocabulary.action_vocabulary,
        time_edges=vocabulary.time_edges,
    )


def save_unknown(events: pl.DataFrame, item_vocabulary: list[str], directory: Path) -> None:
    """Writes the items of a log that are outside the vocabulary beside its token ids, in the order of their codes."""
    known = pl.Series("item_id", item_vocabulary, dtype=pl.String).to_frame()
    write_unknown(events.select("item_id").drop_nulls().unique().join(known, on="item_id", how="anti"), directory)


def write_unknown(unknown: pl.DataFrame, directory: Path) -> None:
    """`save_unknown` of the column item_id."""
    unknown.sort("item_id").write_parquet(directory / UNKNOWN_ITEMS)


def unknown_items(directory: Path) -> list[str] | None:
    """What `save_unknown` wrote; None where an earlier version wrote the folder."""
    path = directory / UNKNOWN_ITEMS
    return pl.read_parquet(path)["item_id"].to_list() if path.is_file() else None


def save_dataset(dataset: datasets.Dataset, directory: Path) -> datasets.Dataset:
    """Writes the dataset to `directory`, whole or not at all, and returns it memory-mapped from there."""
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    dataset.save_to_disk(str(unfinished))
    replace_directory(unfinished, directory)
    return datasets.load_from_disk(str(directory))


@dataclass(frozen=True)
class Sequences:
    """All users' token ids as flat arrays; user u owns the slice `offsets[u]:offsets[u + 1]`.

    Attributes:
        offsets: (U + 1,) int64.
        items: (E,) int32, unknown items at or above `vocab_size`.
        actions, time_gaps: (E,) int16.
        timestamps: (E,) int64, microseconds since 1970 UTC, NO_TIME where unknown.
        parts: (E,) int8: TRAIN, VALIDATION or TEST.
        user_ids: U strings.
        vocab_size: number of token ids of the item vocabulary, specials included.
        first_item_id: the first id that is a real item; the ids from FIRST_NEW up to it are the `[NEW_j]` slots.
    """

    offsets: np.ndarray
    items: np.ndarray
    actions: np.ndarray
    time_gaps: np.ndarray
    timestamps: np.ndarray
    parts: np.ndarray
    user_ids: list[str]
    vocab_size: int
    first_item_id: int

    @classmethod
    def from_dataset(cls, dataset: datasets.Dataset, *, vocab_size: int, first_item_id: int) -> Sequences:
        """Flat views of a dataset made by `encode_events` (whole, not a selection of its rows)."""

        def flat(name: str) -> np.ndarray:
            column = dataset.data.column(name)
            parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        lengths = np.concatenate(
            [np.diff(chunk.offsets.to_numpy()) for chunk in dataset.data.column("input_ids").chunks]
        )
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(
            offsets=offsets,
            items=flat("input_ids"),
            actions=flat("token_type_ids"),
            time_gaps=flat("time_gap_ids"),
            timestamps=flat("timestamps"),
            parts=flat("part"),
            user_ids=dataset["user_id"][:],
            vocab_size=vocab_size,
            first_item_id=first_item_id,
        )

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_new_items(self) -> int:
        return self.first_item_id - FIRST_NEW

    def digest(self) -> str:
        """SHA-256 of the events and users in token ids: another log, or another way to read it, gives another."""
        digest = hashlib.sha256()
        for column in (self.items, self.actions, self.timestamps, self.time_gaps):
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update("\n".join(self.user_ids).encode())
        return digest.hexdigest()

    def user_of_event(self) -> np.ndarray:
        """(E,) int64: the user's index of every event."""
        return np.repeat(np.arange(self.num_users), np.diff(self.offsets))

    def known_items(self) -> np.ndarray:
        """(E,) bool: which events name an item of the vocabulary."""
        return (self.items >= self.first_item_id) & (self.items < self.vocab_size)

    def runs(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The events of `chosen` (E,) bool that name a known item, runs of one item as their first event.

        Returns:
            Their items, users and positions, (R,) int64 each, in order.
        """
        positions = np.flatnonzero(chosen & self.known_items())
        items, users = self.items[positions].astype(np.int64), self.user_of_event()[positions]
        starts = starts_of_runs(items, users)
        return items[starts], users[starts], positions[starts]
