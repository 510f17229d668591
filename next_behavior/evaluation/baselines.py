"""Baselines that every result table holds: counts of the training events, no learning.

Each has `fit(sequences)`, which counts events of part 0 alone, and scores a batch of histories:
`scores(batch) -> (B, V)` float32 for items, `action_probabilities(batch) -> (B, A)` float64 for actions. Scores only
order: -inf stands for what is no candidate ([PAD], [UNK], [NONE], [START], and each [NEW_j] that the row's history does
not hold). A [NEW_j] of the history is an item that training never saw: popularity and the like rank it last, baselines
that repeat rank it as any other item. Every call returns a fresh array that the caller may change.

The few constants of a baseline are chosen on validation events (part 1), by the NDCG@10 that counts of the training
events alone reach there; `chosen` says what was taken, `note` what could not be done.

References: repeat consumption (Anderson et al. 2014; Reiter-Haas et al. 2021), Markov chains for the next item (Rendle
et al. 2010), item neighbours with recent events weighing more (Ludewig and Jannach 2018, "Evaluation of Session-based
Recommendation Algorithms"), personal frequency beside neighbours (Hu et al. 2020, "Modeling Personalized Item Frequency
Information for Next-basket Recommendation").
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from scipy import sparse
from tqdm import tqdm

from next_behavior.data.batches import EvaluationBatch, evaluation_batches, novel_positions, target_positions
from next_behavior.data.sequences import TRAIN, VALIDATION, Sequences, starts_of_runs
from next_behavior.evaluation.metrics import balancing_weights, ndcg_at_k
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW, NONE

# Recent popularity looks this far back from the last training event.
RECENT_DAYS = 7
# Validation targets that constants are chosen on, and the longest history then.
CHOICE_TARGETS, CHOICE_WINDOW, CHOICE_ROWS = 2000, 200, 256
BALANCE_TARGETS = 10_000
CHOICE_METRIC = "validation NDCG@10"
# Pairs counted by the neighbours at most; the distance shrinks for logs with more.
MAX_PAIRS = 20_000_000
# Weight of popularity (at most 1) among items that a baseline otherwise scores alike.
TIE_BREAK = 1e-5
# Histories' log-weights are raised by this, so that what was repeated stands above the popularity of the rest.
REPEAT_OFFSET = 64.0


class ItemRanker(Protocol):
    """Whatever scores items: a baseline, or the model."""

    def scores(self, batch: EvaluationBatch) -> Any:
        """(B, V) float32 array or tensor that the caller may change; -inf for what is no candidate."""
        ...


class ActionRanker(Protocol):
    """Whatever gives the next action's probabilities: a baseline, or the model."""

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        """(B, A) float64, rows sum to one, 0 for the three special ids."""
        ...


# ----------------------------------------------------------------------------------------------------------------------
# Pieces
# ----------------------------------------------------------------------------------------------------------------------


def training_item_counts(sequences: Sequences, since: int | None = None) -> np.ndarray:
    """(V,) int64: training events per token id; [NONE] and what the vocabulary lacks are not counted.

    Args:
        since: microseconds; only events after this time count.
    """
    counted = (sequences.parts == TRAIN) & (sequences.items >= sequences.first_item_id)
    counted &= sequences.items < sequences.vocab_size
    if since is not None:
        counted &= sequences.timestamps > since
    return np.bincount(sequences.items[counted], minlength=sequences.vocab_size)


def popularity_order(counts: np.ndarray) -> np.ndarray:
    """(V,) float32 from 0 to 1 in the order of the counts, equal where they are equal; 0 for a count of 0.

    >>> popularity_order(np.array([0, 7, 1, 7, 2])).tolist()
    [0.0, 1.0, 0.3333333432674408, 1.0, 0.6666666865348816]
    """
    distinct, order = np.unique(np.append(counts, 0), return_inverse=True)
    return (order[:-1] / max(1, len(distinct) - 1)).astype(np.float32)


