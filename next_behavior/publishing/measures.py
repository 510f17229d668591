"""What the card measures on test events: the published model beside the baselines, calibration, and results by action.

findings = examine(published, privacy, record.evaluation, record.split)     # Findings(result, measured, privacy)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from next_behavior.data.batches import target_positions
from next_behavior.data.sequences import TEST
from next_behavior.data.splits import Split
from next_behavior.evaluation.evaluator import evaluate_model
from next_behavior.evaluation.metrics import (
    CALIBRATION_BINS,
    expected_calibration_error,
    ndcg_at_k,
    recall_at_k,
)
from next_behavior.evaluation.rankers import MODEL
from next_behavior.evaluation.ranking import KEPT, REMOVED
from next_behavior.model.special_ids import FIRST_ACTION
from next_behavior.publishing.privacy import Privacy
from next_behavior.publishing.publication import Publication
from next_behavior.publishing.scores import Scored, score_targets

# Test targets that calibration and the results by action are measured on, about so many.
MEASURED_TARGETS = 4000
# The metrics whose change by the removals is stated: {name: (seen items kept or removed, metric)}.
COSTS = {
    "Recall@10": (KEPT, "recall@10"),
    "NDCG@10": (KEPT, "ndcg@10"),
    "NDCG@10 with seen items removed": (REMOVED, "ndcg@10"),
}


@dataclass(frozen=True)
class Findings:
    """What is known about the published model.

    Attributes:
        result: evaluation.json; measured: `measure`; None without test events.
        privacy: with what the removals cost.
    """

    result: dict[str, Any] | None
    measured: dict[str, Any] | None
    privacy: Privacy


def examine(published: Publication, privacy: Privacy, as_trained: dict[str, Any] | None, split: Split) -> Findings:
    """Evaluates the published model, and states what the removals cost.

    Args:
        as_trained: the run's own evaluation, if it recorded one.
    """
    result = evaluate_published(published, as_trained, split, privacy.shrunk)
    if privacy.shrunk and as_trained is not None and result is not None:
        privacy = replace(privacy, cost=cost_of_removals(as_trained, result))
    return Findings(result, measure(published), privacy)


def evaluate_published(
    published: Publication, as_trained: dict[str, Any] | None, split: Split, shrunk: bool
) -> dict[str, Any] | None:
    """The published model beside the baselines on test events; None if there are none.

    Args:
        as_trained: the run's own evaluation. It is returned where nothing was removed; else its targets and its seed
            are used again.
    """
    if not len(target_positions(published.sequences, TEST)):
        return None
    if as_trained is not None and not shrunk:
        return as_trained
    result = evaluate_model(
        published.model,
        published.sequences,
        TEST,
        published.tokenizer.model_max_length,
        max_targets=as_trained["targets"] if as_trained is not None and as_trained["sampled"] else None,
        seed=0 if as_trained is None else as_trained["seed"],
        split=split,
        actions=published.tokenizer.action_vocabulary,
    )
    return result if as_trained is None else {**result, "passes": as_trained.get("passes")}


def cost_of_removals(as_trained: dict[str, Any], as_published: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """{metric: (as trained, as published)} of two evaluations on the same targets."""
    cost = {}
    for name, (way, metric) in COSTS.items():
        before, after = (result[MODEL][way]["items"]["all"][metric] for result in (as_trained, as_published))
        if before is not None and after is not None:
            cost[name] = (before, after)
    return cost


def measure(published: Publication) -> dict[str, Any] | None:
    """Calibration and results by action on test events; None if there are none."""
    positions = target_positions(published.sequences, TEST, MEASURED_TARGETS)
    if not len(positions):
        return None
    scored = score_targets(published.model, published.sequences, positions, published.tokenizer.model_max_length)
    named = ~np.isnan(scored.item_confidence)
    return {
        "targets": len(positions),
        "action_calibration": reliability(scored.action_confidence, scored.action_correct),
        "item_calibration": reliability(scored.item_confidence[named], scored.item_correct[named]),
        "by_action": by_action(scored, published.tokenizer.action_vocabulary),
    }


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
    """{action: {count, accuracy, recall@10, ndcg@10}} over the targets with that action.

    The items' metrics are over the targets that name an item, and are left out where none does.
    """
    rows: dict[str, dict[str, float | int]] = {}
    for action, name in enumerate(names, start=FIRST_ACTION):
        mine = scored.action == action
        if not mine.any():
            continue
        rows[name] = {"count": int(mine.sum()), "accuracy": float(scored.action_correct[mine].mean())}
        ranks = scored.item_rank[mine]
        ranks = ranks[~np.isnan(ranks)]
        if len(ranks):
            rows[name] |= {
                "recall@10": float(recall_at_k(ranks, 10).mean()),
                "ndcg@10": float(ndcg_at_k(ranks, 10).mean()),
            }
    return rows
