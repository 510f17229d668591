"""Probabilities that can be trusted: their fit, how they are measured, prediction sets, and the time head."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import sequences_of, tiny_model

from next_behavior.data.sequences import TRAIN, VALIDATION, Sequences
from next_behavior.data.splits import Split
from next_behavior.evaluation.metrics import expected_calibration_error
from next_behavior.evaluation.probabilities import item_probabilities, measured_probabilities
from next_behavior.evaluation.reliability import FirstAnswers, first_answers, ranked_reliability, reliability
from next_behavior.evaluation.time_metrics import time_metrics
from next_behavior.model.coverage import PERCENT, limit_for, limits_of, score_of, set_sizes
from next_behavior.model.mixture import GATE_NEW
from next_behavior.model.special_ids import FIRST_ACTION
from next_behavior.training import probability_calibration
from next_behavior.training.head_calibration import (
    BY_CLASS,
    BY_LAST_ACTION,
    TEMPERATURE,
    best_scaling,
    fit_scaling,
    logits_of_heads,
)
from next_behavior.training.probability_calibration import (
    CAUTION,
    TEMPERATURES,
    calibration_error,
    fit_probabilities,
    item_temperature,
)
from next_behavior.training.repeat_calibration import fit_repeats, gate_logits, repeat_probability
from next_behavior.training.tokenized_log import TokenizedLog
from next_behavior.training.vocabulary import assemble

ITEMS, ACTIONS, EDGES = [f"i{number}" for number in range(12)], ["view", "cart", "buy"], [60.0, 3600.0]
LIMITS = np.linspace(0.0, 0.97, 99).tolist()
tables = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).dirichlet(np.full(7, 0.4), size=50))


def model_of(**changes: Any) -> Any:
    tokenizer = assemble(ITEMS, ACTIONS, EDGES, num_new_items=3, max_length=10)
    return tiny_model(tokenizer, initializer_range=0.7, **changes)


def batch_of(rows: int = 5, length: int = 6) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(4)
    return {
        "input_ids": torch.randint(7, 19, (rows, length), generator=draw),
        "token_type_ids": torch.randint(3, 6, (rows, length), generator=draw),
        "time_gap_ids": torch.randint(1, 4, (rows, length), generator=draw),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
    }


def log_of(users: int = 60, unknown_every: int = 3) -> Sequences:
    """Every user has six training events and two validation events, some of an item outside the vocabulary."""
    draw, rows = np.random.default_rng(1), []
    for user in range(users):
        events = [(int(draw.integers(7, 19)), int(draw.integers(3, 6)), TRAIN) for _ in range(6)]
        events += [(events[-1][0], 3, VALIDATION), (int(draw.integers(7, 19)), int(draw.integers(3, 6)), VALIDATION)]
        if user % unknown_every == 0:
            events[-1] = (19 + user, 4, VALIDATION)
        rows.append(events)
    times = [int(1e15 + 1e6 * (user + 500 * place**2)) for user in range(users) for place in range(8)]
    sequences = sequences_of(rows, vocab_size=19, first_item_id=7, times=times)
    gaps = np.diff(sequences.timestamps, prepend=0) / 1e6
    ids = np.searchsorted(EDGES, gaps, side="right") + 2
    ids[sequences.offsets[:-1]] = 1
    sequences.time_gaps[:] = ids
    return sequences


# -- reliability -------------------------------------------------------------------------------------------------------


@given(table=tables)
@settings(max_examples=20, deadline=None)
def test_the_bins_of_a_reliability_add_up_to_its_error(table: np.ndarray) -> None:
    confidence, correct = table.max(axis=1), table[:, 0] > 0.3
    numbers = reliability(confidence, correct)
    gaps = [each["count"] * abs(each["confidence"] - each["accuracy"]) for each in numbers["bins"]]
    assert sum(each["count"] for each in numbers["bins"]) == len(table)
    assert math.isclose(sum(gaps) / len(table), numbers["ece"], abs_tol=1e-9)
    assert math.isclose(numbers["ece"], expected_calibration_error(confidence, correct), abs_tol=1e-12)


def test_first_answers_are_told_apart_by_rank_and_by_what_the_history_holds() -> None:
    probabilities = np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]], np.float32)
    first = first_answers(probabilities, np.array([2, -1]), [np.array([1]), np.array([0, 2])])
    assert first.is_target.tolist() == [[False, True, False], [False, False, False]]
    assert first.is_repeat.tolist() == [[True, False, False], [True, True, False]]
    numbers = ranked_reliability(first)
    assert [each["accuracy"] for each in numbers["by_rank"]] == [0.0, 0.5, 0.0]
    assert [numbers[group]["count"] for group in ("repeat", "new")] == [3, 3]
    assert numbers["repeat"]["accuracy"] == 0
    assert numbers["new"]["accuracy"] == pytest.approx(1 / 3)
    none = FirstAnswers(np.zeros((1, 2)), np.zeros((1, 2), bool), np.zeros((1, 2), bool))
    assert ranked_reliability(none)["ece"] is None


# -- prediction sets ---------------------------------------------------------------------------------------------------


def test_sets_cover_as_many_new_events_as_they_promise_whatever_the_probabilities_are() -> None:
    draw = np.random.default_rng(0)
    truth = draw.dirichlet(np.full(20, 0.3), size=8000)
    target = (truth.cumsum(axis=1) > draw.random((8000, 1))).argmax(axis=1)
    said = truth**3 / (truth**3).sum(axis=1, keepdims=True)  # far too sure
    scores = score_of(said, target)
    limits = limits_of(scores[:4000])
    for coverage in (0.8, 0.9, 0.95):
        covered = scores[4000:] <= limit_for(coverage, "item", False, limits)
        assert covered.mean() == pytest.approx(coverage, abs=0.02)


@given(table=tables, coverages=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)))
@settings(max_examples=30, deadline=None)
def test_a_set_holds_the_first_answer_and_grows_with_its_coverage(
    table: np.ndarray, coverages: tuple[float, float]
) -> None:
    few, many = (
        set_sizes(-np.sort(-table, axis=1), limit_for(each, "item", False, LIMITS)) for each in sorted(coverages)
    )
    assert (few >= 1).all()
    assert (few <= many).all()


def test_too_few_events_give_no_limits_and_limits_ascend() -> None:
    assert limits_of(np.arange(98) / 98) == []
    limits = limits_of(np.arange(99) / 99)
    assert len(limits) == len(PERCENT)
    assert limits == sorted(limits)


@pytest.mark.parametrize("of", ["item", "action"])
def test_a_prediction_set_is_the_beginning_of_the_whole_ranking(of: str) -> None:
    model = model_of(item_set_limits=LIMITS, action_set_limits=LIMITS)
    whole = model.predict(**batch_of(), of=of, top_k=1000)
    sets = model.predict(**batch_of(), of=of, coverage=0.7)
    sizes = (sets.probabilities > 0).sum(dim=1)
    assert sizes.tolist() == set_sizes(whole.probabilities.numpy(), LIMITS[69]).tolist()
    for row, size in enumerate(sizes.tolist()):
        assert torch.equal(sets.item_ids[row, :size], whole.item_ids[row, :size])
        assert torch.equal(sets.action_ids[row, :size], whole.action_ids[row, :size])
        assert not sets.probabilities[row, size:].any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"of": "pair"}, 'use of="item"'),
        ({"of": "item", "exclude_seen": True}, "do not apply"),
        ({"of": "item", "action": 3}, "do not apply"),
        ({"of": "item", "coverage": 1.0}, "from 0.01 to 0.99"),
        ({"of": "item", "coverage": "much"}, "from 0.01 to 0.99"),
        ({"of": "item", "coverage": math.nan}, "from 0.01 to 0.99"),
        ({"of": "action"}, "next-behavior calibrate"),
    ],
)
def test_a_set_that_cannot_be_promised_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        model_of(item_set_limits=LIMITS).predict(**batch_of(), **({"coverage": 0.9} | options))


# -- the fit -----------------------------------------------------------------------------------------------------------


@given(temperature=st.floats(0.8, 3.0))
@settings(max_examples=10, deadline=None)
def test_a_temperature_alone_changes_no_order_and_probabilities_sum_to_one(temperature: float) -> None:
    model = model_of()
    for options in ({"of": "action"}, {"of": "item", "action": 4}):
        plain = model.predict(**batch_of(), **options, top_k=1000)
        model.config.item_temperature = model.config.action_temperature = temperature
        scaled = model.predict(**batch_of(), **options, top_k=1000)
        model.config.item_temperature = model.config.action_temperature = 1.0
        back = scaled.probabilities.log() * temperature
        assert torch.allclose(
            back - back[:, :1], plain.probabilities.log() - plain.probabilities[:, :1].log(), atol=1e-3
        )
        assert torch.allclose(scaled.probabilities.sum(dim=1), torch.ones(5), atol=1e-5)


def test_the_bias_of_an_action_counts_after_its_last_action_only() -> None:
    model, batch = model_of(), batch_of()
    batch["token_type_ids"][:, -1] = torch.tensor([3, 3, 4, 4, 5])
    batch["input_ids"][4] = batch["input_ids"][0]
    plain = model(**batch).action_logits.softmax(dim=-1)
    bias = np.zeros((6, 6))
    bias[4, 5] = 9.0
    model.config.action_bias = bias.tolist()
    biased = model(**batch).action_logits.softmax(dim=-1)
    assert torch.allclose(plain[[0, 1, 4]], biased[[0, 1, 4]])
    assert (biased[2:4, 5] > plain[2:4, 5]).all()
    assert torch.allclose(biased.sum(dim=-1), torch.ones(5))


def skewed_head(events: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits that are too sharp and leave out what the last action says; targets; last actions."""
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(events, 6, generator=draw, dtype=torch.float64)
    logits[:, :FIRST_ACTION] = -1e4
    last = torch.randint(3, 6, (events,), generator=draw)
    bias = torch.zeros(6, 6, dtype=torch.float64)
    bias[4, 5], bias[5, 3] = 2.0, 1.5
    target = (logits + bias[last]).softmax(dim=-1).multinomial(1, generator=draw)[:, 0]
    return 2 * logits, target, last


