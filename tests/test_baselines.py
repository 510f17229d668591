"""Baselines: counts of the training events alone, equal to worked examples, candidates as the contract has them."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from tiny import Event, sequences_of

from next_behavior.data.batches import EvaluationBatch, evaluation_batches
from next_behavior.data.sequences import TEST, TRAIN, VALIDATION
from next_behavior.evaluation.action_baselines import LastActionMarkov
from next_behavior.evaluation.baselines import fit_baselines
from next_behavior.evaluation.counting import sparse_ranks, without_seen
from next_behavior.evaluation.item_baselines import (
    DecayedRepeat,
    ItemTransition,
    Popularity,
    RecentPopularity,
    RepeatLast,
)
from next_behavior.evaluation.item_neighbors import ItemNeighbors, NeighborConstants
from next_behavior.evaluation.metrics import pessimistic_ranks
from next_behavior.model.special_ids import FIRST_NEW, NONE

# Two slots for new items, then the items A to E; F and G are outside the vocabulary.
FIRST_ITEM, VOCAB = 6, 11
NEW_1, NEW_2, A, B, C, D, E, F, G = 4, 5, 6, 7, 8, 9, 10, 11, 12
VIEW, BUY = 3, 4
NUM_ACTIONS = 5
DAY = 86_400_000_000
log = partial(sequences_of, vocab_size=VOCAB, first_item_id=FIRST_ITEM)


def trained(*items: int) -> list[Event]:
    return [(item, VIEW, TRAIN) for item in items]


def history(*items: int) -> EvaluationBatch:
    """One row whose history is `items`, the target is A."""
    [batch] = evaluation_batches(log([[*trained(*items), (A, VIEW, TEST)]]), TEST, max_length=50, batch_size=1)
    return batch


def best_first(scores: np.ndarray) -> list[int]:
    """The candidates of the only row by falling score, and that no two tie."""
    [row] = scores
    candidates = np.flatnonzero(row > -np.inf)
    assert len(set(row[candidates].tolist())) == len(candidates), f"tied: {row}"
    return candidates[np.argsort(-row[candidates])].tolist()


# A: 4 events, B: 3, C: 2, D: 1, E: none.
COUNTED = [trained(A, B, C), trained(A, B, A, D), trained(C, A, B)]

ITEMS = st.sampled_from([NONE, A, B, C, D, E, F, G])
LOGS = st.lists(
    st.lists(
        st.tuples(ITEMS, st.sampled_from([1, VIEW, BUY]), st.sampled_from([TRAIN, VALIDATION, TEST])),
        min_size=1,
        max_size=8,
    ).map(lambda user: sorted(user, key=lambda event: event[2])),
    min_size=1,
    max_size=5,
)


def test_popularity_orders_by_training_events() -> None:
    scores = Popularity().fit(log(COUNTED)).scores(history(D))
    assert best_first(scores) == [A, B, C, D, E]


def test_a_new_item_of_the_history_is_a_candidate_and_the_least_popular() -> None:
    scores = Popularity().fit(log([trained(A, B, C, D, E)])).scores(history(F, A))
    assert scores[0, NEW_1] == 0 < scores[0, A:].min()
    assert scores[0, NEW_2] == -np.inf


def test_recent_popularity_looks_at_the_last_week_and_then_at_all_time() -> None:
    users = [trained(A, A, A, B, B, D), trained(C, C, D)]
    times = [0, 0, 0, 0, 30 * DAY, 30 * DAY, 31 * DAY, 31 * DAY, 32 * DAY]
    baseline = RecentPopularity().fit(log(users, times=times))
    scores = baseline.scores(history(B))
    # In the last week C and D twice, B once; over all time A three times.
    assert scores[0, C] == scores[0, D] > scores[0, B] > scores[0, A] > scores[0, E]
    assert baseline.note is None


def test_recent_popularity_without_times_is_popularity_and_says_so() -> None:
    baseline = RecentPopularity().fit(log(COUNTED))
    assert (baseline.scores(history(B)) == Popularity().fit(log(COUNTED)).scores(history(B))).all()
    assert baseline.note == "the log has no times: the same as popularity"


def test_repeat_last_ranks_the_history_most_recent_first_then_by_popularity() -> None:
    scores = RepeatLast().fit(log(COUNTED)).scores(history(D, F, C, NONE, D, G, NONE))
    # F is [NEW_1], G is [NEW_2].
    assert best_first(scores) == [NEW_2, D, C, NEW_1, A, B, E]


def test_decayed_repeat_sums_the_decayed_events_of_an_item() -> None:
    baseline = DecayedRepeat(decay=0.8).fit(log(COUNTED))
    # By distance (events without an item do not count): C 0, F 1 and 3, D 2 -> C 1, F .8 + .512, D .64.
    scores = baseline.scores(history(F, D, NONE, F, C))
    assert best_first(scores) == [NEW_1, C, D, A, B, E]
    assert scores[0, NEW_1] - scores[0, C] == pytest.approx(np.log(0.8 + 0.512), abs=1e-5)
    assert baseline.note == "no validation targets: default constants"


def test_what_was_repeated_long_ago_still_stands_above_what_never_was() -> None:
    users = [trained(D, *[C] * 150)]
    [batch] = evaluation_batches(log([[*users[0], (A, VIEW, TEST)]]), TEST, max_length=200, batch_size=1)
    scores = DecayedRepeat(decay=0.1).fit(log(COUNTED)).scores(batch)
    assert best_first(scores) == [C, D, A, B, E]


def test_the_decay_is_chosen_on_validation_events() -> None:
    # The validation target is the item before last, seen twice: a slow decay finds it first.
    slow = [[*trained(A, B, A, B, C), (B, VIEW, VALIDATION)], [*trained(D, E, D, E, C), (E, VIEW, VALIDATION)]]
    fast = [[*trained(A, B, A, B, C), (C, VIEW, VALIDATION)], [*trained(D, E, D, E, C), (C, VIEW, VALIDATION)]]
    chosen = [DecayedRepeat(0.5).fit(log(users)) for users in (slow, fast)]
    assert chosen[0].decay >= 0.7
    assert chosen[1].decay == 0.5, "the default stays where nothing is better"
    assert chosen[0].chosen == {"decay": chosen[0].decay, "validation NDCG@10": 1.0, "validation targets": 2}


def test_item_transition_is_the_share_of_followers_then_popularity() -> None:
    # After A: B three times, D once; A and C never.
    scores = ItemTransition().fit(log(COUNTED)).scores(history(D, A, NONE))
    assert best_first(scores) == [B, D, A, C, E]
    assert scores[0, B] == pytest.approx(3 / 4, abs=1e-4)


def test_item_transition_after_a_new_item_is_popularity() -> None:
    scores = ItemTransition().fit(log(COUNTED)).scores(history(A, F))
    assert np.argsort(-scores[0])[:4].tolist() == [A, B, C, D]


def test_item_neighbors_count_what_the_formula_says() -> None:
    constants = NeighborConstants(decay=0.5, backward=0.25, degree_power=0.5, history_decay=0.5)
    baseline = ItemNeighbors(constants, choose=False).fit(log([trained(A, B, C), trained(A, C)]))
    # Forward: A-B 1, B-C 1, A-C 0.5 + 1. Backward: a quarter of each.
    rows = {A: {B: 1.0, C: 1.5}, B: {C: 1.0, A: 0.25}, C: {B: 0.25, A: 0.375}}
    count = {A: 2, B: 1, C: 2}
    expected = np.zeros(VOCAB)
    for weight, recent in ((1.0, B), (0.5, A)):
        degree = sum(rows[recent].values())
        for neighbor, value in rows[recent].items():
            expected[neighbor] += weight * value * degree**-0.5 * count[neighbor] ** -0.1
    found = baseline.sparse_scores(history(A, NONE, B)).toarray()[0]
    assert found == pytest.approx(expected, rel=1e-5)
    scores = baseline.scores(history(A, NONE, B))[0]
    assert np.argsort(-scores)[:3].tolist() == np.argsort(-expected)[:3].tolist()


def test_item_neighbors_look_ten_events_back_and_thirty_events_far() -> None:
    # Items that the vocabulary lacks stand between: they keep their places, and two in a row are two.
    far = [trained(A, *[F, G] * 14, F, B), trained(C, *[F, G] * 15, E)]
    baseline = ItemNeighbors(NeighborConstants(), choose=False).fit(log(far))
    near, beyond = (baseline.sparse_scores(history(item)).toarray()[0] for item in (A, C))
    assert near[B] > 0
    assert beyond[E] == 0
    long_ago = baseline.sparse_scores(history(A, *[F, G] * 5)).toarray()[0]
    assert not long_ago.any()
    assert baseline.sparse_scores(history(A, *[F, G] * 4, F)).toarray()[0].any()


def test_item_neighbors_count_events_of_one_item_in_a_row_as_one() -> None:
    once = ItemNeighbors(NeighborConstants(), choose=False).fit(log([trained(A, D, B, C)]))
    often = ItemNeighbors(NeighborConstants(), choose=False).fit(log([trained(A, A, A, D, B, C)]))
    expected = once.sparse_scores(history(A, D)).toarray()
    assert expected[0, B] > expected[0, C] > 0
    found = often.sparse_scores(history(A, A, NONE, A, D, D)).toarray()
    assert found[0, [B, C]] == pytest.approx(expected[0, [B, C]])


def test_the_constants_of_the_neighbors_are_chosen_on_items_new_to_their_user() -> None:
    users = [[*trained(A, B), (A, VIEW, VALIDATION)], [*trained(A, B, C)], [*trained(A, B), (C, VIEW, VALIDATION)]]
    baseline = ItemNeighbors().fit(log(users))
    assert baseline.chosen is not None
    assert baseline.chosen["validation targets"] == 1
    assert baseline.chosen["targets"] == "new to their user"
    assert baseline.chosen["validation NDCG@10"] == 1.0
    assert baseline.constants == NeighborConstants(), "the default form stays where nothing is better"


def test_choosing_the_constants_stops_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    users = [[*trained(A, B), (A, VIEW, VALIDATION)], [*trained(A, B, C)], [*trained(A, B), (C, VIEW, VALIDATION)]]
    tried: set[NeighborConstants] = set()
    score = ItemNeighbors._sparse_scores

    def watched(self: ItemNeighbors, batch: Any, constants: NeighborConstants) -> Any:
        tried.add(constants)
        return score(self, batch, constants)

    monkeypatch.setattr(ItemNeighbors, "_sparse_scores", watched)
    ItemNeighbors(until=time.monotonic() - 1).fit(log(users))
    assert tried == {NeighborConstants()}
    ItemNeighbors().fit(log(users))
    assert len(tried) == len(ItemNeighbors.GRID)


def test_repeat_neighbors_rank_both_the_history_and_its_neighbors_first() -> None:
    items, _ = fit_baselines(log([trained(A, B, C), trained(D, E), trained(A, A, A)]), NUM_ACTIONS)
    [scores] = items["repeat_neighbours"].scores(history(F, D))
    order = np.argsort(-scores).tolist()
    assert set(order[:3]) == {NEW_1, D, E}, "before A, which is more popular"
    assert order[3] == A


def test_last_action_markov_counts_pairs_plus_one() -> None:
    users = [[(A, VIEW, TRAIN), (A, VIEW, TRAIN), (A, BUY, TRAIN)], [(A, VIEW, TRAIN), (B, BUY, TRAIN)]]
    markov = LastActionMarkov(NUM_ACTIONS).fit(log(users))
    [after_view] = markov.action_probabilities(history(A))
    # view -> view once, view -> buy twice.
    assert after_view.tolist() == [0, 0, 0, 2 / 5, 3 / 5]


def test_after_an_action_that_never_was_last_come_the_overall_shares() -> None:
    users = [[(A, VIEW, TRAIN), (A, VIEW, TRAIN), (A, BUY, TRAIN)], [(A, 1, TRAIN), (A, VIEW, TEST)]]
    markov = LastActionMarkov(NUM_ACTIONS).fit(log(users))
    [batch] = evaluation_batches(log(users), TEST, max_length=5, batch_size=1)
    assert markov.action_probabilities(batch)[0].tolist() == [0, 0, 0, 3 / 5, 2 / 5]


@settings(deadline=None, max_examples=40)
@given(LOGS)
def test_scores_are_fresh_float32_and_only_candidates_are_finite(users: list[list[Event]]) -> None:
    sequences = log(users)
    items, actions = fit_baselines(sequences, NUM_ACTIONS)
    for batch in evaluation_batches(sequences, TEST, max_length=3, batch_size=4):
        candidates = np.ones((len(batch), VOCAB), dtype=bool)
        candidates[:, :FIRST_NEW] = False
        for row, window in enumerate(batch.input_ids):
            candidates[row, FIRST_NEW:FIRST_ITEM] = np.isin([NEW_1, NEW_2], window)
        for name, ranker in items.items():
            scores = ranker.scores(batch)
            assert scores.dtype == np.float32, name
            assert ((scores > -np.inf) == candidates).all(), name
            assert not np.isnan(scores).any(), name
            kept = scores.copy()
            scores[:] = 0
            assert (ranker.scores(batch) == kept).all(), f"{name} gives away its own array"
        for markov in actions.values():
            probabilities = markov.action_probabilities(batch)
            assert probabilities.sum(axis=1) == pytest.approx(1)
            assert (probabilities[:, :3] == 0).all()


@settings(deadline=None, max_examples=40)
@given(LOGS, st.lists(ITEMS, min_size=40, max_size=40))
def test_what_happens_after_the_test_cut_changes_no_baseline(users: list[list[Event]], others: list[int]) -> None:
    sequences = log([*users, [*trained(A, D, F, B), (A, VIEW, TEST)]])
    tested = sequences.parts == TEST
    changed = sequences.items.copy()
    changed[tested] = [*others, A][: int(tested.sum())]
    actions = np.where(tested, BUY, sequences.actions).astype(np.int16)
    items, markov = fit_baselines(sequences, NUM_ACTIONS)
    other_items, other_markov = fit_baselines(replace(sequences, items=changed, actions=actions), NUM_ACTIONS)
    last = np.array([len(changed) - 1])
    [batch] = evaluation_batches(sequences, TEST, max_length=50, batch_size=1, positions=last)
    for name, ranker in items.items():
        assert (ranker.scores(batch) == other_items[name].scores(batch)).all(), name
        assert ranker.chosen == other_items[name].chosen, name
    for name, action_ranker in markov.items():
        expected = action_ranker.action_probabilities(batch)
        assert (expected == other_markov[name].action_probabilities(batch)).all()


def test_validation_events_are_not_counted() -> None:
    users = [trained(A, B, C), [(A, VIEW, TRAIN), (D, BUY, VALIDATION), (E, BUY, VALIDATION), (D, BUY, VALIDATION)]]
    without = log([trained(A, B, C), trained(A)])
    batch = history(A, D)
    constants = NeighborConstants()
    for fit in (
        lambda sequences: Popularity().fit(sequences),
        lambda sequences: ItemTransition().fit(sequences),
        lambda sequences: ItemNeighbors(constants, choose=False).fit(sequences),
    ):
        assert (fit(log(users)).scores(batch) == fit(without).scores(batch)).all()
    markov, other = (LastActionMarkov(NUM_ACTIONS).fit(sequences) for sequences in (log(users), without))
    assert (markov.action_probabilities(batch) == other.action_probabilities(batch)).all()


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=6, max_size=6), min_size=1, max_size=4), st.data()
)
def test_sparse_ranks_equal_dense_ranks_of_scored_targets(rows: list[list[float]], data: st.DataObject) -> None:
    dense = np.array(rows)
    targets = np.array([data.draw(st.integers(-1, 5)) for _ in rows])
    ranks = sparse_ranks(sparse.csr_array(dense), targets)
    scored = np.array([target >= 0 and row[target] > 0 for row, target in zip(dense, targets, strict=True)])
    expected = np.where(scored, pessimistic_ranks(dense, targets), 7)
    assert ranks.tolist() == expected.tolist()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=5, max_size=5), st.sets(st.integers(0, 4))),
        min_size=1,
        max_size=4,
    )
)
def test_without_seen_clears_exactly_the_seen_entries(rows: list[tuple[list[float], set[int]]]) -> None:
    dense = np.array([scores for scores, _ in rows])
    seen = [np.array(sorted(ids), dtype=np.int64) for _, ids in rows]
    cleared = without_seen(sparse.csr_array(dense), seen).toarray()
    for row, ids in enumerate(seen):
        dense[row, ids] = 0
    assert (cleared == dense).all()
