"""Baselines of the literature: equal to a few lines of plain Python on small logs, and what they count later."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Event, sequences_of

from next_behavior.data.batches import EvaluationBatch, evaluation_batches
from next_behavior.data.sequences import TEST, TRAIN, VALIDATION, Sequences
from next_behavior.data.splits import Split
from next_behavior.evaluation.baselines import ALL, Updatable, fit_baselines, updated_baselines
from next_behavior.evaluation.counting import best_entries, training_events
from next_behavior.evaluation.item_neighbors import ItemNeighbors, NeighborConstants
from next_behavior.evaluation.light_gcn import LAYERS, LightGCN, normalized_graph, spread
from next_behavior.evaluation.session_neighbors import MINUTE, SessionNeighbors
from next_behavior.evaluation.tables import plain
from next_behavior.evaluation.top_frequency import TopFrequency
from next_behavior.evaluation.transition_graph import TGH_1, TGH_2, Ring, TransitionGraph
from next_behavior.evaluation.user_neighbors import GROUPS, UserNeighbors

FIRST_ITEM, VOCAB = 6, 26
NEW_1 = 4
A, B, C, D, E, F = range(FIRST_ITEM, FIRST_ITEM + 6)
UNKNOWN = VOCAB + 3
VIEW = 3
log = partial(sequences_of, vocab_size=VOCAB, first_item_id=FIRST_ITEM)


def trained(*items: int) -> list[Event]:
    return [(item, VIEW, TRAIN) for item in items]


def random_users(seed: int, users: int = 14, length: int = 9) -> list[list[Event]]:
    """Users with training events, one of validation and one of test."""
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(FIRST_ITEM, VOCAB, generator.integers(4, length)).tolist() for _ in range(users)]
    return [[*trained(*items[:-2]), (items[-2], VIEW, VALIDATION), (items[-1], VIEW, TEST)] for items in drawn]


def batch_of(sequences: Sequences) -> EvaluationBatch:
    [batch] = evaluation_batches(sequences, TEST, max_length=50, batch_size=100)
    return batch


def histories(sequences: Sequences, batch: EvaluationBatch) -> list[list[int]]:
    return [[item for item in row.tolist() if item >= FIRST_ITEM] for row in batch.input_ids]


def training_items(sequences: Sequences) -> list[list[int]]:
    spans = zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)
    return [
        [int(i) for i, p in zip(sequences.items[b:e], sequences.parts[b:e], strict=True) if p == TRAIN]
        for b, e in spans
    ]


def texts(seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(VOCAB, 5)).astype(np.float32)
    vectors[:FIRST_ITEM] = 0
    return vectors


def test_top_frequency_counts_the_own_events_and_then_everyones() -> None:
    sequences = log([trained(A, A, A, B, B, C), [*trained(D, C, UNKNOWN, C), (A, VIEW, TEST)]])
    [scores] = TopFrequency().fit(sequences).scores(batch_of(sequences))
    order = np.argsort(-scores)
    assert order[:2].tolist() == [C, D] or scores[D] == scores[NEW_1], "the own items first"
    assert scores[C] > 2 > scores[D] > 1
    assert scores[NEW_1] == 1
    assert order[3:5].tolist() == [A, B], "then by popularity"


def vmis_by_hand(train: list[list[int]], user: int, history: list[int], neighbors: int) -> dict[int, float]:
    """Whole histories as sessions; the user's own is left out."""
    last: list[int] = []
    for item in reversed(history):
        if item not in last:
            last.append(item)
    last = last[:10]
    place = {item: 1 - index / len(last) for index, item in enumerate(last)}
    found = []
    for other, session in enumerate(train):
        shared = [item for item in last if item in session]
        if shared and other != user:
            found.append((sum(place[item] for item in shared), 1 - 0.1 * (last.index(shared[0]) + 1), set(session)))
    assert len(found) <= neighbors
    scores: dict[int, float] = {}
    for likeness, match, members in found:
        for item in members:
            idf = math.log(len(train) / sum(item in other for other in train))
            scores[item] = scores.get(item, 0.0) + likeness * match * (idf if idf > 0 else 1.0)
    return scores


