"""The event store in a SQLite file: erased bytes, full disks, locks, damage, and processes that are killed."""

from __future__ import annotations

import collections
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest
from stored_events import WRITER, event

from next_behavior.serving import sqlite_file, sqlite_store, sqlite_writer
from next_behavior.serving.event_store import StoreBusy, StoreDamaged, StoreFull, StoreReadOnly
from next_behavior.serving.open_store import open_store
from next_behavior.serving.sqlite_store import SQLiteStore

ROOT = Path(__file__).resolve().parent.parent


def test_one_process_writes_and_others_read(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with closing(open_store(str(path))) as store:
        store.append([event("e1")])
        with pytest.raises(StoreBusy, match="Redis"):
            SQLiteStore(path)
        with closing(open_store(str(path), read_only=True)) as reader:
            assert [stored.user for stored in reader.journal()] == ["ann"]
            for call in (lambda: reader.append([event("e2")]), lambda: reader.erase("ann")):
                with pytest.raises(StoreReadOnly):
                    call()
            assert "read-only" in reader.description
        assert apsw.sqlite_lib_version() in store.description
    with closing(SQLiteStore(path)) as store:
        assert store.count() == 1


def test_the_bytes_of_an_erased_user_leave_the_files(tmp_path: Path) -> None:
    names = [f"user-{number * 7919 % 10007:05d}-{'x' * (number % 40)}|" for number in range(600)]
    with closing(SQLiteStore(tmp_path / "events.sqlite")) as store:
        for begin in range(3):
            store.append(
                [event(f"{name}{n}", name, time=float(n * 31 % 17)) for n in range(begin, 12, 3) for name in names]
            )
        erased = names[::29]
        threads = [threading.Thread(target=store.erase, args=(name,)) for name in erased]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert not [name for name in erased if name.encode() in content]
        assert sum(name.encode() in content for name in names) == len(names) - len(erased)
        assert (tmp_path / "events.sqlite-wal").stat().st_size == 0
        assert sorted(store.users(1000)) == sorted(set(names) - set(erased))


def test_an_erasure_says_when_another_reader_keeps_the_old_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_MS", 20)
    path = tmp_path / "events.sqlite"
    with closing(SQLiteStore(path)) as store:
        store.append([event("e1"), event("e2", "bob")])
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as other:
            other.execute("BEGIN; SELECT * FROM events").fetchall()
            with pytest.raises(StoreBusy, match="erase the user again"):
                store.erase("ann")
            assert store.history("ann", 1) == []
        store.erase("ann")
        assert (tmp_path / "events.sqlite-wal").stat().st_size == 0


def test_what_is_too_old_leaves_the_file_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "SECONDS_BETWEEN_STEPS", 0.02)
    monkeypatch.setattr(sqlite_writer, "SECONDS_BETWEEN_STEPS", 0.02)
    now = 1000.0
    with closing(SQLiteStore(tmp_path / "events.sqlite", max_age=500.0, clock=lambda: now)) as store:
        store.append(
            [event(f"e{n}", f"user-{n}|", time=900.0) for n in range(1200)] + [event("young", "ann", time=1e4)]
        )
        now = 2000.0
        end = time.monotonic() + 20
        while store.count() > 1 and time.monotonic() < end:
            time.sleep(0.02)
        assert store.count() == 1
        assert store.users(9) == ["ann"]


def test_a_full_disk_refuses_events_until_there_is_space(tmp_path: Path) -> None:
    with closing(SQLiteStore(tmp_path / "events.sqlite")) as store:
        store.append([event("e1")])
        assert store._writer is not None
        run = store._writer.connection.execute
        run("PRAGMA max_page_count = 20").fetchall()
        large = [event(f"{n}", item=f"{n:>1000}") for n in range(100)]
        with pytest.raises(StoreFull, match="free space"):
            store.append(large)
        assert len(store.history("ann", 500)) == store.count() == 1
        run("PRAGMA max_page_count = 1000").fetchall()
        assert store.append(large) == ["inserted"] * 100


def test_a_file_system_without_space_refuses_events_until_there_is_some(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        with closing(SQLiteStore(tmp_path / "events.sqlite")) as store:
            store.append([event("e1")])
            (tmp_path / "ballast").write_bytes(bytes(700_000))
            large = [event(f"{n}", item=f"{n:>1000}") for n in range(300)]
            parts = (large[begin : begin + 10] for begin in range(0, 300, 10))
            with pytest.raises(StoreFull):
                collections.deque(map(store.append, parts))
            acknowledged = store.count()
            assert acknowledged == len(store.history("ann", 500)) > 1
            (tmp_path / "ballast").unlink()
            assert store.append(large[-10:]) == ["inserted"] * 10
            assert store.count() == acknowledged + 10
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_locked_file_refuses_events_until_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_MS", 20)
    path = tmp_path / "events.sqlite"
    with closing(SQLiteStore(path)) as store, closing(apsw.Connection(str(path))) as other:
        store.append([event("e1")])
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy, match="another program"):
            store.append([event("e2")])
        assert len(store.history("ann", 9)) == 1
        other.execute("ROLLBACK")
        assert store.append([event("e2")]) == ["inserted"]


