"""Whether what a model has counted holds tested events: the counts of its vocabulary and those of its memory.

It is seen from how often an item is counted: more often than it occurs before the test, and no more often than the test
events explain. If some item is counted more often than the whole log holds it, the model was trained on other events,
too, and counts decide nothing. `audit.py` calls this.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from next_behavior.data.sequences import TRAIN, Sequences
from next_behavior.data.splits import Split
from next_behavior.evaluation.leaks import EXAMPLES, Audit, Leak, Rows
from next_behavior.model.special_ids import FIRST_ACTION
from next_behavior.model.vocabulary import VOCABULARY_FILE, plain_field

# Pairs of items that are looked for in the training events, at most; from more so many are drawn.
MOST_PAIRS = 50_000
MEMORY = "associate_path."


@dataclass(frozen=True)
class TrainingRecord:
    """What the folder of a model says of its training.

    Attributes:
        split: that it was trained with, None where it is not recorded.
        items: the user's ids of the vocabulary, in token order.
        counts: how many training events name each of them, None for an item that was added later.
        events: of the log it was trained on; None where it is not known.
        continues: whether it started from another model, which knew other events.
    """

    split: Split | None = None
    items: list[str] = field(default_factory=list)
    counts: list[int | None] = field(default_factory=list)
    events: int | None = None
    continues: bool = False


def training_record(folder: Path) -> TrainingRecord:
    """Reads split.json, vocabulary.tsv, cleaning_report.json and run.json, as far as they are there."""

    def content(name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text()) if (folder / name).is_file() else {}

    split, settings = content("split.json"), content("run.json").get("settings", {})
    items, counts = list[str](), list[int | None]()
    if (folder / VOCABULARY_FILE).is_file():
        table = pl.read_csv(folder / VOCABULARY_FILE, separator="\t", quote_char=None, infer_schema=False)
        items = [plain_field(item or "") for item in table["item"]]
        counts = table["count"].cast(pl.Int64, strict=False).to_list()
    return TrainingRecord(
        split=Split.from_dict(split) if split else None,
        items=items,
        counts=counts,
        events=content("cleaning_report.json").get("events"),
        continues=any(settings.get(name) is not None for name in ("base_model", "continue_from")),
    )


@dataclass(frozen=True)
class EventsByItem:
    """(V,) int64 each, events by token id: those that train, those before the test, and those of the whole log."""

    train: np.ndarray
    before: np.ndarray
    log: np.ndarray


def events_by_item(log: Sequences, part: int) -> EventsByItem:
    known = log.known_items()
    chosen = (known & (log.parts == TRAIN), known & (log.parts < part), known)
    return EventsByItem(*(np.bincount(log.items[one], minlength=log.vocab_size) for one in chosen))


def check_vocabulary(
    audit: Audit, log: Sequences, part: int, record: TrainingRecord, events: EventsByItem, rows: Rows
) -> None:
    """vocabulary.tsv counts no tested event, and no action is known from tested events alone."""
    counted = np.zeros(log.vocab_size, dtype=np.int64)
    listed = [0 if count is None else count for count in record.counts][: log.vocab_size - log.first_item_id]
    counted[log.first_item_id : log.first_item_id + len(listed)] = listed
    what = VOCABULARY_FILE
    if not counted.any():
        audit.undecided.append(f"no counts in {what}: which events the vocabulary was made from")
        return
    if not check_counts(audit, what, counted, events, record, len(log.items), rows):
        return
    is_same = np.array_equal(counted, events.train) or np.array_equal(counted, events.before)
    audit.checked.append(f"{what} counts the training events" if is_same else f"{what} counts no tested event")
    fewer = int(np.count_nonzero((counted > 0) & (counted < events.train)))
    if fewer:
        audit.undecided.append(
            f"{what} counts fewer training events of {fewer:,} items than this log holds: has the log changed since, "
            "or is it read with other options?"
        )
    added = int(np.count_nonzero(counted[log.first_item_id :] == 0))
    if added:
        audit.undecided.append(f"{added:,} items have no counted event: they were added after the training")
    tested, before = log.parts == part, log.actions[log.parts < part]
    late = tested & (log.actions >= FIRST_ACTION) & ~np.isin(log.actions, before)
    if late.any() and is_same and not record.continues:
        raise Leak(
            f"got actions in the vocabulary that only tested events have ({rows(np.flatnonzero(late))}); expected "
            "actions of the training events alone: train again with this --split"
        )


def check_counts(
    audit: Audit,
    what: str,
    counted: np.ndarray,
    events: EventsByItem,
    record: TrainingRecord,
    num_events: int,
    rows: Rows,
) -> bool:
    """Whether `counted` (V,) holds no more than the events before the test; False where that cannot be decided.

    Raises:
        Leak: it holds tested events.
    """
    excess = np.flatnonzero(counted > events.before)
    if not len(excess):
        return True
    beyond_log = counted[excess] > events.log[excess]
    examples = "; ".join(
        f"{rows.item(item)}: counted {counted[item]:,} times, {events.before[item]:,} before the test, "
        f"{events.log[item] - events.before[item]:,} in it"
        for item in excess[:EXAMPLES].tolist()
    )
    has_lost = record.events is not None and num_events < record.events
    if record.continues or has_lost or beyond_log.any():
        why = (
            "the model goes on from another one"
            if record.continues
            else "this log has fewer events than the one it was trained on"
            if has_lost
            else "the model was trained on events that this log does not hold"
        )
        text = f"{what} counts more events of {len(excess):,} items than come before the test ({examples}): {why}"
        audit.undecided.append(f"{text}, so whether tested ones are among them")
        if not record.continues:
            warnings.warn(
                f"{text}, so that it may know the tested ones. Evaluate on the log that it was trained on", stacklevel=2
            )
        return False
    number = int((counted - events.before)[excess].sum())
    raise Leak(
        f"got a model whose {what} counts {number:,} tested events of {len(excess):,} items ({examples}); expected "
        "training events alone. It has learned what is tested: train with this --split, or test it on later events. If "
        "events were deleted from the log since the training, evaluate on the log as it was"
    )


def check_memory(
    audit: Audit,
    state: Mapping[str, torch.Tensor],
    log: Sequences,
    part: int,
    record: TrainingRecord,
    events: EventsByItem,
    distance: int,
    rows: Rows,
) -> None:
    """The memory's counts of items and of pairs, and recent popularity, hold no tested event."""
    tables = {name: state.get(f"{MEMORY}{name}") for name in ("item_counts", "recent_counts", "pair_keys")}
    items, recent, keys = (None if table is None else table.cpu().numpy() for table in tables.values())
    if items is None or keys is None:
        audit.undecided.append("the model has no memory that can be read: what it counted")
        return
    counted = np.zeros(log.vocab_size, dtype=np.int64)
    counted[: min(len(items), log.vocab_size)] = items[: log.vocab_size]
    if not check_counts(audit, "memory", counted, events, record, len(log.items), rows):
        return
    if recent is not None:
        lately = np.flatnonzero(recent[: log.vocab_size] > 0)
        late = lately[(events.before[lately] == 0) & (events.log[lately] > 0)]
        if len(late) and not record.continues:
            raise Leak(
                f"got a model whose recent popularity counts items that only tested events name "
                f"({', '.join(map(rows.item, late[:EXAMPLES].tolist()))}); expected training events alone: use the "
                "model as it was trained"
            )
    pairs = pairs_of_the_test(log, part, counted, keys, distance)
    if len(pairs) and not record.continues:
        named = [
            f"{rows.item(int(pair >> 32))} before {rows.item(int(pair & 0xFFFFFFFF))}" for pair in pairs[:EXAMPLES]
        ]
        raise Leak(
            f"got a model whose memory holds {len(pairs):,} pairs of items that only tested events explain "
            f"({'; '.join(named)}); expected pairs of training events alone: use the model as it was trained"
        )
    audit.checked.append("the memory counts no tested event, and holds no pair that only tested events explain")


