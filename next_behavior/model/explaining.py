"""Why a model answers as it does: probabilities of given answers, the parts that named them, and gradients.

    probabilities = model.answer_probabilities(events, question, item_ids, action_ids, tables)      # (B, k)
    parts = model.parts_of_answers(events, item_ids, action_ids, tables)                  # Parts
    given = model.integrated_gradients(events, question, item_ids, action_ids, tables)              # (B, k, T)

`explaining_answers.py` puts them into the answers of a pipeline.

References: leaving parts of the input out (Zeiler and Fergus 2014, Li et al. 2016); integrated gradients (Sundararajan
et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from .answer_tables import AnswerTables
from .encoder import Events, last_index
from .explaining_rules import LEAST_PROBABILITY
from .mixture import GATE_REPEAT
from .neighbor_lists import COUNT_UNIT
from .pair_tables import find
from .predicting import AnsweringModel, actions_asked
from .ranking import TINY, ItemAnswers, Question, chunks, probabilities_of, real_actions
from .repeat_path import MASKED
from .special_ids import FIRST_NEW, NO_GAP, PAD, UNK, UNKNOWN_ACTION

# Points of the Gauss-Legendre rule that gradients are integrated with.
GRADIENT_STEPS = 32


@dataclass(frozen=True)
class Parts:
    """What the model's own parts say of k answers to each of B histories of T events; all are zeros for an answer
    without an item.

    Attributes:
        pointer: (B, k, T) float32 p(event is repeated | an item is repeated), at the events with the answer's item.
        sources: (B, K) int64, the place of the events that the memory looks up, the newest first; -1 for none.
        shares: (B, k, K) float32, the part of the memory's score for the answer that comes from each of them.
        forward: (B, k, K) float32, counted pairs "that event's item, then the answer's", nearer pairs counting more;
            backward: the other way round.
        trend: (B, k) float32, how many times as probable recent popularity makes the item.
        similarity: (B, k, T) float32, cosine of the texts of the event's and the answer's item; None without item text.
    """

    pointer: torch.Tensor
    sources: torch.Tensor
    shares: torch.Tensor
    forward: torch.Tensor
    backward: torch.Tensor
    trend: torch.Tensor
    similarity: torch.Tensor | None


class ExplainingModel(AnsweringModel):
    """What `BertForNextBehavior` says of its answers."""

    @torch.no_grad()
    def answer_probabilities(
        self,
        events: Events,
        question: Question,
        item_ids: torch.Tensor,
        action_ids: torch.Tensor,
        tables: AnswerTables,
    ) -> torch.Tensor:
        """(B, k) float32: the probabilities of answers (B, k) int64 after the histories, 0 for what cannot be
        answered."""
        with self.without_dropout():
            return self._probabilities(self.bert(*events), events, question, item_ids, action_ids, tables)

    def _probabilities(
        self,
        hidden: torch.Tensor,
        events: Events,
        question: Question,
        item_ids: torch.Tensor,
        action_ids: torch.Tensor,
        tables: AnswerTables,
    ) -> torch.Tensor:
        """`answer_probabilities` for the states (B, T, H) of the events."""
        by_action = self._action_probabilities(hidden, events)  # (B, A)
        if question.of == "action":
            return by_action.gather(1, action_ids)
        actions, head, parts = actions_asked(self.config, question, hidden.device), self.item_head, []
        for part in chunks(len(hidden), len(actions), tables.vocab_size, hidden.device):
            rows = events.rows(part)
            answers = ItemAnswers.of(head, hidden[part], rows, by_action[part], actions, tables)
            parts.append(probabilities_of(answers, rows, question.rows(part), tables, item_ids[part], action_ids[part]))
        return torch.cat(parts)

    # -- the parts that named an answer --------------------------------------------------------------------------------

    @torch.no_grad()
    def parts_of_answers(
        self,
        events: Events,
        item_ids: torch.Tensor,
        action_ids: torch.Tensor,
        tables: AnswerTables,
    ) -> Parts:
        """The `Parts` of answers (B, k) int64."""
        with self.without_dropout():
            pointer = self._pointer_of(self.bert(*events), events, action_ids, tables)  # (B, k, T)
        same = (events.items[:, None, :] == item_ids[..., None]) & (item_ids >= FIRST_NEW)[..., None]  # (B, k, T)
        sources, shares, forward, backward = self._memory_of(events, item_ids, tables)
        column = (item_ids - tables.first_item_id).clamp(min=0)
        trend = torch.where(item_ids >= tables.first_item_id, tables.trend[column].exp(), 0.0)
        return Parts(
            pointer * same, sources, shares, forward, backward, trend, self._similarity(events, item_ids, tables)
        )

    def _pointer_of(
        self, hidden: torch.Tensor, events: Events, action_ids: torch.Tensor, tables: AnswerTables
    ) -> torch.Tensor:
        """(B, k, T): the pointer's weights for the actions of answers (B, k); over all actions where one names none."""
        actions = real_actions(self.config, hidden.device)
        by_action = self._action_probabilities(hidden, events)
        query, pointer = self.item_head.query_and_pointer(hidden, events, actions.expand(len(hidden), -1))
        gate = self.item_head.gate_logits(
            query, tables.without_item[actions].expand(len(hidden), -1), pointer.amax(dim=-1) > MASKED
        )
        repeats = by_action[:, actions] * gate.softmax(dim=-1)[..., GATE_REPEAT]  # (B, Q)
        chosen = (action_ids[..., None] == actions) | (action_ids[..., None] == PAD)  # (B, k, Q)
        weight = torch.where(chosen, repeats.clamp(min=TINY)[:, None, :], 0.0)
        return weight / weight.sum(dim=-1, keepdim=True).clamp(min=TINY) @ pointer.exp()

    def _memory_of(
        self, events: Events, item_ids: torch.Tensor, tables: AnswerTables
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`sources`, `shares`, `forward` and `backward` of `Parts`."""
        memory, lists, items = self.associate_path, tables.lists, events.items
        run, _ = memory.runs(items, events.mask)  # (B, T)
        last = last_index(events.mask)[:, None]
        recent = memory.recent_items(items, events.mask, last, lists)[:, 0]  # (B, K)
        back = run.gather(1, last) - torch.arange(recent.shape[1], device=run.device)  # (B, K)
        of_run = (items[:, None, :] == recent[..., None]) & (run[:, None, :] == back[..., None])  # (B, K, T)
        position = torch.arange(items.shape[1], device=run.device)
        sources = torch.where(of_run & (recent > 0)[..., None], position, -1).amax(dim=-1)
        first = recent[:, None, :].expand(-1, item_ids.shape[1], -1)  # (B, k, K)
        second = item_ids[..., None].expand_as(first)
        is_new = (item_ids >= tables.first_item_id) & ~(items[:, None, :] == item_ids[..., None]).any(dim=-1)
        given = looked_up(lists.keys, lists.value, first, second) * memory.weights(recent)[:, None] * is_new[..., None]
        shares = given / given.sum(dim=-1, keepdim=True).clamp(min=TINY)
        counted = memory.tables()
        counts = counted.pair_counts.float() / COUNT_UNIT
        forward, backward = (looked_up(counted.pair_keys, counts, *pair) for pair in ((first, second), (second, first)))
        return sources, shares, forward, backward

    def _similarity(self, events: Events, item_ids: torch.Tensor, tables: AnswerTables) -> torch.Tensor | None:
        item_text = self.bert.embeddings.item_text
        if item_text is None:
            return None

        def texts(ids: torch.Tensor) -> torch.Tensor:
            known = (ids >= tables.first_item_id)[..., None]
            return F.normalize(item_text.read(ids).float(), dim=-1) * known

        return texts(item_ids) @ texts(events.items).transpose(1, 2)  # (B, k, T)

    # -- gradients -----------------------------------------------------------------------------------------------------

    def integrated_gradients(
        self,
        events: Events,
        question: Question,
        item_ids: torch.Tensor,
        action_ids: torch.Tensor,
        tables: AnswerTables,
        steps: int = GRADIENT_STEPS,
    ) -> torch.Tensor:
        """(B, k, T) float32: what each event's embedding adds to the log-probability of answers (B, k) int64, from a
        baseline of events of an unknown item with an unknown action and no known gap. For an answer they sum to the
        difference of its log-probabilities, up to the error of the integral. The baseline has the same positions,
        pointer biases, memory scores and seen items: they do not go through the embeddings.
        """
        parts = []
        # Gradients need tensors that inference mode has not made.
        with torch.inference_mode(False), torch.enable_grad(), self.without_dropout():
            retired = None if tables.retired is None else tables.retired.clone()
            tables = replace(tables, item_table=tables.item_table.clone(), retired=retired)
            for row in range(len(events.items)):
                one = Events(*(channel[row : row + 1].clone() for channel in events))
                asked = question.rows(torch.tensor([row], device=item_ids.device))
                answers = (item_ids[row : row + 1].clone(), action_ids[row : row + 1].clone())
                parts.append(self._integrated(one, asked, *answers, tables, steps))
        return torch.stack(parts)

    def _integrated(
        self,
        events: Events,
        question: Question,
        item_ids: torch.Tensor,
        action_ids: torch.Tensor,
        tables: AnswerTables,
        steps: int,
    ) -> torch.Tensor:
        """`integrated_gradients` of one history, (k, T)."""
        embedded, baseline = (sums.detach() for sums in self.event_sums(events))  # (1, T, H)
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        points = torch.tensor((nodes + 1) / 2, dtype=embedded.dtype, device=embedded.device)
        weight = torch.tensor(weights / 2, dtype=embedded.dtype, device=embedded.device)
        total = embedded.new_zeros(item_ids.shape[1], *embedded.shape[1:])  # (k, T, H)
        actions = len(actions_asked(self.config, question, embedded.device))
        for part in chunks(steps, actions, tables.vocab_size, embedded.device):
            between = torch.lerp(baseline, embedded, points[part][:, None, None]).requires_grad_()  # (S, T, H)
            log_p = self.log_probabilities_from(between, events, question, item_ids, action_ids, tables)  # (S, k)
            for place in range(log_p.shape[1]):
                (gradient,) = torch.autograd.grad(log_p[:, place].sum(), between, retain_graph=True)
                total[place] += (gradient * weight[part][:, None, None]).sum(dim=0)
        return (total * (embedded - baseline)).sum(dim=-1)

    def event_sums(self, events: Events) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, H) each: the sums of the events' embeddings, and those of the baseline."""
        embeddings = self.bert.embeddings
        nothing = (torch.full_like(events.items, index) for index in (UNK, UNKNOWN_ACTION, NO_GAP))
        return tuple(  # type: ignore[return-value]
            embeddings.sums(embeddings.item_rows(items), actions, gaps)
            for items, actions, gaps in (events[:3], nothing)
        )

    def log_probabilities_from(
        self,
        sums: torch.Tensor,
        events: Events,
        question: Question,
        item_ids: torch.Tensor,
        action_ids: torch.Tensor,
        tables: AnswerTables,
    ) -> torch.Tensor:
        """(S, k) log-probabilities of answers (1, k) to one history with the event embeddings `sums`, (S, T, H)."""
        count = len(sums)
        rows = Events(*(channel.expand(count, -1) for channel in events))
        if question.left_out is not None:
            question = replace(question, left_out=question.left_out.expand(count, -1))
        hidden = self.bert.states(self.bert.embeddings.of_sums(sums, rows.mask), rows.mask)
        given = (item_ids.expand(count, -1), action_ids.expand(count, -1))
        return self._probabilities(hidden, rows, question, *given, tables).clamp(min=LEAST_PROBABILITY).log()


def looked_up(keys: torch.Tensor, values: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(...) float32: the values of the pairs of ids (...) in a table of pairs; 0 for a pair that it does not hold."""
    if not len(keys):
        return torch.zeros(first.shape, device=first.device)
    entry, missing = find(keys, ((first << 32) + second).flatten())
    found = values[entry.clamp(max=len(keys) - 1)].masked_fill(missing, 0)
    return found.view(first.shape) * (first > PAD) * (second > PAD)
