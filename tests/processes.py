"""Programs as users start them: in a process of their own, or in this one as if it were new."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from next_behavior.commands.train import main as train


def run_python(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Python in `folder`: offline, with one thread, an empty cache and no setting of this process.

    Args:
        arguments: of the interpreter; begin with "-I" for one that imports installed packages alone.
        environment: variables to add or to replace.
        status: the exit status that it must end with.
    """
    settings = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=settings | dict(environment or {}), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


def run_training(events: Path, output: Path, *options: str) -> Path:
    """The folder that train_accelerate.py writes; it runs in this process, where a test can look into it."""
    reset_accelerate()
    train(["--events", str(events), "--output_dir", str(output), *options])
    return output


def reset_accelerate() -> None:
    """Forgets the settings of an earlier run in this process, which would hold for the next one too."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