def pairs_of_the_test(log: Sequences, part: int, counted: np.ndarray, keys: np.ndarray, farthest: int) -> np.ndarray:
    """(N,) int64 keys x * 2**32 + y: pairs of the memory that end in a tested event and in no earlier one.

    Args:
        counted: (V,) how often the memory counts each item; others were passed over when pairs were counted.
        keys: (P,) int64, ascending; farthest: the distance up to which the memory counts pairs.
    """
    items, users, positions = log.runs(log.known_items() & (counted[np.minimum(log.items, log.vocab_size - 1)] > 0))
    tested = log.parts[positions] >= part

    def ending(ends: np.ndarray, distance: int) -> np.ndarray:
        last = np.flatnonzero(ends[distance:]) + distance
        last = last[users[last] == users[last - distance]]
        return (items[last - distance] << 32) + items[last]

    suspects = np.zeros(0, dtype=np.int64)
    for distance in range(1, farthest + 1):
        pairs = ending(tested, distance)
        suspects = np.union1d(suspects, pairs[places_in(keys, pairs) >= 0])
    if len(suspects) > MOST_PAIRS:
        suspects = np.sort(np.random.default_rng(0).choice(suspects, MOST_PAIRS, replace=False))
    explained = np.zeros(len(suspects), dtype=bool)
    for distance in range(1, farthest + 1 if len(suspects) else 0):
        places = places_in(suspects, ending(~tested, distance))
        explained[places[places >= 0]] = True
    return suspects[~explained]


def places_in(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(N,) int64: where each of the wanted stands among ascending keys, -1 where it does not.

    >>> places_in(np.array([3, 5]), np.array([5, 4, 3, 9]))
    array([ 1, -1,  0, -1])
    """
    if not len(keys):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
