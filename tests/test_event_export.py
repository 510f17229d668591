"""The export of the event store: what training reads, resumed, and without erased users."""

from __future__ import annotations

import datetime
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest
from stored_events import event

from next_behavior.data.events import read_events
from next_behavior.serving import event_export
from next_behavior.serving.event_export import Export, export_events
from next_behavior.serving.sqlite_store import SQLiteStore


def rows(folder: Path) -> list[tuple[str, str | None, str]]:
    return pl.concat(pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))).rows()


def test_training_reads_what_was_exported(tmp_path: Path) -> None:
    with closing(SQLiteStore(tmp_path / "events.sqlite")) as store:
        store.append(
            [
                event("e1", "ann", "84", "view", 1_700_000_000.25),
                event("e2", "007", None, None, 1_700_000_001.0),
                event("e3", "ann", "a, b", "buy", 1_600_000_000.0),
            ]
        )
        assert export_events(store, tmp_path / "log").events == 3
    log = read_events(tmp_path / "log")
    assert log.rejects.is_empty()
    at = datetime.datetime.fromtimestamp
    utc = datetime.timezone.utc
    assert log.events.select("user_id", "item_id", "action", "timestamp").rows() == [
        ("007", None, "interact", at(1_700_000_001, utc)),
        ("ann", "a, b", "buy", at(1_600_000_000, utc)),
        ("ann", "84", "view", at(1_700_000_000.25, utc)),
    ]


def test_an_export_goes_on_where_the_last_one_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_export, "LARGEST_PART", 3)
    monkeypatch.setattr(event_export, "PAGE", 2)
    folder = tmp_path / "log"
    with closing(SQLiteStore(tmp_path / "events.sqlite")) as store:
        assert export_events(store, folder) == Export(0, 0, 0)
        store.append([event(str(n), item=str(n)) for n in range(7)])
        first = export_events(store, folder)
        assert (first.events, first.last) == (7, store.journal()[-1].arrival)
        before = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
        assert len(before) == 3
        assert export_events(store, folder) == Export(0, 0, first.last)
        store.append([event("late", item="late", time=0.5)])
        assert export_events(store, folder).events == 1
        assert [item for _, item, *_ in rows(folder)] == [*map(str, range(7)), "late"]
        assert before.items() <= {path.name: path.read_bytes() for path in folder.glob("*.parquet")}.items()
        # The last part is lost half written: it is written again.
        newest = max(folder.glob("*.parquet"))
        newest.rename(folder / f".{newest.name}.1.part")
        assert export_events(store, folder).events == 1
        assert not list(folder.glob(".*.part"))


def test_erased_users_are_written_out_of_older_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_export, "LARGEST_PART", 2)
    folder = tmp_path / "log"
    with closing(SQLiteStore(tmp_path / "events.sqlite", clock=lambda: 100.0)) as store:
        users = ["ann", "ann", "bob", "ann", "bob", "bob"]
        store.append([event(str(n), user, str(n)) for n, user in enumerate(users)])
        export_events(store, folder)
        store.erase("ann")
        store.append([event("new", "ann", "new", time=101.0)])
        assert export_events(store, folder) == Export(1, 3, store.journal()[-1].arrival)
        assert [row[:2] for row in rows(folder)] == [("bob", "2"), ("bob", "4"), ("bob", "5"), ("ann", "new")]
        assert len(list(folder.glob("*.parquet"))) == 3
        store.erase("nobody")
        assert export_events(store, folder).erased == 0
        store.erase("ann")
        assert export_events(store, folder) == Export(
            0, 1, max(event_export._last_arrival(p) for p in folder.glob("*.parquet"))
        )
        assert {row[0] for row in rows(folder)} == {"bob"}
