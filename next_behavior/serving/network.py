"""The part of a model that is exported: from a batch of histories to everything that does not grow with the catalog.

The item table is not in it: rows of items come in looked up, and queries go out to be compared with the table. So one
table, mapped into memory, serves lookups and scores. What depends on whole numbers alone is not in it either: numpy
makes the attention's mask and the pointer's biases (pointer.py) in a fraction of the time of so many small nodes.
"""

from __future__ import annotations

import torch
from torch import nn

from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import FIRST_ACTION

INPUTS = ("item_rows", "actions", "time_gaps", "mask", "attention_bias")
OUTPUTS = ("action_logits", "time_logits", "queries", "pointer_scores", "gate")


class ServedNetwork(nn.Module):
    """Encoder and heads of a model, for histories that are padded on the left."""

    def __init__(self, model: BertForNextBehavior) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        item_rows: torch.Tensor,
        actions: torch.Tensor,
        time_gaps: torch.Tensor,
        mask: torch.Tensor,
        attention_bias: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """What is known of the next event.

        Args:
            item_rows: (B, T, H) float32, the rows of the items.
            actions, time_gaps, mask: (B, T) int64, the channels of `Events`.
            attention_bias: (B, 1, T, T) float32, zero where an event reads another, else very negative.

        Returns:
            action_logits: (B, A) and time_logits: (B, G), not calibrated, special ids included.
            queries: (B, Q, H) for the Q actions that are not special, over the temperature of the generate path.
            pointer_scores: (B, Q, T), without biases; gate: (B, Q, 3) logits of none, repeat and new.
        """
        model = self.model
        embedded = model.bert.embeddings.of_rows(item_rows, actions, time_gaps, mask)  # (B, T, H)
        hidden = model.bert.encoder(embedded, attention_mask=attention_bias, use_cache=False).last_hidden_state
        last = hidden[:, -1]  # (B, H)
        next_actions = torch.arange(FIRST_ACTION, model.config.num_actions, device=last.device)  # (Q,)
        queries = model.item_query(last[:, None, :], next_actions)  # (B, Q, H)
        pointed = model.repeat_path.query(queries) @ model.repeat_path.key(hidden).transpose(1, 2)  # (B, Q, T)
        return (
            model.action_head(last),
            model.time_head(last),
            queries / model.config.generate_temperature,
            pointed / model.config.hidden_size**0.5,
            model.path_gate(queries),
        )
