"""Windows over users' sequences and the padded batches made from them.

Training: a window is a slice of one user's events; every position predicts the event after it. A long sequence is cut
into overlapping windows. A window repeats the second half of the one before as context, and only its new half is
scored: no event is counted twice, and every target has context. Windows of similar length share a batch of about
`tokens_per_batch` positions, so that padding stays small.

Evaluation: one row per target event, with exactly the window that a served model would see for that history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from next_behavior.data.sequences import TRAIN, Sequences
from next_behavior.model.special_ids import (
    FIRST_ACTION,
    FIRST_GAP,
    FIRST_NEW,
    IGNORED,
    NO_GAP,
    NONE,
    PAD,
    START,
    START_ACTION,
    UNK,
)

REPEAT, NOVEL, COLD, NO_ITEM = 0, 1, 2, -1
NO_TARGET = -1  # the target item where no ranking can name it
GROUP_NAMES = {REPEAT: "repeat", NOVEL: "novel", COLD: "cold"}

# A batch sorted strictly by length would always hold the same users; lengths are jittered by this share.
LENGTH_JITTER = 0.1


def number_new_items(items: np.ndarray, unknown: np.ndarray, num_new_items: int) -> np.ndarray:
    """Replaces the unknown items of one window by `[NEW_1]`, `[NEW_2]` ... in order of first appearance.

    Args:
        items: (T,) int64 ids or codes, oldest first.
        unknown: (T,) bool, which of them to replace.
        num_new_items: slots there are; distinct unknown items beyond them become `[UNK]`.

    Returns:
        (T,) int64.
    """
    if not unknown.any():
        return items
    codes, first, inverse = np.unique(items[unknown], return_index=True, return_inverse=True)
    slot = np.empty(len(codes), dtype=np.int64)
    slot[np.argsort(first)] = np.arange(len(codes))
    ids = np.where(slot < num_new_items, slot + FIRST_NEW, UNK)
    numbered = items.copy()
    numbered[unknown] = ids[inverse]
    return numbered


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingWindows:
    """Slices of `Sequences` to train on.

    Attributes:
        max_length: most inputs of a window.
        start, stop: (W,) int64, the window's events; its inputs are `start:stop - 1`, its targets `start + 1:stop`.
        first_target: (W,) int64, targets before this event are context only.
        from_beginning: (W,) bool, whether the window starts at the user's first event.
        learned: (W,) bool, whether all its targets are learned already.
    """

    max_length: int
    start: np.ndarray
    stop: np.ndarray
    first_target: np.ndarray
    from_beginning: np.ndarray
    learned: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def training_windows(
    sequences: Sequences, max_length: int, learned: np.ndarray | None = None, users: np.ndarray | None = None
) -> TrainingWindows:
    """Windows of at most `max_length` inputs over each user's training events (part 0).

    Args:
        learned: (E,) bool, the events that a model has learned: a user's events from the first that is not have windows
            of their own, whose context may be learned events.
        users: (N,) indices of the users to take; None takes all.
    """
    windows: list[tuple[int, int, int, bool, bool]] = []
    # Training events come first in every user's sequence: both splits cut by time.
    train_counts = np.add.reduceat(np.append(sequences.parts == TRAIN, 0), sequences.offsets[:-1], dtype=np.int64)
    train_counts[np.diff(sequences.offsets) == 0] = 0
    for user in np.arange(sequences.num_users) if users is None else users:
        begin = int(sequences.offsets[user])
        end = begin + int(train_counts[user])
        known = 0 if learned is None else end - begin
        if learned is not None and not learned[begin:end].all():
            known = int(learned[begin:end].argmin())
        windows += [(*window, True) for window in cut(begin, begin, begin + known, max_length)]
        windows += [(*window, False) for window in cut(begin, begin + known, end, max_length)]
    start, stop, first, beginning, old = np.array(windows, dtype=np.int64).reshape(-1, 5).T
    return TrainingWindows(max_length, start, stop, first, beginning.astype(bool), old.astype(bool))


def cut(begin: int, first: int, end: int, max_length: int) -> Iterator[tuple[int, int, int, bool]]:
    """The windows of a user's events from `begin` on, whose targets are those from `first` up to `end`: start, stop,
    first target, and whether the window starts at the user's first event."""
    overlap = max_length - max(1, max_length // 2)
    start = begin if first == begin else max(begin, first - 1 - overlap)
    while first < end:
        stop = min(start + max_length + 1, end)
        yield start, stop, first, start == begin
        first, start = stop, stop - 1 - overlap


def length_bucketed_batches(
    lengths: np.ndarray, tokens_per_batch: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Batches of window indices such that rows x longest row stays at or below `tokens_per_batch`.

    Deterministic for a generator state. A window longer than the budget gets a batch of its own.
    """
    jitter = generator.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, len(lengths))
    order = np.argsort(lengths * jitter + generator.uniform(0, 0.5, len(lengths)), kind="stable")
    batches: list[np.ndarray] = []
    begin, longest = 0, 0
    for position, index in enumerate(order):
        longest_with = max(longest, int(lengths[index]))
        if position > begin and longest_with * (position - begin + 1) > tokens_per_batch:
            batches.append(order[begin:position])
            begin, longest_with = position, int(lengths[index])
        longest = longest_with
    if len(order):
        batches.append(order[begin:])
    generator.shuffle(batches)
    return batches


def padding_share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Share of the positions of all batches that are padding."""
    positions = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1 - float(sum(int(lengths[batch].sum()) for batch in batches)) / positions


class TrainingCollator:
    """Windows to padded arrays with pre-shifted labels.

    Two augmentations teach tokens that a training log does not hold:
    - `[NEW_j]`: some items, rare ones first, are replaced by the tokens that stand for unknown items when the model
      is used. The label of a hidden item's first event stays the item; later ones point back to its `[NEW_j]`.
    - `[START]`: the window of a user's first events begins with the start position in `start_share` of the cases, so
      that an empty history has a trained answer.

    Args:
        item_counts: (vocab_size,) int64, training events per item.
        hide_share: the share of events whose item is hidden, on average: what is expected to be unknown when the
            model is used. A window's own share is uniform between 0 and twice that; an item seen c times is hidden in
            proportion to 1 / sqrt(c).
    """

    def __init__(
        self,
        sequences: Sequences,
        windows: TrainingWindows,
        item_counts: np.ndarray,
        *,
        hide_share: float = 0.1,
        start_share: float = 0.1,
    ) -> None:
        self.sequences = sequences
        self.windows = windows
        weight = 1 / np.sqrt(np.maximum(item_counts, 1))
        self.hide_share = hide_share
        self.hide_weight = weight * max(1, item_counts.sum()) / max(1.0, float((weight * item_counts).sum()))
        self.start_share = start_share

    def lengths(self) -> np.ndarray:
        """(W,) int64: positions of every window, the possible start position not counted, at least one."""
        return np.maximum(self.windows.stop - self.windows.start - 1, 1)

    def __call__(self, indices: np.ndarray, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Arrays (B, T) int64, left padded: input_ids, token_type_ids, time_gap_ids, attention_mask, labels,
        action_labels, time_labels. Same generator state, same batch."""
        rows = [self._row(int(index), generator) for index in indices]
        return pad_rows(rows)

    def _row(self, index: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        log, windows = self.sequences, self.windows
        start, stop = int(windows.start[index]), int(windows.stop[index])
        items = log.items[start:stop].astype(np.int64)
        actions = log.actions[start:stop].astype(np.int64)
        gaps = log.time_gaps[start:stop].astype(np.int64)
        draw_start, draw_share, hide_seed = generator.random(3)
        unknown = items >= log.vocab_size
        unknown |= self._hidden(items, 2 * self.hide_share * draw_share, hide_seed)
        inputs = number_new_items(items, unknown, log.num_new_items)
        labels = inputs.copy()
        if unknown.any():
            _, first = np.unique(items, return_index=True)
            is_first = np.zeros(len(items), dtype=bool)
            is_first[first] = True
            labels = np.where(is_first, items, labels)
        # An unknown item cannot be named at its first event, `[UNK]` never.
        labels = np.where((labels >= log.vocab_size) | (labels == UNK), IGNORED, labels)
        action_labels = np.where(actions < FIRST_ACTION, IGNORED, actions)
        time_labels = np.where(gaps < FIRST_GAP, IGNORED, gaps)
        context = np.arange(start, stop) < int(windows.first_target[index])
        for array in (labels, action_labels, time_labels):
            array[context] = IGNORED
        has_room = windows.from_beginning[index] and len(items) <= windows.max_length
        if has_room and (len(items) == 1 or draw_start < self.start_share):
            inputs = np.concatenate([[START], inputs])
            actions = np.concatenate([[START_ACTION], actions])
            gaps = np.concatenate([[NO_GAP], gaps])
            shifted = slice(0, None)
        else:
            shifted = slice(1, None)
        return {
            "input_ids": inputs[:-1],
            "token_type_ids": actions[:-1],
            "time_gap_ids": gaps[:-1],
            "labels": labels[shifted],
            "action_labels": action_labels[shifted],
            "time_labels": time_labels[shifted],
        }

    def _hidden(self, items: np.ndarray, share: float, seed: float) -> np.ndarray:
        """(T,) bool: every occurrence of an item is hidden, or none."""
        known = np.where(items < self.sequences.vocab_size, items, 0)
        # A hash of (item, window's draw) gives all occurrences of an item the same uniform number.
        uniform = np.modf(np.abs(np.sin(known * 12.9898 + seed * 78233.0)) * 43758.5453)[0]
        return (items >= self.sequences.first_item_id) & (uniform < share * self.hide_weight[known])


def pad_rows(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Left-pads aligned rows to (B, T) int64 arrays: ids with PAD, labels with IGNORED; adds attention_mask."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {
        name: np.full((len(rows), longest), IGNORED if name.endswith("labels") else PAD, dtype=np.int64)
        for name in rows[0]
    }
    batch["attention_mask"] = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        begin = longest - len(row["input_ids"])
        for name, values in row.items():
            batch[name][index, begin:] = values
        batch["attention_mask"][index, begin:] = 1
    return batch


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationBatch:
    """B target events and the windows before them; token space: the vocabulary with its `[NEW_j]` slots.

    Attributes:
        input_ids, token_type_ids, time_gap_ids, attention_mask: (B, T) int64, left padded.
        target_item: (B,) int64; NO_TARGET if no ranking can name it (cold, or unknown and outside the window), NONE if
            the event names no item.
        target_action, target_time_gap: (B,) int64.
        user: (B,) int64 index; position: (B,) int64 index of the target in the flat arrays of `Sequences`.
        window_start: (B,) int64, the window is `window_start:position`.
        group: (B,) int8: REPEAT, NOVEL, COLD or NO_ITEM.
        seen: B int64 arrays, ids (this token space) of the whole history before the target.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    time_gap_ids: np.ndarray
    attention_mask: np.ndarray
    target_item: np.ndarray
    target_action: np.ndarray
    target_time_gap: np.ndarray
    user: np.ndarray
    position: np.ndarray
    window_start: np.ndarray
    group: np.ndarray
    seen: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.user)

    def rows(self, chosen: np.ndarray) -> EvaluationBatch:
        """The rows `chosen` (N,) int64, in their order."""
        arrays = {field.name: getattr(self, field.name)[chosen] for field in fields(self) if field.name != "seen"}
        return EvaluationBatch(**arrays, seen=[self.seen[row] for row in chosen.tolist()])


def target_positions(sequences: Sequences, part: int, max_targets: int | None = None, seed: int = 0) -> np.ndarray:
    """(N,) int64, ascending: the events of `part` that have an earlier event of their user.

    With `max_targets`, whole users are drawn at random until about that many targets are held: users, unlike targets,
    are what intervals are computed over.
    """
    is_target = sequences.parts == part
    is_target[sequences.offsets[:-1][np.diff(sequences.offsets) > 0]] = False
    positions = np.flatnonzero(is_target)
    if max_targets is None or len(positions) <= max_targets:
        return positions
    users = np.searchsorted(sequences.offsets, positions, side="right") - 1
    order = np.random.default_rng(seed).permutation(sequences.num_users)
    counts = np.bincount(users, minlength=sequences.num_users)[order]
    kept = order[: max(1, int(np.searchsorted(np.cumsum(counts), max_targets, side="right")))]
    return positions[np.isin(users, kept)]


def evaluation_batches(
    sequences: Sequences,
    part: int,
    max_length: int,
    batch_size: int,
    max_targets: int | None = None,
    seed: int = 0,
    positions: np.ndarray | None = None,
) -> Iterator[EvaluationBatch]:
    """Batches of targets of `part`, windows of similar length together.

    Args:
        max_length: longest window, in events.
        batch_size: rows per batch.
        max_targets, seed: see `target_positions`; `positions` names the targets outright instead.
    """
    if positions is None:
        positions = target_positions(sequences, part, max_targets, seed)
    users = np.searchsorted(sequences.offsets, positions, side="right") - 1
    lengths = np.minimum(positions - sequences.offsets[users], max_length)
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        yield _evaluation_batch(sequences, users[rows], positions[rows], max_length)


def novel_positions(
    sequences: Sequences, part: int, max_length: int, max_rows: int, positions: np.ndarray
) -> np.ndarray:
    """Those of the events of `part` at `positions`, int64, whose item is new to its user, ascending."""
    batches = evaluation_batches(sequences, part, max_length, max_rows, positions=positions)
    return np.sort(np.concatenate([positions[:0], *(batch.position[batch.group == NOVEL] for batch in batches)]))


def _evaluation_batch(
    sequences: Sequences, users: np.ndarray, positions: np.ndarray, max_length: int
) -> EvaluationBatch:
    begins = sequences.offsets[users]
    window_starts = np.maximum(begins, positions - max_length)
    rows, targets, groups, seen = [], [], [], []
    for begin, start, position in zip(begins.tolist(), window_starts.tolist(), positions.tolist(), strict=True):
        # The target is numbered together with its window: a repeat of an unknown item gets that item's slot.
        codes = sequences.items[start : position + 1].astype(np.int64)
        unknown = codes >= sequences.vocab_size
        window = number_new_items(codes[:-1], unknown[:-1], sequences.num_new_items)
        history = sequences.items[begin:position]
        code = int(codes[-1])
        repeated = code != NONE and bool((history == code).any())
        known = NONE < code < sequences.vocab_size
        if not known and code != NONE:
            matches = window[codes[:-1] == code]
            target = int(matches[0]) if len(matches) and matches[0] != UNK else NO_TARGET
        else:
            target = code
        groups.append(NO_ITEM if code == NONE else REPEAT if repeated else NOVEL if known else COLD)
        targets.append(target)
        known_history = history[(history >= sequences.first_item_id) & (history < sequences.vocab_size)]
        new_slots = window[(window >= FIRST_NEW) & (window < sequences.first_item_id)]
        seen.append(np.unique(np.concatenate([known_history.astype(np.int64), new_slots])))
        rows.append(
            {
                "input_ids": window,
                "token_type_ids": sequences.actions[start:position].astype(np.int64),
                "time_gap_ids": sequences.time_gaps[start:position].astype(np.int64),
            }
        )
    padded = pad_rows(rows)
    return EvaluationBatch(
        input_ids=padded["input_ids"],
        token_type_ids=padded["token_type_ids"],
        time_gap_ids=padded["time_gap_ids"],
        attention_mask=padded["attention_mask"],
        target_item=np.array(targets, dtype=np.int64),
        target_action=sequences.actions[positions].astype(np.int64),
        target_time_gap=sequences.time_gaps[positions].astype(np.int64),
        user=users.astype(np.int64),
        position=positions.astype(np.int64),
        window_start=window_starts.astype(np.int64),
        group=np.array(groups, dtype=np.int8),
        seen=seen,
    )
