"""Looks for leaks before an evaluation: whatever a model knows of the events that it is tested on.

    audit = audit_log(sequences, TEST, split)                       # of the split: also before a training
    audit = audit_model(model, sequences, TEST, split, training_record(folder))
    result["audit"] = audit.to_dict()

A leak raises `Leak`, which says what leaked, names the first rows and a remedy. What cannot be decided is said, not
passed over: `undecided`. What a model has counted is looked at in `audit_counts.py`.

References: Kaufman et al. 2012, "Leakage in Data Mining"; Ji et al. 2023, "A Critical Study on Data Leakage in
Recommender System Offline Evaluation".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from transformers import PreTrainedModel

from next_behavior.data.sequences import NO_TIME, TEST, TRAIN, VALIDATION, Sequences
from next_behavior.data.splits import LEAVE_ONE_OUT_EVENTS, Split, moment
from next_behavior.evaluation.audit_counts import TrainingRecord, check_memory, check_vocabulary, events_by_item
from next_behavior.evaluation.leaks import Audit, Leak, Rows

# Events at coarser times than this are told apart no more: the same row twice may be two events.
FINEST_COARSE_TIME = 60_000_000  # microseconds


# ----------------------------------------------------------------------------------------------------------------------
# The split of the log
# ----------------------------------------------------------------------------------------------------------------------


def audit_log(
    sequences: Sequences, part: int, split: Split | None, items: Sequence[str] = (), actions: Sequence[str] = ()
) -> Audit:
    """Whether the tested events come after those that train, and no row is among both.

    Args:
        part: that is tested.
        split: how the log was split, None where that is not known.
        items, actions: names in token order, for messages.

    Raises:
        Leak: they do not.
    """
    audit = Audit()
    check_order(audit, sequences, part, split, Rows(sequences, items, actions))
    check_duplicates(audit, sequences, part, split, Rows(sequences, items, actions))
    return audit


def check_order(audit: Audit, log: Sequences, part: int, split: Split | None, rows: Rows) -> None:
    """Each user's training events come before the tested ones; in a split by time, those of all users."""
    backwards = np.flatnonzero(np.diff(log.parts) < 0) + 1
    backwards = np.setdiff1d(backwards, log.offsets)
    if len(backwards):
        raise Leak(
            f"got {len(backwards):,} events that train, or validate, after a tested event of their user "
            f"({rows(backwards)}); expected them before it: let assign_parts split the log"
        )
    audit.checked.append("every user's tested events come after the events that train")
    if split is None:
        audit.undecided.append("the split is not recorded: whether training saw later events of other users")
    elif split.how == "leave_one_out":
        tested = log.parts == part
        known = log.timestamps[(log.parts == TRAIN) & (log.timestamps != NO_TIME)]
        if len(known) and tested.any():
            late = float((log.timestamps[tested] < known.max()).mean())
            audit.undecided.append(
                f"leave_one_out: {100 * late:.0f} % of the tested events are earlier than some training event of "
                "another user, whose effect cannot be taken out"
            )
    elif split.validation_cut is not None and split.test_cut is not None:
        check_cuts(audit, log, split.validation_cut, split.test_cut, rows)


def check_cuts(audit: Audit, log: Sequences, validation_cut: int, test_cut: int, rows: Rows) -> None:
    """The parts of a split by time lie between its cuts; an event at the very time of a cut is before it."""
    times, has_time = log.timestamps, log.timestamps != NO_TIME
    for part, name, low, high in (
        (TEST, "test", test_cut, None),
        (VALIDATION, "validation", validation_cut, test_cut),
        (TRAIN, "training", None, validation_cut),
    ):
        early = (times <= low) if low is not None else np.zeros(len(times), dtype=bool)
        late = (times > high) if high is not None else np.zeros(len(times), dtype=bool)
        wrong = np.flatnonzero((log.parts == part) & has_time & (early | late))
        if len(wrong):
            where = f"at or before the cut {moment(int(low or 0))}" if early[wrong[0]] else "after their cut"
            raise Leak(
                f"got {len(wrong):,} {name} events {where} ({rows(wrong)}); expected test events after "
                f"{moment(test_cut)} and training events up to {moment(validation_cut)}: let assign_parts split the log"
            )
    ties = int(np.count_nonzero(times == test_cut))
    audit.checked.append(
        f"all test events are later than {moment(test_cut)}, all training events no later than {moment(validation_cut)}"
        f" ({ties:,} event{'' if ties == 1 else 's'} at the very time of the test cut count as before it)"
    )
    if not has_time.all():
        missing = int(np.count_nonzero(~has_time))
        audit.undecided.append(f"{missing:,} events have no time: whether they came before the cut")


