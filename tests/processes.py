"""Programs as users start them: in a process of their own, or in this one as if it were new."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clean_processes
import pytest
from accelerate.state import AcceleratorState, GradientState

from next_behavior.commands.train import main as train
from next_behavior.publishing import check

ROOT = Path(__file__).resolve().parent.parent


def run_python(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, status: int = 0, anew: bool = False
) -> subprocess.CompletedProcess[str]:
    """Python in `folder`: offline, with one thread, an empty cache and no setting of this process.

    It has imported torch and libraries like it, and none of Hugging Face: it is forked by `clean_processes.py`.

    Args:
        arguments: of the interpreter; begin with "-I" for one that imports installed packages alone.
        environment: variables to add or to replace.
        status: the exit status that it must end with.
        anew: start an interpreter that has imported nothing.
    """
    settings = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    run: Any = subprocess.run if anew else clean_processes.run
    done = run(
        [sys.executable, *arguments], cwd=folder, env=settings | dict(environment or {}), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


def fork_checks_of_publishing(patch: pytest.MonkeyPatch) -> None:
    """The clean processes that load what is published are forked, too, as long as the patch lasts."""
    patch.setattr(check, "subprocess", SimpleNamespace(run=clean_processes.run, DEVNULL=subprocess.DEVNULL))


def end_of_command(script: str, *arguments: str) -> str | int | None:
    """What a command of the root folder gives to `sys.exit`: a text is printed to stderr, and the status is 1."""
    reset_accelerate()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return end.value.code


def run_training(events: Path, output: Path, *options: str) -> Path:
    """The folder that train_accelerate.py writes; it runs in this process, where a test can look into it."""
    reset_accelerate()
    train(["--events", str(events), "--output_dir", str(output), *options])
    return output


def reset_accelerate() -> None:
    """Forgets the settings of an earlier run in this process, which would hold for the next one too."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
