"""Ranks the targets of an evaluation among the whole catalog, batch by batch.

A score matrix of about 8 MB is the most that is held. Every target is ranked twice: with the items that the user has
seen as candidates ("kept"), and without them ("removed"). Only targets that are new to the user count in the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from tqdm import tqdm

from next_behavior.data.batches import REPEAT, EvaluationBatch, evaluation_batches
from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.counting import training_item_counts
from next_behavior.evaluation.dump import PredictionDump
from next_behavior.evaluation.metrics import pessimistic_ranks
from next_behavior.evaluation.rankers import UPDATED, ActionRanker, ItemRanker, UpdatedModelRanker
from next_behavior.evaluation.recommended import (
    LIST_LENGTH,
    NO_CANDIDATE,
    ItemPopularity,
    RankingAccumulator,
    history_popularity,
)
from next_behavior.evaluation.updated_baselines import UpdatedBaseline
from next_behavior.model.special_ids import FIRST_NEW

# Scores held at once (8 MiB of float32: larger matrices leave a processor's caches), and rows at most.
MAX_SCORES, MAX_ROWS = 2**21, 256
ACTION_ROWS = 512
KEPT, REMOVED = "kept", "removed"
Pair = tuple[np.ndarray, np.ndarray]  # seen items kept, and removed
# The last item of a history that names none: equal to no target, so that the target counts as a switch.
NO_LAST_ITEM = -2


def rows_per_batch(vocab_size: int, batch_size: int | None = None) -> int:
    """Targets scored at once: as many as a score matrix of 8 MiB has room for, at most `batch_size`."""
    most = MAX_ROWS if batch_size is None else batch_size
    return int(np.clip(MAX_SCORES // vocab_size, 1, most))


def best_ids(scores: torch.Tensor, k: int = LIST_LENGTH) -> np.ndarray:
    """(B, k) int64: the ids with the highest scores, `NO_CANDIDATE` where a row has fewer candidates."""
    best, ids = scores.topk(min(k, scores.shape[1]), dim=1)
    return ids.masked_fill(best == -torch.inf, NO_CANDIDATE).cpu().numpy()


def remove_seen(scores: torch.Tensor, seen: Sequence[np.ndarray]) -> None:
    """Makes each row's seen ids no candidates, in place."""
    rows = np.repeat(np.arange(len(seen)), [len(ids) for ids in seen])
    ids = np.concatenate(seen) if len(seen) else np.zeros(0, dtype=np.int64)
    index = (torch.from_numpy(rows).to(scores.device), torch.from_numpy(ids).to(scores.device))
    scores[index] = -torch.inf


def keys_of_seen(seen: Sequence[np.ndarray], vocab_size: int) -> np.ndarray:
    """(N,) int64, ascending: row * vocab_size + id for each row's seen ids, which ascend."""
    rows = np.repeat(np.arange(len(seen)), [len(ids) for ids in seen])
    return rows * vocab_size + np.concatenate([np.zeros(0, dtype=np.int64), *seen])


def listed_again(top: np.ndarray, keys: np.ndarray, vocab_size: int) -> np.ndarray:
    """(B, k) bool: which of the listed ids (B, k) are among each row's seen ids, by `keys_of_seen`.

    >>> keys = keys_of_seen([np.array([6, 7]), np.array([5])], vocab_size=8)
    >>> listed_again(np.array([[5, 6], [6, -1]]), keys, vocab_size=8)
    array([[False,  True],
           [False, False]])
    """
    wanted = np.arange(len(top))[:, None] * vocab_size + top
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return (keys[place] == wanted) & (top != NO_CANDIDATE) if len(keys) else np.zeros(top.shape, dtype=bool)


def last_items(batch: EvaluationBatch) -> np.ndarray:
    """(B,) int64: the last item that each history names, `NO_LAST_ITEM` where it names none."""
    named = batch.input_ids >= FIRST_NEW
    column = named.shape[1] - 1 - named[:, ::-1].argmax(axis=1)
    return np.where(named.any(axis=1), batch.input_ids[np.arange(len(batch)), column], NO_LAST_ITEM)


# ----------------------------------------------------------------------------------------------------------------------
# Items
# ----------------------------------------------------------------------------------------------------------------------


class ItemLists:
    """What one ranker does with the targets: ranks and recommended lists, seen items kept and removed."""

    def __init__(self, popularity: ItemPopularity) -> None:
        self.kept, self.removed = RankingAccumulator(popularity), RankingAccumulator(popularity)

    def add(
        self, scores: torch.Tensor, batch: EvaluationBatch, seen: np.ndarray, history: np.ndarray
    ) -> tuple[Pair, Pair]:
        """Ranks the targets of a batch by (B, V) scores, which it changes.

        Args:
            seen: the `keys_of_seen` of the batch.
            history: (B,) float64, the popularity of each target's history (`history_popularity`).

        Returns:
            The ranks (B,) and the best ids (B, k), each with seen items kept and with them removed; a repeat has the
            rank -1 and no ids there.
        """
        ranks, top = pessimistic_ranks(scores, batch.target_item), best_ids(scores)
        self.kept.add(ranks, batch.target_item, top, listed_again(top, seen, scores.shape[1]), history)
        ranks_removed, top_removed = np.full_like(ranks, -1), np.full_like(top, NO_CANDIDATE)
        unseen = np.flatnonzero(batch.group != REPEAT)
        if not len(unseen):
            return (ranks, ranks_removed), (top, top_removed)
        remove_seen(scores, batch.seen)
        # Copying a row costs as much as ranking it.
        chosen, rows = (scores, unseen) if 2 * len(unseen) > len(batch) else (scores[unseen], slice(None))
        targets = batch.target_item if chosen is scores else batch.target_item[unseen]
        ranks_removed[unseen], top_removed[unseen] = pessimistic_ranks(chosen, targets)[rows], best_ids(chosen)[rows]
        self.removed.add(ranks_removed[unseen], targets[rows], top_removed[unseen], history_popularity=history[unseen])
        return (ranks, ranks_removed), (top, top_removed)


