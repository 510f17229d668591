"""What survives a killed run: `checkpoints/last` (all state) and `checkpoints/best` (the model).

Each is written whole or not at all. `--resume` goes on from `last` under the settings that it was written with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel

from next_behavior.data.files import replace_directory
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.training.lora import save_with_adapter
from next_behavior.training.saved_state import TrainingState
from next_behavior.training.settings import MAY_CHANGE_ON_RESUME

CHECKPOINTS = "checkpoints"
# The last checkpoint, and where it lies while it is replaced.
LAST = ("last", "last.old")


def interrupted_batch_size(output: Path, settings: Mapping[str, Any]) -> int:
    """tokens_per_batch of the run in `output` that is resumed: smaller than planned where memory was short.

    Args:
        settings: of the run that resumes it.

    Raises:
        ValueError: there is no such run, or it had other settings: its weights would not be continued but mixed.
    """
    record = json.loads((last_checkpoint(output / CHECKPOINTS) / "settings.json").read_text())
    then = record["settings"]
    changed = [
        f"{name}: {then.get(name)} then, {now} now"
        for name, now in settings.items()
        if name not in MAY_CHANGE_ON_RESUME and then.get(name) != now
    ]
    if changed:
        raise ValueError(
            f"--resume continues the interrupted run, but its settings differ ({'; '.join(changed)}): repeat them as "
            "they were, or start without --resume."
        )
    return int(record["tokens_per_batch"])


def last_checkpoint(root: Path) -> Path:
    """The last checkpoint, also one whose replacement was interrupted between its two renames."""
    for name in LAST:
        if (root / name).exists():
            return root / name
    raise ValueError(f"--resume: there is no checkpoint in {root}; start without --resume, or check --output_dir.")


class Checkpoints:
    """The checkpoints in the folder `output`.

    Args:
        settings, tokens_per_batch: kept with them, for `interrupted_batch_size`.
    """

    def __init__(
        self, accelerator: Accelerator, output: Path, settings: Mapping[str, Any], tokens_per_batch: int
    ) -> None:
        self.accelerator = accelerator
        self.output, self.root = output, output / CHECKPOINTS
        self.record = {"settings": dict(settings), "tokens_per_batch": tokens_per_batch}

    def has_last(self) -> bool:
        """Whether there is something to resume."""
        return any((self.root / name).exists() for name in LAST)

    def save_last(self, state: TrainingState) -> None:
        """Writes the state, which is the same in all processes."""
        if self.accelerator.is_main_process:
            unfinished = self.root / "last.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            state.save(unfinished)
            (unfinished / "settings.json").write_text(json.dumps(self.record, indent=1))
            replace_directory(unfinished, self.root / "last")
        self.accelerator.wait_for_everyone()

    def save_best(self, model: BertForNextBehavior, with_lora: PeftModel | None) -> None:
        if self.accelerator.is_main_process:
            unfinished = self.root / "best.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            if with_lora is None:
                model.save_pretrained(unfinished)
            else:
                save_with_adapter(with_lora, unfinished, self.output)
            replace_directory(unfinished, self.root / "best")
        self.accelerator.wait_for_everyone()

    def restore_last(self, state: TrainingState) -> None:
        state.load(last_checkpoint(self.root))

    def best(self) -> Path:
        """The folder of the best model."""
        return self.root / "best" if (self.root / "best").exists() else self.root / "best.old"
