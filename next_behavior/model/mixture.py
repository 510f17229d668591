"""p(item | history, action): the ways to name an item, mixed by a gate that reads the history and the action.

    none      the action comes without an item (a search, a login): the token [NONE]
    generate  softmax over the item table, which is tied to the input embeddings
    repeat    a pointer over the user's own events (repeat_path.py)
    associate the neighbors of the recent items in the associative memory (associative_memory.py)

Generate and associate name items that are new to the history, repeat names those in it. For new items the network's
and the memory's log-probabilities are added (a product of experts): the memory makes an item more probable by a factor
that grows with its counts. The shares of the two in an answer follow from that factor.

References: pointer mixtures (Merity et al. 2017); products of experts (Hinton 2002); p(action) * p(item | action) as in
MBGen (Liu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .answer_tables import AnswerTables
from .associative_memory import AssociativeMemory
from .configuration_behavior import BehaviorConfig
from .encoder import Events, last_index, state_at
from .repeat_path import MASKED, RepeatPath
from .special_ids import FIRST_NEW, NONE

# What the gate decides; within "new", counts decide between generate and associate.
GATE = ("none", "repeat", "new")
GATE_NONE, GATE_REPEAT, GATE_NEW = range(3)
TINY = torch.finfo(torch.float32).tiny


class ItemQuery(nn.Module):
    """What is looked for, given the history and the action: the hidden state with the action added.

    BERT's prediction head has a dense layer between; on small logs it only overfits (benchmarks/ablations_all.md).
    """

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.target_action = nn.Embedding(config.num_actions, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: torch.Tensor, action_ids: torch.Tensor) -> torch.Tensor:
        """hidden (..., H) and action_ids (...) int64 to queries (..., H)."""
        return self.LayerNorm(hidden + self.target_action(action_ids))


@dataclass(frozen=True)
class NewItems:
    """How network and memory name an item that is new to the history, after B histories and for Q actions each.

    Attributes:
        generated: (B, Q, V - first) float32 logits of the network alone, MASKED for the history's items.
        boost: (B, V - first) float32, zero or more: what the memory adds to them.
        scores: (B, V - first) float32 of the memory, zeros for items that no list holds.
        trend: (V - first,), or (B, V - first), float32: the part of `boost` that does not come from `scores`.
        counted: (B, V - first) float32 p(item, named by the memory alone); None where nothing is.
    """

    generated: torch.Tensor
    boost: torch.Tensor
    scores: torch.Tensor
    trend: torch.Tensor
    counted: torch.Tensor | None

    def log_generated(self) -> torch.Tensor:
        """(B, Q) float32: the logarithm of generate's part, the share that the network alone gave to what both give."""
        alone = self.generated.logsumexp(dim=-1) - (self.generated + self.boost[:, None]).logsumexp(dim=-1)
        alone = alone.clamp(max=0)
        return (
            alone if self.counted is None else alone + torch.log1p(-self.counted.sum(dim=-1, keepdim=True).clamp(max=1))
        )

    def log_probability(self) -> torch.Tensor:
        """(B, Q, V - first) float32 log p(item | history, action, the item is new)."""
        both = (self.generated + self.boost[:, None]).log_softmax(dim=-1)
        if self.counted is None:
            return both
        counted = self.counted[:, None]  # (B, 1, V - first)
        left = 1 - counted.sum(dim=-1, keepdim=True)
        return torch.addcmul(counted, both.exp(), left).clamp(min=TINY).log()

    def log_probability_under(
        self,
        column: torch.Tensor,
        temperature: float,
        temperatures: torch.Tensor,
        powers: torch.Tensor,
        units: torch.Tensor,
    ) -> torch.Tensor:
        """`log_probability` of one item for the first action, nothing by the memory alone, under other constants: what
        the gate's fit chooses among. Costs a pass over the catalog for each temperature, none for powers and units.

        Args:
            column: (B,) int64, the item's place among the V - first.
            temperature: `generate_temperature` that `generated` was divided by.
            temperatures, powers, units: (C,), (P,), (U,) candidates for `generate_temperature`, `memory_power` and
                `memory_unit`.

        Returns:
            (B, C, P, U) float32.
        """
        logits = self.generated[:, 0] * temperature  # (B, V - first)
        most = int((self.scores > 0).sum(dim=1).max())
        scores, columns = self.scores.topk(max(1, most), dim=1)  # (B, M): all that the memory names
        ratios = 1 / temperatures[:, None]  # (C, 1)
        # What the network gives the neighbors, and what the memory multiplies that by.
        alone = torch.stack([(logits * ratio).add_(self.trend).logsumexp(dim=-1) for ratio in ratios], dim=-1)  # (B, C)
        beside = logits.gather(1, columns)[:, None, :]  # (B, 1, M)
        given = (beside * ratios + self.trend[columns][:, None] - alone[..., None]).exp()  # (B, C, M)
        boost = (powers[:, None] * torch.log1p(scores[..., None, None] / units)).flatten(2)  # (B, M, P * U)
        normalizer = torch.log1p(given @ torch.expm1(boost))  # (B, C, P * U)
        column = column[:, None]  # (B, 1)
        score = logits.gather(1, column) * ratios[:, 0] + self.trend[column] - alone  # (B, C)
        own = (boost * (columns == column)[..., None]).sum(dim=1)[:, None, :]  # (B, 1, P * U)
        return (score[..., None] + own - normalizer).unflatten(2, (len(powers), len(units)))


