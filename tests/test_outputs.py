"""What a command writes to is checked before it begins: no file, nothing read-only, and nothing that is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from next_behavior.commands.__main__ import main_of
from next_behavior.commands.errors import message_of, run
from next_behavior.data.files import whole_files
from next_behavior.data.outputs import check_output_file, check_output_folder

# The arguments of every command, with a log, an item table, the folder of a model, and what is written.
COMMANDS: dict[str, Callable[..., list[Any]]] = {
    "prepare": lambda log, items, model, out: ["--events", log, "--items", items, "--output", out],
    "train": lambda log, items, model, out: ["--events", log, "--items", items, "--output_dir", out],
    "tokenize": lambda log, items, model, out: [log, "--items", items, "--output", out],
    "evaluate": lambda log, items, model, out: ["--model", model, "--events", log, "--json", out / "a.json"],
    "add-items": lambda log, items, model, out: ["--model", model, "--items", items, "--output_dir", out],
    "publish": lambda log, items, model, out: [
        *("--model", model, "--repo_id", "a/b", "--dry_run", "--events", log, "--output", out)
    ],
    "average": lambda log, items, model, out: [
        *("--model", model, "--model", model, "--events", log, "--output_dir", out)
    ],
    "tune-text": lambda log, items, model, out: ["--events", log, "--items", items, "--output_dir", out],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a log, an item table and an empty folder for a model."""
    (tmp_path / "events.csv").write_text("user_id,item_id\nu,a\nu,b\n")
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n")
    (tmp_path / "model").mkdir()
    return tmp_path


def end_of(command: str, place: Path, out: Path) -> str:
    """What a command says that cannot begin."""
    arguments = COMMANDS[command](place / "events.csv", place / "items.csv", place / "model", out)
    with pytest.raises(SystemExit) as end:
        run(command, partial(main_of(command), list(map(str, arguments))))
    return str(end.value.code)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_the_way_is_one_line_before_anything_is_read(command: str, place: Path) -> None:
    (place / "file").write_text("")
    for out in (place / "file", place / "file" / "below"):
        message = end_of(command, place, out)
        assert message.startswith(f"{command}: got --"), message
        assert str(place / "file") in message
        assert "\n" not in message


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_is_one_line(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write wherever a test can take rights away
    message = end_of(command, place, place / "new")
    assert "which cannot be written; expected a folder that can" in message
    assert "\n" not in message


@pytest.mark.parametrize("command", ["train", "tokenize", "publish"])
def test_a_folder_that_holds_the_log_is_refused(command: str, place: Path) -> None:
    before = sorted(place.iterdir())
    for out in (place, place.parent):
        assert "which holds what" in end_of(command, place, out)
    assert sorted(place.iterdir()) == before


def test_a_folder_inside_the_log_is_refused(place: Path) -> None:
    parts = place / "parts"
    parts.mkdir()
    shutil.copy(place / "events.csv", parts)
    check_output_folder(place / "new", "--output_dir", {"--events": str(parts)})
    with pytest.raises(ValueError, match="lies in what --events reads"):
        check_output_folder(parts / "new", "--output_dir", {"--events": str(parts)})
    with pytest.raises(ValueError, match="holds what --items reads"):
        check_output_folder(place, "--output_dir", {"--events": "name/on-the-hub", "--items": str(place / "items.*")})


def test_a_file_that_is_read_is_not_written(place: Path) -> None:
    log = str(place / "events.csv")
    check_output_file(place / "result.json", "--json", {"--events": log})
    with pytest.raises(ValueError, match="it would be overwritten"):
        check_output_file(place / "model" / ".." / "events.csv", "--json", {"--events": log})
    with pytest.raises(ValueError, match="which is a folder; expected a file"):
        check_output_file(place, "--json", {"--events": log})


def test_a_published_copy_is_never_laid_over_the_model(place: Path) -> None:
    (place / "model" / "old").mkdir()
    arguments = ["--model", place / "model" / "old", "--repo_id", "a/b", "--dry_run", "--output", place / "model"]
    with pytest.raises(SystemExit) as end:
        run("publish", partial(main_of("publish"), list(map(str, arguments))))
    assert "the model would be overwritten" in str(end.value.code)


def test_a_full_disk_names_no_file_that_was_only_read() -> None:
    room = "free some, or name a folder on another disk"
    full = OSError(28, "No space left on device", "/installed/package/code.py")
    assert message_of(full) == f"No space left on device: {room}"
    copied = shutil.Error([("from/a", "to/a", "[Errno 28] No space left on device: 'to/a'")] * 20)
    assert message_of(copied) == f"[Errno 28] No space left on device: 'to/a': {room}"


def test_files_are_put_in_place_when_all_are_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "other").write_text("mine")

    def fail() -> None:
        with whole_files(tmp_path) as unfinished:
            (unfinished / "a").write_text("new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "other": "mine"}
    with whole_files(tmp_path) as unfinished:
        (unfinished / "a").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "other": "mine"}
