"""The benchmark's split with items that training never saw, and the baseline of words alone."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cold_items import (
    ColdSplit,
    Targets,
    TextScore,
    best_text_score,
    cold_split,
    evaluate_cold,
    rank_targets,
)
from next_behavior.data.sequences import TRAIN, VALIDATION


def log_of(histories: dict[str, list[str]]) -> pl.DataFrame:
    rows = [(user, item) for user, items in histories.items() for item in items]
    return pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")


def random_log(users: int = 40, items: int = 20, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    names = np.array([f"i{item:02d}" for item in range(items)])
    return log_of(
        {f"u{user:02d}": rng.choice(names, rng.integers(3, 8), replace=False).tolist() for user in range(users)}
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), share=st.sampled_from([0.1, 0.3, 0.5]))
def test_no_event_to_learn_from_and_no_history_names_a_cold_item_and_no_target_is_learnt_from(
    seed: int, share: float
) -> None:
    events = random_log(seed=seed)
    split = cold_split(events, share, seed)
    cold = set(split.cold_items)
    assert len(cold) == round(share * len(split.catalog))
    assert not cold & set(split.events["item_id"])
    assert set(split.events["part"]) <= {TRAIN, VALIDATION}
    learnt = set(split.events.select("user_id", "item_id").rows())
    for targets, is_cold in ((split.cold, True), (split.warm, False), (split.choice, False)):
        for user, item, history, seen in zip(
            targets.users, targets.items, targets.histories, targets.seen, strict=True
        ):
            assert (item in cold) == is_cold
            assert history == [one for one in seen if one not in cold]
            assert history
            assert ((user, item) in learnt) == (targets is split.choice)


def test_last_events_are_the_targets_and_one_seed_makes_one_split() -> None:
    events = random_log()
    split, again, other = cold_split(events, seed=1), cold_split(events, seed=1), cold_split(events, seed=2)
    assert split.cold_items == again.cold_items != other.cold_items
    last = dict(events.group_by("user_id").agg(pl.col("item_id").last()).rows())
    found = dict(zip(split.cold.users + split.warm.users, split.cold.items + split.warm.items, strict=True))
    assert found.items() <= last.items()
    assert len(found) >= len(last) - 1


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="expected at least one item and at most half"):
        cold_split(random_log(), share)


def test_seen_items_are_no_candidates_and_ties_count_against_the_scorer() -> None:
    targets = Targets(["u"], ["c"], [["a"]], [["a", "b"]])

    def score(histories: list[list[str]], users: list[str]) -> np.ndarray:
        assert (histories, users) == ([["a"]], ["u"])
        return np.array([[9.0, 8.0, 1.0, 1.0, 0.0]])

    result = rank_targets(targets, ["a", "b", "c", "d", "e"], score)
    assert (result.count, result.recall) == (1, 1.0)
    assert result.ndcg == pytest.approx(1 / np.log2(3))  # second: behind d, which ties
    with pytest.raises(ValueError, match="expected one for each of 5"):
        rank_targets(targets, ["a", "b", "c", "d", "e"], lambda histories, users: np.zeros((1, 4)))


def test_the_text_score_is_the_cosine_to_the_decayed_mean_of_the_last_events() -> None:
    embeddings = np.eye(3, dtype=np.float32)
    score = TextScore({"a": 0, "b": 1, "c": 2}, embeddings, length=2, decay=0.5)
    mean = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(score([["a", "b", "c"]], ["u"])[0], mean / np.linalg.norm(mean), rtol=1e-6)


def test_where_texts_say_what_comes_next_the_baseline_finds_cold_items() -> None:
    rng = np.random.default_rng(0)
    topics = {f"i{item:02d}": item % 5 for item in range(60)}
    of_topic = {t: [item for item, topic in topics.items() if topic == t] for t in range(5)}
    events = log_of({f"u{u:03d}": rng.choice(of_topic[u % 5], 6, replace=False).tolist() for u in range(200)})
    split: ColdSplit = cold_split(events)
    centres = np.eye(5)[[topics[item] for item in split.catalog]]
    score, chosen, _ = best_text_score(split, centres + 0.05 * rng.normal(size=centres.shape))
    found, blind = evaluate_cold(split, score), evaluate_cold(split, lambda h, u: np.zeros((len(h), len(topics))))
    assert found["cold"].recall > 0.8
    assert blind["cold"].recall == 0
    assert "embeddings, the last" in chosen
