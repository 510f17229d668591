"""The fit of the gate between repeated and new items to all held-out events, after the other fits.

    fit_repeats(model, heads)

`fit_gate` (calibration.py) leaves out the events whose items the model cannot name, and asks about the action that
comes. An item that the vocabulary lacks is new to its user all the same, and the next action is not known when the
model is asked. So the gate took repeats for more frequent than they are. Here two numbers are fitted to how often the
next item is one of the history: how sharply the gate tells the two apart, and an offset. They become part of its
weights. The gate alone runs, on states that are there already (`logits_of_heads`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from next_behavior.model.mixture import GATE_NEW, GATE_REPEAT
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.ranking import real_actions
from next_behavior.model.special_ids import FIRST_ACTION
from next_behavior.training.head_calibration import HeadLogits, calibrated_actions

# The squared logarithm of the sharpness and the squared offset cost as much as so many nats of all events together.
PRIOR = 2.0
# Fewer events, or fewer of one kind, say too little.
FEWEST_EVENTS, FEWEST_OF_A_KIND = 200, 20
LEAST_PROBABILITY = 1e-9


class GateLogits(NamedTuple):
    """What the gate says of N held-out events that name an item, after histories that name one.

    Attributes:
        gate: (N, Q, 3) float64 logits of none, repeat and new, for the Q actions that may come next.
        by_action: (N, Q) float64 calibrated probabilities of the actions.
        is_repeat: (N,) bool, the next item is one of the history.
    """

    gate: torch.Tensor
    by_action: torch.Tensor
    is_repeat: torch.Tensor


@torch.no_grad()
def gate_logits(model: BertForNextBehavior, heads: HeadLogits) -> GateLogits:
    """At those of the events that have both."""
    chosen = heads.names_item & heads.can_repeat
    actions, tables = real_actions(model.config, model.device), model.answer_tables(model.device)
    state = heads.state[chosen].to(model.device)
    width = (len(state), len(actions))
    query = model.item_query(state[:, None].expand(-1, len(actions), -1), actions.expand(width))
    can_repeat = torch.ones(width, dtype=torch.bool, device=model.device)
    gate = model.item_head.gate_logits(query, tables.without_item[actions].expand(width), can_repeat)
    by_action = torch.from_numpy(calibrated_actions(model, heads))[chosen, FIRST_ACTION:]
    return GateLogits(gate.double().cpu(), by_action, heads.is_repeat[chosen])


def sharpened(gate: torch.Tensor, sharpness: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """(..., 3) gate logits: new less repeat, times `sharpness` plus `offset`; their mean and none stay."""
    none, repeat, new = gate.unbind(dim=-1)
    change = (new - repeat) * (sharpness - 1) + offset
    return torch.stack([none, repeat - change / 2, new + change / 2], dim=-1)


def repeat_probability(gate: torch.Tensor, by_action: torch.Tensor) -> torch.Tensor:
    """(N,) p(the next item is one of the history | the next event names an item)."""
    shares = gate.softmax(dim=-1)
    repeat, new = ((by_action * shares[..., path]).sum(dim=-1) for path in (GATE_REPEAT, GATE_NEW))
    return repeat / (repeat + new)


def fit_repeats(model: BertForNextBehavior, heads: HeadLogits) -> None:
    """Changes the gate's weights; see above. Where there are too few events of a kind, they stay."""
    said = gate_logits(model, heads)
    repeats = int(said.is_repeat.sum())
    if len(said.is_repeat) < FEWEST_EVENTS or min(repeats, len(said.is_repeat) - repeats) < FEWEST_OF_A_KIND:
        return
    numbers = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # logarithm of the sharpness, offset
    optimizer = torch.optim.LBFGS([numbers], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        repeat = repeat_probability(sharpened(said.gate, numbers[0].exp(), numbers[1]), said.by_action)
        wanted = torch.where(said.is_repeat, repeat, 1 - repeat).clamp(min=LEAST_PROBABILITY)
        loss = -wanted.log().mean() + PRIOR * numbers.square().sum() / len(wanted)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        sharpness, offset = numbers[0].exp().float(), numbers[1].float()
        weight, bias = model.path_gate.weight, model.path_gate.bias
        weight.copy_(sharpened(weight.T.cpu(), sharpness, torch.zeros(())).T)
        bias.copy_(sharpened(bias.cpu(), sharpness, offset))
