"""What is fitted on validation events once the weights are trained: how far each part of the answer is to be trusted.

gate          how much repeating and naming new items are given, and how the network shares the latter with the memory
memory        how many recent items it listens to, what it makes of what is named lately, and what it names alone
temperatures  of each head (Guo et al. 2017), and the weights under which rare actions are named

The weights have seen the training events, so on these the network looks better than it is; held-out events decide.

    fit_gate(model, log, positions)          # after each validation
    fit_memory(model, log, positions)        # once, on the kept weights
    fit_temperatures(model, log, positions)  # last: it calibrates what the others have made
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedConfig

from next_behavior.data.batches import evaluation_batches, novel_positions
from next_behavior.data.sequences import TEST, VALIDATION, Sequences
from next_behavior.evaluation.evaluator import MAX_ROWS, ModelRanker, UpdatedModelRanker, rows_per_batch
from next_behavior.evaluation.metrics import balancing_weights, ndcg_at_k, pessimistic_ranks
from next_behavior.model.encoder import Events
from next_behavior.model.mixture import GATE_NEW, GATE_NONE, GATE_REPEAT
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.repeat_path import MASKED
from next_behavior.model.special_ids import FIRST_ACTION, NONE

if TYPE_CHECKING:
    from next_behavior.training.loop import PreparedLog

TEMPERATURES = np.geomspace(0.5, 2.0, 36)
GENERATE_TEMPERATURES = torch.tensor([0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.1, 2.5, 3.0])
# Candidates for the memory's weight beside the network; units in shares of an item's mean sum of scores.
MEMORY_POWERS = torch.tensor([0.0, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0])
MEMORY_UNITS = torch.tensor([0.0003, 0.001, 0.003, 0.01, 0.03])
HISTORY_DECAYS = (0.5, 0.7)
MEMORY_SHARES = (0.0, 0.1, 0.2, 0.3)
MEMORY_TRENDS = (0.0, 0.1, 0.2, 0.3)
FRESHNESS, FRESHNESS_UPDATES = (1.0, 2.0, 4.0, 8.0), 10
FITTED_WITH_GATE = ("memory_history_decay", "generate_temperature", "memory_power", "memory_unit")
# A log-probability below this says no more than that the event was not foreseen.
LOWEST = -50.0
# Rankings of the validation targets that `fit_memory` takes, about: the gate's fit costs as much as three.
MEMORY_RANKINGS = 3 * len(HISTORY_DECAYS) + len(MEMORY_SHARES) + len(MEMORY_TRENDS) + len(FRESHNESS)


def mean_ndcg(
    ranker: ModelRanker, sequences: Sequences, part: int, max_length: int, blocks: Iterable[np.ndarray]
) -> float:
    """NDCG@10 of the next item over the events of `part` at the positions of `blocks`."""
    rows, ranks = rows_per_batch(sequences.vocab_size), []
    for positions in blocks:
        for batch in evaluation_batches(sequences, part, max_length, rows, positions=positions):
            has_item = batch.target_item != NONE
            ranks.append(pessimistic_ranks(ranker.scores(batch), batch.target_item)[has_item])
    return float(np.mean(ndcg_at_k(np.concatenate(ranks), 10)))


def validation_ndcg(model: BertForNextBehavior, log: PreparedLog, positions: np.ndarray) -> float:
    """NDCG@10 of the next item over the validation events at `positions`; full catalogue, seen items kept."""
    return mean_ndcg(ModelRanker(model), log.sequences, VALIDATION, log.max_length, [positions])


def action_log_loss(model: BertForNextBehavior, log: PreparedLog, positions: np.ndarray) -> float:
    """Mean of -log p(action | history) over the validation events at `positions`; 0 for a log of one action."""
    ranker, total, count = ModelRanker(model), 0.0, 0
    if model.config.num_actions == FIRST_ACTION + 1:
        return total
    for batch in evaluation_batches(log.sequences, VALIDATION, log.max_length, MAX_ROWS, positions=positions):
        known = batch.target_action >= FIRST_ACTION
        given = ranker.action_probabilities(batch)[known, batch.target_action[known]]
        total, count = total - float(np.log(given.clip(min=1e-12)).sum()), count + int(known.sum())
    return total / max(1, count)


@torch.no_grad()
def new_item_fits(
    model: BertForNextBehavior,
    events: Events,
    item_ids: torch.Tensor,
    action_ids: torch.Tensor,
    temperatures: torch.Tensor,
    powers: torch.Tensor,
    units: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How a given next event would be named: what the gate and the weight of the memory are fitted on.

    Args:
        events: B histories; item_ids, action_ids: (B,) int64, the next event.
        temperatures, powers, units: (C,), (P,), (U,) candidates for `generate_temperature`, `memory_power`,
            `memory_unit`.

    Returns:
        (B, C, P, U) float32 log p(item | the item is new), by network and memory together and nothing by the memory
        alone, MASKED where the item is not new; (B,) float32 log p(item | repeat), MASKED where it repeats none;
        (B, 3) gate logits.
    """
    named = model.item_head.named_items(model.bert(*events), events, action_ids[:, None])
    first = model.config.first_item_id
    column = (item_ids - first).clamp(min=0)
    fits = named.new.log_probability_under(
        column, model.config.generate_temperature, temperatures, powers, units
    )  # (B, C, P, U)
    is_new = (item_ids >= first) & (events.items != item_ids[:, None]).all(dim=1)
    fits = fits.masked_fill(~is_new[:, None, None, None], MASKED)
    pointed = named.pointer[:, 0].masked_fill(events.items != item_ids[:, None], MASKED).logsumexp(dim=-1)
    return fits, pointed, named.gate[:, 0]


