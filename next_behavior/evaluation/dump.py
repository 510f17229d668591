"""Every prediction of an evaluation as a Parquet file, in the user's own ids: one row per target and ranker.

    with dumping(path, events, tokenizer.item_vocabulary, sequences) as dump:
        evaluate(..., dump=dump)
    pl.read_parquet(path)

The columns are

    user_id, position, time, item, action    the target; `position` is its place in the log, sorted by user and time
    group, switch, change       repeat, novel or cold; whether the item, and the action, differ from the ones before
    ranker                      the name of the row in the result
    rank_kept, rank_removed     the rank of the item, seen items kept and removed; null where it was not ranked
    top_kept, top_removed       the first ten items, best first
    probabilities               of the actions, in the order of `actions` in the result

Whoever doubts a number of the result computes it from these. Rows are written batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from next_behavior.data.batches import GROUP_NAMES, EvaluationBatch
from next_behavior.data.files import whole_file
from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.recommended import NO_CANDIDATE
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW, UNK

SCHEMA: dict[str, Any] = {
    "user_id": pl.String,
    "position": pl.Int64,
    "time": pl.Datetime("us", "UTC"),
    "item": pl.String,
    "action": pl.String,
    "group": pl.String,
    "switch": pl.Boolean,
    "change": pl.Boolean,
    "ranker": pl.String,
    "rank_kept": pl.Int64,
    "rank_removed": pl.Int64,
    "top_kept": pl.List(pl.String),
    "top_removed": pl.List(pl.String),
    "probabilities": pl.List(pl.Float64),
}
# Rows that are held before they are written.
ROWS_HELD = 20_000


@contextmanager
def dumping(
    path: Path | None, events: pl.DataFrame, items: Sequence[str], sequences: Sequences
) -> Iterator[PredictionDump | None]:
    """A dump to `path`, which is there when all is written; None without a path. Arguments as for `PredictionDump`."""
    if path is None:
        yield None
        return
    schema = pl.DataFrame(schema=SCHEMA).to_arrow().schema
    with whole_file(path) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as file:
        dump = PredictionDump(file, events, items, sequences)
        yield dump
        dump.flush()


class PredictionDump:
    """Writes the predictions of one evaluation.

    Args:
        file: where the rows go.
        events: the log with user_id, item_id, action and timestamp, in the order of `sequences`.
        items: the vocabulary, in token order.
        sequences: the log in token ids.
    """

    def __init__(
        self, file: pq.ParquetWriter, events: pl.DataFrame, items: Sequence[str], sequences: Sequences
    ) -> None:
        self._file = file
        self._targets = events.select(
            "user_id", pl.col("timestamp").alias("time").cast(SCHEMA["time"]), pl.col("item_id").alias("item"), "action"
        )
        self._sequences, self._first = sequences, sequences.first_item_id
        unknown = events["item_id"].drop_nulls().unique()
        unknown = unknown.filter(~unknown.is_in(pl.Series(items, dtype=pl.String).implode())).sort()
        # By token id or code, from the first item on.
        self._names = np.array([*items, *unknown.to_list()], dtype=object)
        self._held: list[pl.DataFrame] = []
        self._actions: Mapping[str, np.ndarray] = {}
        self._positions = self._changes = np.zeros(0, dtype=np.int64)

    def begin(self, positions: np.ndarray, changes: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> None:
        """Takes the actions, which are predicted first: for targets (N,) in any order, (N, A) for each ranker."""
        order = np.argsort(positions)
        self._positions, self._changes = positions[order], changes[order]
        self._actions = {name: values[order, FIRST_ACTION:] for name, values in probabilities.items()}

    def add_items(
        self,
        ranker: str,
        batch: EvaluationBatch,
        switch: np.ndarray,
        ranks: Sequence[np.ndarray],
        tops: Sequence[np.ndarray],
    ) -> None:
        """Adds the rows of a batch of targets that name an item, and what one ranker did with it.

        Args:
            ranks: two of (B,) int64, seen items kept and removed; above the number of ids, or negative, where the
                target was not ranked.
            tops: two of (B, k) int64, the best candidates, `NO_CANDIDATE` where there are fewer.
        """
        size = self._sequences.vocab_size
        rank = [
            pl.Series([int(one) if 0 < one <= size else None for one in column], dtype=pl.Int64) for column in ranks
        ]
        names = [pl.Series(self._listed(batch, top), dtype=SCHEMA["top_kept"]) for top in tops]
        group = [GROUP_NAMES.get(int(one)) for one in batch.group]
        columns = {"group": group, "switch": switch, "rank_kept": rank[0], "rank_removed": rank[1]}
        self._add(ranker, batch.position, {**columns, "top_kept": names[0], "top_removed": names[1]})

    def end(self, item_rankers: Sequence[str]) -> None:
        """Adds the rows of the targets that no item ranker was asked about: those without an item, and all targets of
        rankers that predict actions alone."""
        for ranker in self._actions:
            positions = self._positions
            if ranker in item_rankers:
                positions = positions[self._targets["item"].gather(positions).is_null().to_numpy()]
            self._add(ranker, positions, {})

    def _add(self, ranker: str, positions: np.ndarray, columns: Mapping[str, Any]) -> None:
        if not len(positions):
            return
        places = np.searchsorted(self._positions, positions)
        probabilities = self._actions.get(ranker)
        rows = {"position": positions, "change": self._changes[places], **columns}
        if probabilities is not None:
            rows["probabilities"] = probabilities[places].tolist()
        missing = {name: [None] * len(positions) for name in SCHEMA if name not in rows}
        frame = pl.DataFrame({**rows, **missing, "ranker": [ranker] * len(positions)}, schema_overrides=SCHEMA)
        frame = frame.with_columns(self._targets[positions])
        self._held.append(frame.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items()))
        if sum(map(len, self._held)) >= ROWS_HELD:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are held."""
        self._file.write_table(pl.concat([pl.DataFrame(schema=SCHEMA), *self._held]).to_arrow())
        self._held = []

    def _listed(self, batch: EvaluationBatch, top: np.ndarray) -> list[list[str]]:
        """The user's ids of the listed token ids (B, k), without the places that are empty."""
        codes = top.copy()
        log, is_new = self._sequences, (top >= FIRST_NEW) & (top < self._first)
        for row in np.flatnonzero(is_new.any(axis=1)).tolist():
            window = log.items[batch.window_start[row] : batch.position[row]]
            ids = batch.input_ids[row, batch.input_ids.shape[1] - len(window) :]
            slots = dict(zip(ids.tolist(), window.tolist(), strict=True))
            slots.pop(UNK, None)
            codes[row] = [slots[one] if new else one for one, new in zip(top[row].tolist(), is_new[row], strict=True)]
        names = self._names[np.maximum(codes - self._first, 0)]
        return [row[kept].tolist() for row, kept in zip(names, top != NO_CANDIDATE, strict=True)]
