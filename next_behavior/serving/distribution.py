"""p(action, item | history) over the catalog, from what the network and the memory say. By the rules of
`model/mixture.py` and `model/ranking.py`, for one history at a time, in arrays that are used again.

Only a few columns differ from a plain softmax over the catalog: items that the memory scores, those of the history, and
retired ones. They are corrected in place. This file imports numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from next_behavior.model.coverage import set_sizes
from next_behavior.model.special_ids import FIRST_NEW, NONE
from next_behavior.serving.bundle import Constants
from next_behavior.serving.live_memory import LiveMemory
from next_behavior.serving.top import BLOCK, top

# exp(MASKED) is zero, as in the model.
MASKED, TINY = np.float32(-1e4), np.float32(np.finfo(np.float32).tiny)
# Below it, sums of exponentials over a catalog are float32; above, the largest logit is taken off first.
LARGEST_LOGIT = 60.0
# If the memory alone leaves less than this to the network, the two are added item by item, as in the model.
LEAST_LEFT = np.float32(1e-3)
# If less than this share of a sum is left without excluded items, it is summed again.
LEAST_KEPT = 0.3
GATE_NONE, GATE_REPEAT, GATE_NEW = range(3)


@dataclass(frozen=True)
class Said:
    """What the network says after one history, of Q actions.

    Attributes:
        items: (T,) int64, the history.
        pointer: (Q, T) float32; gate: (Q, 3) float32.
        actions: (Q,) float32, what each action counts: its probability, or one.
    """

    items: np.ndarray
    pointer: np.ndarray
    gate: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class Paths:
    """What it takes to say which path named an item: logits of the network alone (Q, N), and what the memory adds.

    Attributes:
        generated: (Q, N) float32 logits; normalizer: (Q,), their log-sum-exp.
        log_generated: (Q,) logarithm of generate's share of the new items.
        boost, counted: (N,) float32.
        gate: (Q, 3) probabilities of none, repeat and new.
    """

    generated: np.ndarray
    normalizer: np.ndarray
    log_generated: np.ndarray
    boost: np.ndarray
    counted: np.ndarray
    gate: np.ndarray


@dataclass(frozen=True)
class Joint:
    """Joint probabilities of actions and items, times what the actions count.

    Attributes:
        new: (Q, N) float32 of the catalog, to be multiplied by the weights (Q,); its columns are items from the first
            on, N a multiple of `BLOCK`. -1 where a column is no candidate: the history's items, retired ones, columns
            beyond the catalog.
        repeated_ids, repeated: (R,) and (Q, R), the items of the history.
        none: (Q,), of [NONE].
        new_sums: (Q,), sums over the candidates in `new`, weighed.
        paths: if they were asked for.
    """

    new: np.ndarray
    weights: np.ndarray
    repeated_ids: np.ndarray
    repeated: np.ndarray
    none: np.ndarray
    new_sums: np.ndarray
    paths: Paths | None


class Catalog:
    """The vectors of all items, and what is the same for every history.

    They stand in columns: a product of a few queries with columns takes half the time of one with rows.
    """

    def __init__(self, constants: Constants, item_columns: np.ndarray) -> None:
        self.constants = constants
        self.first = FIRST_NEW + constants.num_new_items
        self.size = constants.vocab_size - self.first
        self._columns = item_columns  # (H, N)
        self.width = item_columns.shape[1]
        assert self.width % BLOCK == 0, "the export fills it up"
        self.retired = np.array(constants.retired_items, np.int64) - self.first
        self._seen = np.zeros(constants.vocab_size, bool)
        self._buffers: dict[str, np.ndarray] = {}

    def logits(self, queries: np.ndarray) -> np.ndarray:
        """(M, N) float32 for queries (M, H), in an array that the next call changes."""
        return np.matmul(queries, self._columns, out=self.buffer("logits", len(queries)))

    def limit(self, queries: np.ndarray) -> float:
        """What no logit of queries (M, H) is above."""
        return self.constants.longest_row * float(np.sqrt(np.einsum("mh,mh->m", queries, queries).max()))

    def joint(
        self,
        said: Said,
        logits: np.ndarray,
        limit: float,
        memory: LiveMemory,
        recent: list[int],
        with_paths: bool,
    ) -> Joint:
        """The distribution after one history.

        Args:
            logits: (Q, N), changed in place; no one is above `limit`.
            recent: the known items of the history, runs as one, the newest first.
        """
        constants, first, size = self.constants, self.first, self.size
        inverse = np.float32(1 / constants.item_temperature)
        trend = memory.trend()
        seen = said.items[said.items >= first]
        columns, scores = self._scored(memory, recent, seen)
        seen_columns = seen - first
        logits[:, seen_columns] = MASKED
        logits[:, size:] = -np.inf
        boost = np.float32(constants.memory_power) * np.log1p(scores / np.float32(constants.memory_unit))
        counted = self._counted(memory, columns, scores, trend)
        left = max(1 - counted.sum(), TINY)
        generated = logits.copy() if with_paths else None
        if trend is not None:
            logits[:, :size] += trend[first:]
            limit += float(trend.max())
        logits[:, columns] += boost

        all_seen = len(seen) >= size and len(np.unique(seen)) == size
        apart = not all_seen and left >= LEAST_LEFT
        if not apart or inverse > 1 or limit + float(boost.max(initial=0)) > LARGEST_LOGIT:
            logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits, out=self.buffer("shares", len(logits)))
        totals = shares.sum(axis=1)  # (Q,)
        gate = log_softmax(said.gate)
        gate_new, ratio = gate[:, GATE_NEW] * inverse, left / totals  # (Q,) both
        if apart:
            exact = (shares[:, columns] + counted / ratio[:, None]) ** inverse
            scale, new = np.exp(gate_new + np.log(ratio) * inverse), tempered(shares, logits, inverse)
            if counted.any():
                new[:, columns] = exact
        else:
            scale, new = np.exp(gate_new), added(shares, ratio, columns, counted, inverse)
            new[:, size:] = 0
        new[:, self.retired] = 0

        repeated_ids, repeated = self._repeated(said, gate, inverse)
        none = np.exp(gate[:, GATE_NONE] * inverse)
        if all_seen:  # then an item of the history is named as a new one, too
            is_known = repeated_ids >= first
            repeated[:, is_known] += scale[:, None] * new[:, repeated_ids[is_known] - first]
            new[:] = 0
        sums = scale * new.sum(axis=1)
        factor = said.actions / np.maximum(sums + repeated.sum(axis=1) + none, TINY)
        for other in (seen_columns, self.retired, slice(size, None)):
            new[:, other] = -1
        paths = None if generated is None else self._paths(generated, trend, columns, boost, counted, gate)
        return Joint(new, scale * factor, repeated_ids, repeated * factor[:, None], none * factor, sums * factor, paths)

    def _scored(self, memory: LiveMemory, recent: list[int], seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns and scores of the items that the memory names and the history does not hold."""
        ids, scores = memory.scores(recent)
        self._seen[seen] = True
        unseen = ~self._seen[ids]
        self._seen[seen] = False
        return ids[unseen] - self.first, scores[unseen]

    def _counted(
        self, memory: LiveMemory, columns: np.ndarray, scores: np.ndarray, trend: np.ndarray | None
    ) -> np.ndarray:
        """What the memory alone gives to columns (n,) with scores (n,)."""
        weighed = scores if trend is None else scores * np.exp(trend[columns + self.first])
        return weighed / max(weighed.sum(), TINY) * memory.shares(columns + self.first)

    def _repeated(self, said: Said, gate: np.ndarray, inverse: np.float32) -> tuple[np.ndarray, np.ndarray]:
        """The items of the history that may be named, each once, and what the pointer gives them."""
        place = np.flatnonzero(said.items >= FIRST_NEW)
        ids, last = np.unique(said.items[place][::-1], return_index=True)
        latest = place[len(place) - 1 - last]  # the pointer is at the latest event of an item
        if len(self.retired):
            kept = ~np.isin(ids, self.retired + self.first)
            ids, latest = ids[kept], latest[kept]
        return ids, np.exp((said.pointer[:, latest] + gate[:, GATE_REPEAT, None]) * inverse)

    def _paths(
        self,
        generated: np.ndarray,
        trend: np.ndarray | None,
        columns: np.ndarray,
        boost: np.ndarray,
        counted: np.ndarray,
        gate: np.ndarray,
    ) -> Paths:
        all_boost, all_counted = np.zeros(generated.shape[1], np.float32), np.zeros(generated.shape[1], np.float32)
        if trend is not None:
            all_boost[: self.size] = trend[self.first :]
        all_boost[columns] += boost
        all_counted[columns] = counted
        alone = log_sum_exp(generated)
        log_generated = np.minimum(alone - log_sum_exp(generated + all_boost), 0) + np.log(max(1 - counted.sum(), TINY))
        return Paths(generated, alone, log_generated, all_boost, all_counted, np.exp(gate))

    def buffer(self, name: str, rows: int) -> np.ndarray:
        """(rows, N) float32 of any content, the same memory for the same name."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < rows:
            buffer = self._buffers[name] = np.empty((rows, self.width), np.float32)
        return buffer[:rows]


def tempered(shares: np.ndarray, logits: np.ndarray, inverse: np.float32) -> np.ndarray:
    """(..., N): shares, the exponentials of logits, to the power `inverse`; logits are changed in place."""
    if inverse == 1:
        return shares
    logits *= inverse
    return np.exp(logits, out=logits)


def added(
    shares: np.ndarray, ratio: np.ndarray, columns: np.ndarray, counted: np.ndarray, inverse: np.float32
) -> np.ndarray:
    """(Q, N): what the network gives, shares (Q, N) times ratio (Q,), and what the memory alone gives to some columns;
    their sum to the power `inverse`."""
    both = shares * ratio[:, None]
    both[:, columns] += counted
    return np.maximum(both, TINY) ** inverse


def log_sum_exp(values: np.ndarray) -> np.ndarray:
    """(Q,) for (Q, N)."""
    peak = values.max(axis=1)
    return peak + np.log(np.exp(values - peak[:, None]).sum(axis=1))


def log_softmax(values: np.ndarray) -> np.ndarray:
    """(Q, n) for a few columns."""
    return values - log_sum_exp(values)[:, None]


@dataclass(frozen=True)
class Candidates:
    """What may be answered to a question.

    Attributes:
        new: (Q, M) of the items that are new to the history, to be multiplied by the weights of `Joint`; -1 for none.
        allowed: (M,) the ids of the columns; None for those of the catalog.
        repeated_ids, repeated: (R,) and (Q, R), the items of the history.
        total: the sum of all, which probabilities are divided by.
    """

    new: np.ndarray
    allowed: np.ndarray | None
    repeated_ids: np.ndarray
    repeated: np.ndarray
    total: np.float32


def candidates_of(
    joint: Joint, first: int, of: str, exclude: np.ndarray | None, allowed: np.ndarray | None, without: list[int]
) -> Candidates:
    """The candidates; arguments as for `ranked`. Columns of `joint.new` are changed in place."""
    new, sums = joint.new, joint.new_sums
    if allowed is not None:
        new = new[:, allowed - first]
        if exclude is not None:
            new[:, np.isin(allowed, exclude)] = -1
        sums = joint.weights * np.maximum(new, 0).sum(axis=1)
    elif exclude is not None:
        outside = exclude[exclude >= first] - first
        left = sums - joint.weights * np.maximum(new[:, outside], 0).sum(axis=1)
        new[:, outside] = -1
        # A small difference of two sums is not exact.
        exact = (left >= LEAST_KEPT * sums).all()
        sums = left if exact else joint.weights * np.maximum(new, 0).sum(axis=1)
    repeated_ids, repeated = joint.repeated_ids, joint.repeated
    if exclude is not None or allowed is not None:
        kept = np.full(len(repeated_ids), exclude is None)
        if allowed is not None:
            kept &= np.isin(repeated_ids, allowed)
        repeated_ids, repeated = repeated_ids[kept], repeated[:, kept]
    total = float(sums.sum() + repeated.sum())
    if of == "pair":
        total += float(joint.none[without].sum())
    return Candidates(new, allowed, repeated_ids, repeated, np.float32(max(total, TINY)))


def ranked(
    joint: Joint,
    first: int,
    of: str,
    top_k: int,
    exclude: np.ndarray | None,
    allowed: np.ndarray | None,
    without: list[int],
    limit: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best answers: ids (k,), rows of actions (k,), -1 where items are ranked over all of them, and probabilities.

    Args:
        first: the id of column 0.
        of: "pair", or "item" over all rows of `joint`.
        exclude: ids that are left out, the history's among them; None keeps them.
        allowed: the only ids that are ranked; None for all.
        without: rows of actions that may come without an item.
        limit: of the prediction set that is asked for, in place of `top_k`; None for no set.
    """
    if limit is not None:
        top_k = joint.new.shape[1] + joint.repeated.size + len(without)  # all there are
    candidates = candidates_of(joint, first, of, exclude, allowed, without)
    new, weights, repeated, repeated_ids = candidates.new, joint.weights, candidates.repeated, candidates.repeated_ids
    if of == "item":
        if len(new) > 1:
            together = weights[None] @ new
            together[new[:1] < 0] = -1
            new, weights = together, np.ones(1, np.float32)
        repeated = repeated.sum(axis=0, keepdims=True)
        without = []
    ids, rows, values = [], [], []
    for row, (scores, weight) in enumerate(zip(new, weights, strict=True)):
        best = top(scores, min(top_k, len(scores)))
        best = best[scores[best] >= 0]
        ids.append(best + first if allowed is None else allowed[best])
        rows.append(np.full(len(best), row))
        values.append(scores[best] * weight)
    ids += [np.tile(repeated_ids, len(repeated)), np.full(len(without), NONE)]
    rows += [np.repeat(np.arange(len(repeated)), len(repeated_ids)), np.array(without, np.int64)]
    values += [repeated.reshape(-1), joint.none[without]]
    value, item, action = np.concatenate(values), np.concatenate(ids), np.concatenate(rows)
    order = np.argsort(-value, kind="stable")[:top_k]
    probabilities = value[order] / candidates.total
    if limit is not None:
        order = order[: set_sizes(probabilities[None], limit)[0]]
        probabilities = probabilities[: len(order)]
    return item[order], np.full(len(order), -1) if of == "item" else action[order], probabilities


