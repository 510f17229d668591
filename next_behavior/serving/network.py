"""The part of a model that is exported: from a batch of histories to everything that does not grow with the catalog.

The item table is not in it: rows of items come in looked up, and queries go out to be compared with the table. So one
table, mapped into memory, serves lookups and scores.
"""

from __future__ import annotations

import torch
from torch import nn

from next_behavior.model.encoder import Events
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.repeat_path import MASKED
from next_behavior.model.special_ids import FIRST_ACTION

INPUTS = ("item_rows", "items", "actions", "time_gaps", "mask")
OUTPUTS = ("action_logits", "time_logits", "queries", "pointer", "gate")


class ServedNetwork(nn.Module):
    """Encoder and heads of a model, for histories that are padded on the left."""

    def __init__(self, model: BertForNextBehavior) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        item_rows: torch.Tensor,
        items: torch.Tensor,
        actions: torch.Tensor,
        time_gaps: torch.Tensor,
        mask: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """What is known of the next event.

        Args:
            item_rows: (B, T, H) float32, the rows of the items.
            items, actions, time_gaps, mask: (B, T) int64, the channels of `Events`.

        Returns:
            action_logits: (B, A) and time_logits: (B, G), calibrated.
            queries: (B, Q, H) for the Q actions that are not special, over the temperature of the generate path.
            pointer: (B, Q, T) log p(event is repeated); gate: (B, Q, 3) logits of none, repeat and new.
        """
        model, length = self.model, items.shape[1]
        embedded = model.bert.embeddings.of_rows(item_rows, actions, time_gaps, mask)  # (B, T, H)
        position = torch.arange(length, device=items.device)
        past = position[:, None] >= position  # (T, T)
        itself = position[:, None] == position  # padding reads itself: no position reads nothing
        attended = (past & (mask[:, None, :] != 0)) | itself  # (B, T, T)
        hidden = model.bert.encoder(embedded, attention_mask=attended[:, None], use_cache=False).last_hidden_state
        last = hidden[:, -1]  # (B, H)
        next_actions = torch.arange(FIRST_ACTION, model.config.num_actions, device=items.device)
        next_actions = next_actions.expand(items.shape[0], -1)  # (B, Q)
        head = model.item_head
        queries = head.query(last[:, None, :], next_actions)  # (B, Q, H)
        here = torch.full_like(next_actions, 0) + (length - 1)
        pointer = head.repeat_path(queries, next_actions, here, hidden, Events(items, actions, time_gaps, mask))
        gate = head.gate_logits(queries, next_actions, pointer.amax(dim=-1) > MASKED)
        return (
            model._action_logits(last, calibrated=True),
            model._time_logits(last, calibrated=True),
            queries / model.config.generate_temperature,
            pointer,
            gate,
        )
