"""Whether the probabilities of a model can be trusted: reliability by head, the time head, and prediction sets.

    result |= measured_probabilities(model, sequences, TEST, max_length, positions, time_edges)

It adds to a result
    calibration      {"action", "item"}: `reliability`; "top10": `ranked_reliability` of the first ten items
    time             {"model", "training_gaps", "user_median_gap"}: see `time_metrics.py`; None for a log without times
    prediction_sets  {"item", "action"}: {"80", "90"}: see `set_metrics`; None for a model without limits

"item" and "top10" are over all targets that name an item. Items that the model does not know are never right, so an
unknown target counts against its probabilities. A prediction set cannot hold them: its coverage is that of targets
that the model can name, as its limits are, and `unnameable` is the share of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from next_behavior.data.batches import REPEAT, evaluation_batches
from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.rankers import ModelRanker
from next_behavior.evaluation.ranking import ACTION_ROWS, rows_per_batch
from next_behavior.evaluation.reliability import (
    FirstAnswers,
    Numbers,
    first_answers,
    joined,
    ranked_reliability,
    reliability,
)
from next_behavior.evaluation.time_metrics import time_metrics
from next_behavior.model.coverage import score_of, set_sizes
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_GAP, FIRST_NEW, NONE

# Targets that are measured, at most: a further pass over the catalog for each.
MEASURED_TARGETS = 3000
MEASURED_COVERAGES = (80, 90)


@dataclass(frozen=True)
class ItemProbabilities:
    """What a model says of the next item at N targets that name one.

    Attributes:
        first: the first ten answers.
        is_repeat: (N,) bool, the target is one of its user's own items.
        is_nameable: (N,) bool, the model can name it.
        score: (N,) float64, `coverage.score_of` the target; 1 where it is not nameable.
        sizes: coverage in percent -> (N,) int64 sizes of the prediction sets.
    """

    first: FirstAnswers
    is_repeat: np.ndarray
    is_nameable: np.ndarray
    score: np.ndarray
    sizes: dict[int, np.ndarray]


@dataclass(frozen=True)
class HeadProbabilities:
    """What a model says of the next action and of the time until it, at N targets.

    Attributes:
        position: (N,) int64, the targets.
        action: (N,) int64; by_action: (N, A) float64.
        gap: (N,) int64 bucket ids; by_bucket: (N, G - FIRST_GAP) float64.
    """

    position: np.ndarray
    action: np.ndarray
    by_action: np.ndarray
    gap: np.ndarray
    by_bucket: np.ndarray


def item_probabilities(
    model: PreTrainedModel,
    sequences: Sequences,
    part: int,
    max_length: int,
    positions: np.ndarray,
    limits: dict[int, float],
) -> ItemProbabilities:
    """At those of the targets at `positions`, at least one, that name an item.

    Args:
        limits: of the prediction sets, by coverage in percent.
    """
    ranker, rows = ModelRanker(model), rows_per_batch(sequences.vocab_size)
    with_item = positions[sequences.items[positions] != NONE]
    first, is_repeat, is_nameable, scores = list[FirstAnswers](), [], [], []
    sizes: dict[int, list[np.ndarray]] = {percent: [] for percent in limits}
    for batch in evaluation_batches(sequences, part, max_length, rows, positions=with_item):
        probabilities = ranker.scores(batch).exp().cpu()
        table, target = probabilities.numpy(), batch.target_item
        nameable = target >= FIRST_NEW
        nameable &= table[np.arange(len(batch)), np.maximum(target, 0)] > 0
        first.append(first_answers(table, target, batch.seen))
        is_repeat.append(batch.group == REPEAT)
        is_nameable.append(nameable)
        scores.append(np.where(nameable, score_of(table, np.maximum(target, 0)), 1.0))
        if limits:
            ordered = probabilities.sort(dim=1, descending=True).values.numpy()
            for percent, limit in limits.items():
                sizes[percent].append(set_sizes(ordered, limit))
    return ItemProbabilities(
        joined(first),
        np.concatenate(is_repeat),
        np.concatenate(is_nameable),
        np.concatenate(scores),
        {percent: np.concatenate(parts) for percent, parts in sizes.items()},
    )


@torch.no_grad()
def head_probabilities(
    model: PreTrainedModel, sequences: Sequences, part: int, max_length: int, positions: np.ndarray
) -> HeadProbabilities:
    """At the targets at `positions`, at least one."""
    ranker, asked = ModelRanker(model), cast(Any, model)  # in evaluation mode
    collected = []
    for batch in evaluation_batches(sequences, part, max_length, ACTION_ROWS, positions=positions):
        events = ranker.events(batch)
        said: Any = asked.answers(
            *events,
            top_k=model.config.num_actions,
            of="action",
            action=None,
            exclude_seen=False,
            allowed_items=None,
            balanced=False,
            tables=asked.answer_tables(model.device),
            time=True,
        )
        by_action = torch.zeros((len(batch), model.config.num_actions), dtype=torch.float64)
        by_action.scatter_(1, said.ranked.action_ids.cpu(), said.ranked.probabilities.double().cpu())
        by_action[:, :FIRST_ACTION] = 0
        times = said.time.double().cpu().numpy()
        collected.append((batch.position, batch.target_action, by_action.numpy(), batch.target_time_gap, times))
    return HeadProbabilities(*(np.concatenate(parts) for parts in zip(*collected, strict=True)))


def set_metrics(is_covered: np.ndarray, sizes: np.ndarray) -> Numbers:
    """Of prediction sets: count, coverage, median_size and mean_size; None where there are none."""
    if not len(sizes):
        return {"count": 0, "coverage": None, "median_size": None, "mean_size": None}
    return {
        "count": len(sizes),
        "coverage": float(is_covered.mean()),
        "median_size": float(np.median(sizes)),
        "mean_size": float(sizes.mean()),
    }


def item_sets(said: ItemProbabilities, limits: dict[int, float]) -> Numbers:
    """`set_metrics` of the items by coverage in percent: of all targets that can be named, of repeats, of new ones."""
    found: Numbers = {"unnameable": float(1 - said.is_nameable.mean())}
    for percent, limit in limits.items():
        covered, sizes, known = said.score <= limit, said.sizes[percent], said.is_nameable
        repeat = known & said.is_repeat
        found[str(percent)] = {
            **set_metrics(covered[known], sizes[known]),
            "repeat": set_metrics(covered[repeat], sizes[repeat]),
            "new": set_metrics(covered[known & ~repeat], sizes[known & ~repeat]),
        }
    return found


def action_sets(target: np.ndarray, by_action: np.ndarray, limits: dict[int, float]) -> Numbers:
    """`set_metrics` of the actions by coverage in percent."""
    scores, ordered = score_of(by_action, target), -np.sort(-by_action, axis=1)
    return {str(percent): set_metrics(scores <= limit, set_sizes(ordered, limit)) for percent, limit in limits.items()}


def calibration_of(items: ItemProbabilities | None, heads: HeadProbabilities) -> Numbers:
    """The reliability of each head."""
    known = heads.action >= FIRST_ACTION
    by_action, action = heads.by_action[known], heads.action[known]
    found = {"action": reliability(by_action.max(axis=1), by_action.argmax(axis=1) == action)}
    if items is not None:
        first = items.first
        found["item"] = reliability(first.probability[:, 0], first.is_target[:, 0])
        found["top10"] = ranked_reliability(first)
    timed = heads.gap >= FIRST_GAP
    if timed.any():
        by_bucket = heads.by_bucket[timed]
        right = by_bucket.argmax(axis=1) == heads.gap[timed] - FIRST_GAP
        found["time"] = reliability(by_bucket.max(axis=1), right)
    return found


def limits_in(config: dict[str, Any], of: str) -> dict[int, float]:
    """The limits for `MEASURED_COVERAGES`; none in a configuration without, such as that of an earlier version."""
    limits = config.get(f"{of}_set_limits") or []
    return {percent: limits[percent - 1] for percent in MEASURED_COVERAGES} if limits else {}


def measured_probabilities(
    model: PreTrainedModel,
    sequences: Sequences,
    part: int,
    max_length: int,
    positions: np.ndarray,
    time_edges: Sequence[float] | None,
    seed: int = 0,
) -> Numbers:
    """What the module says, on about `MEASURED_TARGETS` of the targets at `positions`, drawn at random.

    Args:
        time_edges: of the tokenizer, in seconds; None for a log without times.
    """
    if len(positions) > MEASURED_TARGETS:
        positions = np.sort(np.random.default_rng(seed).permutation(positions)[:MEASURED_TARGETS])
    config = model.config.to_dict()
    heads = head_probabilities(model, sequences, part, max_length, positions)
    limits, items = limits_in(config, "item"), None
    if (sequences.items[positions] != NONE).any():
        items = item_probabilities(model, sequences, part, max_length, positions, limits)
    known = heads.action >= FIRST_ACTION
    action_limits = limits_in(config, "action")
    sets: Numbers = {"item": None, "action": None}
    if items is not None and limits:
        sets["item"] = item_sets(items, limits)
    if action_limits and known.any():
        sets["action"] = action_sets(heads.action[known], heads.by_action[known], action_limits)
    time = None
    if time_edges:
        time = time_metrics(sequences, heads.position, heads.gap, heads.by_bucket, time_edges)
    return {"calibration": calibration_of(items, heads), "time": time, "prediction_sets": sets}
