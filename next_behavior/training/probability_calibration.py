"""Calibrates the probabilities of a model on validation events, after the weights and the memory are fitted.

    record = fit_probabilities(model, log, positions)     # for `run.json`

action, time   temperature and log-weights (head_calibration.py)
gate           how often the next item is a repeat (repeat_calibration.py)
items          one temperature of the mixture of the paths
balanced       the weights under which rare actions are named
sets           the limits of prediction sets (coverage.py)

How it is measured and what was tried is in docs/calibration.md.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch

from next_behavior.data.batches import evaluation_batches, target_positions
from next_behavior.data.sequences import VALIDATION
from next_behavior.evaluation.metrics import balancing_weights
from next_behavior.evaluation.probabilities import ItemProbabilities, item_probabilities
from next_behavior.evaluation.rankers import ModelRanker
from next_behavior.evaluation.ranking import rows_per_batch
from next_behavior.evaluation.reliability import LIST_LENGTH, FirstAnswers, joined, ranked_reliability, reliability
from next_behavior.model.coverage import limits_of, score_of
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.repeat_path import MASKED
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW, NONE
from next_behavior.training.head_calibration import (
    HeadLogits,
    calibrated_actions,
    fit_action_head,
    fit_time_head,
    logits_of_heads,
)
from next_behavior.training.repeat_calibration import fit_repeats
from next_behavior.training.tokenized_log import TokenizedLog

# The fit takes as long as so many rankings of its targets, about, and as one more for each action.
PROBABILITY_RANKINGS = 5
# The heads need no pass over the catalog: they are fitted on so many times as many events, and on no fewer than there
# are up to the second number; where the time is limited, on as many as it allows, and no fewer than the third.
HEAD_EVENTS, FEWEST_HEAD_EVENTS, FEWEST_HURRIED = 5, 2000, 200
# The gate is changed where NDCG@10 of the events keeps this share at least: probabilities may not cost good answers.
KEPT_NDCG = 0.995
# Events that the weights of balanced answers are fitted on, at most.
BALANCED_EVENTS = 4000
TEMPERATURES = np.geomspace(0.6, 1 / 0.6, 21)
# The first answers are looked for among so many.
CANDIDATES = 50
# The logarithm of the items' temperature costs so many times 1 / sqrt(events) of calibration error, about the error's
# uncertainty.
CAUTION = 2.0


def fit_probabilities(
    model: BertForNextBehavior, log: TokenizedLog, positions: np.ndarray, most_encoded: float = math.inf
) -> dict[str, Any]:
    """Calibrates a model on the validation events at `positions`, at least one, and its heads on more of them.

    Args:
        most_encoded: events that there is time to encode for the heads.

    Returns:
        A record: of each head the way that was chosen, and `reliability` before and after. That of the items is of the
        events that their two numbers were fitted on, that of the heads of events that their fit has not seen.
    """
    config = model.config
    config.action_temperature = config.item_temperature = config.time_temperature = 1.0
    config.action_bias, config.time_bias = [], []
    more = head_positions(log, len(positions), most_encoded)
    heads = logits_of_heads(model, log, more)
    record: dict[str, Any] = {"events": len(heads.action), "item_events": len(positions)}
    record["action"], record["time"] = fit_action_head(model, heads), fit_time_head(model, heads)
    by_action = calibrated_actions(model, heads)
    known = (heads.action >= FIRST_ACTION).numpy()
    action = heads.action.numpy()[known]
    some = np.random.default_rng(0).permutation(len(action))[:BALANCED_EVENTS]
    config.action_weights = balancing_weights(action[some], by_action[known][some]).round(2).tolist()
    config.action_set_limits = limits_of(score_of(by_action[known], action))
    if not (log.sequences.items[positions] != NONE).any():
        config.item_set_limits = []
        return record
    before = item_probabilities(model, log.sequences, VALIDATION, log.max_length, positions, {})
    record["gate"], after = fit_gate_unless_it_costs(model, log, heads, positions, before)
    config.item_temperature = item_temperature(model, log, positions)
    if config.item_temperature != 1.0:
        after = item_probabilities(model, log.sequences, VALIDATION, log.max_length, positions, {})
    config.item_set_limits = limits_of(after.score[after.is_nameable])
    record["item"] = {"before": item_record(before), "after": item_record(after)}
    return record


def fit_gate_unless_it_costs(
    model: BertForNextBehavior, log: TokenizedLog, heads: HeadLogits, positions: np.ndarray, before: ItemProbabilities
) -> tuple[dict[str, Any], ItemProbabilities]:
    """`fit_repeats`, taken back where the answers at `positions` or their probabilities become worse by it.

    The items that the model cannot name are new ones. Where they are many, a gate that gives new items their true share
    gives the known ones among them too much.

    Args:
        before: what the model says at `positions`.

    Returns:
        A record, and what the model says at `positions` now.
    """
    gate = copy.deepcopy(model.path_gate.state_dict())
    fit_repeats(model, heads)
    after = item_probabilities(model, log.sequences, VALIDATION, log.max_length, positions, {})
    ndcg = {"before": ndcg_of(before.first), "after": ndcg_of(after.first)}
    errors = {"before": calibration_error(before.first), "after": calibration_error(after.first)}
    is_kept = ndcg["after"] >= KEPT_NDCG * ndcg["before"] and errors["after"] <= errors["before"]
    if not is_kept:
        model.path_gate.load_state_dict(gate)
    return {"ndcg@10": ndcg, "error": errors, "changed": is_kept}, after if is_kept else before


def calibration_error(first: FirstAnswers) -> float:
    """Of the first item, plus the mean of the first ten ranks."""
    top = ranked_reliability(first)
    return float(top["by_rank"][0]["ece"] + top["ece"])


def ndcg_of(first: FirstAnswers) -> float:
    """NDCG@10 of the first ten answers."""
    discounts = 1 / np.log2(np.arange(2, 2 + first.is_target.shape[1]))
    return float((first.is_target * discounts).sum(axis=1).mean())


def head_positions(log: TokenizedLog, ranked: int, most_encoded: float) -> np.ndarray:
    """The validation events that the heads are fitted on, ascending: all, or a random part of them. Not whole users: a
    few users may have most of the events.

    Args:
        ranked: events that the items are fitted on.
        most_encoded: events that there is time for.
    """
    positions = target_positions(log.sequences, VALIDATION)
    most = int(max(FEWEST_HURRIED, min(max(HEAD_EVENTS * ranked, FEWEST_HEAD_EVENTS), most_encoded)))
    if len(positions) <= most:
        return positions
    return np.sort(np.random.default_rng(0).permutation(positions)[:most])


@torch.inference_mode()
def item_temperature(model: BertForNextBehavior, log: TokenizedLog, positions: np.ndarray) -> float:
    """The temperature of p(item | history, action) under which the calibration error is lowest: that of the first item
    and the mean of the first ten ranks. A temperature that fits all items does not fit those that are shown (Sato 2024,
    arXiv 2408.11596). An item that the model cannot name is a wrong answer in each place."""
    config, device = model.config, model.device
    ranker, rows = ModelRanker(model), rows_per_batch(log.sequences.vocab_size * config.num_actions)
    with_item = positions[log.sequences.items[positions] != NONE]
    parts: list[list[FirstAnswers]] = [[] for _ in TEMPERATURES]
    for batch in evaluation_batches(log.sequences, VALIDATION, log.max_length, rows, positions=with_item):
        said = model(*ranker.events(batch))
        by_action = said.action_logits.softmax(dim=-1)[:, FIRST_ACTION:, None]  # (B, Q, 1)
        given = said.item_logits[:, FIRST_ACTION:].clamp(min=MASKED)  # (B, Q, V)
        marginal = (by_action * given.exp()).sum(dim=1)  # (B, V)
        marginal[:, :FIRST_NEW] = 0
        candidates = marginal.topk(min(CANDIDATES, marginal.shape[1]), dim=1).indices  # (B, C)
        is_target = candidates == torch.from_numpy(batch.target_item).to(device)[:, None]
        nothing = given[..., NONE : NONE + 1]  # (B, Q, 1)
        own = given.gather(2, candidates[:, None].expand(-1, given.shape[1], -1))  # (B, Q, C)
        for temperature, collected in zip(TEMPERATURES.tolist(), parts, strict=True):
            total = (given / temperature).logsumexp(dim=-1, keepdim=True)  # (B, Q, 1)
            without = (by_action * (nothing / temperature - total).exp()).sum(dim=1)  # (B, 1): names no item
            probability = (by_action * (own / temperature - total).exp()).sum(dim=1) / (1 - without)  # (B, C)
            first, index = probability.topk(min(LIST_LENGTH, probability.shape[1]), dim=1)
            right = is_target.gather(1, index).cpu().numpy()
            collected.append(FirstAnswers(first.double().cpu().numpy(), right, np.zeros_like(right)))
    costs = []
    for temperature, collected in zip(TEMPERATURES, parts, strict=True):
        change = CAUTION * abs(np.log(temperature)) / np.sqrt(len(with_item))
        costs.append(calibration_error(joined(collected)) + change)
    return float(TEMPERATURES[int(np.argmin(costs))])


def item_record(said: ItemProbabilities) -> dict[str, Any]:
    """The reliability of the first item and of the first ten; without bins but for the first."""
    first = said.first
    top = ranked_reliability(first)
    for numbers in (*top["by_rank"], top["repeat"], top["new"]):
        del numbers["bins"]
    return {"first": reliability(first.probability[:, 0], first.is_target[:, 0]), "top10": top}
