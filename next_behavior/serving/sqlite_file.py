"""The file of a SQLite store: its tables, how it is opened and checked, its lock, its key, and SQLite's errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
from filelock import FileLock, Timeout

from next_behavior.serving.event_store import (
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)

APPLICATION_ID = 0x4E424553  # "NBES", in the header of the file
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE names (number INTEGER PRIMARY KEY, name TEXT NOT NULL, live INTEGER NOT NULL) STRICT;
CREATE TABLE users (
    hash BLOB PRIMARY KEY, number INTEGER NOT NULL, events INTEGER NOT NULL, horizon INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    user INTEGER NOT NULL, time INTEGER NOT NULL, arrival INTEGER NOT NULL,
    event_id BLOB NOT NULL, item TEXT, action TEXT, PRIMARY KEY (user, time, arrival)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX events_by_arrival ON events (arrival);
CREATE UNIQUE INDEX events_by_id ON events (event_id);
CREATE TABLE erased (hash BLOB PRIMARY KEY, time INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES ('arrivals', 0), ('users', 0), ('events', 0), ('erasures', 0);
"""
KEY_BYTES = 32
BUSY_MS = 2_000
# A file up to this size is checked whole when it is opened.
CHECKED_BYTES = 64 * 2**20
LARGEST_WAL = 64 * 2**20  # bytes that the file keeps after a checkpoint
PAGES_BETWEEN_CHECKPOINTS = 8_000  # of 4 KiB; a checkpoint writes scattered pages, and waits for the disk twice
CACHE_KIB = 65_536


def one_row(connection: apsw.Connection, statement: str, values: tuple[Any, ...] = ()) -> Any:
    """The first row of an answer, None without one."""
    return connection.execute(statement, values).fetchone()


def all_rows(connection: apsw.Connection, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
    """All of them."""
    return connection.execute(statement, values).fetchall()


# Opening


def lock_to_write(path: Path) -> FileLock:
    """Keeps other processes, and other stores of this one, from writing. The lock goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0, mode=0o600, is_singleton=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise StoreBusy(
            f"got {path}, to which another process writes; expected one process for a SQLite store: give several "
            "processes a Redis store, --store redis://HOST:6379/0"
        ) from None
    return lock


def open_file(path: Path, read_only: bool) -> apsw.Connection:
    """A connection to a store, made if absent. One to write to must be whole; of another is read what can be."""
    if read_only:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(BUSY_MS)
        _check_version(connection, path)
        return connection
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its other files the same permissions
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_MS)
    run = connection.execute
    run("PRAGMA journal_mode = WAL")
    if one_row(connection, "SELECT 1 FROM sqlite_schema") is None:  # new, or its making was interrupted
        run(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")  # fmt: skip
    _check_version(connection, path)
    if path.stat().st_size <= CHECKED_BYTES:
        (verdict,) = one_row(connection, "PRAGMA quick_check(1)")
        if verdict != "ok":
            raise StoreDamaged(f"{_damaged(path)} ({verdict})")
    run(
        "PRAGMA synchronous = FULL; PRAGMA secure_delete = ON; "
        f"PRAGMA journal_size_limit = {LARGEST_WAL}; PRAGMA cache_size = -{CACHE_KIB}; "
        f"PRAGMA wal_autocheckpoint = {PAGES_BETWEEN_CHECKPOINTS}"
    ).fetchall()  # apsw runs a statement when the rows of the one before are read
    return connection


def _check_version(connection: apsw.Connection, path: Path) -> None:
    (application,), (version,) = connection.execute("PRAGMA application_id; PRAGMA user_version").fetchall()
    if application != APPLICATION_ID:
        raise StoreDamaged(f"got {path}, a SQLite file that is no event store; expected one, or a new path")
    if version != SCHEMA_VERSION:
        raise StoreDamaged(
            f"got {path} of version {version}; expected version {SCHEMA_VERSION}: use the release that wrote it, or a "
            "new path"
        )


def hash_key(path: Path, connection: apsw.Connection, read_only: bool) -> bytes:
    """The key of the hashes, in a file beside the store that its owner alone may read; made with the store."""
    file = path.with_name(f"{path.name}.key")
    if file.exists():
        key = file.read_bytes()
        if len(key) == KEY_BYTES:
            return key
    used = one_row(connection, "SELECT sum(value) FROM counters")[0]
    if used or read_only:
        raise StoreDamaged(
            f"got {path} without the key {file.name} of {KEY_BYTES} bytes that belongs to it; expected both, as one "
            "backup: restore the key, or move the store away and begin a new one"
        )
    key = os.urandom(KEY_BYTES)
    unfinished = file.with_name(f"{file.name}.part")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(key)
        stream.flush()
        os.fsync(descriptor)
    os.replace(unfinished, file)
    folder = os.open(file.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    return key


# Errors


def _damaged(path: Path) -> str:
    return (
        f"got {path}, which is no event store, or a damaged one; expected the file that the store wrote: check "
        "the path. If it is damaged, stop the service and copy the files away. Then restore a backup of "
        f"{path.name} and {path.name}.key, or save what can be read with "
        f"`sqlite3 {path.name} .recover | sqlite3 NEW`, or move the files away to begin with an empty store. Opened "
        "read-only, it gives what can be read"
    )


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as those of a store."""
    try:
        yield
    except StoreError:
        raise
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise StoreDamaged(f"{_damaged(path)} ({error})") from error
    except apsw.FullError as error:
        raise StoreFull(
            f"got no space for {path} ({error}); expected some: free space, writing then goes on"
        ) from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreBusy(
            f"got {path}, locked by another program for {BUSY_MS / 1000:g} seconds; expected no other writer: end it"
        ) from error
    except (apsw.ReadOnlyError, apsw.PermissionsError, PermissionError) as error:
        raise StoreReadOnly(
            f"got {path}, which may not be written ({error}); expected the right to write to the file and its folder"
        ) from error
    except (apsw.CantOpenError, apsw.IOError, OSError) as error:
        raise StoreUnavailable(f"got an error of the disk for {path} ({error}); expected a path that works") from error
    except apsw.ConnectionClosedError as error:
        raise StoreUnavailable(f"got a call for {path} after close(); expected an open store: open it again") from error