def fit_gate(model: BertForNextBehavior, log: PreparedLog, positions: np.ndarray) -> float:
    """Fits the gate's scale and offsets, the generate path's temperature and the memory's weight to the validation
    events.

    On training events the network and the counts look better than they are, because they have seen them. The log-loss
    on held-out events decides instead: the gate's four numbers by L-BFGS, lightly regularised; the temperature and the
    memory's power and unit on a grid.

    Returns:
        The mean of -log p(item | history, action) over the validation events after the fit.
    """
    ranker, collected = ModelRanker(model), list[tuple[torch.Tensor, ...]]()
    rows = rows_per_batch(log.sequences.vocab_size)
    units = (MEMORY_UNITS * model.associate_path.neighbors().mean_sum).clamp(min=1e-6)
    candidates = {"temperatures": GENERATE_TEMPERATURES, "powers": MEMORY_POWERS, "units": units}
    candidates = {name: values.to(model.device) for name, values in candidates.items()}
    for batch in evaluation_batches(log.sequences, VALIDATION, log.max_length, rows, positions=positions):
        nameable = torch.from_numpy((batch.target_item > 0) & (batch.target_action >= FIRST_ACTION)).to(model.device)
        if not nameable.any():
            continue
        events = Events(*ranker.tensors(batch).values()).rows(nameable)
        item_ids = torch.from_numpy(batch.target_item).to(model.device)[nameable]
        action_ids = torch.from_numpy(batch.target_action).to(model.device)[nameable]
        collected.append((item_ids, *new_item_fits(model, events, item_ids, action_ids, **candidates)))
    if not collected:
        return math.inf
    items, new, repeated, logits = (torch.cat(parts) for parts in zip(*collected, strict=True))
    is_new = new[:, 0, 0, 0] > MASKED
    paths = torch.full_like(logits, MASKED)
    paths[items == NONE, GATE_NONE] = 0
    paths[:, GATE_REPEAT] = repeated
    if is_new.any():
        fits = new[is_new].clamp(min=LOWEST).mean(dim=0)  # (C, P, U)
        temperature, power, unit = np.unravel_index(int(fits.argmax()), fits.shape)
        model.config.generate_temperature = float(GENERATE_TEMPERATURES[temperature])
        model.config.memory_power = float(MEMORY_POWERS[power])
        model.config.memory_unit = float(units[unit])
        paths[:, GATE_NEW] = new[:, temperature, power, unit]

    start = torch.tensor([1.0, 0.0, 0.0, 0.0], device=paths.device)  # scale of the gate, offsets of its three
    numbers = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([numbers], max_iter=60, line_search_fn="strong_wolfe")

    def log_loss() -> torch.Tensor:
        gate = torch.where(logits > MASKED, logits * numbers[0] + numbers[1:], MASKED).log_softmax(dim=-1)
        return -(gate + paths).logsumexp(dim=-1).clamp(min=LOWEST).mean()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = log_loss() + 1e-3 * (numbers - start).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        model.path_gate.weight.mul_(numbers[0])
        model.path_gate.bias.mul_(numbers[0]).add_(numbers[1:])
        return float(log_loss())