@contextmanager
def stored(path: Path, events: int = 2000) -> Iterator[bytearray]:
    """The bytes of a closed store, written back when they were changed."""
    with closing(SQLiteStore(path)) as store:
        store.append([event(f"e{n}", f"user {n}") for n in range(events)])
    content = bytearray(path.read_bytes())
    yield content
    path.write_bytes(content)


def test_a_damaged_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with stored(path) as content:
        content[3 * 4096 : 20 * 4096] = b"\x5a" * (17 * 4096)
    with pytest.raises(StoreDamaged, match=r"\.recover"):
        SQLiteStore(path)
    # Read-only, what is whole is read, and the rest is an error of that call.
    with closing(SQLiteStore(path, read_only=True)) as store, pytest.raises(StoreDamaged):
        store.journal(limit=10**9)
    with stored(tmp_path / "short.sqlite") as content:
        del content[len(content) // 2 :]
    with pytest.raises(StoreDamaged, match=r"\.recover"):
        SQLiteStore(tmp_path / "short.sqlite")
    path.write_bytes(b"an event log, say" * 100)
    with pytest.raises(StoreDamaged, match=r"\.recover"):
        SQLiteStore(path)


def test_a_file_of_something_else_or_of_a_later_version_is_refused(tmp_path: Path) -> None:
    for name, statement, message in (
        ("other", "CREATE TABLE t (x); PRAGMA application_id = 7", "no event store"),
        ("later", "PRAGMA user_version = 2", "version 2; expected version 1"),
    ):
        path = tmp_path / f"{name}.sqlite"
        if name == "later":
            SQLiteStore(path).close()
        with closing(apsw.Connection(str(path))) as connection:
            connection.execute(statement).fetchall()
        with pytest.raises(StoreDamaged, match=message):
            SQLiteStore(path)


def test_a_store_whose_making_was_interrupted_is_made(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
    path.with_name("events.sqlite.key.part").write_bytes(b"half a key")
    with closing(SQLiteStore(path)) as store:
        assert store.append([event("e1")]) == ["inserted"]


def test_a_file_that_may_not_be_written_refuses_events_and_is_read(tmp_path: Path) -> None:
    with closing(SQLiteStore(tmp_path / "events.sqlite")) as store:
        store.append([event("e1")])
        assert store._writer is not None
        store._writer.connection.execute("PRAGMA query_only = ON").fetchall()
        with pytest.raises(StoreReadOnly, match="the right to write"):
            store.append([event("e2")])
        assert len(store.history("ann", 9)) == 1
        store._writer.connection.execute("PRAGMA query_only = OFF").fetchall()
        assert store.append([event("e2")]) == ["inserted"]


def test_the_key_is_its_owners_alone_and_belongs_to_the_store(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with closing(SQLiteStore(path)) as store:
        for file in (path, path.with_name("events.sqlite.key"), path.with_name("events.sqlite-wal")):
            assert file.stat().st_mode & 0o777 == 0o600
        key = path.with_name("events.sqlite.key")
        store.append([event("e1")])
    key.unlink()
    with pytest.raises(StoreDamaged, match="restore the key"):
        SQLiteStore(path)
    # A crash between the two leaves a store without events and no key.
    empty = tmp_path / "empty.sqlite"
    SQLiteStore(empty).close()
    empty.with_name("empty.sqlite.key").unlink()
    SQLiteStore(empty).close()


def test_a_store_put_back_from_a_backup_gives_no_arrival_twice(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with stored(path, 1), closing(SQLiteStore(path)) as store:
        store.append([event("lost")])
        last = store.journal()[-1].arrival
    with closing(SQLiteStore(path)) as store:
        store.append([event("next")])
        assert [e.arrival > last for e in store.journal()] == [False, True]


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_every_acknowledged_event_outlives_a_kill_once(tmp_path: Path, rounds: int) -> None:
    path = tmp_path / "events.sqlite"
    acknowledged: list[str] = []
    for number in range(rounds):
        command = [sys.executable, "-c", WRITER, str(path), str(number)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(0.01 * (number % 7))
            process.kill()
            acknowledged += (first + process.stdout.read()).decode().split()
        assert first, "the writer did not begin"
        with closing(SQLiteStore(path)) as store:
            items = [stored.item for stored in store.journal(limit=10**9)]
            assert len(items) == len(set(items)) == store.count()
            assert set(acknowledged) <= set(items)
            histories = [str(row["item"]) for user in range(5) for row in store.history(f"user {user}", 10**9)]
            assert sorted(histories) == sorted(map(str, items))
            name = acknowledged[-1]
            _, _, batch, n = map(int, name.split("-"))
            assert store.append([event(name, f"user {n % 5}", name, time=float(batch))]) == ["duplicate"]
        with closing(apsw.Connection(str(path))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