def training_item_events(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Items and users, (N,) int64 each, of the training events that name an item, in order."""
    named = (sequences.parts == TRAIN) & (sequences.items != NONE)
    return sequences.items[named].astype(np.int64), sequences.user_of_event()[named]


def candidate_scores(batch: EvaluationBatch, order: np.ndarray, first_item_id: int) -> np.ndarray:
    """(B, V) float32: `order` for the items, 0 for the history's [NEW_j], -inf for the rest."""
    base = order.astype(np.float32)
    base[:first_item_id] = -np.inf
    scores = np.broadcast_to(base, (len(batch), len(base))).copy()
    row, column = np.nonzero((batch.input_ids >= FIRST_NEW) & (batch.input_ids < first_item_id))
    scores[row, batch.input_ids[row, column]] = 0
    return scores


def history_weights(
    batch: EvaluationBatch, weight: Callable[[np.ndarray], np.ndarray], vocab_size: int, runs: bool = False
) -> Any:
    """(B, V) sparse CSR: for each item of a row's history the sum of `weight(distance)` over its events.

    Distance 0 is the last event that names an item, 1 the one before; events without an item are not counted. Weights
    that are 0 leave no entry.

    Args:
        runs: events of one item in a row count as one.
    """
    named = batch.input_ids >= FIRST_NEW
    if runs:
        position = np.arange(named.shape[1])
        latest = np.maximum.accumulate(np.where(named, position, -1), axis=1)
        before = np.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)  # (B, T): the named event before each
        same = np.take_along_axis(batch.input_ids, np.maximum(before, 0), axis=1) == batch.input_ids
        named = named & ~(same & (before >= 0))
    distance = np.cumsum(named[:, ::-1], axis=1)[:, ::-1] - 1
    rows, columns = np.nonzero(named)
    values = weight(distance[rows, columns]).astype(np.float64)
    kept = values > 0
    entries = (values[kept], (rows[kept], batch.input_ids[rows[kept], columns[kept]]))
    return sparse.csr_array(entries, shape=(len(batch), vocab_size))


def entry_rows(matrix: Any) -> np.ndarray:
    """(nnz,) int64: the row of each entry of a CSR matrix."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def scaled_rows(matrix: Any) -> Any:
    """The CSR matrix with rows that sum to one, or are empty."""
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    scaled = matrix.copy()
    scaled.data = scaled.data / sums[entry_rows(matrix)]
    return scaled


def without_seen(matrix: Any, seen: list[np.ndarray]) -> Any:
    """The (B, V) CSR matrix with 0 at each row's `seen` ids."""
    is_seen = np.zeros(matrix.shape, dtype=bool)
    is_seen[np.repeat(np.arange(len(seen)), [len(ids) for ids in seen]), np.concatenate(seen)] = True
    kept = matrix.copy()
    kept.data[is_seen[entry_rows(kept), kept.indices]] = 0
    return kept


def sparse_ranks(matrix: Any, targets: np.ndarray) -> np.ndarray:
    """(B,) ranks as `pessimistic_ranks` would give for a (B, V) CSR matrix of positive scores, except that a target
    without one comes after everything, at V + 1."""
    rows, size = entry_rows(matrix), matrix.shape[1]
    hit = matrix.indices == targets[rows]
    target_scores = np.zeros(len(targets))
    target_scores[rows[hit]] = matrix.data[hit]
    better = matrix.data >= target_scores[rows]
    ranks = np.bincount(rows[better], minlength=len(targets))
    return np.where(target_scores > 0, ranks, size + 1)


def put_entries(scores: np.ndarray, matrix: Any) -> None:
    """Writes the entries of a (B, V) CSR matrix, each at most once, over `scores` and above `TIE_BREAK`."""
    scores[entry_rows(matrix), matrix.indices] = TIE_BREAK + matrix.data


