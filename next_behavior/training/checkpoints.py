"""What survives a killed run: `checkpoints/last` (all state) and `checkpoints/best` (the model).

Each is written whole or not at all. `--resume` goes on from `last` under the settings that it was written with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel

from next_behavior.data.files import replace_directory
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.training.lora import save_with_adapter
from next_behavior.training.saved_state import TENSORS, TrainingState
from next_behavior.training.settings import MAY_CHANGE_ON_RESUME

CHECKPOINTS = "checkpoints"
# The last checkpoint, and where it lies while it is replaced.
LAST = ("last", "last.old")
RECORD = "settings.json"


@dataclass(frozen=True)
class RunIdentity:
    """What a resumed run must share with the interrupted one: else its weights would not be continued but mixed.

    Attributes:
        settings, read_options: as dictionaries.
        log: digest of the tokenized log.
        readers: processes that train on batches of their own.
    """

    settings: Mapping[str, Any]
    read_options: Mapping[str, Any]
    log: str
    readers: int

    def check(self, then: Mapping[str, Any], where: Path) -> None:
        """Raises a ValueError that names what differs from the run recorded in `then`."""
        remedy = "repeat them as they were, or start without --resume."
        for kind, now in (("settings", self.settings), ("read_options", self.read_options)):
            now = json.loads(json.dumps(now))
            differ = [
                f"{name}: {then[kind].get(name)} then, {value} now"
                for name, value in now.items()
                if name not in MAY_CHANGE_ON_RESUME and then[kind].get(name) != value
            ]
            if differ:
                what = "settings" if kind == "settings" else "options of reading the log"
                raise ValueError(
                    f"--resume continues the interrupted run, but its {what} differ ({'; '.join(differ)}): {remedy}"
                )
        readers = then.get("readers", self.readers)  # earlier versions did not record them
        if readers != self.readers:
            raise ValueError(
                f"--resume continues the interrupted run, but {self.readers} process(es) would share its batches, and "
                f"{readers} did: start as many (accelerate launch --num_processes), or start without --resume."
            )
        if then["log"] != self.log:
            raise ValueError(
                f"--resume continues the interrupted run in {where}, but the events are not those that it was training "
                "on: name the same log, or start without --resume."
            )


def interrupted_batch_size(output: Path, identity: RunIdentity) -> int:
    """tokens_per_batch of the run in `output` that is resumed: smaller than planned where memory was short.

    Raises:
        ValueError: there is no such run, it was another one, or an earlier version wrote it.
    """
    last = last_checkpoint(output / CHECKPOINTS)
    record = json.loads((last / RECORD).read_text())
    if "log" not in record or not (last / TENSORS).is_file():
        raise ValueError(
            f"got the checkpoint {last} of an earlier version, expected one that this version wrote: earlier ones held "
            "pickles, which can run code when they are read. Start without --resume."
        )
    identity.check(record, output)
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
        identity, tokens_per_batch: kept with them, for `interrupted_batch_size`.
    """

    def __init__(self, accelerator: Accelerator, output: Path, identity: RunIdentity, tokens_per_batch: int) -> None:
        self.accelerator = accelerator
        self.output, self.root = output, output / CHECKPOINTS
        self.record = {**asdict(identity), "tokens_per_batch": tokens_per_batch}

    def has_last(self) -> bool:
        """Whether there is something to resume."""
        return any((self.root / name).exists() for name in LAST)

    def save_last(self, state: TrainingState) -> None:
        """Writes the state, which is the same in all processes, the rows of a sharded item table aside."""
        unfinished = self.root / "last.unfinished"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        state.save(unfinished, writes=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            (unfinished / RECORD).write_text(json.dumps(self.record, indent=1))
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
