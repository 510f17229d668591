"""Files and folders that are written whole or not at all.

    with whole_file(path) as unfinished:
        frame.write_parquet(unfinished)

After a crash the old version is in place, or the new one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. It takes the place of `path` at the end, and is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder, which whoever writes creates."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        replace_directory(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """The same for the files of a folder that may hold others: they take their places when all are written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as unfinished:
        yield Path(unfinished)
        for path in sorted(Path(unfinished).iterdir()):
            os.replace(path, folder / path.name)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keeps others from writing to the same folder. The lock goes with the process, however it ends.

    Raises:
        ValueError: another process is writing there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"got {folder}, to which another run is writing; expected a folder of this run's own: wait for the other, "
            "or name another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def replace_directory(unfinished: Path, final: Path) -> None:
    """Puts a finished folder in place; the old one is removed only when the new one is there."""
    old = final.with_name(final.name + ".old")
    # Without `final` a replacement was interrupted, and `old` is the only good one.
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(unfinished, final)
    shutil.rmtree(old, ignore_errors=True)
