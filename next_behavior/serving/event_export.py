"""The events of a store as a folder of Parquet files, which `next-behavior train --events FOLDER` reads.

    with closing(open_store("events.sqlite", read_only=True)) as store:
        print(export_events(store, "exported"))        # again later: only what came since is added

A file holds the events of a range of arrivals, which its name says: that is where the next export goes on. Files appear
whole or not at all, and are not changed, but for users who were erased since: their rows are written out of them.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from next_behavior.data.columns import ACTION, ITEM, TIME, USER
from next_behavior.data.events import DEFAULT_ACTION
from next_behavior.data.files import only_writer, whole_file, write_whole
from next_behavior.data.times import TIMESTAMP
from next_behavior.serving.event_store import EventStore, StoredEvent, micros

PART = re.compile(r"events-(\d{16})-(\d{16})\.parquet")
ERASURES = ".erasures.json"  # how many erasures the files know of; a log reader passes over it
LARGEST_PART = 1_000_000  # events
PAGE = 10_000


@dataclass(frozen=True)
class Export:
    """What an export did.

    Attributes:
        events: written now.
        erased: rows removed from files of before.
        last: the arrival number of the last event in the folder, 0 without one.
    """

    events: int
    erased: int
    last: int


def export_events(
    store: EventStore, folder: str | os.PathLike[str], after: int = 0, action: str = DEFAULT_ACTION
) -> Export:
    """Adds the events that the folder does not have, and removes users who were erased.

    Args:
        folder: made if absent. One store, one folder.
        after: where the first export begins: an arrival number.
        action: for events without one; a log needs one in each row.

    Raises:
        ValueError: another export is writing to the folder.
        StoreError: the store cannot be read. What was written is whole; the next export goes on behind it.
    """
    folder = Path(folder)
    with only_writer(folder):
        for unfinished in folder.glob(".events-*.part"):  # of an export that was killed
            unfinished.unlink()
        # Counted before anything is read: a user erased meanwhile is looked for by the next export.
        erasures = store.erasures()
        erased = 0
        if erasures != _known_erasures(folder):
            erased = sum(_without_erased_users(path, store) for path in _parts(folder))
            write_whole(folder / ERASURES, json.dumps({"erasures": erasures}))
        last = max([after, *(_last_arrival(path) for path in _parts(folder))])
        written = 0
        while events := _next_part(store, last):
            _write(
                event_frame(events, action),
                folder / f"events-{events[0].arrival:016d}-{events[-1].arrival:016d}.parquet",
            )
            last = events[-1].arrival
            written += len(events)
    return Export(written, erased, last)


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if PART.fullmatch(path.name))


def _last_arrival(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def _known_erasures(folder: Path) -> int:
    path = folder / ERASURES
    return json.loads(path.read_text(encoding="utf-8"))["erasures"] if path.exists() else 0


def _next_part(store: EventStore, after: int) -> list[StoredEvent]:
    events: list[StoredEvent] = []
    while len(events) < LARGEST_PART:
        page = store.journal(after, min(PAGE, LARGEST_PART - len(events)))
        if not page:
            break
        events += page
        after = page[-1].arrival
    return events


def event_frame(events: list[StoredEvent], action: str) -> pl.DataFrame:
    """user_id, item_id, action and timestamp of stored events, in their order."""
    columns = {
        USER: [event.user for event in events],
        ITEM: [event.item for event in events],
        ACTION: [action if event.action is None else event.action for event in events],
        TIME: [micros(event.time) for event in events],
    }
    frame = pl.DataFrame(columns, schema_overrides={ITEM: pl.String})
    return frame.with_columns(pl.col(TIME).cast(pl.Datetime("us")).cast(TIMESTAMP))


def _without_erased_users(path: Path, store: EventStore) -> int:
    """Removes the rows of erased users from a file, and the file if none is left; how many rows there were."""
    frame = pl.read_parquet(path)
    until = store.erased_until(frame[USER].unique().to_list())
    moments = frame[USER].replace_strict(
        list(until), [micros(moment) for moment in until.values()], default=-1, return_dtype=pl.Int64
    )
    kept = frame.filter(frame[TIME].cast(pl.Int64) > moments)
    if kept.is_empty():
        path.unlink()
    elif kept.height < frame.height:
        _write(kept, path)
    return frame.height - kept.height


def _write(frame: pl.DataFrame, path: Path) -> None:
    with whole_file(path) as unfinished:
        frame.write_parquet(unfinished)
        with unfinished.open("rb+") as stream:
            os.fsync(stream.fileno())  # the store may remove what it gave
