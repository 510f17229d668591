"""Held-out events whose histories are encoded once, for all that is asked of them while the weights stay as they are.

    targets = encode_targets(model, sequences, VALIDATION, max_length, positions)
    for batch in targets: scores = batch.scores(model)

The encoder is causal: the state at an event is that of the history up to it. So targets whose windows begin at the same
event share a pass of the encoder, up to `MOST_SHARED` of them. What is kept is small: for each target the last state,
and what the pointer says for each action. The gate, the memory and the item table are read when a question is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from next_behavior.data.batches import EvaluationBatch, evaluation_batches
from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.ranking import rows_per_batch
from next_behavior.model.encoder import Events
from next_behavior.model.mixture import NamedItems
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.predicting import without_specials
from next_behavior.model.ranking import ItemAnswers, chunks, real_actions
from next_behavior.model.repeat_path import MASKED
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW

# Histories that are encoded at once: their states stay in a processor's caches.
ENCODED_ROWS = 32
# Targets that share a pass. Histories with fewer are filled up to the most in their batch.
MOST_SHARED = 16


@dataclass(frozen=True)
class EncodedBatch:
    """B targets and what the network says of their histories.

    Attributes:
        batch: the targets, and the channels of their histories.
        events: those channels, on the model's device.
        state: (B, H) float32 of each history's last event.
        pointer: (B, A - 3, T) float32 log p(event is repeated) for each action.
    """

    batch: EvaluationBatch
    events: Events
    state: torch.Tensor
    pointer: torch.Tensor

    def named_items(self, model: BertForNextBehavior, rows: torch.Tensor, action_ids: torch.Tensor) -> NamedItems:
        """What the paths say after the histories `rows` (n,) int64, for actions (n, Q) int64, real ones."""
        head, tables = model.item_head, model.answer_tables(self.state.device)
        query = head.query(self.state[rows][:, None], action_ids)  # (n, Q, H)
        pointer = self.pointer[rows[:, None], action_ids - FIRST_ACTION]  # (n, Q, T)
        return head.named_by(query, pointer, self.events.rows(rows), action_ids, tables)

    @torch.no_grad()
    def action_probabilities(self, model: BertForNextBehavior) -> torch.Tensor:
        """(B, A) float32 p(action | history)."""
        logits = model.action_head(self.state).float() / model.config.action_temperature
        return without_specials(logits, FIRST_ACTION).softmax(dim=-1)

    @torch.no_grad()
    def scores(self, model: BertForNextBehavior, chosen: np.ndarray | None = None) -> torch.Tensor:
        """(B, V) float32: what `ModelRanker.scores` gives, for all rows or those that are `chosen` (B,) bool."""
        tables, device = model.answer_tables(self.state.device), self.state.device
        actions, by_action = real_actions(model.config, device), self.action_probabilities(model)
        rows = torch.arange(len(self.batch), device=device)
        if chosen is not None:
            rows = rows[torch.from_numpy(chosen).to(device)]
        parts = [by_action.new_zeros(0, tables.vocab_size)]
        for part in chunks(len(rows), len(actions), tables.vocab_size, device):
            row = rows[part]
            named = self.named_items(model, row, actions.expand(len(row), -1))
            items = named.probabilities(model.config, self.events.items[row], tables)
            parts.append(ItemAnswers(named, items, by_action[row], actions).marginal().log())
        scores = torch.cat(parts)
        scores[:, :FIRST_NEW] = -torch.inf
        return scores


@torch.no_grad()
def encode_targets(
    model: BertForNextBehavior, sequences: Sequences, part: int, max_length: int, positions: np.ndarray
) -> list[EncodedBatch]:
    """The targets of `part` at `positions`, in the batches of `evaluation_batches`; leaves the model in evaluation
    mode."""
    model.eval()
    device, num_actions = model.device, model.config.num_actions - FIRST_ACTION
    rows = rows_per_batch(sequences.vocab_size)
    encoded, place = list[EncodedBatch](), dict[int, tuple[EncodedBatch, int]]()
    for batch in evaluation_batches(sequences, part, max_length, rows, positions=positions):
        channels = (batch.input_ids, batch.token_type_ids, batch.time_gap_ids, batch.attention_mask)
        events = Events(*(torch.from_numpy(channel).to(device) for channel in channels))
        state = torch.zeros(len(batch), model.config.hidden_size, device=device)
        pointer = torch.full((len(batch), num_actions, events.items.shape[1]), MASKED, device=device)
        encoded.append(EncodedBatch(batch, events, state, pointer))
        place |= {int(position): (encoded[-1], row) for row, position in enumerate(batch.position)}
    shared = targets_of_passes(sequences, max_length, positions)
    longest = np.array(sorted(shared), dtype=np.int64)
    for batch in evaluation_batches(sequences, part, max_length, ENCODED_ROWS, positions=longest):
        for target, state, pointer in states_of(model, batch, [shared[int(position)] for position in batch.position]):
            held, row = place[target]
            held.state[row] = state
            held.pointer[row, :, held.pointer.shape[2] - pointer.shape[1] :] = pointer
    return encoded


def targets_of_passes(sequences: Sequences, max_length: int, positions: np.ndarray) -> dict[int, np.ndarray]:
    """For each history that is encoded, under the position of the target after it, the positions of all targets that
    its states answer."""
    positions = np.sort(positions)
    users = np.searchsorted(sequences.offsets, positions, side="right") - 1
    starts = np.maximum(sequences.offsets[users], positions - max_length)
    windows = np.split(positions, np.flatnonzero(np.diff(starts)) + 1) if len(positions) else []
    passes = (window[begin : begin + MOST_SHARED] for window in windows for begin in range(0, len(window), MOST_SHARED))
    return {int(targets[-1]): targets for targets in passes}


def states_of(
    model: BertForNextBehavior, batch: EvaluationBatch, shared: list[np.ndarray]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """For each target that shares a history of the batch: its position, the state (H,) before it, and what the pointer
    says of the t events before it, (A - 3, t)."""
    device = model.device
    channels = (batch.input_ids, batch.token_type_ids, batch.time_gap_ids, batch.attention_mask)
    # Padding on the right: a causal encoder needs no mask then, and no event reads a later one.
    lengths = batch.position - batch.window_start  # (B,)
    column = (np.arange(batch.input_ids.shape[1]) - lengths[:, None]) % batch.input_ids.shape[1]
    events = Events(*(torch.from_numpy(np.take_along_axis(channel, column, 1)).to(device) for channel in channels))
    most = max(len(targets) for targets in shared)
    # The event before each target; histories with fewer targets ask for the first of them again.
    filled = np.stack([np.resize(targets, most) for targets in shared])  # (B, most)
    index = torch.from_numpy(filled - batch.window_start[:, None] - 1).to(device)
    hidden = causal_states(model, events)  # (B, T, H)
    states = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))  # (B, most, H)
    actions = real_actions(model.config, device)
    asked = actions.repeat(most).expand(len(batch), -1)  # (B, most * (A - 3))
    index = index.repeat_interleave(len(actions), dim=1)
    query = model.item_query(states.repeat_interleave(len(actions), dim=1), asked)
    pointer = model.repeat_path(query, asked, index, hidden, events).unflatten(1, (most, len(actions)))
    for row, targets in enumerate(shared):
        for number, target in enumerate(targets.tolist()):
            yield target, states[row, number], pointer[row, number, :, : target - int(batch.window_start[row])]


def causal_states(model: BertForNextBehavior, events: Events) -> torch.Tensor:
    """(B, T, H) states of events with padding on the right, if any."""
    if model.config._attn_implementation != "sdpa":
        return model.bert(*events)
    embedded = model.bert.embeddings(*events)
    return model.bert.encoder(embedded, attention_mask=None, use_cache=False).last_hidden_state