def test_session_neighbors_score_as_the_formula_says() -> None:
    sequences = log(random_users(0))
    baseline = SessionNeighbors().fit(sequences)
    batch = batch_of(sequences)
    assert baseline.gap is None, "the log has no times"
    found = baseline.sparse_scores(batch).toarray()
    train = training_items(sequences)
    for row, (user, history) in enumerate(zip(batch.user.tolist(), histories(sequences, batch), strict=True)):
        expected = np.zeros(VOCAB)
        for item, score in vmis_by_hand(train, user, history, baseline.neighbors).items():
            expected[item] = score
        assert found[row] == pytest.approx(expected, rel=1e-5, abs=1e-8)
        assert expected.any()


def test_a_pause_begins_a_session_and_only_the_running_one_is_matched() -> None:
    users = [trained(A, B), trained(C, D), [*trained(A, C), (D, VIEW, TEST)]]
    times = [0, 1, 0, 1, 0, 60 * MINUTE, 61 * MINUTE]
    sequences = log(users, times=times)
    baseline = SessionNeighbors()
    baseline.gap = 30 * MINUTE
    baseline.count(sequences, training_events(sequences))
    [scores] = baseline.sparse_scores(batch_of(sequences)).toarray()
    assert scores[D] > 0 == scores[B], "A was an hour before"
    baseline.gap = None
    baseline.count(sequences, training_events(sequences))
    [scores] = baseline.sparse_scores(batch_of(sequences)).toarray()
    assert scores[D] > 0 < scores[B]


def tifu_vector(items: list[int], decay: float, group_decay: float) -> np.ndarray:
    vector = np.zeros(VOCAB)
    size = math.ceil(len(items) / GROUPS)
    groups = [items[max(0, end - size) : end] for end in range(len(items), 0, -size)]  # the last group first
    for after, group in enumerate(groups):
        for place, item in enumerate(reversed(group)):
            vector[item] += group_decay**after * decay**place / size / len(groups)
    return vector


def test_user_neighbors_score_as_the_formula_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("next_behavior.evaluation.user_neighbors.NEIGHBORS", 2)
    sequences = log(random_users(1, length=30))
    baseline = UserNeighbors().fit(sequences)
    batch = batch_of(sequences)
    form = (baseline.decay, baseline.group_decay)
    vectors = [tifu_vector(items, *form) for items in training_items(sequences)]
    found = baseline.sparse_scores(batch).toarray()
    for row, (user, history) in enumerate(zip(batch.user.tolist(), histories(sequences, batch), strict=True)):
        own = tifu_vector(history, *form)
        others = [vector for other, vector in enumerate(vectors) if other != user and own @ vector > 0]
        nearest = sorted(others, key=lambda vector, own=own: float(((own - vector) ** 2).sum()))[:2]  # type: ignore[misc]
        expected = baseline.own_weight * own + (1 - baseline.own_weight) * np.mean(nearest, axis=0)
        assert found[row] == pytest.approx(expected, abs=1e-9)


def tgh_by_hand(
    train: list[list[int]], vectors: np.ndarray, history: list[int], rings: tuple[Ring, ...], weight: float
) -> list[int]:
    """The items of the rings, the best first, those of ring "all further" left out but one."""
    edges = Counter(pair for items in train for pair in itertools.pairwise(items))
    after: dict[int, list[int]] = {}
    for start, second in edges:
        after.setdefault(start, []).append(second)
    runs = [item for index, item in enumerate(history) if index == 0 or history[index - 1] != item]
    taken: list[int] = []
    rest: list[int] = []
    for ring in rings:
        source = runs[-1 - ring.source] if len(runs) > ring.source else None
        first = set(after.get(source, [])) if source is not None else set()
        around = {1: first, 2: {y for x in first for y in after.get(x, [])} - first - {source}}
        members = around.get(ring.depth, set(range(FIRST_ITEM, VOCAB)))
        members = members - set(history) - set(taken) - set(rest)

        def score(item: int, source: int | None = source, depth: int = ring.depth) -> float:
            assert source is not None
            likeness = vectors[source] @ vectors[item] / np.linalg.norm(vectors[source]) / np.linalg.norm(vectors[item])
            if depth != 1:
                return float(likeness)
            most = max(math.log1p(edges[source, other]) for other in after[source])
            return float(likeness + weight * math.log1p(edges[source, item]) / most)

        ranked = sorted(members, key=score, reverse=True)
        taken += ranked[: ring.taken]
        if ring.depth in around:
            rest += ranked[ring.taken :]
    return taken + rest