def check_duplicates(audit: Audit, log: Sequences, part: int, split: Split | None, rows: Rows) -> None:
    """No row (user, item, action, time) is among the tested ones and among earlier ones."""
    has_time = log.timestamps != NO_TIME
    if not has_time.all():
        audit.undecided.append("events without a time: whether a row is in two parts")
        return
    if split is not None and split.how == "time":
        audit.checked.append("no row is in two parts")  # their times differ
        return
    frame = pl.DataFrame(
        {"user": log.user_of_event(), "item": log.items, "action": log.actions, "time": log.timestamps}
    ).with_row_index("position")
    tested = frame.filter(pl.Series(log.parts == part))
    earlier = frame.filter(pl.Series(log.parts < part)).drop("position")
    twice = tested.join(earlier, on=["user", "item", "action", "time"], how="semi")["position"].to_numpy()
    if not len(twice):
        audit.checked.append("no row is in two parts")
    elif not (log.timestamps % FINEST_COARSE_TIME).any():
        audit.undecided.append(
            f"{len(twice):,} tested rows equal an earlier row of their user; the times of this log are too coarse to "
            "say whether they are the same event"
        )
    else:
        raise Leak(
            f"got {len(twice):,} tested rows that are among the earlier events, too: the same user, item, action and "
            f"time ({rows(np.sort(twice))}). Expected none: read the log with --duplicates drop, in training as in "
            "evaluation, or use --split time"
        )


# ----------------------------------------------------------------------------------------------------------------------
# What the model knows
# ----------------------------------------------------------------------------------------------------------------------


def audit_model(
    model: PreTrainedModel | None,
    sequences: Sequences,
    part: int,
    split: Split | None,
    record: TrainingRecord | None = None,
    actions: Sequence[str] = (),
) -> Audit:
    """`audit_log`, and whether the model was trained on tested events: by its recorded split, by what its vocabulary
    counts, and by what its memory counts. Warns of counts that this log cannot explain.

    Args:
        sequences: in the ids of the model.
        record: what its folder says; None where there is no folder.

    Raises:
        Leak: it was.
    """
    items = () if record is None else record.items
    audit, rows = audit_log(sequences, part, split, items, actions), Rows(sequences, items, actions)
    counts = events_by_item(sequences, part)
    if record is None:
        audit.undecided.append("what the folder of the model records of its training was not looked at")
        record = TrainingRecord()
    else:
        check_trained_split(audit, sequences, part, split, record, rows)
        check_vocabulary(audit, sequences, part, record, counts, rows)
    if model is not None:
        distance = model.config.memory_distance
        check_memory(audit, model.state_dict(), sequences, part, record, counts, distance, rows)
    return audit


def check_trained_split(
    audit: Audit, log: Sequences, part: int, split: Split | None, record: TrainingRecord, rows: Rows
) -> None:
    """No tested event trained or validated in the split that the model was trained with."""
    trained = record.split
    if trained is None or trained.how == "none":
        how = "is not recorded" if trained is None else "was none"
        audit.undecided.append(f"the split of the training {how}: only counts show what the model was trained on")
        return
    if trained == split:
        audit.checked.append("the model was trained with this split")
        return
    parts = parts_of(log, trained)
    known = np.flatnonzero((log.parts == part) & (parts < TEST))
    if len(known):
        learned = int(np.count_nonzero(parts[known] == TRAIN))
        raise Leak(
            f"got {len(known):,} tested events that the model knows: it was trained on {learned:,} of them and fitted "
            f"on {len(known) - learned:,} ({rows(known)}). It was trained with the split {trained}; expected a test of "
            "events that it has not seen: leave --split out, or train with the --split that you test"
        )
    audit.checked.append("no tested event was trained on, or validated, in the split of the training")


def parts_of(log: Sequences, split: Split) -> np.ndarray:
    """(E,) int64: the part of each event in a split, as `assign_parts` has it."""
    if split.validation_cut is not None and split.test_cut is not None:
        cuts = [split.validation_cut, split.test_cut]
        return np.searchsorted(np.array(cuts), log.timestamps, side="left")
    if split.how != "leave_one_out":
        return np.full(len(log.parts), TRAIN)
    users = log.user_of_event()
    length = np.diff(log.offsets)[users]
    from_end = log.offsets[users + 1] - 1 - np.arange(len(users))
    part = np.where(from_end == 0, TEST, np.where(from_end == 1, VALIDATION, TRAIN))
    return np.where(length >= LEAVE_ONE_OUT_EVENTS, part, TRAIN)
