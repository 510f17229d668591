"""How the probability of an answer is made up of the paths: for the few who ask, so in plain passes of numpy."""

from __future__ import annotations

import numpy as np

from next_behavior.model.special_ids import NONE
from next_behavior.serving.catalog import Best, Catalog
from next_behavior.serving.distribution import GATE_NEW, GATE_NONE, GATE_REPEAT, MASKED, TINY, Said
from next_behavior.serving.live_memory import LiveMemory


def shares_of_paths(catalog: Catalog, memory: LiveMemory, said: Said, best: Best) -> np.ndarray:
    """(k, 4) float32: the shares of the paths none, generate, repeat and associate in the best answers."""
    fixed = catalog.fixed(memory, rounded=False)
    first, size, inverse = fixed.first, fixed.size, fixed.inverse
    ids, rows = best.ids, best.rows
    boosts, counted = np.zeros(size, np.float32), np.zeros(size, np.float32)
    boosts[:] = fixed.bias[:size]
    boosts[said.named] += said.boosts
    counted[said.named] = said.counted
    generated = said.queries @ fixed.rows.T  # (Q, size), of the network alone
    generated[:, said.seen] = MASKED
    alone, gate = log_sum_exp(generated), np.exp(log_softmax(said.gate))
    left = np.log(max(1 - counted.sum(), TINY))
    of_network = np.minimum(alone - log_sum_exp(generated + boosts), 0) + left  # (Q,)

    column, is_item, is_none = np.clip(ids - first, 0, None), ids >= first, ids == NONE
    network = np.exp(generated[:, column] - alone[:, None] + of_network[:, None])
    associated = network * np.expm1(boosts[column]) + counted[column]
    pointed = np.exp(said.pointer) @ (said.items[:, None] == ids).astype(np.float32)  # (Q, k)
    none, repeat, new = (gate[:, part, None] for part in (GATE_NONE, GATE_REPEAT, GATE_NEW))
    parts = np.stack([none * is_none, new * network * is_item, repeat * pointed, new * associated * is_item], axis=-1)

    is_new = is_item & (said.all_seen | ~np.isin(ids, said.items)) & ~np.isin(column, fixed.retired)
    logits = generated[:, column] + boosts[column] - best.norms[:, None] + left
    weight = (new * (np.exp(logits) + counted[column])) ** inverse * is_new
    weight = weight + (repeat * pointed) ** inverse * (pointed > 0) + none**inverse * is_none
    weight = weight * best.factors[:, None] * ((rows == -1) | (np.arange(len(weight))[:, None] == rows))
    shares = (weight[..., None] * parts / np.maximum(parts.sum(axis=-1, keepdims=True), TINY)).sum(axis=0)  # (k, 4)
    return shares / np.maximum(shares.sum(axis=-1, keepdims=True), TINY)


def log_sum_exp(values: np.ndarray) -> np.ndarray:
    """(Q,) for (Q, N)."""
    peak = values.max(axis=1)
    return peak + np.log(np.exp(values - peak[:, None]).sum(axis=1))


def log_softmax(values: np.ndarray) -> np.ndarray:
    """(Q, n) for a few columns."""
    return values - log_sum_exp(values)[:, None]
