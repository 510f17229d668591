"""`--max_minutes`: when training has to stop, and how many events can be ranked in the time that is left.

Training gets three quarters of the time. The rest is for what comes after it: fitting on validation events, the final
evaluation, saving. Where ranking is slow, fewer events are ranked, always of whole users drawn at random.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator

from next_behavior.data.batches import target_positions
from next_behavior.data.sequences import VALIDATION, Sequences
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import NONE
from next_behavior.training.calibration import MEMORY_RANKINGS, validation_ndcg
from next_behavior.training.tokenized_log import TokenizedLog

# Share of the time kept for what comes after training, and the most that one validation may take.
FINAL_SHARE, VALIDATION_SHARE = 0.25, 0.05
# A validation takes about as long as ranking its targets three times; that time is measured on so many targets.
VALIDATION_RANKINGS, PROBED_TARGETS = 3, 128
# What all baselines together take to score one item for one target, about; a table from fewer targets says too little.
BASELINE_SECONDS_PER_ITEM = 1.1e-7
FEWEST_TEST_TARGETS = 500
# The memory is not fitted on fewer validation targets.
FEWEST_FITTED = 500


@dataclass(frozen=True)
class TimeLimit:
    """The time of the whole process: its start by `time.monotonic`, and its minutes, None without a limit."""

    started: float
    minutes: float | None

    def seconds_spent(self) -> float:
        return time.monotonic() - self.started

    def seconds_left(self) -> float:
        """Of the whole process; infinite without a limit."""
        return math.inf if self.minutes is None else 60 * self.minutes - self.seconds_spent()

    def training_end(self) -> float:
        """When training has to stop, in seconds after the start; infinite without a limit."""
        return math.inf if self.minutes is None else 60 * self.minutes * (1 - FINAL_SHARE)

    def progress(self) -> float:
        """The share of the training time that is spent; 0 without a limit, above 1 when it is over."""
        return self.seconds_spent() / self.training_end()


def affordable_validation_targets(
    model: BertForNextBehavior,
    log: TokenizedLog,
    planned: int,
    is_fixed: bool,
    limit: TimeLimit,
    seed: int,
    accelerator: Accelerator,
) -> int:
    """Validation targets while training: the planned number, or as many as can be ranked in a small part of the time;
    the same on all processes.

    Args:
        is_fixed: the user asks for the planned number.
    """
    sequences = log.sequences
    positions = target_positions(sequences, VALIDATION, planned, seed)
    sample = positions[sequences.items[positions] != NONE][:PROBED_TARGETS]
    if limit.minutes is None or is_fixed or not len(sample):
        return planned
    model.eval()
    validation_ndcg(model, log, sample)  # makes the lists of neighbors
    before = time.monotonic()
    validation_ndcg(model, log, sample)
    each = VALIDATION_RANKINGS * (time.monotonic() - before) / len(sample)
    model.train()
    affordable = max(FEWEST_FITTED, int(60 * limit.minutes * VALIDATION_SHARE / each))
    everywhere = accelerator.gather(torch.tensor([affordable], device=accelerator.device))
    return min(len(positions), int(cast(torch.Tensor, everywhere).min()))


def affordable_fit(
    sequences: Sequences, positions: np.ndarray, seconds_per_target: float, seconds_left: float, seed: int
) -> np.ndarray:
    """The validation targets that the memory is fitted on: those at `positions`, or as many of them as a third of the
    time that is left is enough for, or none. The rest of the time is for temperatures and the final table."""
    affordable = seconds_left / 3 / max(1e-9, MEMORY_RANKINGS * seconds_per_target)
    if affordable >= len(positions):
        return positions
    fewer = target_positions(sequences, VALIDATION, max(1, int(affordable)), seed)
    return fewer if affordable >= FEWEST_FITTED else positions[:0]


def affordable_test_targets(planned: int, num_items: int, seconds_per_target: float, seconds_left: float) -> int:
    """Test targets in the final table: the planned number, or as many as can be ranked in half of the time that is
    left. The other half is for fitting the baselines and for the actions."""
    each = seconds_per_target + num_items * BASELINE_SECONDS_PER_ITEM
    return min(planned, max(FEWEST_TEST_TARGETS, int(0.5 * seconds_left / each)))