def test_the_way_of_scaling_that_predicts_held_out_events_best_is_taken() -> None:
    logits, target, last = skewed_head(2000)
    none = torch.zeros_like(last)
    ways = {TEMPERATURE: (none, 0), BY_CLASS: (none, 1), BY_LAST_ACTION: (last, 6)}
    fit = best_scaling(logits, target, ways, np.arange(2000))
    assert fit.way == BY_LAST_ACTION
    assert fit.scaling.temperature == pytest.approx(2.0, rel=0.15)
    assert fit.after["ece"] < 0.04 < fit.before["ece"]


def test_a_handful_of_events_changes_little() -> None:
    logits, target, last = skewed_head(3)
    scaling = fit_scaling(logits, target, last, 6)
    assert 0.8 < scaling.temperature < 1.25
    assert scaling.bias.abs().max() < 0.3
    assert fit_scaling(logits[:0], target[:0], last[:0], 6).temperature == 1.0


def test_the_fit_measures_itself_and_repeats_become_as_frequent_as_they_are() -> None:
    model, sequences = model_of(), log_of(users=150)
    log = TokenizedLog(sequences, Split("none"), 10)
    positions = np.flatnonzero(sequences.parts == VALIDATION)
    record = fit_probabilities(model, log, positions)
    assert record["action"]["before"]["count"] == len(positions)
    assert len(model.config.item_set_limits) == len(model.config.action_set_limits) == 99
    limits = {80: model.config.item_set_limits[79]}
    items = item_probabilities(model, sequences, VALIDATION, 10, positions, limits)
    covered = items.score[items.is_nameable] <= limits[80] + 1e-6
    assert covered.mean() == pytest.approx(0.8, abs=0.02), "as many of the events that the limits are of"
    assert not items.is_nameable.all()
    result = measured_probabilities(model, sequences, VALIDATION, 10, positions, EDGES)
    assert result["prediction_sets"]["item"]["80"]["coverage"] == pytest.approx(covered.mean(), abs=0.01), "ties"
    assert result["prediction_sets"]["item"]["unnameable"] == pytest.approx(1 - items.is_nameable.mean())
    assert result["calibration"]["item"] == result["calibration"]["top10"]["by_rank"][0]
    heads = logits_of_heads(model, log, positions)
    fit_repeats(model, heads)
    said = gate_logits(model, heads)
    given = float(repeat_probability(said.gate, said.by_action).mean())
    assert given == pytest.approx(float(said.is_repeat.double().mean()), abs=0.03)