@pytest.mark.parametrize("rings", [TGH_1, TGH_2])
def test_the_transition_graph_lists_what_the_description_says(rings: tuple[Ring, ...]) -> None:
    sequences, vectors = log(random_users(2, users=30)), texts()
    baseline = TransitionGraph(rings, vectors).fit(sequences)
    assert baseline.chosen is not None
    assert baseline.chosen["edge_weight"] == baseline.edge_weight
    batch = batch_of(sequences)
    scores = baseline.scores(batch)
    longer = 0
    for row, history in enumerate(histories(sequences, batch)):
        expected = tgh_by_hand(training_items(sequences), vectors, history, rings, baseline.edge_weight)
        order = np.argsort(-scores[row]).tolist()
        assert order[: len(expected)] == expected
        longer += len(expected) > 10
        worst = scores[row][[item for item in range(FIRST_ITEM, VOCAB) if item not in history]].min()
        assert (scores[row][history] < worst).all(), "what was seen comes last"
    assert longer > 5


def test_lightgcn_spreads_by_the_square_roots_of_the_degrees_and_takes_the_mean_of_the_layers() -> None:
    users, items = np.array([0, 0, 1]), np.array([0, 1, 1])
    dense = np.zeros((5, 5))
    for user, item in zip(users, items, strict=True):
        dense[user, 2 + item] = dense[2 + item, user] = 1
    degree = np.maximum(dense.sum(axis=1), 1)
    dense = dense / np.sqrt(degree[:, None] * degree[None])
    table = np.random.default_rng(0).normal(size=(5, 4))
    layers = [np.linalg.matrix_power(dense, power) @ table for power in range(LAYERS + 1)]
    found = spread(normalized_graph(users, items, 2, 3), torch.from_numpy(table).float())
    assert found.numpy() == pytest.approx(np.mean(layers, axis=0), abs=1e-5)
    learned = torch.from_numpy(table).float().requires_grad_()
    weights = torch.arange(20.0).reshape(5, 4)
    (spread(normalized_graph(users, items, 2, 3), learned) * weights).sum().backward()
    mean = np.mean([np.linalg.matrix_power(dense, power) for power in range(LAYERS + 1)], axis=0)
    assert learned.grad is not None
    assert learned.grad.numpy() == pytest.approx(mean.T @ weights.numpy(), abs=1e-4)


def test_lightgcn_learns_who_had_what_and_gives_strangers_the_popular() -> None:
    # Two worlds: users of the first have two of A, B, C, of the second two of D, E, F.
    pairs = [(A, B), (B, C), (A, C), (D, E), (E, F), (D, F)] * 3
    users = [[*trained(*pair), (D, VIEW, TEST)] for pair in pairs]
    users.append([(A, VIEW, VALIDATION), (B, VIEW, TEST)])
    sequences = log(users)
    baseline = LightGCN(seconds=20).fit(sequences)
    [batch] = evaluation_batches(sequences, TEST, max_length=5, batch_size=100)
    scores = baseline.scores(batch)
    for row, user in enumerate(batch.user.tolist()):
        if user < len(pairs):
            missing = {A, B, C} - set(pairs[user]) if pairs[user][0] < D else {D, E, F} - set(pairs[user])
            scores[row, list(pairs[user])] = -np.inf
            assert scores[row].argmax() in missing
        else:
            assert (scores[row, A : F + 1] > scores[row, F + 1 :].max()).all()


def test_lightgcn_ends_at_its_time_and_says_so() -> None:
    baseline = LightGCN(seconds=0).fit(log(random_users(3)))
    assert baseline.note == "its training ended after 1 epochs at the limit of 0 seconds"
    assert baseline.chosen is not None


def test_the_best_entries_of_each_row_are_kept() -> None:
    from scipy import sparse

    dense = np.random.default_rng(0).random((6, 9)) * (np.random.default_rng(1).random((6, 9)) > 0.4)
    kept = best_entries(sparse.csr_array(dense), 3).toarray()
    for row, chosen in zip(dense, kept, strict=True):
        assert sorted(chosen[chosen > 0]) == pytest.approx(sorted(row)[-3:])


