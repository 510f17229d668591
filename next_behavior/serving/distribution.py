"""p(action, item | history) over the catalog, from what the network and the memory say, and its best answers. By the
rules of `model/mixture.py` and `model/ranking.py`, one history after the other, in compiled passes over logits.

Logits of new items take everything in: popularity, the memory's boosts, and what the memory alone gives to an item,
p = exp(logit) / sum + q, which is the logit log(exp(logit) + q * sum). Items that cannot be new are at -inf. So what
is left of the mixture are two sums of exponentials and a scale.

Products with the catalog may come from rounded rows (catalog.py). Then what the memory names, what has a notable share
of the sum, and what comes near to the best is multiplied again with the exact rows. Of the rest, whose errors have
either sign, each has too small a share to count.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from next_behavior.model.special_ids import NONE
from next_behavior.serving.compiled import compiled, exponential
from next_behavior.serving.top import BLOCK, NEVER, near_best

# exp(MASKED) is zero, as in the model.
MASKED, TINY = np.float32(-1e4), np.float32(np.finfo(np.float32).tiny)
GATE_NONE, GATE_REPEAT, GATE_NEW = range(3)
# Of the sum of a logit and an offset, both in float32.
ROUNDING = 1e-5
# Logits of items with this share of a sum are exact, and so are those that could be off by LEAST_ERROR of the sum.
LEAST_SHARE, LEAST_ERROR = 1e-3, 1e-6
ZERO = np.float32(0)
# Of an action that is impossible, so that its items are candidates.
LEAST_WEIGHT = 1e-300


class Fixed(NamedTuple):
    """What is the same for every history.

    Attributes:
        first: the id of column 0; size: how many columns are items; the others, up to N, are at -inf.
        rows: (size, H) float32; rounded: whether products come from other rows than these.
        bias: (N,) float32 by popularity, added to all products.
        retired: columns (n,); is_retired: (size,) bool.
        inverse: of the temperature of items.
    """

    first: int
    size: int
    rows: np.ndarray
    rounded: bool
    bias: np.ndarray
    retired: np.ndarray
    is_retired: np.ndarray
    inverse: float


class Said(NamedTuple):
    """What network and memory say after one history, of Q actions.

    Attributes:
        items: (T,) ids of the history; seen: its columns (n,), all_seen: whether they are the catalog.
        queries: (Q, H); slack: how far below its true value a rounded product may be, times two.
        pointer: (Q, T); gate: (Q, 3), logarithms; actions: (Q,) float32, what each counts: its probability, or one.
        named: columns (n,) that the memory names and the history does not hold; boosts, counted: (n,) float32, what it
            adds to their logits, and what it alone gives to them.
    """

    items: np.ndarray
    seen: np.ndarray
    all_seen: bool
    queries: np.ndarray
    slack: float
    pointer: np.ndarray
    gate: np.ndarray
    actions: np.ndarray
    named: np.ndarray
    boosts: np.ndarray
    counted: np.ndarray


class Question(NamedTuple):
    """What is asked.

    Attributes:
        top_k: at most as many as there are answers; over_actions: whether items are ranked over all actions.
        without: (Q,) bool, actions that may come without an item.
        exclude: whether the history's items are left out, and those in columns `excluded` (n,).
        restricted: whether only columns `allowed` (n,) are ranked.
    """

    top_k: int
    over_actions: bool
    without: np.ndarray
    exclude: bool
    excluded: np.ndarray
    restricted: bool
    allowed: np.ndarray


class Scratch(NamedTuple):
    """Arrays that are used again: maxima (Q, N / BLOCK), summed (1, N) float32, its maxima, is_named (N,) bool."""

    maxima: np.ndarray
    summed: np.ndarray
    summed_maxima: np.ndarray
    is_named: np.ndarray


@compiled
def sum_of_exponentials(row: Any, shift: float, inverse: float) -> float:
    """Of (row (N,) - shift) * inverse."""
    total, by, times = 0.0, np.float32(shift), np.float32(inverse)
    for begin in range(0, len(row), BLOCK):
        part = ZERO
        for column in range(begin, begin + BLOCK):
            part += exponential((row[column] - by) * times)
        total += part
    return total


@compiled
def product(row: Any, query: Any) -> Any:
    total = ZERO
    for place in range(len(query)):
        total += row[place] * query[place]
    return total


@compiled
def find_maxima(row: Any, maxima: Any) -> Any:
    """Writes the largest of each block; the largest of all."""
    largest = NEVER
    for block in range(len(maxima)):
        most = NEVER
        for column in range(block * BLOCK, (block + 1) * BLOCK):
            most = max(most, row[column])
        maxima[block] = most
        largest = max(largest, most)
    return largest


@compiled
def new_logits(row: Any, query: Any, maxima: Any, fixed: Any, said: Any, left: float, is_named: Any) -> Any:
    """Makes products (N,) the logits of new items.

    Returns:
        shift: no less than the largest; norm: the log of the sum of exponentials before the memory's counts.
    """
    for column in range(len(row)):
        row[column] += fixed.bias[column]
    if said.all_seen:
        for column in range(fixed.size):
            row[column] = MASKED + fixed.bias[column]
    else:
        for column in said.seen:
            row[column] = NEVER
    for place in range(len(said.named)):
        column = said.named[place]
        if fixed.rounded:
            row[column] = product(fixed.rows[column], query) + fixed.bias[column]
        row[column] += said.boosts[place]
    peak = find_maxima(row, maxima)
    total = sum_of_exponentials(row, peak, 1.0)
    if not said.all_seen:
        total += make_exact(row, query, maxima, fixed, said, is_named, peak, 1.0, total)
    norm, shift = peak + np.log(total), peak
    for place in range(len(said.named)):
        if said.counted[place] > 0:
            column, block = said.named[place], said.named[place] // BLOCK
            row[column] = log_add(row[column], np.log(said.counted[place] / left) + norm)
            maxima[block] = max(maxima[block], row[column])
            shift = max(shift, row[column])
    return shift, norm


@compiled
def make_exact(
    row: Any, query: Any, maxima: Any, fixed: Any, said: Any, is_named: Any, shift: float, inverse: float, total: float
) -> float:
    """Multiplies again what has a notable share of a `sum_of_exponentials`; returns by how much that changes."""
    change = 0.0
    if not fixed.rounded or total <= 0:
        return change
    share = min(LEAST_SHARE, 2 * LEAST_ERROR / max(said.slack * inverse, LEAST_ERROR))
    least = shift + np.log(total * share) / inverse
    for block in range(len(maxima)):
        if maxima[block] < least:
            continue
        for column in range(block * BLOCK, (block + 1) * BLOCK):
            if row[column] >= least and not is_named[column]:
                before = np.exp((row[column] - shift) * inverse)
                row[column] = product(fixed.rows[column], query) + fixed.bias[column]
                maxima[block] = max(maxima[block], row[column])
                change += np.exp((row[column] - shift) * inverse) - before
    return change


@compiled
def exact_sum(row: Any, query: Any, maxima: Any, fixed: Any, said: Any, is_named: Any, shift: float) -> float:
    """`sum_of_exponentials` over the temperature, what counts in it multiplied again."""
    total = sum_of_exponentials(row, shift, fixed.inverse)
    return total + make_exact(row, query, maxima, fixed, said, is_named, shift, fixed.inverse, total)


@compiled
def log_add(one: float, other: float) -> float:
    """log(exp(one) + exp(other))"""
    most = max(one, other)
    return most + np.log1p(np.exp(min(one, other) - most))


@compiled
def take_out(row: Any, columns: Any, shift: float, inverse: float) -> float:
    """Puts columns at -inf; the sum of their exponentials."""
    total = 0.0
    for column in columns:
        total += np.exp((row[column] - shift) * inverse)
        row[column] = NEVER
    return total


@compiled
def keep_alone(row: Any, columns: Any, maxima: Any) -> None:
    """Puts all others at -inf."""
    kept = row[columns]
    row[:] = NEVER
    row[columns] = kept
    find_maxima(row, maxima)


@compiled
def repeats_of(said: Any, fixed: Any, gate: Any) -> Any:
    """(Q, T): what the pointer gives to the events that stand for their items; and (T,) whether one does."""
    width, length = said.pointer.shape
    repeats, is_place = np.zeros((width, length)), np.zeros(length, np.bool_)
    for place in range(length):
        column = said.items[place] - fixed.first
        if column >= 0 and fixed.is_retired[column]:
            continue
        for row in range(width):
            if said.pointer[row, place] > MASKED:
                is_place[place] = True
        if is_place[place]:
            for row in range(width):
                repeats[row, place] = np.exp((said.pointer[row, place] + gate[row, GATE_REPEAT]) * fixed.inverse)
    return repeats, is_place


@compiled
def sum_over_actions(logits: Any, weights: Any, shifts: Any, inverse: float, out: Any) -> None:
    """(N,) sums of weights (Q,) times exponentials of logits (Q, N); -inf where no item is a candidate."""
    times = np.float32(inverse)
    for row in range(len(logits)):
        weight, by = np.float32(weights[row]), np.float32(shifts[row])
        for column in range(len(out)):
            added = weight * exponential((logits[row, column] - by) * times)
            out[column] = added if row == 0 else out[column] + added
    for column in range(len(out)):
        if logits[0, column] == NEVER:
            out[column] = NEVER


@compiled
def ranked(logits: Any, fixed: Any, said: Any, asked: Any, scratch: Any, ids: Any, rows: Any, values: Any) -> Any:
    """Writes the best answers: ids (k,), rows of actions (k,), -1 over all actions, and probabilities (k,).

    Args:
        logits: (Q, N) float32 products, which are changed.

    Returns:
        How many answers there are; (Q,) norms and (Q,) factors, for the shares of paths.
    """
    width, inverse = len(logits), fixed.inverse
    maxima, gate = scratch.maxima[:width], np.zeros((width, 3))
    for row in range(width):
        most = said.gate[row].max()
        gate[row] = said.gate[row] - (most + np.log(np.exp(said.gate[row] - most).sum()))
    repeats, is_place = repeats_of(said, fixed, gate)
    nones = np.exp(gate[:, GATE_NONE] * inverse)
    scratch.is_named[said.named] = True
    new = new_items(logits, maxima, fixed, said, asked, scratch.is_named, gate, repeats, is_place)
    factors = factors_of(said.actions, new.scales * new.sums, repeats, nones)
    weights = new.scales * factors
    over_actions = asked.over_actions and width > 1
    if over_actions:
        sum_over_actions(logits, weights, new.shifts, inverse, scratch.summed[0])
        find_maxima(scratch.summed[0], scratch.summed_maxima[0])
        offsets, factor = np.zeros(1, np.float32), np.exp(-(said.slack * inverse + ROUNDING))
        at, columns = near_best(scratch.summed, offsets, scratch.summed_maxima, asked.top_k, 0.0, factor)
    else:
        offsets = (np.log(np.maximum(weights, LEAST_WEIGHT)) / inverse - new.shifts).astype(np.float32)
        at, columns = near_best(logits, offsets, maxima, asked.top_k, said.slack + ROUNDING, 1.0)
    candidates = np.zeros(len(at))
    for place in range(len(at)):
        column = columns[place]
        for row in range(width):
            if over_actions or at[place] == row:
                if fixed.rounded and not scratch.is_named[column]:
                    logits[row, column] = product(fixed.rows[column], said.queries[row]) + fixed.bias[column]
                power = np.exp((logits[row, column] - new.shifts[row]) * inverse)
                if power >= TINY:  # else it is zero in the sum
                    candidates[place] += weights[row] * power
    scratch.is_named[said.named] = False
    total = (weights * new.kept).sum()
    columns += fixed.first
    found = best_of_all(
        candidates, columns, at, repeats, is_place, nones, factors, total, fixed, said, asked, ids, rows, values
    )
    return found, new.norms, factors


class New(NamedTuple):
    """New items of each action, (Q,) each: probabilities are scales * exp((logit - shift) * inverse), their sums and
    those of the candidates scales * sums and scales * kept; norms as in `new_logits`."""

    shifts: np.ndarray
    norms: np.ndarray
    scales: np.ndarray
    sums: np.ndarray
    kept: np.ndarray


@compiled
def new_items(
    logits: Any, maxima: Any, fixed: Any, said: Any, asked: Any, is_named: Any, gate: Any, repeats: Any, is_place: Any
) -> Any:
    """Makes products (Q, N) logits, -inf where an item is no candidate, and sums them up."""
    width, inverse = len(logits), fixed.inverse
    new = New(np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width), np.zeros(width))
    left = max(1.0 - said.counted.sum(), TINY)
    for row in range(width):
        query, most = said.queries[row], maxima[row]
        shift, norm = new_logits(logits[row], query, most, fixed, said, left, is_named)
        scale = np.exp((gate[row, GATE_NEW] + np.log(left) - norm + shift) * inverse)
        for column in fixed.retired:
            logits[row, column] = NEVER
        if said.all_seen:  # then an item of the history is named as a new one, too
            for place in range(len(is_place)):
                column = said.items[place] - fixed.first
                if is_place[place] and column >= 0:
                    repeats[row, place] += scale * np.exp((logits[row, column] - shift) * inverse)
            logits[row] = NEVER
        out = take_out(logits[row], asked.excluded, shift, inverse)
        kept = exact_sum(logits[row], query, most, fixed, said, is_named, shift)
        new.sums[row] = kept + out
        if asked.restricted:
            keep_alone(logits[row], asked.allowed, most)
            kept = exact_sum(logits[row], query, most, fixed, said, is_named, shift)
        new.shifts[row], new.norms[row], new.scales[row], new.kept[row] = shift, norm, scale, kept
    return new


@compiled
def best_of_all(
    candidates: Any,
    new_ids: Any,
    at: Any,
    repeats: Any,
    is_place: Any,
    nones: Any,
    factors: Any,
    total: float,
    fixed: Any,
    said: Any,
    asked: Any,
    ids: Any,
    rows: Any,
    values: Any,
) -> Any:
    """Writes the best among new items, those of the history, and none; see `ranked`."""
    width, length = repeats.shape
    count, room = len(at), len(at) + width * length + width
    all_ids, all_rows, all_values = np.empty(room, np.int64), np.full(room, -1), np.empty(room)
    all_ids[:count], all_values[:count] = new_ids, candidates
    if not asked.over_actions:
        all_rows[:count] = at
    for row in range(1 if asked.over_actions else width):
        for place in range(length):
            if is_place[place] and not asked.exclude and is_allowed(said.items[place] - fixed.first, asked):
                value = repeats[row, place] * factors[row]
                if asked.over_actions:
                    value = (repeats[:, place] * factors).sum()
                else:
                    all_rows[count] = row
                all_ids[count], all_values[count] = said.items[place], value
                total += value
                count += 1
    for row in range(width):
        if asked.without[row]:
            all_ids[count], all_rows[count], all_values[count] = NONE, row, nones[row] * factors[row]
            total += all_values[count]
            count += 1
    found = min(count, asked.top_k)
    order = np.argsort(-all_values[:count], kind="mergesort")[:found]
    for place in range(found):
        ids[place], rows[place] = all_ids[order[place]], all_rows[order[place]]
        values[place] = all_values[order[place]] / max(total, TINY)
    if not np.isfinite(total):
        values[:] = np.nan
    return found


@compiled
def factors_of(actions: Any, news: Any, repeats: Any, nones: Any) -> Any:
    """(Q,): what each action counts over the sum of its paths."""
    factors = np.zeros(len(actions))
    for row in range(len(actions)):
        factors[row] = actions[row] / max(news[row] + repeats[row].sum() + nones[row], TINY)
    return factors


@compiled
def is_allowed(column: Any, asked: Any) -> bool:
    if not asked.restricted:
        return True
    place = np.searchsorted(asked.allowed, column)
    return place < len(asked.allowed) and asked.allowed[place] == column
