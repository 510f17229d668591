"""The console command: its help comes at once, what it does not know is one line, and each command has its file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from next_behavior.commands.__main__ import COMMANDS, main, main_of
from next_behavior.commands.errors import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "datasets", "polars", "numpy", "pyarrow", "scipy", "sklearn")


@pytest.fixture(autouse=True)
def _process_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["next-behavior"])


def test_the_help_of_every_command_needs_nothing_heavy() -> None:
    code = f"""
import sys
from next_behavior.commands.__main__ import COMMANDS, main
for arguments in ([], *([name, "--help"] for name in COMMANDS)):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, end.code
heavy = sorted({set(HEAVY)} & set(sys.modules))
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    usages = [line for line in result.stdout.splitlines() if line.startswith("usage:")]
    assert len(usages) == 1 + len(COMMANDS)
    for name, usage in zip(COMMANDS, usages[1:], strict=True):
        assert usage.startswith(f"usage: next-behavior {name} [-h]")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_without_a_command_the_commands_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    printed = capsys.readouterr().out
    assert printed.startswith("usage: next-behavior COMMAND")
    for name, what in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, what] for line in printed.splitlines()), name


def test_an_unknown_command_is_one_line_with_those_that_there_are() -> None:
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert end.value.code == f"next-behavior: got the command 'trian'; expected one of {', '.join(COMMANDS)}"


def test_every_command_has_a_file_and_every_file_is_a_command() -> None:
    files = {path.stem for path in (ROOT / "next_behavior" / "commands").glob("*.py")} - {
        "__init__",
        "__main__",
        "errors",
    }
    assert {name.replace("-", "_") for name in COMMANDS} == files
    for name in COMMANDS:
        assert main_of(name).__module__ == f"next_behavior.commands.{name.replace('-', '_')}"


def test_a_mistake_of_the_user_is_one_line_and_exit_status_1() -> None:
    command = [sys.executable, "-m", "next_behavior.commands", "evaluate", "--model", "no/such", "--events", "log.csv"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr == "next-behavior evaluate: got --model no/such; expected the folder of a trained model\n"


def test_a_wrong_option_is_answered_with_the_name_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["tokenize", "--colour", "red"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("usage: next-behavior tokenize ")


def test_the_package_installs_the_console_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"next-behavior": "next_behavior.commands.__main__:main"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("got a; expected b"), "train: got a; expected b"),
        (PermissionError(13, "Permission denied", "/out"), "train: Permission denied: /out: check the path, its "
         "permissions and the free space"),
        (OSError(28, "No space left on device"), "train: No space left on device: free some, or name a folder on "
         "another disk"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "train: No space left on device: free some, "
         "or name a folder on another disk (I/O error: No space left on device (os error 28))"),
    ],
)  # fmt: skip
def test_what_a_user_did_never_ends_in_a_traceback(error: BaseException, code: str | int) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run("train", fail)
    assert end.value.code == code


@pytest.mark.parametrize(("own", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_environment_says_otherwise(
    own: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", own or "")
    if own is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    policies = list[str | None]()
    run("train", lambda: policies.append(os.environ.get("OMP_WAIT_POLICY")))
    assert policies == [expected]


@pytest.mark.parametrize("said", ["", "interrupted at step 7; continue with --resume"])
def test_an_interruption_is_one_line_and_exit_status_130(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt(said) if said else KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run("train", interrupted)
    assert end.value.code == 130
    assert capsys.readouterr().err.strip() == f"train: {said or 'interrupted'}"


def test_a_bug_keeps_its_traceback() -> None:
    def fail() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run("train", fail)
