"""The fit of the action head's and the time head's probabilities to held-out events.

    heads = logits_of_heads(model, log, positions)
    fit = best_scaling(heads.action_logits, heads.action, rows_of_ways(heads), heads.order)

A head's logits are divided by a temperature (Guo et al. 2017), and log-weights are added: one for each class (vector
scaling), or for each class after each last action. Of these ways the one with the lowest log-loss on events that its
fit has not seen is taken: it is fitted on one half of the events in time and measured on the other, and the reverse.
A prior toward no change keeps the fit of a few events harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from next_behavior.data.sequences import VALIDATION
from next_behavior.evaluation.reliability import reliability
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_GAP, FIRST_NEW, NONE
from next_behavior.training.encoded import encode_targets
from next_behavior.training.tokenized_log import TokenizedLog

# Events whose histories are held at once.
ENCODED_EVENTS = 4096
# The squared log-temperature and log-weights cost as much as so many nats of all events together.
PRIOR = 10.0
# The ways to scale, from the simplest.
TEMPERATURE, BY_CLASS, BY_LAST_ACTION = "temperature", "class", "last action"


@dataclass(frozen=True)
class HeadLogits:
    """What the encoder and the heads say of N held-out events, as they were trained.

    Attributes:
        order: (N,) int64, that of the events in time.
        state: (N, H) float32 of each history's last event.
        action_logits: (N, A) and time_logits: (N, G) float64, special ids included.
        action, gap, last_action: (N,) int64 ids, of the event and of the one before it.
        names_item, can_repeat, is_repeat: (N,) bool: the event names an item; its history does; it is one of those.
    """

    order: np.ndarray
    state: torch.Tensor
    action_logits: torch.Tensor
    time_logits: torch.Tensor
    action: torch.Tensor
    gap: torch.Tensor
    last_action: torch.Tensor
    names_item: torch.Tensor
    can_repeat: torch.Tensor
    is_repeat: torch.Tensor


@dataclass(frozen=True)
class Scaling:
    """logits / temperature + bias[row], for biases (R, C) float64."""

    temperature: float
    bias: torch.Tensor

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return logits / self.temperature + self.bias[rows]


@dataclass(frozen=True)
class ScalingFit:
    """The chosen way to scale.

    Attributes:
        way: its name; scaling: fitted on all events.
        held_out: log-loss of each way on events that it was not fitted on.
        before, after: `reliability` without scaling, and with scalings that have not seen the events.
    """

    way: str
    scaling: Scaling
    held_out: dict[str, float]
    before: dict[str, Any]
    after: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """For `run.json`."""
        return {"way": self.way, "held_out_log_loss": self.held_out, "before": self.before, "after": self.after}


@torch.no_grad()
def logits_of_heads(model: BertForNextBehavior, log: TokenizedLog, positions: np.ndarray) -> HeadLogits:
    """At the validation events at `positions`, at least one. Runs the encoder alone, so it costs a small part of a
    ranking."""
    sequences, parts, places = log.sequences, [], []
    positions = np.sort(positions)
    for begin in range(0, len(positions), ENCODED_EVENTS):
        some = positions[begin : begin + ENCODED_EVENTS]
        for encoded in encode_targets(model, sequences, VALIDATION, log.max_length, some):
            batch, items = encoded.batch, encoded.events.items.cpu()
            target = torch.from_numpy(batch.target_item)
            is_item = (items >= FIRST_NEW) & (encoded.events.mask.cpu() != 0)
            parts.append(
                (
                    encoded.state.cpu(),
                    model.action_logits(encoded.state).double().cpu(),
                    model.time_logits(encoded.state).double().cpu(),
                    torch.from_numpy(batch.target_action),
                    torch.from_numpy(batch.target_time_gap),
                    torch.from_numpy(batch.token_type_ids[:, -1]),
                    torch.from_numpy(sequences.items[batch.position] != NONE),
                    is_item.any(dim=1),
                    (is_item & (items == target[:, None])).any(dim=1),
                )
            )
            places.append(batch.position)
    place = np.concatenate(places)
    order = np.lexsort((place, sequences.timestamps[place]))
    return HeadLogits(order, *(torch.cat(each) for each in zip(*parts, strict=True)))


def calibrated_actions(model: BertForNextBehavior, heads: HeadLogits) -> np.ndarray:
    """(N, A) float64 probabilities of the actions."""
    logits = heads.action_logits / model.config.action_temperature
    if model.config.action_bias:
        logits = logits + torch.tensor(model.config.action_bias, dtype=torch.float64)[heads.last_action]
    return logits.softmax(dim=-1).numpy()


def fit_scaling(logits: torch.Tensor, target: torch.Tensor, rows: torch.Tensor, num_rows: int) -> Scaling:
    """The scaling with the lowest log-loss of targets (N,) under logits (N, C) float64; see `PRIOR`.

    Args:
        rows: (N,) int64 from 0 to `num_rows` - 1, which biases an event has; with no rows there are none.
    """
    inverse = torch.zeros(1, dtype=torch.float64, requires_grad=True)  # logarithm
    bias = torch.zeros(max(1, num_rows), logits.shape[1], dtype=torch.float64, requires_grad=num_rows > 0)
    fitted = [inverse, bias] if num_rows else [inverse]
    optimizer = torch.optim.LBFGS(fitted, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits * inverse.exp() + bias[rows], target, reduction="sum")
        loss = (loss + PRIOR * sum(each.square().sum() for each in fitted)) / len(target)
        loss.backward()
        return loss

    if len(target):
        optimizer.step(closure)
    return Scaling(float((-inverse).detach().exp()), bias.detach())


def best_scaling(
    logits: torch.Tensor, target: torch.Tensor, ways: Mapping[str, tuple[torch.Tensor, int]], order: np.ndarray
) -> ScalingFit:
    """The way of scaling whose log-loss on held-out events is lowest, the first of equals.

    Args:
        logits: (N, C) float64; target: (N,) int64.
        ways: name -> rows (N,) and their number, as for `fit_scaling`.
        order: (N,) int64, that of the events in time.
    """
    is_late = torch.zeros(len(target), dtype=torch.bool)
    is_late[torch.from_numpy(order[len(order) // 2 :].copy())] = True
    held_out, scaled = dict[str, float](), dict[str, torch.Tensor]()
    for way, (rows, num_rows) in ways.items():
        scaled[way] = torch.empty_like(logits)
        for fitted in (is_late, ~is_late):
            scaling = fit_scaling(logits[fitted], target[fitted], rows[fitted], num_rows)
            scaled[way][~fitted] = scaling(logits[~fitted], rows[~fitted])
        held_out[way] = float(F.cross_entropy(scaled[way], target)) if len(target) else 0.0
    best = min(held_out, key=lambda way: held_out[way])
    return ScalingFit(
        way=best,
        scaling=fit_scaling(logits, target, *ways[best]),
        held_out=held_out,
        before=head_reliability(logits, target),
        after=head_reliability(scaled[best], target),
    )


def head_reliability(logits: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
    """`reliability` of the most probable class."""
    probabilities, best = logits.softmax(dim=-1).max(dim=-1)
    return reliability(probabilities.numpy(), (best == target).numpy())


def fit_action_head(model: BertForNextBehavior, heads: HeadLogits) -> dict[str, Any]:
    """Sets the configuration's `action_temperature` and `action_bias`; returns the record of the fit."""
    config, known = model.config, heads.action >= FIRST_ACTION
    last, none = heads.last_action[known], torch.zeros_like(heads.last_action[known])
    ways = {TEMPERATURE: (none, 0), BY_CLASS: (none, 1), BY_LAST_ACTION: (last, config.num_actions)}
    places = np.argsort(np.argsort(heads.order))[known.numpy()]
    fit = best_scaling(heads.action_logits[known], heads.action[known], ways, np.argsort(places))
    bias = fit.scaling.bias.expand(config.num_actions, -1).clone()
    bias[:, :FIRST_ACTION] = 0
    config.action_temperature = fit.scaling.temperature
    config.action_bias = bias.float().numpy().round(4).astype(float).tolist() if fit.way != TEMPERATURE else []
    return fit.record()


def fit_time_head(model: BertForNextBehavior, heads: HeadLogits) -> dict[str, Any]:
    """Sets the configuration's `time_temperature` and `time_bias`; returns the record of the fit."""
    timed = heads.gap >= FIRST_GAP
    none = torch.zeros_like(heads.gap[timed])
    places = np.argsort(np.argsort(heads.order))[timed.numpy()]
    ways = {TEMPERATURE: (none, 0), BY_CLASS: (none, 1)}
    fit = best_scaling(heads.time_logits[timed], heads.gap[timed], ways, np.argsort(places))
    bias = fit.scaling.bias[0].clone()
    bias[:FIRST_GAP] = 0
    model.config.time_temperature = fit.scaling.temperature
    model.config.time_bias = bias.float().numpy().round(4).astype(float).tolist() if fit.way != TEMPERATURE else []
    return fit.record()