def test_the_temperature_of_items_is_that_with_the_lowest_error_of_what_is_answered() -> None:
    model, sequences = model_of(actions_without_item=[4]), log_of(users=40)
    log = TokenizedLog(sequences, Split("none"), 10)
    positions = np.flatnonzero(sequences.parts == VALIDATION)
    found = item_temperature(model, log, positions)
    costs = {}
    for temperature in TEMPERATURES.tolist():
        model.config.item_temperature = temperature
        answers = item_probabilities(model, sequences, VALIDATION, 10, positions, {}).first
        costs[temperature] = calibration_error(answers) + CAUTION * abs(np.log(temperature)) / np.sqrt(len(positions))
    assert costs[found] == pytest.approx(min(costs.values()), abs=0.01)
    assert max(costs.values()) > costs[found] + 0.02


@pytest.mark.parametrize("offset", [30.0, 0.0])
def test_a_gate_that_makes_answers_worse_is_taken_back(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(model: Any, _: Any) -> None:
        with torch.no_grad():
            model.path_gate.bias[GATE_NEW] += offset  # new items before all repeats

    monkeypatch.setattr(probability_calibration, "fit_repeats", changed)
    model, sequences = model_of(), log_of(users=20)
    bias = model.path_gate.bias.detach().clone()
    log = TokenizedLog(sequences, Split("none"), 10)
    record = fit_probabilities(model, log, np.flatnonzero(sequences.parts == VALIDATION))["gate"]
    assert record["changed"] == (offset == 0)
    assert torch.equal(model.path_gate.bias, bias)
    assert (record["ndcg@10"]["after"] < record["ndcg@10"]["before"]) == (offset > 0)


# -- the time ----------------------------------------------------------------------------------------------------------


def test_the_time_head_is_measured_beside_simple_rules() -> None:
    sequences = log_of(users=4)
    positions = np.flatnonzero(sequences.parts == VALIDATION)
    by_bucket = np.tile([0.2, 0.3, 0.5], (len(positions), 1))
    gaps = sequences.time_gaps[positions].astype(np.int64)
    metrics = time_metrics(sequences, positions, gaps, by_bucket, EDGES)
    assert metrics is not None
    losses = [-math.log(by_bucket[row, gap - 2]) for row, gap in enumerate(gaps)]
    assert metrics["model"]["log_loss"] == pytest.approx(np.mean(losses))
    seconds = np.array([5500.0, 6500.0] * 4)  # 500 * (6**2 - 5**2) and 500 * (7**2 - 6**2)
    own = np.array([2500.0, 3000.0] * 4)  # medians of 500, 1500 ... 4500 and of 500 ... 5500
    assert metrics["user_median_gap"]["log_error"] == pytest.approx(np.abs(np.log(own / seconds)).mean())
    assert metrics["user_median_gap"]["hours_error"] == pytest.approx(np.median(np.abs(own - seconds)) / 3600)
    assert metrics["training_gaps"]["log_error"] == pytest.approx(np.abs(np.log(2500 / seconds)).mean())
    assert time_metrics(sequences, positions, np.ones_like(gaps), by_bucket, EDGES) is None
