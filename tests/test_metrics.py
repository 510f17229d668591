"""Metrics: equal to slow references and to scikit-learn, pessimistic about ties, the same in any batching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from next_behavior.evaluation.metrics import (
    action_metrics,
    balancing_weights,
    bootstrap_macro_f1,
    bootstrap_means,
    expected_calibration_error,
    interval,
    ndcg_at_k,
    pessimistic_ranks,
    ranking_metrics,
    recall_at_k,
)
from next_behavior.evaluation.recommended import ItemPopularity, RankingAccumulator

# Few distinct scores make ties likely.
SCORE = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])
NAMES = {3: "view", 4: "cart", 5: "buy"}


@st.composite
def score_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    size, rows = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    scores = draw(st.lists(st.lists(SCORE, min_size=size, max_size=size), min_size=rows, max_size=rows))
    targets = draw(st.lists(st.integers(-1, size - 1), min_size=rows, max_size=rows))
    return np.array(scores, dtype=np.float32), np.array(targets, dtype=np.int64)


def slow_rank(scores: np.ndarray, target: int) -> int:
    if target < 0 or scores[target] == -np.inf:
        return len(scores) + 1
    better = sum(score > scores[target] for score in scores)
    tied = sum(score == scores[target] for index, score in enumerate(scores) if index != target)
    return 1 + better + tied


@settings(deadline=None)
@given(score_rows())
def test_ranks_equal_the_slow_definition(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, targets = case
    expected = [slow_rank(row, target) for row, target in zip(scores, targets.tolist(), strict=True)]
    assert pessimistic_ranks(scores, targets).tolist() == expected
    assert pessimistic_ranks(torch.from_numpy(scores), torch.from_numpy(targets)).tolist() == expected


def test_a_ranker_that_scores_everything_alike_puts_the_target_last() -> None:
    scores = np.zeros((4, 100), dtype=np.float32)
    assert pessimistic_ranks(scores, np.array([0, 1, 50, 99])).tolist() == [100] * 4


def test_a_score_that_is_not_a_number_never_helps() -> None:
    scores = np.array([[np.nan, 1.0, 0.0], [np.nan, 1.0, 0.0], [np.nan] * 3], dtype=np.float32)
    assert pessimistic_ranks(scores, np.array([1, 0, 0])).tolist() == [2, 3, 3]


def test_ranking_leaves_the_scores_alone() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    before = scores.copy()
    pessimistic_ranks(scores, np.array([0, 1, -1]))
    assert (scores == before).all()


def test_targets_that_do_not_fit_the_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="target 5 for 5 scores"):
        pessimistic_ranks(np.zeros((1, 5)), np.array([5]))
    with pytest.raises(ValueError, match="2 targets"):
        pessimistic_ranks(np.zeros((1, 5)), np.array([1, 1]))


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(0, 10_000), st.integers(1, 12))
def test_recall_and_ndcg_equal_scikit_learn_without_ties(size: int, seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.permutation(size).astype(np.float64)[None]
    target = int(generator.integers(size))
    relevance = np.zeros((1, size))
    relevance[0, target] = 1
    ranks = pessimistic_ranks(scores, np.array([target]))
    assert ndcg_at_k(ranks, k)[0] == pytest.approx(ndcg_score(relevance, scores, k=k))
    assert recall_at_k(ranks, k)[0] == float(target in np.argsort(-scores[0])[:k])


def test_a_target_that_cannot_be_ranked_adds_nothing_to_any_metric() -> None:
    metrics = ranking_metrics(np.array([4]), num_ids=3)
    assert metrics.pop("count") == 1
    assert set(metrics.values()) == {0.0}


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30))
def test_popularity_percentiles_order_items_and_average_a_half(items: list[int]) -> None:
    counts = np.bincount(np.array(items, dtype=np.int64) + 4, minlength=14)
    popularity = ItemPopularity.from_counts(counts, first_item_id=4)
    assert popularity.percentile[4:].mean() == pytest.approx(0.5)
    assert (popularity.percentile[:4] == 0).all()
    order = np.argsort(counts[4:], kind="stable")
    assert (np.diff(popularity.percentile[4:][order]) >= 0).all()
    assert (np.diff(popularity.information[4:][order]) <= 0).all()


def test_the_accumulator_gives_the_same_for_any_batching() -> None:
    generator = np.random.default_rng(3)
    popularity = ItemPopularity.from_counts(generator.integers(0, 9, 50), first_item_id=10)
    ranks, targets = generator.integers(1, 51, 40), generator.integers(-1, 50, 40)
    top = generator.integers(-1, 50, (40, 10))

    def collected(step: int) -> RankingAccumulator:
        lists = RankingAccumulator(popularity)
        for begin in range(0, 40, step):
            rows = slice(begin, begin + step)
            lists.add(ranks[rows], targets[rows], top[rows])
        return lists

    whole, parts = collected(40), collected(7)
    assert (whole.ranks() == parts.ranks()).all()
    assert whole.list_metrics() == pytest.approx(parts.list_metrics())


def test_the_lists_metrics_equal_a_worked_example() -> None:
    # Items 2 to 5 with 5, 1, 1 and 1 events; two users get [2, 3] and [2], the targets are 3 and unknown.
    lists = RankingAccumulator(ItemPopularity.from_counts(np.array([0, 0, 5, 1, 1, 1]), first_item_id=2))
    lists.add(np.array([2, 7]), np.array([3, -1]), np.array([[2, 3], [2, -1]]))
    found = lists.list_metrics()
    assert found["coverage@10"] == 0.5
    rare = np.log2(12 / 2)
    assert found["novelty@10"] == pytest.approx(((1 + rare) / 2 + 1) / 2)
    assert found["popularity_percentile@10"] == pytest.approx(((0.875 + 0.375) / 2 + 0.875) / 2)
    assert found["popularity_bias@10"] == pytest.approx(((0.875 + 0.375) / 2 + 0.875) / 2 - 0.375)


def test_nothing_recommended_has_no_list_metrics() -> None:
    lists = RankingAccumulator(ItemPopularity.from_counts(np.array([0, 0, 5]), first_item_id=2))
    assert lists.list_metrics()["novelty@10"] is None
    assert len(lists.ranks()) == 0


def test_action_metrics_equal_a_worked_example() -> None:
    predicted = [3, 3, 4, 3, 5]
    targets = np.array([3, 4, 4, 3, 3])
    probabilities = np.full((5, 6), 0.1)
    probabilities[:, :3] = 0
    probabilities[np.arange(5), predicted] = 0.8
    metrics = action_metrics(targets, probabilities, NAMES)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["recall"] == {"view": pytest.approx(2 / 3), "cart": 0.5}
    # F1 of view: precision 2/3, recall 2/3; of cart: precision 1, recall 1/2; buy never occurs as a target.
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert metrics["log_loss"] == pytest.approx(-(3 * np.log(0.8) + 2 * np.log(0.1)) / 5)
    assert metrics["ece"] == pytest.approx(0.8 - 3 / 5)


def test_an_action_that_training_never_saw_is_missed_and_has_no_probability() -> None:
    probabilities = np.array([[0, 0, 0, 0.9, 0.1, 0], [0, 0, 0, 0.9, 0.1, 0]])
    metrics = action_metrics(np.array([3, 1]), probabilities, NAMES)
    assert metrics["accuracy"] == 0.5
    assert metrics["unknown"] == 1
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["log_loss"] == pytest.approx(-np.log(0.9))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), count=st.integers(0, 60))
def test_balancing_weights_never_lower_macro_f1_on_their_own_targets(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = np.pad(generator.dirichlet([6.0, 2.0, 0.5], count), ((0, 0), (3, 0)))
    targets = generator.choice(3, count, p=[0.8, 0.15, 0.05]) + 3
    weights = balancing_weights(targets, probabilities)
    assert weights[:3].tolist() == [0, 0, 0]
    if count:
        weighted = probabilities * np.exp(weights)
        weighted /= weighted.sum(axis=1, keepdims=True)
        before, after = (action_metrics(targets, one, NAMES)["macro_f1"] for one in (probabilities, weighted))
        assert isinstance(before, float)
        assert isinstance(after, float)
        assert after >= before


def test_a_log_with_one_action_is_predicted_without_loss() -> None:
    metrics = action_metrics(np.array([3, 3]), np.array([[0, 0, 0, 1.0]] * 2), {3: "interact"})
    assert metrics["accuracy"] == metrics["macro_f1"] == 1
    assert metrics["log_loss"] == metrics["ece"] == 0


def test_no_action_targets_give_no_numbers() -> None:
    metrics = action_metrics(np.zeros(0, dtype=np.int64), np.zeros((0, 6)), NAMES)
    assert metrics["count"] == 0
    assert metrics["accuracy"] is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_the_calibration_error_lies_between_the_overall_gap_and_one(pairs: list[tuple[float, bool]]) -> None:
    confidence, correct = np.array([p for p, _ in pairs]), np.array([c for _, c in pairs])
    error = expected_calibration_error(confidence, correct)
    assert abs(confidence.mean() - correct.mean()) - 1e-9 <= error <= 1 + 1e-9


def test_the_bootstrap_equals_drawing_users_one_by_one() -> None:
    sums, counts = np.array([[1.0], [4.0], [0.0]]), np.array([[2], [4], [1]])
    drawn = np.random.default_rng(5).integers(3, size=(50, 3))
    expected = sums[drawn, 0].sum(axis=1) / counts[drawn, 0].sum(axis=1)
    assert bootstrap_means(sums, counts, resamples=50, seed=5)[:, 0] == pytest.approx(expected)


def test_the_bootstrap_pairs_its_columns_and_repeats_itself() -> None:
    generator = np.random.default_rng(0)
    first = generator.random((200, 1))
    sums, counts = np.concatenate([first, first + 0.01], axis=1), np.ones((200, 2))
    means = bootstrap_means(sums, counts, seed=1)
    assert interval(means[:, 1] - means[:, 0]) == pytest.approx([0.01, 0.01])
    assert (means == bootstrap_means(sums, counts, seed=1)).all()
    assert (means != bootstrap_means(sums, counts, seed=2)).any()


def test_macro_f1_is_resampled_over_the_actions_that_are_drawn() -> None:
    counts = np.zeros((2, 3, 2))  # hits, targets, guesses of two actions
    counts[0, :, 0] = 2, 4, 2  # the first user: half of the first action's targets
    counts[1, :, 1] = 1, 1, 2  # the second user: the other action, guessed once too often
    drawn = np.random.default_rng(3).integers(2, size=(40, 2))
    f1 = {(0, 0): 2 / 3, (1, 1): 2 / 3, (0, 1): 2 / 3, (1, 0): 2 / 3}
    assert bootstrap_macro_f1(counts, 40, seed=3) == pytest.approx([f1[tuple(users)] for users in drawn.tolist()])
    counts[1, 0, 1] = 0
    f1 = {(0, 0): 2 / 3, (1, 1): 0.0, (0, 1): 1 / 3, (1, 0): 1 / 3}
    assert bootstrap_macro_f1(counts, 40, seed=3) == pytest.approx([f1[tuple(users)] for users in drawn.tolist()])
    assert np.isnan(bootstrap_macro_f1(counts * 0, 5)).all()


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))
    found = interval(bootstrap_means(values, np.ones((400, 1)))[:, 0])
    assert found is not None
    assert found[0] < values.mean() < found[1]
    assert found[1] - found[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)


def test_a_group_without_targets_has_no_interval() -> None:
    assert interval(bootstrap_means(np.zeros((3, 1)), np.zeros((3, 1)))[:, 0]) is None
