"""What is fitted on validation events while the weights stay as they are: how much each part of the answer counts.

gate          the weights of repeated and of new items, and how network and memory share the latter
memory        how many recent items it reads, how much recent popularity counts, what it names alone

The probabilities that result are calibrated in `probability_calibration.py`.

On training events the network and the counts look better than they are, because they have seen them. Held-out events
decide instead.

    fit_gate(model, targets)                 # before each validation
    fit_memory(model, log, positions)        # once, on the kept weights
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedConfig

from next_behavior.data.batches import NOVEL
from next_behavior.data.sequences import TEST, VALIDATION
from next_behavior.evaluation.rankers import UpdatedModelRanker
from next_behavior.model.mixture import GATE_NEW, GATE_NONE, GATE_REPEAT, NamedItems
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.repeat_path import MASKED
from next_behavior.model.special_ids import FIRST_ACTION, NONE, PAD
from next_behavior.training.encoded import EncodedBatch, encode_targets
from next_behavior.training.tokenized_log import TokenizedLog
from next_behavior.training.validation import mean_ndcg

# -- the gate
GENERATE_TEMPERATURES = torch.tensor([0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.1, 2.5, 3.0])
# Candidates for the memory's weight beside the network; units in shares of an item's mean sum of scores.
MEMORY_POWERS = torch.tensor([0.0, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0])
MEMORY_UNITS = torch.tensor([0.0003, 0.001, 0.003, 0.01, 0.03])
# A log-probability below this says no more than that the event was not predicted.
LOWEST = -50.0
# Of the gate's scale and offsets, toward no change.
REGULARIZATION = 1e-3

# -- the memory
HISTORY_DECAYS = (0.5, 0.7)
MEMORY_SHARES = (0.0, 0.1, 0.2, 0.3)
MEMORY_TRENDS = (0.0, 0.1, 0.2, 0.3)
FRESHNESS, FRESHNESS_UPDATES = (1.0, 2.0, 4.0, 8.0), 10
FITTED_WITH_GATE = ("memory_history_decay", "generate_temperature", "memory_power", "memory_unit")
# Rankings of the validation targets that `fit_memory` takes, about: the gate's fit costs as much as three.
MEMORY_RANKINGS = 3 * len(HISTORY_DECAYS) + len(MEMORY_SHARES) + len(MEMORY_TRENDS) + len(FRESHNESS)


class PathFits(NamedTuple):
    """How the paths name the next item after each of B histories.

    Attributes:
        new: (B, C, P, U) float32 log p(item | the item is new), by network and memory together under C
            `generate_temperature`, P `memory_power` and U `memory_unit`; MASKED where the item is not new.
        repeat: (B,) float32 log p(item | an item is repeated), MASKED where it repeats none.
        gate: (B, 3) float32 logits.
    """

    new: torch.Tensor
    repeat: torch.Tensor
    gate: torch.Tensor


@torch.no_grad()
def path_fits(
    model: BertForNextBehavior,
    named: NamedItems,
    input_ids: torch.Tensor,
    item_ids: torch.Tensor,
    temperatures: torch.Tensor,
    powers: torch.Tensor,
    units: torch.Tensor,
) -> PathFits:
    """The fits of the next items item_ids (B,) int64 after B histories.

    Args:
        named: what the paths say for the next actions, one for each history; input_ids: (B, T) int64.
        temperatures, powers, units: (C,), (P,), (U,) candidates.
    """
    first, is_in_history = model.config.first_item_id, input_ids == item_ids[:, None]
    column = (item_ids - first).clamp(min=0)
    fits = named.new.log_probability_under(column, model.config.generate_temperature, temperatures, powers, units)
    is_new = (item_ids >= first) & ~is_in_history.any(dim=1)
    return PathFits(
        new=fits.masked_fill(~is_new[:, None, None, None], MASKED),
        repeat=named.pointer[:, 0].masked_fill(~is_in_history, MASKED).logsumexp(dim=-1),
        gate=named.gate[:, 0],
    )


@torch.no_grad()
def fits_of_targets(
    model: BertForNextBehavior, targets: list[EncodedBatch], units: torch.Tensor
) -> tuple[torch.Tensor, PathFits] | None:
    """The items (N,) of those targets that the model can name, and their fits; None if there are none."""
    device, collected = model.device, list[tuple[torch.Tensor, PathFits]]()
    candidates = [values.to(device) for values in (GENERATE_TEMPERATURES, MEMORY_POWERS, units)]
    for encoded in targets:
        batch = encoded.batch
        rows = np.flatnonzero((batch.target_item > PAD) & (batch.target_action >= FIRST_ACTION))
        if not len(rows):
            continue
        row = torch.from_numpy(rows).to(device)
        item_ids = torch.from_numpy(batch.target_item[rows]).to(device)
        named = encoded.named_items(model, row, torch.from_numpy(batch.target_action[rows, None]).to(device))
        collected.append((item_ids, path_fits(model, named, encoded.events.items[row], item_ids, *candidates)))
    if not collected:
        return None
    items, fits = zip(*collected, strict=True)
    return torch.cat(items), PathFits(*(torch.cat(parts) for parts in zip(*fits, strict=True)))


def fit_gate(model: BertForNextBehavior, targets: list[EncodedBatch]) -> float:
    """Fits the gate's scale and offsets, the network's temperature and the memory's weight to the targets.

    The temperature and the memory's power and unit are chosen on a grid, then the gate's four numbers by L-BFGS.

    Returns:
        The mean of -log p(item | history, action) over the targets after the fit; infinite if the model can
        name none of them.
    """
    units = (MEMORY_UNITS * model.associate_path.neighbors().mean_sum).clamp(min=1e-6)
    found = fits_of_targets(model, targets, units)
    if found is None:
        return math.inf
    items, fits = found
    paths = torch.full_like(fits.gate, MASKED)
    paths[items == NONE, GATE_NONE] = 0
    paths[:, GATE_REPEAT] = fits.repeat
    is_new = fits.new[:, 0, 0, 0] > MASKED
    if is_new.any():
        means = fits.new[is_new].clamp(min=LOWEST).mean(dim=0)  # (C, P, U)
        temperature, power, unit = np.unravel_index(int(means.argmax()), means.shape)
        model.config.generate_temperature = float(GENERATE_TEMPERATURES[temperature])
        model.config.memory_power = float(MEMORY_POWERS[power])
        model.config.memory_unit = float(units[unit])
        paths[:, GATE_NEW] = fits.new[:, temperature, power, unit]
    return scale_gate(model.path_gate, fits.gate, paths)


def scale_gate(gate: torch.nn.Linear, logits: torch.Tensor, paths: torch.Tensor) -> float:
    """Changes the gate's scale and its three offsets to those with the lowest log-loss, lightly regularized.

    Args:
        logits: (N, 3) float32 of the gate, MASKED where impossible.
        paths: (N, 3) float32 log p(item | path), MASKED where the path cannot name it.

    Returns:
        The mean log-loss that is reached.
    """
    start = torch.tensor([1.0, 0.0, 0.0, 0.0], device=paths.device)  # scale, offsets
    numbers = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([numbers], max_iter=60, line_search_fn="strong_wolfe")

    def log_loss() -> torch.Tensor:
        gate = torch.where(logits > MASKED, logits * numbers[0] + numbers[1:], MASKED).log_softmax(dim=-1)
        return -(gate + paths).logsumexp(dim=-1).clamp(min=LOWEST).mean()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = log_loss() + REGULARIZATION * (numbers - start).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        gate.weight.mul_(numbers[0])
        gate.bias.mul_(numbers[0]).add_(numbers[1:])
        return float(log_loss())


def fit_memory(model: BertForNextBehavior, log: TokenizedLog, positions: np.ndarray) -> None:
    """Fits how many recent items the memory reads beside the trained network, how much recent popularity counts, and
    the share of new items that the memory names alone.

    The log-loss decides how many items. The NDCG@10 of new items decides the other two. The log-loss would take more of
    the recent popularity than is good for the first ten places, and no share for the memory alone, which names few
    items.
    """
    config, lowest = model.config, math.inf
    targets = encode_targets(model, log.sequences, VALIDATION, log.max_length, positions)
    config.memory_share = config.memory_trend = 0.0
    for decay in HISTORY_DECAYS:
        config.memory_history_decay = decay
        loss = fit_gate(model, targets)
        if loss < lowest:
            lowest, gate = loss, copy.deepcopy(model.path_gate.state_dict())
            chosen = {name: getattr(config, name) for name in FITTED_WITH_GATE}
    if lowest == math.inf:
        return
    model.path_gate.load_state_dict(gate)
    for name, value in chosen.items():
        setattr(config, name, value)
    new_items = np.sort(np.concatenate([each.batch.position[each.batch.group == NOVEL] for each in targets]))
    if not len(new_items):
        return
    candidates = {"memory_share": MEMORY_SHARES}
    if model.associate_path.recent_counts.any():
        candidates = {"memory_trend": MEMORY_TRENDS, **candidates}
    for name, values in candidates.items():
        take_best(config, name, values, lambda: mean_ndcg(model, [new_items], targets))
    if log.split.how != "none":
        fit_freshness(model, log, new_items, targets)


def fit_freshness(
    model: BertForNextBehavior, log: TokenizedLog, positions: np.ndarray, targets: list[EncodedBatch]
) -> None:
    """Fits how many times a pair of events counts that the weights were not trained on.

    The best value is the one that ranks the targets at `positions` best while the memory counts those before them; in
    leave-one-out those of the other users.
    """
    sequences, part = log.sequences, VALIDATION
    if log.split.how == "leave_one_out":
        everyone = np.flatnonzero(sequences.parts == VALIDATION)
        if 2 * len(positions) > len(everyone):
            positions = np.sort(np.random.default_rng(0).permutation(positions)[: (len(everyone) + 1) // 2])
        # The memory counts the part before the one that is ranked, and leaves out the part after it.
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
        lambda: mean_ndcg(ranker.model, ranker.blocks(positions), targets),
    )
    model.config.memory_freshness = config.memory_freshness


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
