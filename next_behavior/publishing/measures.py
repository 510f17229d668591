"""Measurements on single targets, for the card: calibration, slices by action, and the losses behind membership.

scored = score_targets(model, sequences, positions, max_length)
reliability(scored.action_confidence, scored.action_correct)     # is "70 %" right 70 times in a hundred?
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from next_behavior.data.batches import evaluation_batches
from next_behavior.data.sequences import TEST, Sequences
from next_behavior.evaluation.evaluator import ModelRanker, rows_per_batch
from next_behavior.evaluation.metrics import (
    CALIBRATION_BINS,
    expected_calibration_error,
    ndcg_at_k,
    pessimistic_ranks,
    recall_at_k,
)
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import FIRST_ACTION, NONE

# The lowest log-probability that a loss is computed from: what nothing names is as improbable as this.
LOWEST = -30.0


@dataclass(frozen=True)
class Scored:
    """Per target, (N,) each: what the model said beforehand and what happened.

    Attributes:
        action, action_confidence, action_correct: the action's id, the probability of the predicted one, was it right.
        item_confidence, item_correct: the same of the first-ranked item; nan and False where the event names no item.
        item_rank, item_loss: rank of the target, and -log p(item | history) in nats; nan where there is no item.
        group: 0 repeat, 1 novel, 2 cold, -1 no item.
    """

    action: np.ndarray
    action_confidence: np.ndarray
    action_correct: np.ndarray
    item_confidence: np.ndarray
    item_correct: np.ndarray
    item_rank: np.ndarray
    item_loss: np.ndarray
    group: np.ndarray


@torch.no_grad()
def score_targets(model: BertForNextBehavior, sequences: Sequences, positions: np.ndarray, max_length: int) -> Scored:
    """Scores the events at `positions` (N,) int64; seen items stay candidates. The order is not that of `positions`."""
    ranker = ModelRanker(model)
    rows: list[Scored] = []
    size = rows_per_batch(sequences.vocab_size)
    for batch in evaluation_batches(sequences, TEST, max_length, size, positions=positions):
        actions = ranker.action_probabilities(batch)
        scores = ranker.scores(batch).cpu()
        target = torch.from_numpy(batch.target_item)
        named = batch.target_item != NONE
        log_probability = scores.gather(1, target.clamp(min=0)[:, None])[:, 0].clamp(min=LOWEST)
        log_probability = torch.where(target < 0, LOWEST, log_probability)
        best, first = scores.max(dim=1)
        rows.append(
            Scored(
                action=batch.target_action,
                action_confidence=actions.max(axis=1),
                action_correct=actions.argmax(axis=1) == batch.target_action,
                item_confidence=np.where(named, best.exp().numpy(), np.nan),
                item_correct=named & (first.numpy() == batch.target_item),
                item_rank=np.where(named, pessimistic_ranks(scores, batch.target_item), np.nan),
                item_loss=np.where(named, -log_probability.numpy(), np.nan),
                group=batch.group,
            )
        )
    if not rows:
        nothing = np.zeros(0)
        return Scored(**{column.name: nothing for column in fields(Scored)})
    return Scored(
        **{column.name: np.concatenate([getattr(row, column.name) for row in rows]) for column in fields(Scored)}
    )


def reliability(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Calibration as a curve.

    Args:
        confidence: (N,) probability of what was predicted; correct: (N,) bool.

    Returns:
        {"count", "ece", "bins"}: a bin is {"confidence", "accuracy", "count"}, means over the predictions in one of 15
        equally wide bins; empty bins are left out.

    >>> curve = reliability(np.array([0.81, 0.82, 0.83, 0.84, 0.3]), np.array([1, 1, 1, 0, 0]))
    >>> [(round(bin["confidence"], 3), bin["accuracy"], bin["count"]) for bin in curve["bins"]]
    [(0.3, 0.0, 1), (0.825, 0.75, 4)]
    """
    which = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    bins = [
        {
            "confidence": float(confidence[which == index].mean()),
            "accuracy": float(correct[which == index].mean()),
            "count": int((which == index).sum()),
        }
        for index in np.unique(which)
    ]
    return {"count": len(confidence), "ece": expected_calibration_error(confidence, correct), "bins": bins}


def by_action(scored: Scored, names: list[str]) -> dict[str, dict[str, float | int]]:
    """{action: {count, recall@10, ndcg@10, accuracy}} over the targets with that action; the items' metrics are over
    those that name one, and are left out where none does."""
    found: dict[str, dict[str, float | int]] = {}
    for action, name in enumerate(names, start=FIRST_ACTION):
        mine = scored.action == action
        if not mine.any():
            continue
        found[name] = {"count": int(mine.sum()), "accuracy": float(scored.action_correct[mine].mean())}
        ranks = scored.item_rank[mine]
        ranks = ranks[~np.isnan(ranks)]
        if len(ranks):
            found[name] |= {
                "recall@10": float(recall_at_k(ranks, 10).mean()),
                "ndcg@10": float(ndcg_at_k(ranks, 10).mean()),
            }
    return found
