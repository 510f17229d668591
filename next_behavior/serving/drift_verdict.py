"""Whether a model should be trained again, in words, from the numbers of a drift report.

The rules are few and stand here as constants. A loss of quality counts only beyond chance: the whole interval of
Recall@10 lies below what is tolerated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from next_behavior.serving.shift import FEWEST_EVENTS, LARGE_SHIFT, SMALL_SHIFT
from next_behavior.serving.training_record import TrainingRecord

# Recall@10 may fall by this share of what it was at the training.
TOLERATED_LOSS = 0.1
# Unknown items, where the training recorded no share of its own; else this many times the share of its test.
SOME_UNKNOWN, MANY_UNKNOWN = 0.1, 0.2
MORE_UNKNOWN = 1.5
# Expected calibration error of the next action.
LARGE_ERROR = 0.1


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Attributes:
        level: "retrain", "watch" (soon), "keep", or "unclear" (too few events).
        sentence: the same in plain words; reasons: one sentence each, the weightiest first.
    """

    level: Literal["retrain", "watch", "keep", "unclear"]
    sentence: str
    reasons: list[str]


def verdict_of(
    events: int,
    recall: float | None,
    interval: tuple[float, float] | None,
    record: TrainingRecord,
    unknown: float | None,
    action_psi: float | None,
    popularity_psi: float | None,
    calibration_error: float | None,
) -> Verdict:
    """Whether to train again.

    >>> verdict_of(5000, 0.1, (0.08, 0.12), TrainingRecord(recall=0.2), 0.01, 0.3, 0.05, 0.02).level
    'retrain'
    >>> verdict_of(5000, 0.2, (0.18, 0.22), TrainingRecord(recall=0.2), 0.01, 0.02, 0.05, 0.02).level
    'keep'
    """
    if events < FEWEST_EVENTS:
        return Verdict(
            "unclear",
            f"There are too few events to judge: {events:,}, and {FEWEST_EVENTS} are needed.",
            ["With so few events, every share below is mostly chance."],
        )
    strong, weak, fine = list[str](), list[str](), list[str]()
    _judge_recall(recall, interval, record, strong, fine)
    _judge_unknown(unknown, record, strong, weak, fine)
    if action_psi is not None:
        to = strong if action_psi > LARGE_SHIFT else weak if action_psi >= SMALL_SHIFT else fine
        what = "has changed a lot" if to is strong else "has changed somewhat" if to is weak else "is that of training"
        to.append(f"The mix of actions {what} (PSI {action_psi:.2f}).")
    if popularity_psi is not None and popularity_psi > LARGE_SHIFT:
        weak.append(f"Other items are popular now than in training (PSI {popularity_psi:.2f}).")
    if calibration_error is not None and calibration_error > max(LARGE_ERROR, 2 * (record.calibration_error or 0)):
        weak.append(
            f"Probabilities of the next action are off by {100 * calibration_error:.0f} percentage points on average."
        )
    if strong:
        return Verdict("retrain", "Train the model again: what happens now is not what it learned.", [*strong, *weak])
    if weak:
        return Verdict("watch", "Plan to train the model again soon: first signs of drift show.", [*weak, *fine])
    return Verdict("keep", "The model need not be trained again: nothing here says that it is out of date.", fine)


def _judge_recall(
    recall: float | None,
    interval: tuple[float, float] | None,
    record: TrainingRecord,
    strong: list[str],
    fine: list[str],
) -> None:
    if recall is None or interval is None or record.recall is None:
        return
    was, now = f"{100 * record.recall:.1f} %", f"{100 * recall:.1f} %"
    if interval[1] < record.recall * (1 - TOLERATED_LOSS):
        strong.append(f"The next item is among the first ten in {now} of cases; at the training it was {was}.")
    elif recall >= record.recall:
        fine.append(f"The next item is among the first ten in {now} of cases, no worse than at the training ({was}).")
    else:
        fine.append(
            f"The next item is among the first ten in {now} of cases; at the training it was {was}. A loss of a tenth "
            "of that, or one that may be chance, is tolerated."
        )


def _judge_unknown(
    unknown: float | None, record: TrainingRecord, strong: list[str], weak: list[str], fine: list[str]
) -> None:
    if unknown is None:
        return
    share = f"{100 * unknown:.1f} % of the events name an item that the model does not know"
    if record.unknown is None:
        to = strong if unknown > MANY_UNKNOWN else weak if unknown > SOME_UNKNOWN else fine
        to.append(f"{share}.")
        return
    more = unknown > SOME_UNKNOWN and unknown > MORE_UNKNOWN * record.unknown
    (strong if more else fine).append(f"{share}; at its test it was {100 * record.unknown:.1f} %.")