@pytest.mark.parametrize("how", ["time", "leave_one_out"])
def test_an_updated_baseline_equals_one_that_was_fitted_on_what_it_has_counted(how: str) -> None:
    users = random_users(4)
    times = np.concatenate([np.sort(np.random.default_rng(5).integers(0, 1000, len(user))) for user in users]) * MINUTE
    sequences = log(users, times=times.tolist())
    if how == "time":
        cuts = np.quantile(times, [0.6, 0.8]).astype(int)
        sequences.parts[:] = np.searchsorted(cuts, times, side="left")
    split = Split("time", *cuts.tolist()) if how == "time" else Split("leave_one_out")
    items, _ = fit_baselines(sequences, 4, texts=texts())
    before = {name: items[name].scores(batch_of(sequences)) for name in items}
    updated = updated_baselines(items, sequences, TEST, split)
    assert len(updated) == 8
    positions = np.flatnonzero(sequences.parts == TEST)
    positions = positions[np.argsort(times[positions], kind="stable")]
    for block in np.array_split(positions, 3):
        for ranker in updated.values():
            ranker.advance(block)
    seen = times < times[block].min() if how == "time" else sequences.parts < TEST
    assert (seen & (sequences.parts == VALIDATION)).any()
    # The same constants, and a log whose training events are all that was counted.
    known = Sequences(**(vars(sequences) | {"parts": np.where(seen, TRAIN, TEST).astype(np.int8)}))
    batch = batch_of(sequences)
    for name, ranker in updated.items():
        original: Any = items[name.removesuffix(", updated")]
        assert isinstance(original, Updatable)
        assert (original.scores(batch) == before[name.removesuffix(", updated")]).all(), "the original stays as it was"
        if not isinstance(original, ItemNeighbors):  # which adds up in another order
            original.count(known, training_events(known))
            assert ranker.scores(batch) == pytest.approx(original.scores(batch), rel=1e-5), name
    original = items["item_neighbours"]
    assert isinstance(original, ItemNeighbors)
    again = ItemNeighbors(original.constants, choose=False).fit(known)
    assert updated["item_neighbours, updated"].scores(batch) == pytest.approx(again.scores(batch), rel=1e-5)


def test_item_neighbors_count_more_events_as_if_they_had_been_there() -> None:
    users = random_users(6)
    parts = [[(item, action, TRAIN) for item, action, _ in user] for user in users]
    constants = NeighborConstants(decay=0.6, backward=0.4)
    grown = ItemNeighbors(constants, choose=False).fit(log(users))
    grown.count(log(users), np.ones(sum(map(len, users)), dtype=bool))
    batch = batch_of(log(users))
    assert grown.scores(batch) == pytest.approx(ItemNeighbors(constants, choose=False).fit(log(parts)).scores(batch))


def test_those_that_train_come_only_when_asked_for_and_texts_bring_the_graph() -> None:
    sequences = log(random_users(7))
    counting, _ = fit_baselines(sequences, 4)
    every, _ = fit_baselines(sequences, 4, texts=texts(), which=ALL, until=time.monotonic())
    assert set(every) - set(counting) == {"tgh_1", "tgh_2", "lightgcn"}
    assert plain("tifu_knn, updated") == "TIFU-kNN, updated"


def test_choosing_stops_when_its_time_is_over() -> None:
    sequences = log(random_users(8), times=[*range(sum(map(len, random_users(8))))])
    items, _ = fit_baselines(sequences, 4, texts=texts(), until=time.monotonic() - 1)
    session, user, graph = (items[name] for name in ("vmis_knn", "tifu_knn", "tgh_1"))
    assert isinstance(session, SessionNeighbors)
    assert session.gap == SessionNeighbors.GAPS[0]
    assert isinstance(user, UserNeighbors)
    assert (user.decay, user.group_decay) == UserNeighbors.DECAYS[0]
    assert isinstance(graph, TransitionGraph)
    assert graph.edge_weight == TransitionGraph.EDGE_WEIGHTS[0]
