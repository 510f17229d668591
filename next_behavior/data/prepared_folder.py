"""A prepared log: a folder of token ids that training maps into memory.

    writer = ShardWriter(folder)
    writer.add(users)                       # in the order of their ids
    writer.close()
    PreparedFolder.open("out/prepared").dataset()

The folder holds `sequences/` (Arrow files as `datasets.load_from_disk` reads them, one row per user), `tokenizer/`,
`prepared.json` (the split and how the log was read), `cleaning_report.json` and `rejects.parquet`. Shards are cut by
the number of events, so the files are the same however the log was divided while it was prepared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import FEATURES
from next_behavior.data.splits import Split

SEQUENCES, TOKENIZER, RECORD = "sequences", "tokenizer", "prepared.json"
REPORT, REJECTS = "cleaning_report.json", "rejects.parquet"
FORMAT_VERSION = 1
# Events of a shard, some 80 MB. A user's events stay together.
SHARD_EVENTS = 1 << 22
LISTS = [name for name in FEATURES if name != "user_id"]


class ShardWriter:
    """Writes the rows of `encode_users` to a folder for `datasets.load_from_disk`. Equal rows give equal files, however
    they are divided among the calls of `add`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._held: list[pa.RecordBatch] = []
        self._events = 0
        self._files: list[Path] = []
        self.users = 0

    def add(self, users: pa.Table) -> None:
        for batch in users.to_batches():
            lengths = np.diff(batch.column("input_ids").offsets.to_numpy())
            start = 0
            while start < len(lengths):
                room = SHARD_EVENTS - self._events
                fitting = int(np.searchsorted(np.cumsum(lengths[start:]), room, side="right"))
                if fitting == 0 and not self._held:
                    fitting = 1  # one user with more events than a shard holds
                if fitting:
                    self._held.append(batch.slice(start, fitting))
                    self._events += int(lengths[start : start + fitting].sum())
                start += fitting
                if start < len(lengths):
                    self._write()

    def close(self) -> None:
        """Writes what is left, and what `datasets` wants to know."""
        if self._held or not self._files:
            self._write()
        names = [f"data-{index:05d}-of-{len(self._files):05d}.arrow" for index in range(len(self._files))]
        digest = hashlib.sha256()
        for path, name in zip(self._files, names, strict=True):
            with open(path, "rb") as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
            os.replace(path, self._folder / name)
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": digest.hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        about = {"citation": "", "description": "", "features": FEATURES.to_dict(), "homepage": "", "license": ""}
        (self._folder / "state.json").write_text(json.dumps(state, indent=1))
        (self._folder / "dataset_info.json").write_text(json.dumps(about, indent=1))

    def _write(self) -> None:
        schema = FEATURES.arrow_schema
        columns = {name: joined_lists([batch.column(name) for batch in self._held], schema, name) for name in LISTS}
        users = [batch.column("user_id") for batch in self._held]
        names = pa.array([name for column in users for name in column.to_pylist()], pa.string())
        arrays = [names if field.name == "user_id" else columns[field.name] for field in schema]
        path = self._folder / f"shard-{len(self._files):05d}.unfinished"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
            stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        self._files.append(path)
        self.users += len(names)
        self._held, self._events = [], 0


def joined_lists(pieces: list[pa.Array], schema: pa.Schema, name: str) -> pa.Array:
    """Columns of lists as one, in buffers of its own."""
    kind = schema.field(name).type
    lengths = [np.diff(piece.offsets.to_numpy()) for piece in pieces]
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), *lengths]).cumsum()
    empty = np.zeros(0, dtype=kind.value_type.to_pandas_dtype())
    values = np.concatenate([empty, *(piece.flatten().to_numpy(zero_copy_only=False) for piece in pieces)])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, kind.value_type))


@dataclass(frozen=True)
class PreparedFolder:
    """A prepared log on disk.

    Attributes:
        path: its folder.
        source: the log that it was made of, as it was named.
        split: which events are held out.
        options: how the log was read.
        max_length: the longest history in events that training takes unless told otherwise.
        seed: of the draw of the users whose last events are held out, with the split none.
        min_item_count: items with fewer training events are outside the vocabulary.
        events, users: how many.
    """

    path: Path
    source: str
    split: Split
    options: ReadOptions
    max_length: int
    seed: int
    min_item_count: int
    events: int
    users: int

    @classmethod
    def open(cls, path: str | Path) -> PreparedFolder:
        """The prepared log in a folder.

        Raises:
            ValueError: there is none, or another version wrote it.
        """
        folder = Path(path)
        if not (folder / RECORD).is_file():
            raise ValueError(
                f"got {folder} without {RECORD}; expected a folder that next-behavior prepare wrote to the end: run it "
                "(again), an interrupted one goes on"
            )
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record.pop("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"got {folder}, which another version wrote; expected format {FORMAT_VERSION}: prepare again"
            )
        split, options = Split.from_dict(record.pop("split")), ReadOptions(**record.pop("options"))
        return cls(path=folder, split=split, options=options, **record)

    def write_record(self) -> None:
        record: dict[str, Any] = {
            **{entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self) if entry.name != "path"},
            "format_version": FORMAT_VERSION,
            "split": self.split.to_dict(),
            "options": dataclasses.asdict(self.options),
        }
        (self.path / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    def dataset(self) -> datasets.Dataset:
        """One row per user, memory-mapped."""
        return datasets.load_from_disk(str(self.path / SEQUENCES))
