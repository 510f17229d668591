"""How well a model predicts validation events: what decides which weights are kept, and what calibration compares."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from next_behavior.evaluation.metrics import ndcg_at_k, pessimistic_ranks
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import FIRST_ACTION, NONE
from next_behavior.training.encoded import EncodedBatch

LEAST_PROBABILITY = 1e-12


def mean_ndcg(model: BertForNextBehavior, blocks: Iterable[np.ndarray], targets: list[EncodedBatch]) -> float:
    """NDCG@10 of the next item over those of the targets that are at the positions of `blocks`, block by block; full
    catalog, seen items kept."""
    ranks = []
    for positions in blocks:
        for encoded in targets:
            target = encoded.batch.target_item
            chosen = np.isin(encoded.batch.position, positions) & (target != NONE)
            if chosen.any():
                ranks.append(pessimistic_ranks(encoded.scores(model, chosen), target[chosen]))
    return float(np.mean(ndcg_at_k(np.concatenate(ranks), 10)))


def validation_ndcg(model: BertForNextBehavior, targets: list[EncodedBatch]) -> float:
    """NDCG@10 of the next item over the targets; full catalog, seen items kept."""
    return mean_ndcg(model, [np.concatenate([encoded.batch.position for encoded in targets])], targets)


def action_log_loss(model: BertForNextBehavior, targets: list[EncodedBatch]) -> float:
    """Mean of -log p(action | history) over the targets; 0 for a log of one action."""
    total, count = 0.0, 0
    if model.config.num_actions == FIRST_ACTION + 1:
        return total
    for encoded in targets:
        target = encoded.batch.target_action
        known = target >= FIRST_ACTION
        given = encoded.action_probabilities(model).double().cpu().numpy()[known, target[known]]
        total, count = total - float(np.log(given.clip(min=LEAST_PROBABILITY)).sum()), count + int(known.sum())
    return total / max(1, count)