def fit_memory(model: BertForNextBehavior, log: PreparedLog, positions: np.ndarray) -> None:
    """Fits how many recent items the memory listens to beside the trained network, how much it makes of what is named
    lately, and what it names alone.

    The log-loss decides how many items. The trend and the share with the best NDCG@10 of new items are taken: the
    log-loss would have more of the trend, for the items far down, than is good for the first ten places, and nothing
    named by the memory alone, because it names few items.
    """
    config, lowest = model.config, math.inf
    config.memory_share = config.memory_trend = 0.0
    for decay in HISTORY_DECAYS:
        config.memory_history_decay = decay
        loss = fit_gate(model, log, positions)
        if loss < lowest:
            lowest, gate = loss, copy.deepcopy(model.path_gate.state_dict())
            chosen = {name: getattr(config, name) for name in FITTED_WITH_GATE}
    if lowest == math.inf:
        return
    model.path_gate.load_state_dict(gate)
    for name, value in chosen.items():
        setattr(config, name, value)
    new_items = novel_positions(log.sequences, VALIDATION, log.max_length, MAX_ROWS, positions)
    if not len(new_items):
        return
    candidates = {"memory_share": MEMORY_SHARES}
    if model.associate_path.recent_counts.any():
        candidates = {"memory_trend": MEMORY_TRENDS, **candidates}
    for name, values in candidates.items():
        take_best(config, name, values, lambda: validation_ndcg(model, log, new_items))
    if log.split.how != "none":
        fit_freshness(model, log, new_items)


def fit_freshness(model: BertForNextBehavior, log: PreparedLog, positions: np.ndarray) -> None:
    """Fits how many times the pairs of events count that the weights were not trained on: what ranks the validation
    events at `positions` best while the memory counts the ones before them, in leave-one-out those of the other users.
    """
    sequences, part = log.sequences, VALIDATION
    if log.split.how == "leave_one_out":
        everyone = np.flatnonzero(sequences.parts == VALIDATION)
        if 2 * len(positions) > len(everyone):
            positions = np.sort(np.random.default_rng(0).permutation(positions)[: (len(everyone) + 1) // 2])
        # The part before the one that is ranked is counted, and what is after it is left alone.
        parts = np.where(sequences.parts == TEST, TEST + 1, sequences.parts)
        part = TEST
        parts[positions] = part
        sequences = replace(sequences, parts=parts)

    ranker = UpdatedModelRanker(model, sequences, part, log.split, FRESHNESS_UPDATES)
    config = ranker.model.config
    take_best(
        config,
        "memory_freshness",
        FRESHNESS,
        lambda: mean_ndcg(ranker, sequences, part, log.max_length, ranker.blocks(positions)),
    )
    model.config.memory_freshness = config.memory_freshness


@torch.inference_mode()
def fit_temperatures(model: BertForNextBehavior, log: PreparedLog, positions: np.ndarray) -> None:
    """Sets the temperature of each head to the one with the lowest log-loss on the validation events (Guo et al.
    2017), searched on a grid from 0.5 to 2; then the weights of balanced answers."""
    config = model.config
    config.action_temperature = config.item_temperature = config.time_temperature = 1.0
    temperatures = torch.tensor(TEMPERATURES, dtype=torch.float32, device=model.device)
    losses = torch.zeros(3, len(temperatures), dtype=torch.float64, device=model.device)
    actions: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(head: int, logits: torch.Tensor, target: torch.Tensor) -> None:
        for index, temperature in enumerate(temperatures):
            scaled = logits / temperature
            losses[head, index] += torch.nn.functional.cross_entropy(scaled, target, reduction="sum").double()

    ranker = ModelRanker(model)
    rows = rows_per_batch(log.sequences.vocab_size * config.num_actions)
    for batch in evaluation_batches(log.sequences, VALIDATION, log.max_length, rows, positions=positions):
        output = model(**ranker.tensors(batch))
        action = torch.from_numpy(batch.target_action).to(model.device)
        item = torch.from_numpy(batch.target_item).to(model.device)
        gap = torch.from_numpy(batch.target_time_gap).to(model.device)
        known = action >= FIRST_ACTION
        add(0, output.action_logits[known], action[known])
        actions.append((action[known].cpu(), output.action_logits[known].double().cpu()))
        log_probability = output.item_logits[torch.arange(len(action), device=model.device), action]  # (B, V)
        rankable = known & (item > 0)
        rankable &= log_probability.gather(1, item.clamp(min=0)[:, None])[:, 0].isfinite()
        add(1, log_probability[rankable].clamp(min=-1e4), item[rankable])
        timed = gap > 1
        add(2, output.time_logits[timed], gap[timed])
    best = [float(TEMPERATURES[int(row.argmin())]) if row.any() else 1.0 for row in losses]
    config.action_temperature, config.item_temperature, config.time_temperature = best
    targets, logits = (torch.cat(parts) for parts in zip(*actions, strict=True))
    calibrated = (logits / config.action_temperature).softmax(dim=-1)
    config.action_weights = balancing_weights(targets.numpy(), calibrated.numpy()).round(2).tolist()


def take_best(
    config: PreTrainedConfig, name: str, values: Iterable[float], measure: Callable[[], float]
) -> dict[float, float]:
    """Sets the field `name` to the value under which `measure` is highest, the first of equals; returns what each value
    reached."""
    reached = {}
    for value in values:
        setattr(config, name, value)
        reached[value] = measure()
    setattr(config, name, max(reached, key=lambda value: reached[value]))
    return reached