class ChoiceBatches:
    """The validation targets that constants are chosen on: named, known items, drawn at random from all users.

    Args:
        novel: only targets that are new to their user, ranked among what is new to the user. Where there are none, all.
    """

    def __init__(self, sequences: Sequences, novel: bool) -> None:
        positions = target_positions(sequences, VALIDATION)
        positions = positions[sequences.items[positions] != NONE]
        if len(positions) > CHOICE_TARGETS:
            positions = np.sort(np.random.default_rng(0).choice(positions, CHOICE_TARGETS, replace=False))
        window = (sequences, VALIDATION, CHOICE_WINDOW, CHOICE_ROWS)
        new = novel_positions(*window, positions) if novel else positions[:0]
        self.novel = len(new) > 0
        if self.novel:
            positions = new
        self.count = len(positions)
        self._batches = list(evaluation_batches(*window, positions=positions))

    def __iter__(self) -> Iterator[EvaluationBatch]:
        return iter(self._batches)

    def ndcg(self, score: Callable[[EvaluationBatch], Any]) -> float:
        """NDCG@10 of sparse (B, V) scores over the targets."""
        gains = []
        for batch in self._batches:
            matrix = score(batch)
            if self.novel:
                matrix = without_seen(matrix, batch.seen)
            gains.append(ndcg_at_k(sparse_ranks(matrix, batch.target_item), 10))
        return float(np.concatenate(gains).mean())


def best_of(found: dict[Any, float], default: Any) -> Any:
    """The key with the highest value; the default unless another is better."""
    best = max(found, key=lambda key: found[key])
    return best if default not in found or found[best] > found[default] else default


def no_choice(batches: ChoiceBatches) -> str | None:
    """The note of a baseline that keeps its default constants, None where there is something to choose on."""
    return None if batches.count else "no validation targets: default constants"


# ----------------------------------------------------------------------------------------------------------------------
# Items
# ----------------------------------------------------------------------------------------------------------------------


class Popularity:
    """Items by their number of training events."""

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> Popularity:
        self._first = sequences.first_item_id
        self._order = popularity_order(training_item_counts(sequences))
        return self

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        return candidate_scores(batch, self._order, self._first)


class RecentPopularity:
    """Items by their training events of the last seven days of training, then by all. Without times: by all."""

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> RecentPopularity:
        self._first = sequences.first_item_id
        self._order = popularity_order(training_item_counts(sequences))
        times = sequences.timestamps[sequences.parts == TRAIN]
        if not len(times) or (times < 0).any():
            self.note = "the log has no times: the same as popularity"
        else:
            since = int(times.max()) - RECENT_DAYS * 86_400_000_000
            recent = popularity_order(training_item_counts(sequences, since))
            self._order = recent + TIE_BREAK * self._order
        return self

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        return candidate_scores(batch, self._order, self._first)


class RepeatLast:
    """The user's own items, the most recent first; then the rest by popularity."""

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> RepeatLast:
        self._first = sequences.first_item_id
        self._order = popularity_order(training_item_counts(sequences))
        return self

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, self._order, self._first)
        rows, columns = np.nonzero(batch.input_ids >= FIRST_NEW)
        # Columns ascend in time, popularity stays at or below 1: the largest of an item's columns is its last event.
        np.maximum.at(scores, (rows, batch.input_ids[rows, columns]), (columns + 2).astype(np.float32))
        return scores


class DecayedRepeat:
    """The user's own items by the sum of decay^distance over their events; then the rest by popularity.

    Distance counts events that name an item. The decay is chosen on validation events.
    """

    note: str | None = None
    DECAYS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)

    def __init__(self, decay: float = 0.8) -> None:
        self.decay = decay
        self.chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> DecayedRepeat:
        self._first, self._size = sequences.first_item_id, sequences.vocab_size
        self._order = popularity_order(training_item_counts(sequences))
        batches = ChoiceBatches(sequences, novel=False)
        self.note = no_choice(batches)
        if batches.count:
            # Each validation target counts once: the score of a history does not depend on the training events.
            found = {decay: batches.ndcg(lambda batch, d=decay: self.weights(batch, d)) for decay in self.DECAYS}  # type: ignore[misc]
            self.decay = best_of(found, self.decay)
            self.chosen = {"decay": self.decay, CHOICE_METRIC: found[self.decay], "validation targets": batches.count}
        return self

    def weights(self, batch: EvaluationBatch, decay: float | None = None) -> Any:
        """(B, V) sparse: the sums of decay^distance."""
        base = self.decay if decay is None else decay
        return history_weights(batch, lambda distance: base**distance, self._size)

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, self._order, self._first)
        weights = self.weights(batch)
        # On a log scale, where float32 keeps apart what is small; never down among the popularities.
        raised = np.maximum(np.log(weights.data) + REPEAT_OFFSET, 2.0)
        scores[entry_rows(weights), weights.indices] = raised
        return scores