@dataclass(frozen=True)
class RankedItems:
    """N targets that name an item, and what each ranker did with them.

    Attributes:
        position, user: (N,) int64, the target's place in the flat arrays of `Sequences`, and the index of its user.
        group: (N,) int8, as in `EvaluationBatch`.
        switch: (N,) bool, the target is not the item before it.
        lists: for each ranker its `ItemLists`; `kept` holds all targets in this order, `removed` those that are no
            repeats.
    """

    position: np.ndarray
    user: np.ndarray
    group: np.ndarray
    switch: np.ndarray
    lists: dict[str, ItemLists]


def rank_items(
    sequences: Sequences,
    part: int,
    positions: np.ndarray,
    rankers: Mapping[str, ItemRanker],
    max_length: int,
    batch_size: int | None,
    progress: bool,
    dump: PredictionDump | None = None,
) -> RankedItems:
    """Ranks the targets at `positions`, in blocks of time if the memory of a ranker is updated between them; writes
    what each ranker did to `dump`."""
    counts = training_item_counts(sequences)
    popularity, histories = (
        ItemPopularity.from_counts(counts, sequences.first_item_id),
        history_popularity(sequences, counts),
    )
    lists = {name: ItemLists(popularity) for name in rankers}
    ranked, users, groups, switches = (list[np.ndarray]() for _ in range(4))
    rows = rows_per_batch(sequences.vocab_size, batch_size)
    updated = rankers.get(UPDATED)
    blocks: Iterable[np.ndarray] = updated.blocks(positions) if isinstance(updated, UpdatedModelRanker) else [positions]
    counting = [ranker for ranker in rankers.values() if isinstance(ranker, UpdatedBaseline)]

    def batches_of(block: np.ndarray) -> Iterator[EvaluationBatch]:
        for ranker in counting:
            ranker.advance(block)
        yield from evaluation_batches(sequences, part, max_length, rows, positions=block)

    with tqdm(total=len(positions), unit=" targets", desc="ranking items", disable=not progress) as bar:
        for batch in chain.from_iterable(map(batches_of, blocks)):
            ranked.append(batch.position)
            users.append(batch.user)
            groups.append(batch.group)
            seen, history = keys_of_seen(batch.seen, sequences.vocab_size), histories[batch.position]
            switch = batch.target_item != last_items(batch)
            switches.append(switch)
            for name, ranker in rankers.items():
                placed = lists[name].add(torch.as_tensor(ranker.scores(batch)), batch, seen, history)
                if dump is not None:
                    dump.add_items(name, batch, switch, *placed)
            bar.update(len(batch))
    return RankedItems(
        position=np.concatenate([np.zeros(0, dtype=np.int64), *ranked]),
        user=np.concatenate([np.zeros(0, dtype=np.int64), *users]),
        group=np.concatenate([np.zeros(0, dtype=np.int8), *groups]),
        switch=np.concatenate([np.zeros(0, dtype=bool), *switches]),
        lists=lists,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Actions
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictedActions:
    """N targets and the action probabilities that each ranker gives.

    Attributes:
        position, user, target: (N,) int64, the target's place in the flat arrays of `Sequences`, index and action id.
        change: (N,) bool, the action differs from the one before.
        probabilities: (N, A) float64 for each ranker.
    """

    position: np.ndarray
    user: np.ndarray
    target: np.ndarray
    change: np.ndarray
    probabilities: dict[str, np.ndarray]


def predict_actions(
    sequences: Sequences,
    part: int,
    positions: np.ndarray,
    rankers: Mapping[str, ActionRanker],
    max_length: int,
    batch_size: int | None,
    progress: bool,
) -> PredictedActions:
    """Action probabilities for the targets at `positions`, at least one."""
    predicted, users, targets, changes = (list[np.ndarray]() for _ in range(4))
    probabilities: dict[str, list[np.ndarray]] = {name: [] for name in rankers}
    rows = ACTION_ROWS if batch_size is None else batch_size
    with tqdm(total=len(positions), unit=" targets", desc="predicting actions", disable=not progress) as bar:
        for batch in evaluation_batches(sequences, part, max_length, rows, positions=positions):
            predicted.append(batch.position)
            users.append(batch.user)
            targets.append(batch.target_action)
            changes.append(batch.target_action != batch.token_type_ids[:, -1])
            for name, ranker in rankers.items():
                probabilities[name].append(ranker.action_probabilities(batch))
            bar.update(len(batch))
    return PredictedActions(
        position=np.concatenate(predicted),
        user=np.concatenate(users),
        target=np.concatenate(targets),
        change=np.concatenate(changes),
        probabilities={name: np.concatenate(parts) for name, parts in probabilities.items()},
    )