@dataclass(frozen=True)
class NamedItems:
    """How the paths name the next item, after B histories and for Q actions each.

    Attributes:
        new: what generate and associate say.
        pointer: (B, Q, T) float32 log p(event is repeated).
        gate: (B, Q, 3) float32 logits of none, repeat and new.
    """

    new: NewItems
    pointer: torch.Tensor
    gate: torch.Tensor

    def probabilities(self, config: BehaviorConfig, input_ids: torch.Tensor, tables: AnswerTables) -> torch.Tensor:
        """(B, Q, V) p(item | history, action) for histories with the items input_ids (B, T)."""
        temperature = config.item_temperature
        gate = self.gate.log_softmax(dim=-1)[..., None] / temperature  # (B, Q, 3, 1)
        # An item is either new or repeated, so that the temperature can be applied on the way.
        new = self.new.log_probability()  # (B, Q, V - first)
        new = torch.add(gate[..., GATE_NEW, :], new, alpha=1 / temperature).exp()
        probabilities = F.pad(new, (tables.first_item_id, 0))  # (B, Q, V)
        repeated = (self.pointer / temperature + gate[..., GATE_REPEAT, :]).exp()
        probabilities.scatter_add_(2, input_ids[:, None, :].expand_as(repeated), repeated)
        probabilities[..., :FIRST_NEW] = 0
        probabilities[..., NONE] = gate[..., GATE_NONE, 0].exp()
        if tables.retired is not None:
            probabilities = probabilities.index_fill(-1, tables.retired, 0)
        if tables.retired is not None or temperature != 1.0:
            probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True).clamp(min=TINY)
        return probabilities

    def path_log_weights(self) -> torch.Tensor:
        """(B, Q, 4) log-weights in the order of `PATHS`; what is not generate's of the new items is associate's."""
        none, repeat, new = self.gate.log_softmax(dim=-1).unbind(dim=-1)
        generated = self.new.log_generated()
        associated = torch.log(-torch.expm1(generated)).clamp(min=MASKED)
        return torch.stack([none, new + generated, repeat, new + associated], dim=-1)

    def by_path(self, first_item_id: int, input_ids: torch.Tensor, item_ids: torch.Tensor) -> torch.Tensor:
        """(B, Q, k, 4) p(item and path | history, action) of the items (B, k) int64, in the order of `PATHS`."""
        new = self.new
        column = (item_ids - first_item_id).clamp(min=0)[:, None, :]
        column = column.expand(-1, new.generated.shape[1], -1)  # (B, Q, k)
        is_none = (item_ids == NONE)[:, None, :].expand_as(column)
        is_item = (item_ids >= first_item_id)[:, None, :].expand_as(column)
        generated = new.generated.gather(2, column) - new.generated.logsumexp(dim=-1, keepdim=True)  # (B, Q, k)
        generated = (generated + new.log_generated()[..., None]).exp()
        associated = generated * torch.expm1(new.boost[:, None].expand_as(new.generated).gather(2, column))
        if new.counted is not None:
            associated = associated + new.counted[:, None].expand_as(new.generated).gather(2, column)
        pointed = self.pointer.exp() @ (input_ids[:, :, None] == item_ids[:, None, :]).float()
        by_none, by_repeat, by_new = self.gate.softmax(dim=-1)[:, :, None].unbind(dim=-1)  # (B, Q, 1) each
        parts = [by_none * is_none, by_new * generated * is_item, by_repeat * pointed, by_new * associated * is_item]
        return torch.stack(parts, dim=-1)