class ItemTransition:
    """First-order Markov chain: how often an item came right after the user's last one, normalised; ties by popularity.

    Events that name no item are passed over, in counting and in a history.
    """

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> ItemTransition:
        self._first, self._size = sequences.first_item_id, sequences.vocab_size
        self._order = popularity_order(training_item_counts(sequences))
        items, users = training_item_events(sequences)
        known = items < self._size
        follows = (users[1:] == users[:-1]) & known[1:] & known[:-1]
        ones = np.ones(int(follows.sum()))
        counts = sparse.csr_array((ones, (items[:-1][follows], items[1:][follows])), shape=(self._size, self._size))
        self._transitions = scaled_rows(counts)
        return self

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, TIE_BREAK * self._order, self._first)
        last = history_weights(batch, lambda distance: distance == 0, self._size)
        followers = last @ self._transitions
        scores[entry_rows(followers), followers.indices] += followers.data.astype(np.float32)
        return scores


@dataclass(frozen=True)
class NeighbourConstants:
    """The constants of `ItemNeighbours`; the defaults are the form that was found on Amazon Beauty.

    Attributes:
        decay: a pair at distance d counts decay^(d - 1).
        backward: weight of a pair against time.
        degree_power: an item's neighbours are divided by its summed counts to this power.
        history_decay: the k-th event from the end weighs history_decay^k.
    """

    decay: float = 0.9
    backward: float = 0.3
    degree_power: float = 0.3
    history_decay: float = 0.5