def probabilities_of(
    joint: Joint,
    first: int,
    of: str,
    exclude: np.ndarray | None,
    allowed: np.ndarray | None,
    without: list[int],
    ids: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """(k,) float32: the probabilities of answers with ids (k,) and rows (k,), as `ranked` would give them; 0 for what
    is no candidate. The other arguments are those of `ranked`."""
    candidates = candidates_of(joint, first, of, exclude, allowed, without)
    place = {int(item): at for at, item in enumerate(candidates.repeated_ids)}
    columns = None if allowed is None else {int(item): at for at, item in enumerate(allowed)}
    values = np.zeros(len(ids), np.float32)
    for at, (item, row) in enumerate(zip(ids.tolist(), rows.tolist(), strict=True)):
        chosen = slice(None) if row == -1 else slice(row, row + 1)
        column = item - first if columns is None else columns.get(item, -1)
        if item in place:
            values[at] = candidates.repeated[chosen, place[item]].sum()
        elif item == NONE and row in without:
            values[at] = joint.none[row]
        elif item >= first and column >= 0:
            values[at] = joint.weights[chosen] @ np.maximum(candidates.new[chosen, column], 0)
    return values / candidates.total


def shares_of_paths(joint: Joint, said: Said, first: int, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(k, 4) float32: how the probability of answers is made up of the paths none, generate, repeat and associate.

    Args:
        ids: (k,) items; rows: (k,) rows of actions, -1 for all of them.
    """
    paths = joint.paths
    assert paths is not None, "asked for with the distribution"
    column = np.clip(ids - first, 0, None)
    is_item, is_none = ids >= first, ids == NONE
    generated = np.exp(paths.generated[:, column] - paths.normalizer[:, None] + paths.log_generated[:, None])
    associated = generated * np.expm1(paths.boost[column]) + paths.counted[column]
    pointed = np.exp(said.pointer) @ (said.items[:, None] == ids).astype(np.float32)  # (Q, k)
    none, repeat, new = (paths.gate[:, part, None] for part in (GATE_NONE, GATE_REPEAT, GATE_NEW))
    parts = np.stack([none * is_none, new * generated * is_item, repeat * pointed, new * associated * is_item], axis=-1)
    place = {int(item): at for at, item in enumerate(joint.repeated_ids)}
    weight = np.maximum(joint.new[:, column], 0) * joint.weights[:, None] * is_item
    for at, item in enumerate(ids.tolist()):
        if item in place:
            weight[:, at] = joint.repeated[:, place[item]]
        elif item == NONE:
            weight[:, at] = joint.none
    weight = weight * ((rows == -1) | (np.arange(len(weight))[:, None] == rows))
    shares = (weight[..., None] * parts / np.maximum(parts.sum(axis=-1, keepdims=True), TINY)).sum(axis=0)  # (k, 4)
    return shares / np.maximum(shares.sum(axis=-1, keepdims=True), TINY)
