"""An event log of any size to the folder that training reads: cleaned, split and in token ids.

    prepared = prepare("events.parquet", "out/prepared")                    # next-behavior prepare, from Python

The log is read twice. The first pass finds what holds for all of it; the second divides the events into partitions by
ranges of user ids. Each partition is then ordered, counted and encoded on its own. What lies in the folder does not
depend on the number of partitions, and it is what training makes of the same log by itself (`prepared_log.py`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from next_behavior.data.columns import ITEM
from next_behavior.data.events import check_users, naming
from next_behavior.data.files import only_writer, replace_directory, write_whole
from next_behavior.data.held_out import drawn_users
from next_behavior.data.log_files import are_files_here, find_files
from next_behavior.data.log_statistics import LogStatistics
from next_behavior.data.prepared_folder import REJECTS, REPORT, SEQUENCES, TOKENIZER, PreparedFolder, ShardWriter
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import Coding, item_codes, write_unknown
from next_behavior.data.sources import LogSource, open_source
from next_behavior.data.splits import Split, late_cut, split_of_times
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.preparation.engine import Engine
from next_behavior.preparation.one_machine import OneMachine, fresh_folder
from next_behavior.preparation.outcome import check_read, counted_rejects, report_on, write_rejects
from next_behavior.preparation.partition import PartitionCounts, Parts
from next_behavior.preparation.spark import Spark
from next_behavior.preparation.spark_source import is_spark, open_spark, start_session
from next_behavior.training.prepared_log import FEWEST_NEW_ITEMS, LENGTH_QUANTILE, usual_length
from next_behavior.training.vocabulary import NUM_TIME_BUCKETS, assemble, describe_items, empty_vocabulary, time_edges

Say = Callable[[str], None]
VERSION = 1  # of the files on the way: another version's are not continued


@dataclass(frozen=True)
class PrepareSettings:
    """What decides a preparation, beside how the log is read.

    Attributes:
        split: "time", "leave_one_out" or "none", as in training.
        seed: of the draw of the users whose last events are held out, with the split none.
        max_length: the longest history in events; None takes it from the log.
        min_item_count: items with fewer training events stay outside the vocabulary.
        partitions: how many the log is divided into; None: by its rows. It decides memory and nothing else.
    """

    split: str = "time"
    seed: int = 0
    max_length: int | None = None
    min_item_count: int = 1
    partitions: int | None = None

    def __post_init__(self) -> None:
        Split(self.split, *((0, 0) if self.split == "time" else (None, None)))  # checks the name
        for name, value in (("max_length", self.max_length), ("partitions", self.partitions)):
            if value is not None and value < 1:
                raise ValueError(f"got {name}={value}; expected at least 1")
        if self.min_item_count < 1:
            raise ValueError(f"got min_item_count={self.min_item_count}; expected at least 1")


def prepare(
    source: object,
    output: str | os.PathLike[str],
    settings: PrepareSettings = PrepareSettings(),
    options: ReadOptions | None = None,
    items: pl.DataFrame | None = None,
    say: Say = print,
    engine_name: str = "one_machine",
    master: str | None = None,
) -> PreparedFolder:
    """Prepares a log on this machine or with Spark.

    Args:
        source: as in `read_events`; files are read in pieces. A DataFrame of Spark, or with the engine Spark a table's
            name or Parquet files.
        output: the folder to write, whole or not at all. Beside it lies a hidden one while it is made.
        items: item_id and title, for display, as `read_items` gives them.
        engine_name: "one_machine" or "spark".
        master: of a new Spark session, such as "local[4]"; None takes the session there is.

    Raises:
        FileNotFoundError, ValueError: as in `read_events` and `make_split`.
    """
    output, asked = Path(output), options or ReadOptions()
    work = output.with_name(f".{output.name}.unfinished")
    with only_writer(work), naming(source):
        options = continued(work, source, asked, settings)
        notes: list[str] = []
        engine: Engine
        if engine_name == "spark" or is_spark(source):
            log, frame, ends = open_spark(source, start_session(master), options, notes)
            engine = Spark(frame, log, ends, options, settings.partitions, say)
        else:
            log = open_source(source, options, notes)
            engine = OneMachine(work, log, options, settings.partitions, say)
        prepared = prepare_with(engine, log, work / "finished", settings, options, notes, items, say, output)
        # As it was asked: not with the moment of this preparation.
        prepared = dataclasses.replace(prepared, options=asked)
        prepared.write_record()
        replace_directory(work / "finished", output)
    shutil.rmtree(work, ignore_errors=True)
    return dataclasses.replace(prepared, path=output)


def continued(work: Path, source: object, options: ReadOptions, settings: PrepareSettings) -> ReadOptions:
    """The options of a preparation that begins or goes on: the moment after which times lie in the future stays."""
    same: dict[str, Any] = {
        "version": VERSION,
        "settings": dataclasses.asdict(settings),
        "options": dataclasses.asdict(options),
        "source": os.urandom(8).hex(),  # a table in memory: nothing is continued
    }
    if isinstance(source, (str, os.PathLike)):
        same["source"] = os.fspath(source)
        if are_files_here(os.fspath(source)):
            paths = find_files(source, options.format).paths
            same["files"] = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    latest = options.latest().astimezone(timezone.utc).isoformat()
    return dataclasses.replace(options, latest_time=fresh_folder(work, {"same": same, "latest": latest})["latest"])


def prepare_with(
    engine: Engine,
    log: LogSource,
    folder: Path,
    settings: PrepareSettings,
    options: ReadOptions,
    notes: list[str],
    items: pl.DataFrame | None,
    say: Say,
    output: Path,
) -> PreparedFolder:
    """Writes the prepared log to `folder`, all but its record, with any engine.

    Args:
        output: where rejects go if there are too many.
    """
    survey, rows = engine.survey, engine.read()
    check_read(engine, rows, log, options, output / REJECTS)
    statistics = engine.clean()
    whole = sum(statistics, LogStatistics())
    if max(whole.lengths, default=0) < 2:
        counts = engine.count([Parts(Split("leave_one_out")) for _ in statistics])
        check_users(report_on(rows, whole, counts, log, survey, options, notes, counted_rejects(engine.rejects())))
    untimed = whole.events if whole.first is None else 0
    split = split_of_times(settings.split, engine.times(whole), untimed)
    cut = late_cut(engine.times(whole), untimed) if settings.split == "none" else None
    parts = parts_of(statistics, split, settings.seed, cut)
    counts = engine.count(parts)
    if cut is not None and not counts.held_out:  # as `hold_out_last_events`: the last ones of each user, then
        parts = parts_of(statistics, split, settings.seed, None)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    removed = write_rejects(engine.rejects(), folder / REJECTS)
    report = report_on(rows, whole, counts, log, survey, options, notes, removed)
    say(str(report))
    write_whole(folder / REPORT, json.dumps(report.to_dict(), indent=1, default=str))
    tokenizer, coding = vocabulary_of(counts, settings, items)
    tokenizer.save_pretrained(folder / TOKENIZER)
    writer = ShardWriter(folder / SEQUENCES)
    for users in engine.encode(parts, coding):
        writer.add(users)
    writer.close()
    write_unknown(coding.items.filter(pl.col("input_ids") >= len(tokenizer)).select(ITEM), folder / SEQUENCES)
    return PreparedFolder(
        path=folder,
        source=log.name,
        split=split,
        options=options,
        max_length=tokenizer.model_max_length,
        seed=settings.seed,
        min_item_count=settings.min_item_count,
        events=whole.events,
        users=writer.users,
    )


def parts_of(statistics: list[LogStatistics], split: Split, seed: int, cut: int | None) -> list[Parts]:
    """Which events of each partition are held out: with the split none, those after `cut` of the users that
    `hold_out_last_events` draws."""
    if split.how != "none":
        return [Parts(split) for _ in statistics]
    several = [one.users - one.lengths[1] for one in statistics]
    starts = np.cumsum([0, *several])
    drawn = drawn_users(int(starts[-1]), seed)
    return [
        Parts(split, drawn[(drawn >= start) & (drawn < end)] - start, cut) for start, end in itertools.pairwise(starts)
    ]


def vocabulary_of(
    counts: PartitionCounts, settings: PrepareSettings, items: pl.DataFrame | None
) -> tuple[BehaviorTokenizer, Coding]:
    """The tokenizer that training builds of the same log, and what stands for every item of it."""
    max_length = settings.max_length or usual_length(quantile(counts.lengths, LENGTH_QUANTILE))
    known = counts.items.filter((pl.col("known") > 0) & (pl.col("known") >= settings.min_item_count))
    known = known.sort("known", ITEM, descending=[True, False])
    if known.is_empty() and counts.items["known"].sum():
        raise empty_vocabulary(settings.min_item_count)
    actions = sorted(counts.actions.items(), key=lambda action: (-action[1], action[0]))
    gaps = [gap for gap in (counts.shortest, counts.longest) if gap is not None]
    tokenizer = assemble(
        known[ITEM].to_list(),
        [action for action, _ in actions],
        time_edges(np.array(gaps), NUM_TIME_BUCKETS),
        num_new_items=max(FEWEST_NEW_ITEMS, max_length),
        max_length=max_length,
    )
    describe_items(tokenizer, known["known"].to_list(), items)
    unknown = counts.items.join(known, on=ITEM, how="anti")[ITEM]
    codes = item_codes(tokenizer.item_vocabulary, tokenizer.first_item_id, unknown)
    return tokenizer, Coding(codes, tokenizer.action_vocabulary, tokenizer.time_edges)


def quantile(counts: Counter[int], share: float) -> float:
    """`np.quantile` of values, each of which is there as often as is counted."""
    values = np.array(sorted(counts))
    ends = np.cumsum([counts[value] for value in values.tolist()])
    place = share * (ends[-1] - 1)
    around = [
        int(values[np.searchsorted(ends, at, side="right")]) for at in (int(place), min(int(place) + 1, ends[-1] - 1))
    ]
    return float(np.quantile(around, place - int(place)))