class ItemNeighbours:
    """Decayed, normalised co-occurrence counts.

    Every pair of events of one user at distance d <= 30, x before y, adds decay^(d - 1) to C[x, y] and `backward` times
    that to C[y, x]; events of one item in a row count as one. The score of y is the sum over the last ten events, the
    k-th from the end weighing history_decay^k, of C[x, y] * degree(x)^-degree_power * count(y)^-0.1, where degree(x) is
    the sum of row x; then the rest by popularity. Constants are chosen on validation targets that are new to their
    user.
    """

    note: str | None = None
    MAX_DISTANCE, MAX_HISTORY, COUNT_POWER = 30, 10, 0.1
    GRID = tuple(
        itertools.product((0.9, 0.7, 0.5), (0.3, 1.0), (0.3, 0.5), (0.5, 0.7)),
    )

    def __init__(self, constants: NeighbourConstants = NeighbourConstants(), choose: bool = True) -> None:
        self.constants = constants
        self.chosen: dict[str, Any] | None = None
        self._choose = choose

    def fit(self, sequences: Sequences) -> ItemNeighbours:
        self._first, self._size = sequences.first_item_id, sequences.vocab_size
        counts = training_item_counts(sequences)
        self._order = popularity_order(counts)
        self._count_weight = np.maximum(counts, 1.0) ** -self.COUNT_POWER
        items, users = training_item_events(sequences)
        starts_run = starts_of_runs(items, users)
        items, users = items[starts_run], users[starts_run]
        self.max_distance = int(np.clip(MAX_PAIRS // max(1, len(items)), 1, self.MAX_DISTANCE))
        found: dict[NeighbourConstants, float] = {}
        if self._choose:
            batches = ChoiceBatches(sequences, novel=True)
            self.note = no_choice(batches)
            if batches.count:
                found = self._search(items, users, batches)
                self.constants = best_of(found, self.constants)
                self.chosen = {
                    **asdict(self.constants),
                    "max_distance": self.max_distance,
                    CHOICE_METRIC: found[self.constants],
                    "validation targets": batches.count,
                    "targets": "new to their user" if batches.novel else "all",
                }
        self._neighbours = self._normalised(self._forward(items, users, self.constants.decay), self.constants)
        return self

    def _search(self, items: np.ndarray, users: np.ndarray, batches: ChoiceBatches) -> dict[NeighbourConstants, float]:
        """Validation NDCG@10 of every form of the grid."""
        found = {}
        for decay, group in itertools.groupby(self.GRID, key=lambda form: form[0]):
            forward = self._forward(items, users, decay)
            for form in group:
                constants = NeighbourConstants(*form)
                self._neighbours = self._normalised(forward, constants)
                found[constants] = batches.ndcg(lambda batch, c=constants: self._sparse_scores(batch, c))  # type: ignore[misc]
        return found

    def _forward(self, items: np.ndarray, users: np.ndarray, decay: float) -> Any:
        """(V, V) CSR: decayed counts of pairs in the order of time."""
        rows, columns, values = [], [], []
        known = items < self._size
        for distance in range(1, min(self.max_distance, len(items) - 1) + 1):
            pair = (users[distance:] == users[:-distance]) & known[distance:] & known[:-distance]
            rows.append(items[:-distance][pair].astype(np.int32))
            columns.append(items[distance:][pair].astype(np.int32))
            values.append(np.full(len(rows[-1]), decay ** (distance - 1), dtype=np.float32))
        if not rows:
            return sparse.csr_array((self._size, self._size), dtype=np.float32)
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        return sparse.csr_array(entries, shape=(self._size, self._size))

    def _normalised(self, forward: Any, constants: NeighbourConstants) -> Any:
        counts = (forward + constants.backward * forward.T).tocsr()
        degree = np.asarray(counts.sum(axis=1)).ravel()
        row_weight = np.where(degree > 0, degree, 1.0) ** -constants.degree_power
        counts.data = (counts.data * row_weight[entry_rows(counts)] * self._count_weight[counts.indices]).astype(
            np.float32
        )
        return counts

    def _sparse_scores(self, batch: EvaluationBatch, constants: NeighbourConstants) -> Any:
        history = history_weights(
            batch,
            lambda distance: np.where(distance < self.MAX_HISTORY, constants.history_decay**distance, 0.0),
            self._size,
            runs=True,
        )
        return (history.astype(np.float32) @ self._neighbours).tocsr()

    def sparse_scores(self, batch: EvaluationBatch) -> Any:
        """(B, V) sparse, no entry for an item that is no neighbour."""
        return self._sparse_scores(batch, self.constants)

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, TIE_BREAK * self._order, self._first)
        put_entries(scores, scaled_rows(self.sparse_scores(batch)))
        return scores


class RepeatNeighbours:
    """Decayed repeat and item neighbours, each scaled to sum to one, mixed: what was done before comes back, and brings
    its neighbours. The weight of repeating is chosen on validation events."""

    note: str | None = None
    WEIGHTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99, 0.999)

    def __init__(self, repeat: DecayedRepeat, neighbours: ItemNeighbours, weight: float = 0.5) -> None:
        """Takes the two parts; they must be fitted on the same sequences."""
        self._repeat = repeat
        self._neighbours = neighbours
        self.weight = weight
        self.chosen: dict[str, Any] | None = None

    def fit(self, sequences: Sequences) -> RepeatNeighbours:
        self._first = sequences.first_item_id
        self._order = popularity_order(training_item_counts(sequences))
        batches = ChoiceBatches(sequences, novel=False)
        self.note = no_choice(batches)
        if batches.count:
            parts = {id(batch): self._parts(batch) for batch in batches}
            found = {}
            for weight in self.WEIGHTS:
                found[weight] = batches.ndcg(lambda batch, w=weight: self._mixed(*parts[id(batch)], w))  # type: ignore[misc]
            self.weight = best_of(found, self.weight)
            self.chosen = {
                "weight_of_repeating": self.weight,
                CHOICE_METRIC: found[self.weight],
                "validation targets": batches.count,
            }
        return self

    def _parts(self, batch: EvaluationBatch) -> tuple[Any, Any]:
        return scaled_rows(self._repeat.weights(batch)), scaled_rows(self._neighbours.sparse_scores(batch))

    @staticmethod
    def _mixed(repeated: Any, neighbours: Any, weight: float) -> Any:
        return (weight * repeated + (1 - weight) * neighbours).tocsr()

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = candidate_scores(batch, TIE_BREAK * self._order, self._first)
        put_entries(scores, self._mixed(*self._parts(batch), self.weight))
        return scores


# ----------------------------------------------------------------------------------------------------------------------
# Actions
# ----------------------------------------------------------------------------------------------------------------------


