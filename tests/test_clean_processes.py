"""Processes that are forked after torch was imported (`clean_processes.py`) are those that Python starts anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import clean_processes
import pytest
from processes import run_python

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")

# Prints what a program can see of how it was started.
SEEN = """
import json, os, sys
input_text = sys.stdin.read()
told = [__name__, sys.argv, sys.path, sys.dont_write_bytecode, dict(os.environ), os.getcwd(), input_text]
print(json.dumps(told))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("-I", "-c", SEEN, "a", "b c"), ("-c", SEEN, "a"), ("program.py", "--option", "ä"), ("-I", "program.py"),
        ("-m", "program", "a"), ("-I", "-B", "-c", SEEN),
    ],
    ids=["-I -c", "-c", "script", "-I script", "-m", "-I -B -c"],
)  # fmt: skip
def test_a_program_sees_the_same_as_when_it_is_started_anew(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SEEN)
    environment = {"PYTHONPATH": f"{tmp_path}/first:{tmp_path}/second", "WORD": "value"}
    environment["LC_CTYPE"] = "C.UTF-8"  # which Python sets where it is not set
    forked, anew = (
        json.loads(run_python(tmp_path, *arguments, environment=environment, anew=anew).stdout)
        for anew in (False, True)
    )
    assert forked == anew


def test_nothing_of_hugging_face_or_of_this_project_is_imported_but_torch_is(tmp_path: Path) -> None:
    code = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    imported = set(run_python(tmp_path, "-I", "-c", code).stdout.split())
    assert "torch" in imported
    ours = {path.stem for folder in (ROOT, ROOT / "tests") for path in folder.glob("*.py")} | {"next_behavior"}
    others = {"transformers", "huggingface_hub", "tokenizers", "safetensors", "datasets", "peft", "accelerate"}
    assert not imported & (ours | others | {"evaluate", "pytest"})


@pytest.mark.parametrize(
    ("code", "status", "printed", "last_line"),
    [
        ("print('all')", 0, "all\n", None),
        ("import sys; sys.exit(3)", 3, "", None),
        ("import sys; print('some'); sys.exit('got nothing')", 1, "some\n", "got nothing"),
        ("print('some'); raise ValueError('got 1')", 1, "some\n", "ValueError: got 1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "", None),
        ("import atexit; atexit.register(print, 'the end')", 0, "the end\n", None),
    ],
)
def test_it_ends_as_any_other(code: str, status: int, printed: str, last_line: str | None, tmp_path: Path) -> None:
    for anew in (False, True):
        done = run_python(tmp_path, "-I", "-c", code, status=status, anew=anew)
        assert done.stdout == printed
        assert done.stderr.splitlines()[-1:] == ([] if last_line is None else [last_line])


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    code = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(100)"
    with pytest.raises(subprocess.TimeoutExpired):
        clean_processes.run(["python", "-I", "-c", code], cwd=tmp_path, env={}, timeout=0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_processes_run_beside_each_other_and_know_nothing_of_each_other(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ.pop('WORD', None), 'json.tool' in sys.modules); import json.tool"
    first = run_python(tmp_path, "-I", "-c", code, environment={"WORD": "one"}).stdout
    second = run_python(tmp_path, "-I", "-c", code).stdout
    assert (first, second) == ("one False\n", "None False\n")
    assert "WORD" not in os.environ
