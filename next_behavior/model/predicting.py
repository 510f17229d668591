"""The questions that a model answers: `predict`, `path_shares`, `item_log_probabilities`.

An answer takes the `AnswerTables` once, and the encoder runs once for all that is asked of a history. In evaluation
mode, several threads may ask at once, and beside one that changes the model: `update_memory`, `add_items` or
`retire_items`. Each answer is then that of the model before or after the change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .answer_tables import LOADING, TABLES_LOCK, AnswerTables, KeptTables, Sources, is_traced
from .associative_memory import AssociativeMemory
from .configuration_behavior import BehaviorConfig
from .encoder import BehaviorEncoder, Events, last_hidden, last_index
from .mixture import ItemHead, ItemQuery, actions_without_item
from .neighbor_lists import NeighborLists
from .ranking import (
    ItemAnswers,
    Question,
    RankedBehaviors,
    check_finite,
    check_question,
    checked_items,
    chunks,
    filled,
    rank_actions,
    rank_items,
    real_actions,
    shares_of_paths,
    stacked,
)
from .repeat_path import MASKED, RepeatPath
from .special_ids import FIRST_ACTION, FIRST_GAP, PATHS


@dataclass(frozen=True)
class Answers:
    """What a pipeline says of B histories: the ranked answers, the shares of the paths in each, (B, k, 4), and the
    calibrated probabilities of the time buckets (B, G); None for what was not asked."""

    ranked: RankedBehaviors
    shares: torch.Tensor | None
    time: torch.Tensor | None


class AnsweringModel(PreTrainedModel):
    """What `BertForNextBehavior` answers."""

    config: BehaviorConfig
    bert: BehaviorEncoder
    item_query: ItemQuery
    repeat_path: RepeatPath
    associate_path: AssociativeMemory
    path_gate: nn.Linear
    action_head: nn.Linear
    time_head: nn.Linear

    _kept_tables: KeptTables | None = None

    # -- what every answer reads ---------------------------------------------------------------------------------------

    @property
    def item_head(self) -> ItemHead:
        """The modules that name an item, as they are now."""
        embeddings = self.bert.embeddings
        return ItemHead(
            config=self.config,
            query=self.item_query,
            repeat_path=self.repeat_path,
            memory=self.associate_path,
            gate=self.path_gate,
            item_rows=embeddings.item_rows,
            item_table=self._item_table,
            item_shards=embeddings.item_shards,
        )

    def train(self, mode: bool = True) -> Any:
        """As in torch. Evaluation mode makes the tables that answers read, so that a model can be exported."""
        super().train(mode)
        if not mode and not LOADING.get() and not self.associate_path.pair_keys.is_meta:
            with torch.no_grad():
                self.answer_tables(self.associate_path.pair_keys.device)
        return self

    def answer_tables(self, device: torch.device) -> AnswerTables:
        """The tables as they are now, for answers on `device`; made anew only after a change."""
        if is_traced():
            return self._traced_tables(device)
        kept = self._kept_tables
        if kept is not None and kept.of_items is not None and self._still_hold(kept, device):
            return kept.tables
        with TABLES_LOCK:
            lists, kept = self.associate_path.neighbors(), self._kept_tables
            state, of_memory, of_items = self._made_of(device)
            if kept is None or not kept.sources.hold(self.config, state, of_memory):
                kept = KeptTables(Sources(self.config, state, of_memory), None, self._made_tables(lists, device))
            if of_items is None:
                # A table that gradients go through, or whose changes cannot be seen, is for one call.
                self._kept_tables = kept
                return kept.tables.with_items(self.bert.embeddings.item_table(device))
            if kept.of_items is None or not kept.of_items.hold(self.config, state, of_items):
                tables = kept.tables.with_items(self.bert.embeddings.item_table(device).detach())
                kept = KeptTables(kept.sources, Sources(self.config, state, of_items), tables)
            self._kept_tables = kept
            return kept.tables

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own tables."""
        return self.__dict__ | {"_kept_tables": None}

    def _still_hold(self, kept: KeptTables, device: torch.device) -> bool:
        state, of_memory, of_items = self._made_of(device)
        if of_items is None or kept.of_items is None:
            return False
        return kept.sources.hold(self.config, state, of_memory) and kept.of_items.hold(self.config, state, of_items)

    def _made_of(
        self, device: torch.device
    ) -> tuple[tuple[Any, ...], tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
        """What tables are made of beside the configuration: what else is to be the same, the memory's tensors, and the
        item table's; None for those of a table that must be made for each call."""
        memory = self.associate_path
        state = (memory.made_neighbors, device, torch.is_autocast_enabled(device.type))
        of_items = None if torch.is_grad_enabled() else self.bert.embeddings.table_sources()
        return state, (memory.recent_counts, memory.item_counts), of_items

    def _made_tables(self, lists: NeighborLists, device: torch.device) -> AnswerTables:
        """The tables but for the items' rows."""
        config, memory = self.config, self.associate_path
        retired = torch.tensor(config.retired_items, dtype=torch.long, device=device)
        nameable = torch.zeros(config.vocab_size, dtype=torch.bool, device=device)
        nameable[config.first_item_id :] = True
        nameable[retired] = False
        with torch.no_grad():
            share = memory.share()
            return AnswerTables(
                vocab_size=config.vocab_size,
                first_item_id=config.first_item_id,
                item_table=torch.empty(0, device=device),
                lists=lists,
                trend=memory.trend(),
                share=share if share.any() else None,
                nameable=nameable,
                retired=retired if len(retired) else None,
                without_item=actions_without_item(config, device),
            )

    def _traced_tables(self, device: torch.device) -> AnswerTables:
        """The memory as it was when the tables were made, as constants, and the items' rows as they are computed."""
        kept = self._kept_tables
        if kept is None or kept.tables.lists is not self.associate_path.made_neighbors:
            raise ValueError("the model has changed since it last answered: call model.eval() before it is exported.")
        return kept.tables.with_items(self.bert.embeddings.item_table(device))

    def _item_table(self) -> torch.Tensor:
        """(V - first, H) rows of all items, those that are kept where nothing is learned."""
        if torch.is_grad_enabled() or self.training:
            return self.bert.embeddings.item_table()
        return self.answer_tables(self.associate_path.pair_keys.device).item_table

    # -- questions -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        time_gap_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        top_k: int = 10,
        of: str = "pair",
        action: int | None = None,
        exclude_seen: bool = False,
        allowed_items: torch.Tensor | list[int] | None = None,
        balanced: bool = False,
        coverage: float | None = None,
    ) -> RankedBehaviors:
        """The `top_k` most probable next behaviors of each history.

        Args:
            input_ids ... attention_mask: (B, T), as for `forward`.
            of: "pair" ranks (action, item) pairs, an action without an item as (action, [NONE]); "item" ranks items,
                given that the next event names one; "action" ranks actions.
            action: an action id: the answer is given that this is the next action.
            exclude_seen: leave out the items in `input_ids`.
            allowed_items: item ids; only these are ranked. Actions without an item stay in "pair". Retired items are
                never ranked.
            balanced: with of="action", rank by probability times the weights of `config.action_weights`, so that rare
                actions are named first more often; the probabilities stay calibrated.
            coverage: of="item" or "action": instead of `top_k` answers, the smallest number of most probable ones that
                holds the next item, or action, with this probability (coverage.py).

        Returns:
            `RankedBehaviors`, probabilities over the candidates that remain. A `top_k` beyond their number returns
            all of them.
        """
        tables = self.answer_tables(input_ids.device)
        return self.answers(
            input_ids,
            token_type_ids,
            time_gap_ids,
            attention_mask,
            top_k=top_k,
            of=of,
            action=action,
            exclude_seen=exclude_seen,
            allowed_items=allowed_items,
            balanced=balanced,
            coverage=coverage,
            tables=tables,
        ).ranked

    @torch.no_grad()
    def answers(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        time_gap_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        top_k: int,
        of: str,
        action: int | None,
        exclude_seen: bool,
        allowed_items: torch.Tensor | list[int] | None,
        balanced: bool,
        *,
        tables: AnswerTables,
        coverage: float | None = None,
        left_out: list[list[int]] | None = None,
        shares: bool = False,
        time: bool = False,
    ) -> Answers:
        """All that a pipeline says of the histories, from one pass of the encoder; arguments as for `predict`, and

        Args:
            tables: what the answers read.
            left_out: for each history, item ids that are not ranked.
            shares, time: whether the paths' shares and the time to the next event are asked for.
        """
        restricted = allowed_items is not None
        limit = check_question(self.config, top_k, of, action, exclude_seen, restricted, balanced, coverage)
        events = Events.complete(self.config, input_ids, token_type_ids, time_gap_ids, attention_mask)
        allowed = checked_items(tables.vocab_size, allowed_items, events.items.device)
        excluded = filled(left_out, events.items.device)
        question = Question(of, top_k, action, exclude_seen, allowed, excluded, balanced, limit)
        with self.without_dropout():
            hidden = self.bert(*events)  # (B, T, H)
            last = last_hidden(hidden, events.mask)  # (B, H)
            by_action = self.calibrated_actions(last, events).softmax(dim=-1)  # (B, A)
            buckets = self.calibrated_times(last)[:, FIRST_GAP:].softmax(dim=-1) if time else None
            if question.of == "action":
                ranked = check_finite(rank_actions(self.config, by_action, question))
                assert ranked.item_ids is not None
                nothing = by_action.new_zeros((*ranked.item_ids.shape, len(PATHS)))
                return Answers(ranked, nothing if shares else None, buckets)
            actions, head = actions_asked(self.config, question, hidden.device), self.item_head
            ranked_parts, share_parts = [], []
            for part in chunks(len(hidden), len(actions), tables.vocab_size, hidden.device):
                rows = events if len(part) == len(hidden) else events.rows(part)
                answers = ItemAnswers.of(head, hidden[part], rows, by_action[part], actions, tables)
                ranked = rank_items(answers, rows, question.rows(part), tables)
                ranked_parts.append(ranked)
                if shares:
                    assert ranked.item_ids is not None
                    assert ranked.action_ids is not None
                    share_parts.append(shares_of_paths(answers, rows, ranked.item_ids, ranked.action_ids, tables))
        return Answers(check_finite(stacked(ranked_parts)), padded_shares(share_parts) if shares else None, buckets)

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Evaluation mode for a while; every module goes back to the mode that it was in."""
        # `eval()` has been called for all: asking each of them would be a good part of a small model's answer.
        trained = [module for module in self.modules() if module.training] if self.training else []
        for module in trained:
            module.training = False
        try:
            yield
        finally:
            for module in trained:
                module.training = True

    @torch.no_grad()
    def item_log_probabilities(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        time_gap_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, V) float32: log p(item | history, the next event names an item), summed over actions; -inf for ids
        that are no candidates. Holds (B, V), and all actions for a few rows at a time."""
        events = Events.complete(self.config, input_ids, token_type_ids, time_gap_ids, attention_mask)
        tables, head = self.answer_tables(events.items.device), self.item_head
        actions, parts = real_actions(self.config, events.items.device), []
        with self.without_dropout():
            hidden = self.bert(*events)  # (B, T, H)
            by_action = self._action_probabilities(hidden, events)
            for part in chunks(len(hidden), len(actions), tables.vocab_size, hidden.device):
                rows = events.rows(part)
                parts.append(
                    ItemAnswers.of(head, hidden[part], rows, by_action[part], actions, tables).marginal().log()
                )
        return torch.cat(parts)

    @torch.no_grad()
    def path_shares(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        time_gap_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        item_ids: torch.Tensor,
        action_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Which path named each answer: how p(item | history, action) is made up of the paths.

        An answer over all actions (action id 0) weighs the actions by how probable they make the item. A calibrated
        item temperature reshapes the mixture after the paths have met, so it changes probabilities and no share.

        Args:
            input_ids ... attention_mask: (B, T), as for `forward`; item_ids, action_ids: (B, k) int64, the answers.

        Returns:
            (B, k, 4) float32 shares in the order of `PATHS` that sum to one; zeros where no item is asked for, or one
            of probability zero.
        """
        events = Events(input_ids, token_type_ids, time_gap_ids, attention_mask)
        tables, head = self.answer_tables(events.items.device), self.item_head
        actions, parts = real_actions(self.config, events.items.device), []
        with self.without_dropout():
            hidden = self.bert(*events)  # (B, T, H)
            by_action = self._action_probabilities(hidden, events)
            for part in chunks(len(hidden), len(actions), tables.vocab_size, hidden.device):
                rows = events.rows(part)
                answers = ItemAnswers.of(head, hidden[part], rows, by_action[part], actions, tables)
                parts.append(shares_of_paths(answers, rows, item_ids[part], action_ids[part], tables))
        return torch.cat(parts)

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _action_probabilities(self, hidden: torch.Tensor, events: Events) -> torch.Tensor:
        """(B, A) calibrated p(action | history) for the states (B, T, H) of the events."""
        return self.calibrated_actions(last_hidden(hidden, events.mask), events).softmax(dim=-1)

    def action_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., A) float32 of the states (..., H), as they were trained."""
        return without_specials(self.action_head(hidden).float(), FIRST_ACTION)

    def time_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., G) float32 of the states (..., H), as they were trained."""
        return without_specials(self.time_head(hidden).float(), FIRST_GAP)

    def calibrated_actions(self, last: torch.Tensor, events: Events) -> torch.Tensor:
        """(B, A) calibrated logits of the next action, for the states (B, H) at the last events."""
        logits = self.action_logits(last) / self.config.action_temperature
        if not self.config.action_bias:
            return logits
        bias = torch.tensor(self.config.action_bias, device=last.device)  # (A, A)
        last_action = events.actions.gather(1, last_index(events.mask)[:, None])[:, 0]
        return logits + bias[last_action]

    def calibrated_times(self, last: torch.Tensor) -> torch.Tensor:
        """(B, G) calibrated logits of the bucket of the time until the next event, for the states (B, H)."""
        logits = self.time_logits(last) / self.config.time_temperature
        return logits + torch.tensor(self.config.time_bias, device=last.device) if self.config.time_bias else logits


def actions_asked(config: BehaviorConfig, question: Question, device: torch.device) -> torch.Tensor:
    """(Q,) int64: the actions that may come next."""
    return real_actions(config, device) if question.action is None else torch.tensor([question.action], device=device)


def padded_shares(parts: list[torch.Tensor]) -> torch.Tensor:
    """The shares of all chunks, filled to the same k with zeros."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, width - part.shape[1])) for part in parts])


def without_specials(logits: torch.Tensor, first: int) -> torch.Tensor:
    """Logits (..., C) with the ids before `first` masked."""
    return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) < first, MASKED)
