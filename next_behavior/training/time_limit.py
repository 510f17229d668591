"""`--max_minutes`: how the time of a run is divided, and how much can be done in what is left of it.

    preparation     item texts are read until a fifth of the time is over, the most frequent items first;
                    constants of counts are chosen until three tenths are, from what was tried by then
    training        until three quarters are over; for two fifths of the time where preparation took longer
    what follows    a last validation, the model read again, fits on validation events, the final table

What follows is foreseen from what has been measured so far in this run, on this machine: training stops as early as it
has to. Where ranking is slow, fewer events are ranked, always of whole users drawn at random.
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
from next_behavior.training.calibration import MEMORY_RANKINGS
from next_behavior.training.encoded import encode_targets
from next_behavior.training.phases import clock
from next_behavior.training.probability_calibration import FEWEST_HURRIED, PROBABILITY_RANKINGS
from next_behavior.training.tokenized_log import TokenizedLog
from next_behavior.training.validation import validation_ndcg

# Shares of the time: when reading item texts ends, choosing how to count, choosing how much similar texts count; the
# least for training; what is kept for what comes after it.
TEXT_SHARE, COUNTING_SHARE, BUILDING_SHARE, TRAINING_SHARE, FINAL_SHARE = 0.2, 0.25, 0.3, 0.4, 0.25
# Of the time that is left before the final table: the constants of its baselines.
BASELINES_SHARE = 0.15
# The most that one validation may take.
VALIDATION_SHARE = 0.05
# Between two epochs, a validation that takes more of the time since the last one is left out.
VALIDATION_RATE = 0.05
# A validation encodes its targets, and takes about as long as ranking them three times then; both are measured on so
# many targets.
VALIDATION_RANKINGS, PROBED_TARGETS = 3, 64
# What all baselines together take to score one item for one target on an idle machine, about. On a busy one they take
# longer, as the model does.
BASELINE_SECONDS_PER_ITEM = 1.8e-7
# A choice between weights, a fit of the memory, temperatures and a table from fewer targets say too little.
FEWEST_VALIDATED, FEWEST_FITTED, FEWEST_CALIBRATED, FEWEST_TEST_TARGETS = 100, 500, 50, 200
# What follows training is foreseen with this reserve; it counts the start and the end of the process, too.
RESERVE = 1.4


@dataclass(frozen=True)
class TimeLimit:
    """The time of the whole process: its start by `time.monotonic`, and its minutes, None without a limit."""

    started: float
    minutes: float | None

    @property
    def seconds(self) -> float:
        """Of the whole process; infinite without a limit."""
        return math.inf if self.minutes is None else 60 * self.minutes

    def seconds_spent(self) -> float:
        return time.monotonic() - self.started

    def seconds_left(self) -> float:
        """Of the whole process; infinite without a limit."""
        return self.seconds - self.seconds_spent()

    def text_end(self) -> float:
        """When reading item texts has to stop, by `time.monotonic`."""
        return self.started + TEXT_SHARE * self.seconds

    def counting_end(self) -> float:
        """When choosing how to count has to stop, by `time.monotonic`."""
        return self.started + COUNTING_SHARE * self.seconds

    def baselines_end(self) -> float:
        """When choosing the constants of baselines has to stop, by `time.monotonic`."""
        return time.monotonic() + BASELINES_SHARE * self.seconds_left()

    def building_end(self) -> float:
        """When choosing how much similar texts count has to stop, by `time.monotonic`."""
        return self.started + BUILDING_SHARE * self.seconds


@dataclass
class TrainingTime:
    """When training has to stop. What follows it is foreseen from what was measured last.

    Attributes:
        begin: when training begins, in seconds after the start of the process.
        fixed_seconds: what follows takes so long at least, whatever it ranks: counts, reading and writing the model,
            the end of the process.
        seconds_per_target: of encoding the history of one target and ranking its items.
        seconds_per_ranking: of the latter alone.
        step_seconds, validation_seconds: of the last step and the last validation.
    """

    limit: TimeLimit
    begin: float
    fixed_seconds: float = 0.0
    seconds_per_target: float = 0.0
    seconds_per_ranking: float = 0.0
    step_seconds: float = 0.0
    validation_seconds: float = 0.0

    def note_ranking(self, targets: int, encoding: float, ranking: float) -> None:
        """Notes what encoding so many targets and ranking their items took, in seconds."""
        self.seconds_per_target, self.seconds_per_ranking = (encoding + ranking) / targets, ranking / targets

    def seconds_of_validation(self, targets: int) -> float:
        """What a validation on so many targets takes, as far as ranking has been measured."""
        return targets * (self.seconds_per_target + (VALIDATION_RANKINGS - 1) * self.seconds_per_ranking)

    @property
    def seconds_per_encoding(self) -> float:
        """Of encoding the history of one target."""
        return self.seconds_per_target - self.seconds_per_ranking

    @property
    def seconds_per_fitted(self) -> float:
        """A `MEMORY_RANKINGS`-th of what fitting the memory takes for one target, whose history is encoded once."""
        return self.seconds_per_ranking + self.seconds_per_target / MEMORY_RANKINGS

    def has_time_to_validate(self, seconds: float) -> bool:
        """Whether a validation is a small part of the seconds since the last one."""
        return self.validation_seconds <= VALIDATION_RATE * seconds

    def seconds_after(self) -> float:
        """What follows a last step takes at least."""
        ranked = PROBABILITY_RANKINGS * FEWEST_CALIBRATED + 2 * FEWEST_TEST_TARGETS
        least = self.seconds_per_target * ranked + self.seconds_per_encoding * FEWEST_HURRIED
        return self.step_seconds + RESERVE * (self.validation_seconds + self.fixed_seconds + least)

    def end(self) -> float:
        """When training has to stop, in seconds after the start of the process; infinite without a limit."""
        seconds = self.limit.seconds
        if seconds == math.inf:
            return seconds
        planned = max((1 - FINAL_SHARE) * seconds, self.begin + TRAINING_SHARE * seconds)
        return min(planned, seconds - self.seconds_after())

    def progress(self) -> float:
        """The share of the training time that is spent; 0 without a limit, at least 1 when it is over."""
        spent, end = self.limit.seconds_spent(), self.end()
        return 1.0 if spent >= end else max(0.0, spent - self.begin) / (end - self.begin)

    def outlook(self, seconds_per_epoch: float, min_epochs: int) -> str:
        """For the user, before training: how long it has, and how much of the log it can see.

        Args:
            min_epochs: passes that the limit does not cut short.
        """
        limit, end = self.limit, self.end()
        left = max(0.0, end - limit.seconds_spent())
        passes = left / max(1e-9, seconds_per_epoch)
        text = (
            f"Time: {clock(limit.seconds_spent()).strip()} of {clock(limit.seconds).strip()} are spent; training has "
            f"{clock(left).strip()}, about {passes:.1f} passes over its events."
        )
        if left < TRAINING_SHARE * limit.seconds:
            text += " Preparation took so long that this is less than two fifths of --max_minutes."
        if passes < min_epochs:
            text += f" --min_epochs {min_epochs} takes longer: the run will go beyond its limit."
        elif passes < 1:
            text += " That is less than one: a larger --max_minutes, or --min_epochs 1, lets it see them all."
        return text


def affordable_validation_targets(
    model: BertForNextBehavior,
    log: TokenizedLog,
    planned: int,
    is_fixed: bool,
    budget: TrainingTime,
    seed: int,
    accelerator: Accelerator,
) -> int:
    """Validation targets while training: the planned number, or as many as can be ranked in a small part of the time;
    the same on all processes. Notes in `budget` what ranking one takes.

    Args:
        is_fixed: the user asks for the planned number.
    """
    sequences = log.sequences
    positions = target_positions(sequences, VALIDATION, planned, seed)
    sample = positions[sequences.items[positions] != NONE][:PROBED_TARGETS]
    if budget.limit.minutes is None or not len(sample):
        return planned
    model.eval()
    for probed in (sample[:1], sample):  # the first makes the lists of neighbors
        before = time.monotonic()
        targets = encode_targets(model, sequences, VALIDATION, log.max_length, probed)
        encoded = time.monotonic()
        validation_ndcg(model, targets)
        budget.note_ranking(len(probed), encoded - before, time.monotonic() - encoded)
    model.train()
    each = max(1e-9, budget.seconds_of_validation(1))
    affordable = planned if is_fixed else max(FEWEST_VALIDATED, int(budget.limit.seconds * VALIDATION_SHARE / each))
    everywhere = accelerator.gather(torch.tensor([affordable], device=accelerator.device))
    chosen = min(len(positions), int(cast(torch.Tensor, everywhere).min()))
    budget.validation_seconds = budget.seconds_of_validation(chosen)
    return planned if is_fixed else chosen


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


def affordable_calibration(
    sequences: Sequences,
    positions: np.ndarray,
    num_actions: int,
    seconds_per_target: float,
    seconds_left: float,
    seed: int,
) -> np.ndarray:
    """The validation targets that probabilities are fitted on: those at `positions`, or as many as a quarter of the
    time that is left is enough for, and never none. They are drawn event by event: one user may have most of them.
    Another eighth of the time is for the heads."""
    affordable = seconds_left / 4 / max(1e-9, (PROBABILITY_RANKINGS + num_actions) * seconds_per_target)
    if affordable >= len(positions):
        return positions
    drawn = np.random.default_rng(seed).permutation(target_positions(sequences, VALIDATION))
    return np.sort(drawn[: max(FEWEST_CALIBRATED, int(affordable))])


def affordable_test_targets(planned: int, num_items: int, seconds_per_target: float, seconds_left: float) -> int:
    """Test targets in the final table: the planned number, or as many as can be ranked in half of the time that is
    left: once for the table, and once to measure their probabilities. The other half is for the intervals and for the
    actions."""
    each = 2 * seconds_per_target + max(seconds_per_target, num_items * BASELINE_SECONDS_PER_ITEM)
    return min(planned, max(FEWEST_TEST_TARGETS, int(0.5 * seconds_left / each)))
