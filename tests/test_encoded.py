"""training/encoded.py: histories encoded once, several targets of a user in one pass, give the numbers of histories
encoded one by one for every question."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tiny import sequences_of

from next_behavior.data.batches import evaluation_batches, target_positions
from next_behavior.data.sequences import TRAIN, VALIDATION, Sequences
from next_behavior.evaluation.metrics import ndcg_at_k, pessimistic_ranks
from next_behavior.evaluation.rankers import ModelRanker
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import FIRST_ACTION, NONE
from next_behavior.training import encoded
from next_behavior.training.calibration import fit_gate, fits_of_targets
from next_behavior.training.encoded import EncodedBatch, encode_targets, targets_of_passes
from next_behavior.training.validation import action_log_loss, validation_ndcg

NUM_NEW, NUM_ITEMS, NUM_ACTIONS, MAX_LENGTH = 3, 30, 6, 10
FIRST_ITEM = 4 + NUM_NEW
VOCAB = FIRST_ITEM + NUM_ITEMS
# Events of each user, and how many of the last are held out: histories that fit, and some that are longer than the
# window.
USERS = [(9, 5), (3, 1), (10, 1), (12, 6), (40, 30), (2, 1), (11, 10)]


@pytest.fixture(scope="module")
def sequences() -> Sequences:
    """Repeats, unknown items and events without an item; several actions and times."""
    draw = np.random.default_rng(0)
    users = []
    for length, held_out in USERS:
        items = draw.choice([NONE, *range(FIRST_ITEM, FIRST_ITEM + 8), 20, 30, VOCAB + 1, VOCAB + 2], length)
        actions = draw.integers(FIRST_ACTION, NUM_ACTIONS, length)
        parts = [TRAIN] * (length - held_out) + [VALIDATION] * held_out
        users.append([(int(item), int(action), part) for item, action, part in zip(items, actions, parts, strict=True)])
    log = sequences_of(users, VOCAB, FIRST_ITEM)
    return dataclasses.replace(log, time_gaps=draw.integers(1, 6, len(log.items)).astype(np.int16))


@pytest.fixture(scope="module", params=[True, False], ids=["positions", "convolution"])
def model(request: pytest.FixtureRequest) -> BertForNextBehavior:
    torch.manual_seed(0)
    config = BehaviorConfig(
        vocab_size=VOCAB, num_new_items=NUM_NEW, num_actions=NUM_ACTIONS, num_time_gaps=6, actions_without_item=[4],
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24, memory_trend=0.2,
        use_positions=request.param, convolution_size=0 if request.param else 3, max_position_embeddings=MAX_LENGTH,
    )  # fmt: skip
    model = BertForNextBehavior(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.4 * torch.randn(weight.shape))
    model.update_memory(torch.randint(FIRST_ITEM, VOCAB, (12, 9)), pairs="all")
    return model


def encode(model: BertForNextBehavior, sequences: Sequences) -> list[EncodedBatch]:
    return encode_targets(model, sequences, VALIDATION, MAX_LENGTH, target_positions(sequences, VALIDATION))


def batches_one_by_one(sequences: Sequences) -> Iterator[Any]:
    return evaluation_batches(sequences, VALIDATION, MAX_LENGTH, 1)


def test_targets_of_one_user_share_a_pass_where_their_histories_begin_at_one_event(
    sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = target_positions(sequences, VALIDATION)
    passes = targets_of_passes(sequences, MAX_LENGTH, positions)
    assert np.array_equal(np.sort(np.concatenate(list(passes.values()))), positions)
    begins = sequences.offsets[sequences.user_of_event()]
    for last, targets in passes.items():
        assert last == targets.max()
        assert len(targets) == 1 or last - begins[last] <= MAX_LENGTH
    assert max(map(len, passes.values())) == 10
    monkeypatch.setattr(encoded, "MOST_SHARED", 4)
    assert max(map(len, targets_of_passes(sequences, MAX_LENGTH, positions).values())) == 4


@pytest.mark.parametrize("shared", [16, 3])
def test_shared_passes_give_the_numbers_of_histories_encoded_one_by_one(
    model: BertForNextBehavior, sequences: Sequences, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "MOST_SHARED", shared)
    monkeypatch.setattr(encoded, "ENCODED_ROWS", 5)
    monkeypatch.setattr(encoded, "rows_per_batch", lambda _: 7)
    targets, ranker = encode(model, sequences), ModelRanker(model)
    found = {int(p): row for each in targets for p, row in zip(each.batch.position, each.scores(model), strict=True)}
    ranks, actions = [], []
    for batch in batches_one_by_one(sequences):
        scores = ranker.scores(batch)
        torch.testing.assert_close(found[int(batch.position[0])], scores[0], rtol=1e-5, atol=1e-5)
        if batch.target_item[0] != NONE:
            ranks.append(pessimistic_ranks(scores, batch.target_item))
        actions.append(ranker.action_probabilities(batch)[0, batch.target_action[0]])
    assert validation_ndcg(model, targets) == pytest.approx(ndcg_at_k(np.concatenate(ranks), 10).mean(), abs=1e-9)
    assert action_log_loss(model, targets) == pytest.approx(-np.log(actions).mean(), abs=1e-6)


def test_the_gate_is_fitted_the_same_on_shared_passes(model: BertForNextBehavior, sequences: Sequences) -> None:
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    with mock.patch.object(encoded, "MOST_SHARED", 1), mock.patch.object(encoded, "ENCODED_ROWS", 1):
        alone = encode(one, sequences)
    shared, units = encode(two, sequences), torch.tensor([0.01, 0.1])
    fits = [fits_of_targets(fitted, targets, units) for fitted, targets in ((one, alone), (two, shared))]
    assert fits[0] is not None
    assert fits[1] is not None
    for part, expected in zip((fits[1][0], *fits[1][1]), (fits[0][0], *fits[0][1]), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)
    assert fit_gate(two, shared) == pytest.approx(fit_gate(one, alone), rel=1e-5)
    assert (one.config.memory_power, one.config.memory_unit) == (two.config.memory_power, two.config.memory_unit)


def test_each_history_is_encoded_once_for_a_whole_validation(model: BertForNextBehavior, sequences: Sequences) -> None:
    model, rows = copy.deepcopy(model), list[int]()
    model.bert.encoder.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    targets = encode(model, sequences)
    fit_gate(model, targets)
    validation_ndcg(model, targets)
    action_log_loss(model, targets)
    assert sum(rows) == len(targets_of_passes(sequences, MAX_LENGTH, target_positions(sequences, VALIDATION)))
    assert sum(rows) < len(target_positions(sequences, VALIDATION))
