"""LightGCN: embeddings of users and items, spread over the graph of who had what, trained by pairwise ranking.

    E(0) is learned;  E(l + 1) = D^-1/2 A D^-1/2 E(l);  E = mean of E(0) ... E(LAYERS);  score = E[user] . E[item]

A joins users with the items of their training events. The loss is BPR: an item of the user's above one drawn at random.
It does not know the order of events, and nobody who came after training: those get the popular items.

Reference: He et al. 2020, "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation".
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from next_behavior.data.batches import EvaluationBatch
from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.choice import CHOICE_METRIC, ChoiceBatches
from next_behavior.evaluation.counting import (
    TIE_BREAK,
    candidate_scores,
    popularity_order,
    training_events,
    training_item_counts,
)
from next_behavior.evaluation.metrics import ndcg_at_k, pessimistic_ranks

SIZE, LAYERS, PAIRS_PER_STEP = 64, 3, 8192
LEARNING_RATE, PENALTY = 5e-3, 1e-4
# Training ends after this many seconds, passes over the pairs, or validations without a better one.
MOST_SECONDS, MOST_EPOCHS, PATIENCE, EPOCHS_BETWEEN = 300.0, 1000, 5, 5


def normalized_graph(users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> torch.Tensor:
    """(U + V, U + V) sparse: D^-1/2 A D^-1/2 of the pairs (N,) each, which are distinct."""
    ends = torch.from_numpy(np.stack([users, num_users + items]))
    both = torch.cat([ends, ends.flip(0)], dim=1)
    size = num_users + num_items
    degree = torch.bincount(both[0], minlength=size).clamp(min=1).float()
    values = (degree[both[0]] * degree[both[1]]).rsqrt()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR matrices beta
        return torch.sparse_coo_tensor(both, values, (size, size)).coalesce().to_sparse_csr()


class SymmetricProduct(torch.autograd.Function):
    """A symmetric sparse matrix times a dense one: torch would transpose the matrix for each gradient."""

    @staticmethod
    def forward(ctx: Any, graph: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        ctx.graph = graph
        return torch.sparse.mm(graph, dense)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, torch.sparse.mm(ctx.graph, gradients[0])


def spread(graph: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """(U + V, D): the mean over the layers."""
    layers = [embeddings]
    for _ in range(LAYERS):
        layers.append(SymmetricProduct.apply(graph, layers[-1]))
    return torch.stack(layers).mean(dim=0)


class LightGCN:
    """Trains at most `seconds`; the best of its validations is kept."""

    note: str | None = None

    def __init__(self, seconds: float = MOST_SECONDS, seed: int = 0, progress: bool = False) -> None:
        self.seconds, self.seed, self.progress = seconds, seed, progress
        self.chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> LightGCN:
        self._first, self._size = sequences.first_item_id, sequences.vocab_size
        self._order = popularity_order(training_item_counts(sequences))
        events = np.flatnonzero(training_events(sequences) & sequences.known_items())
        pairs = np.unique(sequences.user_of_event()[events] * self._size + sequences.items[events].astype(np.int64))
        users, items = np.divmod(pairs, self._size)
        self._trained_user = np.bincount(users, minlength=sequences.num_users) > 0
        shape = (sequences.num_users + self._size, SIZE)
        self._users, self._items = torch.zeros(shape).split([sequences.num_users, self._size])
        if len(pairs):
            self._train(normalized_graph(users, items, sequences.num_users, self._size), users, items, sequences)
        return self

    def _train(self, graph: torch.Tensor, users: np.ndarray, items: np.ndarray, sequences: Sequences) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        sizes = [sequences.num_users, self._size]
        table = (0.1 * torch.randn(sum(sizes), SIZE, generator=generator)).requires_grad_()
        optimizer = torch.optim.Adam([table], lr=LEARNING_RATE)
        pair_users, pair_items = torch.from_numpy(users), torch.from_numpy(items)
        batches, best, without_better, started = ChoiceBatches(sequences, novel=True), -1.0, 0, time.monotonic()
        epoch = 0
        bar = tqdm(desc="LightGCN", unit=" epochs", total=MOST_EPOCHS, disable=not self.progress)
        for epoch in range(1, MOST_EPOCHS + 1):
            for chosen in torch.randperm(len(users), generator=generator).split(PAIRS_PER_STEP):
                loss = self._loss(graph, table, pair_users[chosen], pair_items[chosen], sizes[0], generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            bar.update()
            is_over = time.monotonic() - started > self.seconds
            if not is_over and epoch % EPOCHS_BETWEEN:
                continue
            before = self._users, self._items
            self._users, self._items = spread(graph, table.detach()).split(sizes)
            reached = self._validated(batches)
            if reached > best or not batches.count:
                best, without_better = reached, 0
                self.chosen = {"epochs": epoch, CHOICE_METRIC: reached if batches.count else None}
            else:
                self._users, self._items = before
                without_better += 1
            if is_over or without_better == PATIENCE:
                break
        bar.close()
        if time.monotonic() - started > self.seconds:
            self.note = f"its training ended after {epoch} epochs at the limit of {self.seconds:.0f} seconds"

    def _loss(
        self,
        graph: torch.Tensor,
        table: torch.Tensor,
        users: torch.Tensor,
        items: torch.Tensor,
        num_users: int,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """BPR of pairs (N,) each, against one random item for each."""
        final = spread(graph, table)
        negatives = torch.randint(self._first, self._size, (len(users),), generator=generator)
        rows = torch.stack([users, num_users + items, num_users + negatives])
        user, item, negative = final[rows]
        ranking = F.softplus((user * negative).sum(1) - (user * item).sum(1)).mean()
        return ranking + PENALTY * table[rows].pow(2).sum(2).sum(0).mean() / 2

    def _validated(self, batches: ChoiceBatches) -> float:
        """NDCG@10 over the validation targets, seen items removed; 0 without any."""
        gains = [np.zeros(0)]
        for batch in batches:
            scores = self.scores(batch)
            if batches.novel:
                rows = np.repeat(np.arange(len(batch)), [len(ids) for ids in batch.seen])
                scores[rows, np.concatenate(batch.seen)] = -np.inf
            gains.append(ndcg_at_k(pessimistic_ranks(torch.from_numpy(scores), batch.target_item), 10))
        return float(np.concatenate(gains).mean()) if batches.count else 0.0

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, TIE_BREAK * self._order, self._first)
        known = np.flatnonzero(self._trained_user[batch.user])
        products = self._users[torch.from_numpy(batch.user[known])] @ self._items[self._first :].T
        scores[known, self._first :] += products.numpy()
        return scores