class LastActionMarkov:
    """p(next action | last action) from counts of the training events plus one.

    After an action that training never saw, and at a user's first event, the actions' overall shares are given.
    """

    note: str | None = None
    chosen: dict[str, Any] | None = None

    def __init__(self, num_actions: int) -> None:
        """`num_actions` counts the ids of the action vocabulary, the three specials included."""
        self.num_actions = num_actions

    def fit(self, sequences: Sequences) -> LastActionMarkov:
        training = sequences.parts == TRAIN
        actions, users = sequences.actions[training].astype(np.int64), sequences.user_of_event()[training]
        follows = users[1:] == users[:-1]
        size = self.num_actions
        pairs = actions[:-1][follows] * size + actions[1:][follows]
        counts = np.bincount(pairs, minlength=size * size).reshape(size, size)[:, FIRST_ACTION:]
        overall = np.bincount(actions, minlength=size)[FIRST_ACTION:]
        smoothed = np.where(counts.sum(axis=1, keepdims=True) > 0, counts, overall) + 1.0
        self._probabilities = np.zeros((size, size))
        self._probabilities[:, FIRST_ACTION:] = smoothed / smoothed.sum(axis=1, keepdims=True)
        return self

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        return self._probabilities[batch.token_type_ids[:, -1]]


class BalancedActions:
    """Another ranker's probabilities, weighted so that naming the largest one has a high macro-F1; they are not
    calibrated any more. See `balancing_weights`."""

    note: str | None = None

    def __init__(self, ranker: ActionRanker, weights: np.ndarray) -> None:
        """`weights`: (A,) log-weights."""
        self.ranker = ranker
        self.weights = np.exp(weights)
        self.chosen = {"weights": [round(float(weight), 2) for weight in weights[FIRST_ACTION:]]}

    @classmethod
    def fit(cls, ranker: ActionRanker, sequences: Sequences) -> BalancedActions:
        """Chooses the weights on validation events."""
        positions = target_positions(sequences, VALIDATION, BALANCE_TARGETS, seed=0)
        batches = list(evaluation_batches(sequences, VALIDATION, 1, CHOICE_ROWS, positions=positions))
        if not batches:
            balanced = cls(ranker, np.zeros(1))
            balanced.note = "no validation targets: not balanced"
            return balanced
        probabilities = np.concatenate([ranker.action_probabilities(batch) for batch in batches])
        return cls(ranker, balancing_weights(sequences.actions[positions], probabilities))

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        weighted = self.ranker.action_probabilities(batch) * self.weights
        return weighted / weighted.sum(axis=1, keepdims=True)


# ----------------------------------------------------------------------------------------------------------------------
# All of them
# ----------------------------------------------------------------------------------------------------------------------

ItemBaseline = (
    Popularity | RecentPopularity | RepeatLast | DecayedRepeat | ItemTransition | ItemNeighbours | RepeatNeighbours
)


def fit_baselines(
    sequences: Sequences, num_actions: int, progress: bool = False, neighbours: ItemNeighbours | None = None
) -> tuple[dict[str, ItemBaseline], dict[str, LastActionMarkov | BalancedActions]]:
    """Every item baseline and every action baseline by name, fitted.

    Args:
        num_actions: ids of the action vocabulary, the three specials included.
        progress: show a progress bar.
        neighbours: the item neighbours, where they are fitted already.
    """
    repeat = DecayedRepeat()
    counted = ItemNeighbours().fit(sequences) if neighbours is None else neighbours
    items: dict[str, ItemBaseline] = {
        "popularity": Popularity(),
        "recent_popularity": RecentPopularity(),
        "repeat_last": RepeatLast(),
        "decayed_repeat": repeat,
        "item_transition": ItemTransition(),
        "item_neighbours": counted,
        "repeat_neighbours": RepeatNeighbours(repeat, counted),  # after its parts
    }
    for baseline in tqdm(items.values(), desc="counting baselines", unit="", disable=not progress):
        if baseline is not counted:
            baseline.fit(sequences)
    markov = LastActionMarkov(num_actions).fit(sequences)
    return items, {"last_action_markov": markov, "last_action_markov, balanced": BalancedActions.fit(markov, sequences)}