@dataclass(frozen=True)
class ItemHead:
    """The modules that name an item, as the model holds them; `BertForNextBehavior.item_head` makes one for each use.

    Attributes:
        item_rows: rows of the item table (..., H) for ids (...) int64.
        item_table: the rows of all items, (V - first, H).
        item_shards: the rows of all ids (V, H), a `DTensor`, where a training divides them among processes; else None.
    """

    config: BehaviorConfig
    query: ItemQuery
    repeat_path: RepeatPath
    memory: AssociativeMemory
    gate: nn.Module
    item_rows: Callable[[torch.Tensor], torch.Tensor]
    item_table: Callable[[], torch.Tensor]
    item_shards: Callable[[], torch.Tensor | None]

    def gate_logits(self, query: torch.Tensor, without_item: torch.Tensor, can_repeat: torch.Tensor) -> torch.Tensor:
        """(..., 3) float32 logits of none, repeat and new, MASKED where impossible, for queries (..., H) of actions
        that may come without an item and histories that may be repeated, (...) bool."""
        possible = torch.stack([without_item, can_repeat, torch.ones_like(can_repeat)], dim=-1)
        return self.gate(query).float().masked_fill(~possible, MASKED)

    def new_items(
        self, generated: torch.Tensor, scores: torch.Tensor, trend: torch.Tensor, share: torch.Tensor | None
    ) -> NewItems:
        """`NewItems` of the network's logits, the memory's scores and trend, in the shapes it says, and `share`
        (V - first,), as in `AnswerTables`."""
        counted = None
        if share is not None:
            weighed = scores * trend.exp()
            counted = weighed / weighed.sum(dim=-1, keepdim=True).clamp(min=TINY) * share
        return NewItems(generated, self.memory.boost(scores, trend), scores, trend, counted)

    def named_items(
        self, hidden: torch.Tensor, events: Events, action_ids: torch.Tensor, tables: AnswerTables
    ) -> NamedItems:
        """What the paths say after the last of `events`, with states `hidden` (B, T, H), for actions (B, Q) int64."""
        query, pointer = self.query_and_pointer(hidden, events, action_ids)
        return self.named_by(query, pointer, events, action_ids, tables)

    def query_and_pointer(
        self, hidden: torch.Tensor, events: Events, action_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (B, Q, H) after the last of `events`, and `pointer` as in `NamedItems`."""
        last = last_index(events.mask)[:, None]  # (B, 1)
        query = self.query(state_at(hidden, last), action_ids)
        return query, self.repeat_path(query, action_ids, last.expand_as(action_ids), hidden, events)

    def named_by(
        self, query: torch.Tensor, pointer: torch.Tensor, events: Events, action_ids: torch.Tensor, tables: AnswerTables
    ) -> NamedItems:
        """What the paths say after the last of `events`, for actions (B, Q) int64, their queries (B, Q, H) and what the
        pointer says of each, (B, Q, T)."""
        last = last_index(events.mask)[:, None]  # (B, 1)
        seen, first = seen_items(events.items, tables.vocab_size), tables.first_item_id  # (B, V)
        logits = F.linear(query / self.config.generate_temperature, tables.item_table).float()  # (B, Q, V - first)
        recent = self.memory.recent_items(events.items, events.mask, last, tables.lists)[:, 0]
        return NamedItems(
            new=self.new_items(
                logits.masked_fill_(seen[:, None, first:], MASKED),
                self.memory.score(recent, seen, lists=tables.lists)[:, first:],
                tables.trend,
                tables.share,
            ),
            pointer=pointer,
            gate=self.gate_logits(query, tables.without_item[action_ids], pointer.amax(dim=-1) > MASKED),
        )


def actions_without_item(config: BehaviorConfig, device: torch.device) -> torch.Tensor:
    """(A,) bool: the actions that come without an item."""
    without = torch.zeros(config.num_actions, dtype=torch.bool, device=device)
    without[config.actions_without_item] = True
    return without


def seen_items(input_ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """(B, V) bool: the items of histories (B, T). Naming them is the repeat path's part alone."""
    seen = torch.zeros((input_ids.shape[0], vocab_size), dtype=torch.bool, device=input_ids.device)
    return seen.scatter_(1, input_ids, 1)  # `True` cannot be traced
