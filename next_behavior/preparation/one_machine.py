"""One machine's engine: partitions are files, one of them in memory at a time.

A piece of the log becomes one Arrow file that holds a batch for each partition. A partition's batches are then read,
ordered and written. Each finished piece has a JSON file beside it, written last: a preparation that was interrupted
passes over those that are there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from next_behavior.data.columns import ITEM, USER
from next_behavior.data.events import as_rejects, set_aside
from next_behavior.data.files import whole_file, write_whole
from next_behavior.data.log_statistics import LogStatistics
from next_behavior.data.markers import count_markers
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import Coding
from next_behavior.data.sources import LogSource
from next_behavior.data.splits import OrderedTimes
from next_behavior.data.tables import Rows
from next_behavior.preparation.engine import ReadRows
from next_behavior.preparation.ordered_times import CountedTimes, histogram_of, latest_before
from next_behavior.preparation.partition import (
    FIRST_COUNTS,
    NO_ITEMS,
    SEQUENCE,
    PartitionCounts,
    Parts,
    clean_partition,
    count_partition,
    drop_rare,
    encode_partition,
    times_of,
)
from next_behavior.preparation.survey import survey_log

PARTITION_ROWS = 1 << 21  # about; of a partition, which is sorted in memory
PIECE_ROWS = 1 << 20  # of the log, divided at once
REJECT_ROWS = 1 << 22  # of the log, whose removed rows are put in order at once
COMPRESSION: Literal["lz4"] = "lz4"

Say = Callable[[str], None]


class Stage:
    """Files of one step, each with a JSON file that says what is in it, and that it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:06d}.{kind}"

    def done(self, number: int) -> Any:
        """What was said of a finished piece; None if it is not finished."""
        path = self.path(number, "json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def finish(self, number: int, about: dict[str, Any]) -> None:
        write_whole(self.path(number, "json"), json.dumps(about))

    def write(self, number: int, kind: str, frame: pl.DataFrame) -> None:
        with whole_file(self.path(number, kind)) as unfinished:
            frame.write_ipc(unfinished, compression=COMPRESSION)

    def read(self, number: int, kind: str, columns: list[str] | None = None) -> pl.DataFrame:
        return pl.read_ipc(self.path(number, kind), columns=columns)


class OneMachine:
    """The engine; its files are in the folder `work`."""

    def __init__(self, work: Path, log: LogSource, options: ReadOptions, partitions: int | None, say: Say) -> None:
        say(f"The log {log.name} is looked through")
        self.survey = survey = survey_log(log, options)
        wanted = partitions or 1 + survey.rows // PARTITION_ROWS
        self.bounds = survey.bounds(wanted)
        self.partitions = range(len(self.bounds) + 1)
        self._work, self._log, self._options, self._say = work, log, options, say
        self._read = Stage(work / "read")
        self._cleaned = Stage(work / "cleaned")
        self._pieces = 0
        self._rounds = 0

    # -- rows into partitions

    def read(self) -> ReadRows:
        total, held, rows = ReadRows(), list[tuple[int, Rows]](), 0
        for block in self._log.blocks(self._log.read()):
            held.append(block)
            rows += block[1].total
            if rows >= PIECE_ROWS:
                total += self._read_piece(held)
                held, rows = [], 0
                self._say(f"{self._pieces * PIECE_ROWS:,} of {self.survey.rows:,} rows are read")
        return total + self._read_piece(held) if held else total

    def _read_piece(self, blocks: list[tuple[int, Rows]]) -> ReadRows:
        number = self._pieces
        self._pieces += 1
        if (about := self._read.done(number)) is not None:
            return ReadRows.from_dict(about)
        counts = ReadRows()
        events, malformed, bad = list[pl.DataFrame](), list[tuple[int, str, str]](), list[pl.DataFrame]()
        for file, rows in blocks:
            start = self.survey.ends[file - 1] if file else 0
            raw, usable, unusable = self.survey.usable(rows, self._log, file, self._options.missing(), counts.notes)
            counts += ReadRows(markers=count_markers(raw, {**self._log.columns, USER: ""}))
            malformed += [(position + start, reason, text) for position, reason, text in rows.malformed]
            events.append(usable)
            if unusable.height:
                bad.append(unusable)
        self._divide(number, pl.concat(events))
        for kind, frame in (("malformed", set_aside(malformed)), ("bad", pl.concat(bad) if bad else None)):
            if frame is not None and frame.height:
                rejects = as_rejects(frame, self.survey.ends, self._log.files)
                counts.count_rejects(rejects)
                self._read.write(number, kind, rejects)
        counts.events = sum(frame.height for frame in events)
        counts.without_item = sum(frame[ITEM].null_count() for frame in events)
        self._read.finish(number, counts.to_dict())
        return counts

    def _divide(self, number: int, events: pl.DataFrame) -> None:
        """Writes one batch for each partition."""
        places = self.bounds.search_sorted(events[USER], side="right").alias("partition")
        order = places.arg_sort()
        ends = np.cumsum(np.bincount(places.to_numpy(), minlength=len(self.partitions)))
        table = events[order].to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
        options = pa.ipc.IpcWriteOptions(compression=COMPRESSION)
        with (
            whole_file(self._read.path(number, "arrow")) as unfinished,
            pa.OSFile(str(unfinished), "wb") as sink,
            pa.ipc.new_file(sink, table.schema, options=options) as file,
        ):
            for start, end in zip([0, *ends[:-1]], ends, strict=True):
                batches = table.slice(start, end - start).to_batches()
                file.write_batch(batches[0] if batches else empty_batch(table.schema))

    def _partition(self, number: int) -> pl.DataFrame:
        """The usable rows of a partition, in any order."""
        batches = []
        for piece in range(self._pieces):
            with pa.memory_map(str(self._read.path(piece, "arrow"))) as source, pa.ipc.open_file(source) as file:
                batches.append(file.get_batch(number))
        return pl.DataFrame(pa.Table.from_batches(batches))

    # -- partitions in order

    def clean(self) -> list[LogStatistics]:
        for number in self.partitions:
            if self._cleaned.done(number) is None:
                has_times = bool(self._log.times)
                events, removed = clean_partition(self._partition(number), self._options, has_times)
                self._write_cleaned(self._cleaned, number, events, removed)
                self._say(f"{number + 1:,} of {len(self.partitions):,} partitions are in order")
        for piece in range(self._pieces):
            self._read.path(piece, "arrow").unlink(missing_ok=True)
        if self._options.min_item_events > 1 or self._options.min_user_events > 1:
            self._drop_rare()
        return [LogStatistics.from_dict(self._cleaned.done(number)["statistics"]) for number in self.partitions]

    @staticmethod
    def _write_cleaned(stage: Stage, number: int, events: pl.DataFrame, removed: pl.DataFrame) -> None:
        stage.write(number, "events", events)
        with whole_file(stage.path(number, "times")) as unfinished, open(unfinished, "wb") as sink:
            np.save(sink, times_of(events))
        stage.write(number, "removed", removed)
        about = {"statistics": LogStatistics.of(events).to_dict(), "removed": removed.height}
        stage.finish(number, about)

    def _drop_rare(self) -> None:
        """The minimum counts, round by round: as `requested_rules` applies them to a whole log."""
        least_item, least_user = self._options.min_item_events, self._options.min_user_events
        while True:
            before, self._cleaned = self._cleaned, Stage(self._work / f"cleaned-{self._rounds + 1}")
            sequence = FIRST_COUNTS + 2 * self._rounds
            self._rounds += 1
            if any(self._cleaned.done(number) is None for number in self.partitions):
                counts = self._item_counts(before)
                rare = counts.filter(pl.col("events") < least_item)[ITEM]
                for number in self.partitions:
                    if self._cleaned.done(number) is None:
                        events, *gone = drop_rare(before.read(number, "events"), rare, least_user, sequence)
                        removed = pl.concat([before.read(number, "removed"), *gone])
                        self._write_cleaned(self._cleaned, number, events, removed)
            removed_now = sum(self._cleaned.done(n)["removed"] - before.done(n)["removed"] for n in self.partitions)
            for number in self.partitions:
                for kind in ("events", "times"):
                    before.path(number, kind).unlink(missing_ok=True)
            if not removed_now or least_item <= 1 or least_user <= 1:
                return

    def _item_counts(self, stage: Stage) -> pl.DataFrame:
        counts = NO_ITEMS.select(ITEM, "events")
        for number in self.partitions:
            items = stage.read(number, "events", [ITEM]).drop_nulls()
            counts = pl.concat([counts, items.group_by(ITEM).agg(pl.len().cast(pl.Int64).alias("events"))])
            counts = counts.group_by(ITEM).agg(pl.col("events").sum())
        return counts

    # -- rejects

    def unusable(self) -> Iterator[pl.DataFrame]:
        for kind in ("malformed", "bad"):
            for piece in range(self._pieces):
                if self._read.path(piece, kind).is_file():
                    yield self._read.read(piece, kind)

    def rejects(self) -> Iterator[pl.DataFrame]:
        yield from self.unusable()
        several = [number for number in self.partitions if self._cleaned.done(number)["removed"]]
        if not several:
            return
        for sequence in range(FIRST_COUNTS + 2 * self._rounds):
            for start in range(0, self.survey.rows, REJECT_ROWS):
                within = (pl.col(SEQUENCE) == sequence) & pl.col("row").is_between(start, start + REJECT_ROWS - 1)
                pieces = [self._cleaned.read(number, "removed").filter(within) for number in several]
                frame = pl.concat(pieces).drop(SEQUENCE)
                if frame.height:
                    yield as_rejects(frame, self.survey.ends, self._log.files)

    # -- counts and token ids

    def times(self, statistics: LogStatistics) -> OrderedTimes:
        def pieces() -> Iterator[np.ndarray]:
            return (np.load(self._cleaned.path(number, "times"), mmap_mode="r") for number in self.partitions)

        first, last = statistics.first or 0, statistics.last or 0
        count = statistics.events if statistics.first is not None else 0
        return CountedTimes(
            count,
            first,
            last,
            lambda low, width, bins: histogram_of(pieces(), low, width, bins),
            lambda time: latest_before(pieces(), time),
        )

    def count(self, parts: list[Parts]) -> PartitionCounts:
        stage, total = Stage(self._work / "counted"), PartitionCounts(NO_ITEMS)
        for number in self.partitions:
            if stage.done(number) is None:
                counts = count_partition(self._cleaned.read(number, "events"), parts[number])
                stage.write(number, "items", counts.items)
                stage.finish(number, counts.to_dict())
            total += PartitionCounts.from_dict(stage.done(number), stage.read(number, "items"))
        return total

    def encode(self, parts: list[Parts], coding: Coding) -> Iterator[pa.Table]:
        stage = Stage(self._work / "encoded")
        for number in self.partitions:
            if stage.done(number) is None:
                users = encode_partition(self._cleaned.read(number, "events"), parts[number], coding)
                with (
                    whole_file(stage.path(number, "arrow")) as unfinished,
                    pa.OSFile(str(unfinished), "wb") as sink,
                    pa.ipc.new_file(sink, users.schema) as file,
                ):
                    file.write_table(users)
                stage.finish(number, {"users": users.num_rows})
                self._say(f"{number + 1:,} of {len(self.partitions):,} partitions are in token ids")
            with pa.OSFile(str(stage.path(number, "arrow"))) as source, pa.ipc.open_file(source) as file:
                yield file.read_all()


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def fresh_folder(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The folder for what a preparation writes on its way: that of an interrupted one with the same identity, else an
    empty one. Returns the identity of the one that goes on."""
    record = folder / "identity.json"
    if record.is_file():
        then = json.loads(record.read_text(encoding="utf-8"))
        if then["same"] == json.loads(json.dumps(identity["same"])):
            return dict(then)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != ".lock":
            (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    write_whole(record, json.dumps(identity, indent=1))
    return identity
