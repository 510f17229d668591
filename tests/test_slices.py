"""Slices of an evaluation, and what its lists hold besides the target."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from tiny import sequences_of

from next_behavior.data.batches import EvaluationBatch
from next_behavior.data.sequences import TEST, TRAIN, Sequences
from next_behavior.evaluation.evaluator import evaluate
from next_behavior.evaluation.item_baselines import Popularity, RepeatLast
from next_behavior.evaluation.metrics import action_metrics
from next_behavior.evaluation.recommended import gini, history_popularity
from next_behavior.evaluation.slices import slices_of
from next_behavior.evaluation.tables import format_table
from next_behavior.model.special_ids import NONE

FIRST_ITEM, VOCAB = 6, 20
A, B, C, D = range(FIRST_ITEM, FIRST_ITEM + 4)
UNKNOWN = VOCAB
VIEW, BUY = 3, 4
log = partial(sequences_of, vocab_size=VOCAB, first_item_id=FIRST_ITEM)
# Training: A three times, B twice, C once.
LOG = log(
    [
        [(A, VIEW, TRAIN), (A, BUY, TEST), (D, VIEW, TEST)],
        [(A, VIEW, TRAIN), (B, VIEW, TRAIN), (NONE, VIEW, TRAIN), (C, VIEW, TRAIN), (B, VIEW, TEST)],
        [(B, VIEW, TRAIN), (A, VIEW, TRAIN), (UNKNOWN, VIEW, TEST)],
    ]
)


class Knower:
    """Gives the right action a probability of its own, which differs between targets."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        right = self.scale / (1 + batch.position % 3)
        probabilities = np.repeat((1 - right)[:, None], 5, axis=1)
        probabilities[:, :3] = 0
        probabilities[np.arange(len(batch)), batch.target_action] = right
        return probabilities


def evaluated(sequences: Sequences = LOG) -> dict[str, Any]:
    return evaluate(
        sequences,
        TEST,
        {"model": RepeatLast().fit(sequences), "popularity": Popularity().fit(sequences)},
        {"model": Knower(0.9), "other": Knower(0.8)},
        max_length=10,
        actions=["view", "buy"],
        progress=False,
    )


def test_every_target_lies_in_one_slice_of_each_kind() -> None:
    targets = np.flatnonzero(LOG.parts == TEST)
    slices = slices_of(LOG, targets, {VIEW: "view", BUY: "buy"})
    for masks in slices.values():
        assert (np.stack(list(masks.values())).sum(axis=0) == 1).all()
    counts = {by: {name: int(mask.sum()) for name, mask in masks.items() if mask.any()} for by, masks in slices.items()}
    assert counts == {
        "action": {"view": 3, "buy": 1},
        "history": {"1": 1, "2-4": 3},
        # Of the three trained items C is in the second decile, B in the sixth and A in the ninth (middles of thirds).
        "popularity": {"untrained": 2, "6": 1, "9": 1},
    }


def test_slices_add_up_to_all_targets() -> None:
    result = evaluated()
    for name in ("model", "popularity"):
        for way in ("kept", "removed"):
            row = result[name][way]
            for by, slices in row["slices"].items():
                hits = sum(one["count"] * (one["recall@10"] or 0) for one in slices.values())
                assert sum(one["count"] for one in slices.values()) == row["items"]["all"]["count"], by
                assert hits == pytest.approx(row["items"]["all"]["count"] * row["items"]["all"]["recall@10"])


def test_visited_and_unvisited_targets_are_recalled_apart() -> None:
    row = evaluated()["model"]["kept"]
    assert row["visited_recall@10"] == row["items"]["repeat"]["recall@10"] == 1
    rest = [row["items"][group] for group in ("novel", "cold")]
    expected = sum(one["count"] * one["recall@10"] for one in rest if one["count"]) / sum(one["count"] for one in rest)
    assert row["unvisited_recall@10"] == pytest.approx(expected)


def test_the_share_of_repeats_counts_what_the_user_has_seen() -> None:
    result = evaluated()
    # Each list has ten of fourteen items, the most popular first: of the histories' items none is missing.
    assert result["popularity"]["kept"]["repeat_share@10"] == pytest.approx((1 + 1 + 3 + 2) / 40)
    assert result["popularity"]["removed"]["repeat_share@10"] == 0


def test_the_popularity_of_a_history_is_that_of_its_distinct_items() -> None:
    counts = np.zeros(VOCAB, dtype=np.int64)
    counts[[A, B, C]] = 3, 2, 1
    # An event without an item counts for nothing, an item that the vocabulary lacks as one without training events.
    nan = np.nan
    expected = [nan, 3, 3, nan, 3, 2.5, 2.5, 2, nan, 2, 2.5]
    assert history_popularity(LOG, counts) == pytest.approx(expected, nan_ok=True)
    unknown = log([[(UNKNOWN, VIEW, TRAIN), (A, VIEW, TRAIN), (A, VIEW, TEST), (B, VIEW, TEST)]])
    assert history_popularity(unknown, counts) == pytest.approx([nan, 0, 1.5, 1.5], nan_ok=True)


def test_the_gini_index_is_half_the_relative_mean_difference() -> None:
    counts = np.random.default_rng(0).integers(0, 30, 40)
    differences = np.abs(counts[:, None] - counts[None, :]).mean()
    assert gini(counts) == pytest.approx(differences / (2 * counts.mean()))


def test_the_confusion_of_actions_holds_every_target_and_gives_precision_recall_and_f1() -> None:
    generator = np.random.default_rng(1)
    targets = generator.integers(3, 7, 300)  # the action 6 has no name
    probabilities = np.pad(generator.dirichlet([3, 2, 1], 300), ((0, 0), (3, 0)))
    names = {3: "view", 4: "cart", 5: "buy"}
    metrics = action_metrics(targets, probabilities, names)
    confusion = metrics["confusion"]
    assert sum(sum(row.values()) for row in confusion.values()) + metrics["unknown"] == 300
    predicted = [names[index] for index in probabilities.argmax(axis=1)]
    for action in names.values():
        hits, total = confusion[action].get(action, 0), sum(confusion[action].values())
        guessed = predicted.count(action)
        assert metrics["recall"][action] == pytest.approx(hits / total)
        assert metrics["precision"][action] == pytest.approx(hits / guessed)
        assert metrics["f1"][action] == pytest.approx(2 * hits / (total + guessed))


def test_an_action_that_is_never_predicted_has_no_precision() -> None:
    metrics = action_metrics(np.array([3, 4]), np.array([[0, 0, 0, 0.9, 0.1]] * 2), {3: "view", 4: "buy"})
    assert metrics["precision"] == {"view": 0.5, "buy": None}
    assert metrics["f1"]["buy"] == 0


def test_the_tables_show_slices_lists_and_confusion() -> None:
    text = format_table(evaluated())
    for title in (
        *("NDCG@10 by action", "NDCG@10 by events before", "NDCG@10 by popularity", "lists of ten", "Gini"),
        *("repeats listed", "Recall@10 unvisited", "precision of", "F1 of", "came, model predicted"),
    ):
        assert f"| {title} " in text, title
    assert "Differences are paired" in text


def test_the_difference_of_log_losses_has_an_interval_over_the_same_users() -> None:
    row = evaluated()["comparison"]
    [loss] = [one for one in row if one["metric"] == "log_loss"]
    assert loss["difference"] == pytest.approx(np.log(9 / 8)), "a lower log-loss is better"
    assert loss["difference_interval"] == pytest.approx([np.log(9 / 8)] * 2), "right by 9 / 8 on any draw of users"
