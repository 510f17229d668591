"""What a training run wrote beside its model, and what the card may repeat of it.

Settings may name files and folders of the machine that trained. Others get only their last names.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from next_behavior.data.read_options import ReadOptions
from next_behavior.data.splits import Split, recorded_split
from next_behavior.publishing.hub import is_hub_id
from next_behavior.training.settings import RunSettings


@dataclass(frozen=True)
class Record:
    """The files of a run, read; None for a file that is not there.

    Attributes:
        run: run.json; cleaning: cleaning_report.json; evaluation: evaluation.json.
        split: split.json; without the file, the split `none`.
    """

    run: dict[str, Any] | None
    cleaning: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    split: Split

    @classmethod
    def read(cls, folder: Path) -> Record:
        def content(name: str) -> dict[str, Any] | None:
            path = folder / name
            return json.loads(path.read_text()) if path.exists() else None

        return cls(
            run=content("run.json"),
            cleaning=content("cleaning_report.json"),
            evaluation=content("evaluation.json"),
            split=recorded_split(folder) or Split("none"),
        )

    def is_local(self, setting: str) -> bool:
        """Whether a setting named a file or folder where the run took place."""
        return self.run is not None and setting in local_settings(self.run)


def local_settings(run: dict[str, Any]) -> list[str]:
    """The settings that named a file or folder where the run took place."""
    # Runs before November 2026 did not note it.
    return run.get("files", ["events"] if run["events_sha256"] else [])


def hub_id(run: dict[str, Any] | None, setting: str) -> str | None:
    """The Hub id that a setting of a run named; None if it named a file or folder, or nothing."""
    if run is None:
        return None
    name = run["settings"].get(setting) or ""
    return name if setting not in local_settings(run) and is_hub_id(name) else None


def command_of(run: dict[str, Any] | None) -> str | None:
    """The command that repeats a run: the settings that differ from the defaults, without folders' paths."""
    if run is None:
        return None
    parts = ["python train_accelerate.py"]
    for settings, kind in ((run["settings"], RunSettings), (run["read_options"], ReadOptions)):
        for entry in dataclasses.fields(kind):
            value = settings.get(entry.name, entry.default)
            if value == entry.default or entry.name == "resume":
                continue
            if entry.name in ("items", "output_dir", *local_settings(run)):
                value = Path(value).name
            parts.append(f"--{entry.name}" if value is True else f"--{entry.name} {shlex.quote(str(value))}")
    return " ".join(parts)
