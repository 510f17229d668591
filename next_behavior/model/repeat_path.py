"""The repeat path: a pointer over the user's own events, also at items that the vocabulary does not know.

References: pointer mixtures (Merity et al. 2017), pointer-generator networks (See et al. 2017).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .configuration_behavior import BehaviorConfig
from .encoder import Events
from .special_ids import FIRST_NEW

# exp(MASKED) is zero in every float type, and unlike -inf it never turns a gradient into nan.
MASKED = -1e4
# An optimizer moves a bias by its learning rate a step; scaled, the pointer's few biases settle within an epoch.
BIAS_SCALE = 8.0
EXACT_RECENCIES = 16
NUM_RECENCIES = 32
# The first number of each bucket but the first: how many distinct items are more recent, how often an item occurred.
RECENCY_EDGES = (
    *range(1, EXACT_RECENCIES + 1),
    *(math.ceil(EXACT_RECENCIES * 2 ** (step / 3)) for step in range(1, NUM_RECENCIES - EXACT_RECENCIES)),
)
COUNT_EDGES = (1, 2, 3, 5, 9)
COUNT_BUCKET_MEANS = (1.0, 1.0, 2.0, 3.5, 6.5, 12.0)
NUM_COUNTS = len(COUNT_BUCKET_MEANS)


class RepeatPath(nn.Module):
    """A pointer over the distinct items of the user's own history, each at its latest event.

    The score of event j for a query is a dot product plus five learned biases, each for the target action: how many
    distinct items are more recent, which action the event was, how often its item occurred, how often its item has
    had the target action already (an item that is in the cart is rarely put there again), and what time has passed
    since, as the sum of one number for each gap between events: a night takes more off a score than ten seconds.
    """

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.num_actions = config.num_actions
        self.gap_bias = nn.Parameter(torch.zeros(config.num_actions, config.num_time_gaps))
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.recency_bias = nn.Embedding(config.num_actions, NUM_RECENCIES)
        self.action_bias = nn.Embedding(config.num_actions, config.num_actions)
        self.count_bias = nn.Embedding(config.num_actions, NUM_COUNTS)
        self.done_bias = nn.Embedding(config.num_actions, NUM_COUNTS)

    def forward(
        self,
        query: torch.Tensor,
        target_action: torch.Tensor,
        query_index: torch.Tensor,
        hidden: torch.Tensor,
        events: Events,
    ) -> torch.Tensor:
        """Log-weights of the events.

        Args:
            query: (B, Q, H); target_action: (B, Q) int64; query_index: (B, Q) int64, the position asked from.
            hidden: (B, T, H), the events' states.

        Returns:
            (B, Q, T) float32, log-softmax over the latest events, up to the query's position, of the items that can be
            named; MASKED everywhere if there is none.
        """
        length = hidden.shape[1]
        position = torch.arange(length, device=hidden.device)
        with torch.no_grad():
            same_item = events.items[:, :, None] == events.items[:, None, :]  # (B, T, T)
            later = position[:, None] < position
            next_same = torch.where(same_item & later, position, length).amin(dim=-1)  # (B, T)
            past = position <= query_index[:, :, None]  # (B, Q, T)
            nameable = (events.items >= FIRST_NEW) & (events.mask != 0)
            latest = nameable[:, None, :] & past & (next_same[:, None, :] > query_index[:, :, None])
            more_recent = latest.flip(-1).cumsum(dim=-1).flip(-1) - 1  # (B, Q, T): distinct items after event j
            same_item = same_item.to(hidden.dtype)
            with_action = past & (events.actions[:, None, :] == target_action[:, :, None])
            # (B, 2 Q, T): events up to the query with the item of event j, and those of them with the target action.
            counts = count_bucket(torch.cat([past, with_action], dim=1).to(hidden.dtype) @ same_item)
            count, done = counts.chunk(2, dim=1)
            actions = torch.arange(self.num_actions, device=hidden.device)
            was_action = (events.actions[:, :, None] == actions).to(hidden.dtype)  # (B, T, A)

        bias = self.action_bias(target_action) @ was_action.transpose(1, 2)  # (B, Q, T)
        bias = bias + self.recency_bias(target_action).gather(2, recency_bucket(more_recent))
        bias = bias + self.count_bias(target_action).gather(2, count)
        bias = bias + self.done_bias(target_action).gather(2, done)
        elapsed = self.gap_bias.T[events.time_gaps].cumsum(dim=1).transpose(1, 2)  # (B, A, T)
        elapsed = elapsed.gather(1, target_action[:, :, None].expand(-1, -1, length))  # (B, Q, T)
        bias = bias + elapsed.gather(2, query_index[:, :, None]) - elapsed
        scores = self.query(query) @ self.key(hidden).transpose(1, 2) / hidden.shape[-1] ** 0.5  # (B, Q, T)
        scores = scores + BIAS_SCALE * bias
        return scores.float().masked_fill(~latest, MASKED).log_softmax(dim=-1).masked_fill(~latest, MASKED)


def recency_bucket(more_recent: torch.Tensor) -> torch.Tensor:
    """Exact below 16, then three buckets an octave; int64 of the same shape."""
    return torch.bucketize(more_recent, torch.tensor(RECENCY_EDGES, device=more_recent.device), right=True)


def count_bucket(count: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, 3-4, 5-8, 9 and more; int64 of the same shape."""
    edges = torch.tensor(COUNT_EDGES, device=count.device, dtype=count.dtype)
    return torch.bucketize(count, edges, right=True)
