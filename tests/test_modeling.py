"""modeling_behavior.py: one joint distribution, the same in training and inference, blind to the future and to padding,
and a memory that counts what a plain Python loop counts."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from next_behavior.model import associative_memory, losses, modeling_behavior, ranking
from next_behavior.model.associative_memory import RECENT_UNIT, TREND_UNIT
from next_behavior.model.configuration_behavior import CODE_FILES, BehaviorConfig
from next_behavior.model.encoder import Events, ShortConvolution
from next_behavior.model.losses import LinearLogSumExp
from next_behavior.model.mixture import seen_items
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.neighbor_lists import COUNT_UNIT, NeighborLists
from next_behavior.model.repeat_path import BIAS_SCALE
from next_behavior.model.special_ids import FIRST_NEW, IGNORED, NONE, PAD, PATHS, START, UNK

_, PATH_GENERATE, PATH_REPEAT, PATH_ASSOCIATE = range(len(PATHS))
NUM_NEW, NUM_ITEMS, NUM_ACTIONS, NUM_GAPS, LONGEST = 3, 9, 7, 6, 14
FIRST_ITEM, VOCAB = FIRST_NEW + NUM_NEW, FIRST_NEW + NUM_NEW + NUM_ITEMS
ACTIONS, SEARCH = range(3, NUM_ACTIONS), 5
LABELS = ("labels", "action_labels", "time_labels")

# Any, because mypy would otherwise pass a tensor for every option that follows `**batch`.
Batch = dict[str, Any]


def small_config(**changes: Any) -> BehaviorConfig:
    """Every size is another number, so that no axis can stand in for another."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "num_new_items": NUM_NEW,
        "num_actions": NUM_ACTIONS,
        "num_time_gaps": NUM_GAPS,
        "actions_without_item": [SEARCH],
        "hidden_size": 20,
        "num_attention_heads": 5,
        "num_hidden_layers": 2,
        "intermediate_size": 24,
        "max_position_embeddings": LONGEST,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "memory_history": 8,
        "memory_freshness": 1.0,
        "memory_share": 0.25,
        "memory_trend": 0.2,
        "memory_half_life": 10,
        "convolution_size": 3,
    }
    return BehaviorConfig(**(sizes | changes))


def random_model(memory: bool = True, **changes: Any) -> BertForNextBehavior:
    """A model whose every weight is random, also those that start at zero, so that no part is silent."""
    torch.manual_seed(11)
    model = BertForNextBehavior(small_config(**changes)).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.4 * torch.randn(weight.shape, generator=generator))
    if memory:
        histories = torch.randint(FIRST_ITEM, VOCAB - 1, (12, 9), generator=generator)
        model.update_memory(histories, pairs="all")
    return model


@pytest.fixture(scope="module")
def model() -> BertForNextBehavior:
    return random_model()


def make_batch(lengths: list[int], seed: int = 0, side: str = "left", width: int | None = None) -> Batch:
    """Random histories of every kind of token; the same histories for a seed whatever the padding."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) if width is None else width
    names = ("input_ids", "token_type_ids", "time_gap_ids", "attention_mask")
    batch = {name: torch.zeros(len(lengths), width, dtype=torch.long) for name in names}
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        batch["input_ids"][row, place] = torch.randint(UNK, VOCAB, (length,), generator=generator)
        batch["token_type_ids"][row, place] = torch.randint(1, NUM_ACTIONS, (length,), generator=generator)
        batch["time_gap_ids"][row, place] = torch.randint(1, NUM_GAPS, (length,), generator=generator)
        batch["attention_mask"][row, place] = 1
    return batch


def make_labels(batch: Batch, seed: int = 1) -> Batch:
    """A random target at two of three positions."""
    generator = torch.Generator().manual_seed(seed)
    shape = batch["input_ids"].shape
    labels = {
        "labels": torch.randint(FIRST_ITEM, VOCAB, shape, generator=generator),
        "action_labels": torch.randint(3, NUM_ACTIONS, shape, generator=generator),
        "time_labels": torch.randint(2, NUM_GAPS, shape, generator=generator),
    }
    hidden = (torch.rand(shape, generator=generator) < 1 / 3) | (batch["attention_mask"] == 0)
    return {name: label.masked_fill(hidden, IGNORED) for name, label in labels.items()}


def empty_history(rows: int = 1) -> Batch:
    one = torch.ones(rows, 1, dtype=torch.long)
    return {"input_ids": START * one, "token_type_ids": 2 * one, "time_gap_ids": one, "attention_mask": one}


def predict(model: BertForNextBehavior, batch: Batch, **question: Any) -> Any:
    """`RankedBehaviors`; its fields are tensors, whatever their annotation."""
    return model.predict(**batch, **question)


@torch.no_grad()
def pair_probabilities(model: BertForNextBehavior, batch: Batch) -> torch.Tensor:
    """(B, A, V) p(action, item | history), [NONE] included, from what `forward` returns."""
    output = model(**batch)
    return output.action_logits.softmax(dim=-1)[:, :, None] * output.item_logits.exp()


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


# -- configuration -----------------------------------------------------------------------------------------------------


def test_no_configuration_can_let_the_encoder_see_the_future() -> None:
    stored = {**BertConfig(is_decoder=False, use_cache=True).to_dict(), "vocab_size": 90}
    for config in (BehaviorConfig(is_decoder=False, use_cache=True), BehaviorConfig.from_dict(stored)):
        assert config.is_decoder
        assert not config.use_cache


def test_a_configuration_reads_back_as_it_was_written(tmp_path: Path) -> None:
    config = small_config(item_temperature=1.25, memory_decay=0.7, id2label={3: "view", 4: "buy"})
    config.save_pretrained(tmp_path)
    again = BehaviorConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "bert-next-behavior"
    assert stored["format_version"] == 2
    assert stored["auto_map"]["AutoModel"] == "modeling_behavior.BertForNextBehavior"
    assert "next-behavior" in stored["custom_pipelines"]


def test_a_folder_of_another_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    small_config().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {"format_version": 1}))
    with pytest.raises(ValueError, match=r"saved in format 1, and this code reads format 2.* trust_remote_code=True"):
        BehaviorConfig.from_pretrained(tmp_path)


def test_a_vocabulary_without_room_for_the_reserved_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vocab_size is 30, but 68 rows .* set vocab_size=len\(tokenizer\)"):
        BehaviorConfig(vocab_size=30, num_new_items=64)


def test_a_new_model_points_to_recent_and_frequent_items_and_looks_up_recent_items() -> None:
    model = BertForNextBehavior(small_config())
    for row in model.repeat_path.recency_bias.weight:
        torch.testing.assert_close(BIAS_SCALE * row[:4], -torch.tensor([1.0, 2.0, 3.0, 4.0]).log())
    recent = torch.tensor([[9, 8, 7, 0]])
    assert model.associate_path.weights(recent).tolist() == [[1.0, 0.5, 0.25, 0.0]]
    repeat = model.repeat_path
    for row in repeat.count_bias.weight:
        torch.testing.assert_close((BIAS_SCALE * row[1:3]).exp(), torch.tensor([1.0, 2.0]))
    for zero in (repeat.action_bias, repeat.done_bias):
        assert not zero.weight.any()


# -- loss --------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    model = random_model(action_loss_weight=0.7, time_loss_weight=0.3)
    batch = make_batch([9, 4])
    output = model(**batch, **make_labels(batch))
    expected = output.item_loss + 0.7 * output.action_loss + 0.3 * output.time_loss
    torch.testing.assert_close(output.loss, expected)
    assert output.loss.requires_grad
    assert output.action_logits.shape == (2, 9, NUM_ACTIONS)
    assert output.time_logits.shape == (2, 9, NUM_GAPS)
    assert output.item_logits is None


@torch.no_grad()
def test_the_training_loss_is_minus_the_log_of_the_probability_given_at_inference() -> None:
    # An empty memory; with one, training leaves the target's own event out (tested below).
    model = random_model(memory=False)
    batch = make_batch([9, 1, 6])
    answer = model(**batch)
    targets = list(itertools.product(ACTIONS, [NONE, *range(FIRST_NEW, VOCAB)]))
    for row in range(3):
        history = {name: value[row : row + 1] for name, value in batch.items()}
        item_answer, action_answer = answer.item_logits[row], answer.action_logits[row].log_softmax(-1)
        possible = [pair for pair in targets if item_answer[pair] > -50]
        assert {item for _, item in possible} >= {NONE, *range(FIRST_ITEM, VOCAB)}
        for pairs in (possible, *([pair] for pair in possible[::9])):
            copies = {name: value.expand(len(pairs), -1) for name, value in history.items()}
            labels = {name: torch.full_like(copies["input_ids"], IGNORED) for name in LABELS}
            labels["action_labels"][:, -1], labels["labels"][:, -1] = torch.tensor(pairs).T
            labels["time_labels"][:, -1] = 3
            output = model(**copies, **labels)
            item_expected = torch.stack([item_answer[pair] for pair in pairs]).mean()
            torch.testing.assert_close(-output.item_loss, item_expected, rtol=1e-4, atol=1e-5)
            action_expected = torch.stack([action_answer[action] for action, _ in pairs]).mean()
            torch.testing.assert_close(-output.action_loss, action_expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(-output.time_loss, answer.time_logits[row].log_softmax(-1)[3])


@torch.no_grad()
@pytest.mark.parametrize("impossible", ["unknown", "new item elsewhere", "no item after an action that needs one"])
def test_a_label_that_nothing_can_name_is_no_training_signal(model: BertForNextBehavior, impossible: str) -> None:
    batch = make_batch([6, 4])
    batch["input_ids"] = batch["input_ids"].clamp(min=FIRST_ITEM) * batch["attention_mask"]
    labels = {name: torch.full_like(batch["input_ids"], IGNORED) for name in LABELS}
    item, action = {"unknown": (UNK, SEARCH), "new item elsewhere": (FIRST_NEW, SEARCH)}.get(
        impossible, (NONE, SEARCH + 1)
    )
    labels["labels"][0, -1], labels["action_labels"][0, -1] = item, action
    output = model(**batch, **labels)
    assert output.item_loss == 0
    # The action is still learned from; a special action and an unknown gap are not.
    assert output.action_loss > 0
    labels["action_labels"][0, -1], labels["time_labels"][0, -1] = 1, 1
    output = model(**batch, **labels)
    assert output.action_loss == output.time_loss == 0


def test_eight_rows_at_once_and_two_rows_four_times_give_the_same_gradients(model: BertForNextBehavior) -> None:
    batch = make_batch([9, 1, 6, 3, 12, 2, 8, 5])
    batch |= make_labels(batch)
    count = int((batch["labels"] != IGNORED).sum())
    whole = gradients(model, model(**batch, num_items_in_batch=count).loss)
    alone = gradients(model, model(**batch).loss)
    parts = [{name: value[begin : begin + 2] for name, value in batch.items()} for begin in range(0, 8, 2)]
    assert len({int((part["labels"] != IGNORED).sum()) for part in parts}) > 1, "a mean of means would pass too"
    summed = gradients(model, torch.stack([model(**part, num_items_in_batch=count).loss for part in parts]).sum())
    assert whole.keys() == summed.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone[name], gradient, rtol=1e-4, atol=1e-6)


def test_every_weight_takes_part_in_the_loss(model: BertForNextBehavior) -> None:
    batch = make_batch([12, 9, 7])
    found = gradients(model, model(**batch, **make_labels(batch)).loss)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert [name for name, gradient in found.items() if not gradient.abs().sum() > 0] == []


def test_training_computes_the_pointer_for_histories_with_a_repeat_alone() -> None:
    model, asked = random_model().train(), list[int]()
    model.repeat_path.register_forward_hook(lambda _, given, __: asked.append(len(given[0])))
    batch = make_batch([9, 9, 6])
    batch["input_ids"].clamp_(max=VOCAB - 2)
    labels = make_labels(batch) | {"labels": torch.full_like(batch["input_ids"], VOCAB - 1)}  # new to everyone
    batch["input_ids"][0, 2] = labels["labels"][0, 5:] = FIRST_ITEM  # a repeat
    together = model(**batch, **labels, num_items_in_batch=1).loss
    alone = [
        model(*(part[row : row + 1] for part in (batch | labels).values()), num_items_in_batch=1).loss
        for row in range(3)
    ]
    assert asked == [1, 1, 0, 0]
    assert together.item() == pytest.approx(sum(loss.item() for loss in alone), rel=1e-5)
    # Zeros, not missing: processes that share a step wait for the gradient of every weight.
    found = gradients(model, alone[1])
    assert {name for name, gradient in found.items() if not gradient.any()} == {
        f"repeat_path.{name}" for name, _ in model.repeat_path.named_parameters()
    }


def test_missing_labels_give_no_loss_of_their_kind(model: BertForNextBehavior) -> None:
    batch = make_batch([9, 4])
    labels = make_labels(batch)
    for name, part in (("labels", "item_loss"), ("action_labels", "action_loss"), ("time_labels", "time_loss")):
        output = model(**batch, **{name: labels[name]})
        parts = {"item_loss": output.item_loss, "action_loss": output.action_loss, "time_loss": output.time_loss}
        assert {key for key, value in parts.items() if value > 0} == {part}
    none = {name: torch.full_like(label, IGNORED) for name, label in labels.items()}
    assert float(model(**batch, **none).loss.detach()) == 0


def test_sampled_negatives_estimate_the_full_loss() -> None:
    model = random_model(memory=False, num_negatives=NUM_ITEMS - 2)
    batch = make_batch([12] * 4)
    batch |= make_labels(batch)
    torch.manual_seed(0)
    full = float(model(**batch).item_loss)
    model.train()
    with torch.no_grad():
        sampled = torch.stack([model(**batch).item_loss for _ in range(60)])
    assert float(sampled.std()) > 0
    assert float(sampled.mean()) == pytest.approx(full, rel=0.2)


@pytest.mark.parametrize("size", [(3, 7), (4, 1023), (2, 12_101)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_in_place_is_torch_softmax(size: tuple[int, int], dtype: torch.dtype) -> None:
    logits = (20 * torch.randn(size, generator=torch.Generator().manual_seed(0))).to(dtype)
    expected = logits.softmax(dim=-1)
    assert torch.equal(losses.softmax(logits), expected)
    assert torch.equal(logits, expected), "its memory is used again"


@pytest.mark.parametrize(("block_elements", "chunk_elements"), [(2**24, 2**24), (7 * 3, 2**24), (7 * 3, 7 * 3), (1, 1)])
def test_linear_log_sum_exp_is_torch_logsumexp_in_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch, block_elements: int, chunk_elements: int
) -> None:
    monkeypatch.setattr(losses, "MAX_BLOCK_ELEMENTS", block_elements)
    monkeypatch.setattr(losses, "MAX_KEPT_ELEMENTS", chunk_elements)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(10, 5, generator=generator, requires_grad=True)
    rows = torch.randn(7, 5, generator=generator, requires_grad=True)
    upstream = torch.randn(10, generator=generator)
    found = LinearLogSumExp.apply(query, rows, torch.float32)
    expected = torch.logsumexp(query @ rows.T, dim=-1)
    torch.testing.assert_close(found, expected)
    for one, two in zip(
        torch.autograd.grad(found, (query, rows), upstream),
        torch.autograd.grad(expected, (query, rows), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert LinearLogSumExp.apply(query[:0], rows, torch.float32).shape == (0,)


# -- the future and padding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_changing_later_events_changes_nothing_earlier(attention: str, padding: str) -> None:
    model = random_model()
    model.set_attn_implementation(attention)
    side, width = ("left", 9) if padding == "none" else (padding, 12)
    batch = make_batch([9, 9], seed=3, side=side, width=width)
    other = make_batch([9, 9], seed=4, side=side, width=width)
    labels = make_labels(batch)
    first = int(batch["attention_mask"][0].argmax())
    for last_kept in (first, first + 4, first + 7):
        mixed = {name: batch[name].clone() for name in batch}
        for name in mixed:
            mixed[name][:, last_kept + 1 :] = other[name][:, last_kept + 1 :]
        # The labels up to the last kept event, the only ones whose loss may not change.
        early = {name: label.clone() for name, label in labels.items()}
        for label in early.values():
            label[:, last_kept + 1 :] = IGNORED
        before, after = model(**batch, **early), model(**mixed, **early)
        assert float(before.item_loss) > 0 or last_kept == first
        for part in ("loss", "item_loss", "action_loss", "time_loss"):
            torch.testing.assert_close(after[part], before[part], rtol=1e-5, atol=1e-6)
        for part in ("action_logits", "time_logits"):
            kept = slice(first, last_kept + 1)
            torch.testing.assert_close(after[part][:, kept], before[part][:, kept], rtol=1e-5, atol=1e-5)
            changed = (after[part] - before[part])[:, last_kept + 1 : first + 9].abs().amax(dim=(0, 2))
            assert (changed > 1e-3).all(), "the changed events must be seen from their own place on"


def test_without_position_embeddings_order_is_seen_by_the_convolution_alone() -> None:
    histories = torch.tensor([[7, 8, 9, 10, 11, 12], [9, 7, 8, 10, 11, 12]])  # alike in the last four events
    silent, short = (random_model(use_positions=False, num_hidden_layers=1, convolution_size=size) for size in (0, 3))
    assert not [name for name in silent.state_dict() if "position" in name]
    for model, alike in ((silent, True), (short, False)):
        first, other = model.bert(histories, *(torch.ones_like(histories) for _ in range(3)))[:, -1]
        assert torch.allclose(first, other, atol=1e-5) == alike


def test_the_convolution_adds_weighted_earlier_events_and_starts_at_nothing() -> None:
    convolution = ShortConvolution(small_config())
    events = torch.arange(80.0).reshape(1, 4, 20)  # (B, T, H)
    assert torch.equal(convolution(events), events)
    with torch.no_grad():
        convolution.weight[1], convolution.weight[2] = 0.5, -1.0
    expected = events.clone()
    expected[:, 1:] += 0.5 * events[:, :-1]
    expected[:, 2:] -= events[:, :-2]
    assert torch.equal(convolution(events), expected)


@pytest.mark.parametrize("left", [True, False])
def test_no_position_is_left_with_nothing_to_read(left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of cuDNN answers that with gradients of nan; tests/test_gpu.py has it compute them."""
    model = random_model(memory=False)
    batch, masks = padded([[7, 8, 9], [8]]), list[torch.Tensor]()
    if left:
        batch = {name: tensor.flip(1) for name, tensor in batch.items()}
    encode = model.bert.encoder.forward

    def watch(*args: Any, attention_mask: torch.Tensor, **kwargs: Any) -> Any:
        masks.append(attention_mask)
        return encode(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(model.bert.encoder, "forward", watch)
    model(**batch)
    past = batch["attention_mask"].bool()[:, None, None, :] & torch.ones(3, 3, dtype=torch.bool).tril()
    assert torch.equal(masks[0], past | torch.eye(3, dtype=torch.bool))


def test_padding_on_either_side_changes_no_answer(model: BertForNextBehavior) -> None:
    lengths = [7, 1, 4, 9]
    reference = [make_batch(lengths)]
    padded = [make_batch(lengths, side=side, width=width) for side in ("left", "right") for width in (9, 10, LONGEST)]
    singles = []
    for row, length in enumerate(lengths):
        singles.append({name: value[row : row + 1, -length:] for name, value in reference[0].items()})
    expected = model(**reference[0])
    ranked = predict(model, reference[0], top_k=6)
    for batch in padded:
        output = model(**batch)
        for part in ("action_logits", "item_logits", "time_logits", "path_logits"):
            torch.testing.assert_close(output[part], expected[part], rtol=1e-4, atol=1e-4)
        again = predict(model, batch, top_k=6)
        assert torch.equal(again.item_ids, ranked.item_ids)
        assert torch.equal(again.action_ids, ranked.action_ids)
        torch.testing.assert_close(again.probabilities, ranked.probabilities, rtol=1e-4, atol=1e-6)
        for of in ("item", "action"):
            one, two = predict(model, batch, of=of, top_k=50), predict(model, reference[0], of=of, top_k=50)
            torch.testing.assert_close(one.probabilities, two.probabilities, rtol=1e-4, atol=1e-6)
    for row, single in enumerate(singles):
        output = model(**single)
        torch.testing.assert_close(output.item_logits[0], expected.item_logits[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.action_logits[0], expected.action_logits[row], rtol=1e-4, atol=1e-4)


def test_padding_on_either_side_changes_no_loss(model: BertForNextBehavior) -> None:
    lengths, losses = [7, 4, 9], []
    labels = make_labels(make_batch(lengths))
    for side, width in itertools.product(("left", "right"), (9, LONGEST)):
        batch = make_batch(lengths, side=side, width=width)
        moved = {name: torch.full_like(batch["input_ids"], IGNORED) for name in labels}
        for row, length in enumerate(lengths):
            place = slice(width - length, width) if side == "left" else slice(0, length)
            for name, label in labels.items():
                moved[name][row, place] = label[row, -length:]
        losses.append(model(**batch, **moved).loss.item())
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


def test_sdpa_and_eager_attention_agree(model: BertForNextBehavior) -> None:
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    assert (model.config._attn_implementation, eager.config._attn_implementation) == ("sdpa", "eager")
    batch = make_batch([9, 1, 6])
    one, two = model(**batch), eager(**batch)
    for part in ("action_logits", "item_logits", "time_logits", "path_logits"):
        torch.testing.assert_close(one[part], two[part], rtol=1e-4, atol=1e-4)


def test_attentions_and_hidden_states_come_on_request() -> None:
    model = random_model()
    model.set_attn_implementation("eager")
    batch = make_batch([9, 6])
    output = model(**batch, output_attentions=True, output_hidden_states=True)
    assert [tuple(part.shape) for part in output.attentions] == [(2, 5, 9, 9)] * 2
    assert {tuple(part.shape) for part in output.hidden_states} == {(2, 9, 20)}
    assert len(output.hidden_states) >= 2
    assert torch.triu(output.attentions[0][0], diagonal=1).abs().max() < 1e-6
    assert model(**batch).attentions is None
    as_tuple = model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], output.action_logits)


# -- the joint distribution --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "memory"), [(1.0, True), (1.0, False), (0.6, True)])
def test_probabilities_over_all_pairs_sum_to_one(temperature: float, memory: bool) -> None:
    model = random_model(memory=memory, item_temperature=temperature, action_temperature=temperature)
    for batch in (make_batch([9, 1, 6]), empty_history(2)):
        pairs = pair_probabilities(model, batch)
        torch.testing.assert_close(pairs.sum(dim=(1, 2)), torch.ones(len(pairs)))
        assert (pairs >= 0).all()
        for question in ({}, {"action": 4}, {"action": SEARCH}, {"of": "item"}, {"of": "item", "action": 4}):
            ranked = predict(model, batch, top_k=10**6, **question)
            torch.testing.assert_close(ranked.probabilities.sum(dim=1), torch.ones(len(pairs)))
        actions = predict(model, batch, top_k=10**6, of="action")
        assert sorted(actions.action_ids[0].tolist()) == list(ACTIONS)
        torch.testing.assert_close(actions.probabilities.sum(dim=1), torch.ones(len(pairs)))


def test_predict_ranks_by_the_joint_distribution_of_forward(model: BertForNextBehavior) -> None:
    batch = make_batch([9, 1, 6, 12])
    pairs = pair_probabilities(model, batch)
    ranked = predict(model, batch, top_k=10**6)
    for row in range(4):
        expected = {
            (action, item): float(pairs[row, action, item])
            for action, item in itertools.product(range(NUM_ACTIONS), range(VOCAB))
            if pairs[row, action, item] > 0
        }
        found = {
            (action, item): probability
            for action, item, probability in zip(
                ranked.action_ids[row].tolist(),
                ranked.item_ids[row].tolist(),
                ranked.probabilities[row].tolist(),
                strict=True,
            )
            if probability > 0
        }
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)
        best = max(expected, key=lambda pair: expected[pair])
        assert (int(ranked.action_ids[row, 0]), int(ranked.item_ids[row, 0])) == best
        top_three = predict(model, batch, top_k=3)
        assert torch.equal(top_three.item_ids, ranked.item_ids[:, :3])
        assert torch.equal(top_three.action_ids, ranked.action_ids[:, :3])
        assert (ranked.probabilities.diff(dim=1) <= 0).all()


def test_item_answers_are_the_pairs_summed_over_actions(model: BertForNextBehavior) -> None:
    batch = make_batch([9, 1, 6])
    pairs = pair_probabilities(model, batch)
    pairs[:, :, NONE] = 0
    expected = pairs.sum(dim=1) / pairs.sum(dim=(1, 2))[:, None]
    torch.testing.assert_close(model.item_log_probabilities(**batch).exp(), expected, rtol=1e-4, atol=1e-7)
    ranked = predict(model, batch, of="item", top_k=10**6)
    found = torch.zeros(3, VOCAB).scatter(1, ranked.item_ids, ranked.probabilities)
    torch.testing.assert_close(found[:, FIRST_NEW:], expected[:, FIRST_NEW:], rtol=1e-4, atol=1e-7)
    assert (ranked.action_ids == 0).all()
    given_action = predict(model, batch, of="item", action=4, top_k=10**6)
    expected = pairs[:, 4] / pairs[:, 4].sum(dim=-1, keepdim=True)
    found = torch.zeros(3, VOCAB).scatter(1, given_action.item_ids, given_action.probabilities)
    torch.testing.assert_close(found[:, FIRST_NEW:], expected[:, FIRST_NEW:], rtol=1e-4, atol=1e-7)
    assert set(given_action.action_ids[given_action.item_ids > 0].tolist()) == {4}


def test_temperatures_flatten_or_sharpen_and_never_reorder() -> None:
    plain = random_model()
    warm = copy.deepcopy(plain)
    warm.config.item_temperature = warm.config.action_temperature = warm.config.time_temperature = 2.0
    batch = make_batch([9, 6])
    one, two = plain(**batch), warm(**batch)
    torch.testing.assert_close(two.time_logits[:, 2:], one.time_logits[:, 2:] / 2)
    torch.testing.assert_close(two.action_logits[:, 3:], one.action_logits[:, 3:] / 2)
    seen = one.item_logits[0, 4].isfinite()
    expected = (one.item_logits[0, 4][seen] / 2).log_softmax(dim=-1)
    torch.testing.assert_close(two.item_logits[0, 4][seen], expected, rtol=1e-4, atol=1e-4)


def test_the_candidates_are_items_new_items_of_the_history_and_none_where_allowed(model: BertForNextBehavior) -> None:
    batch = make_batch([6, 6])
    batch["input_ids"] = torch.tensor(
        [[UNK, NONE, FIRST_NEW, FIRST_NEW + 1, 9, FIRST_NEW], [START, UNK, NONE, 8, 8, NONE]]
    )
    items = set(range(FIRST_ITEM, VOCAB))
    expected = [items | {FIRST_NEW, FIRST_NEW + 1}, items]
    ranked = predict(model, batch, top_k=10**6)
    for row in range(2):
        real = ranked.probabilities[row] > 0
        pairs = set(zip(ranked.action_ids[row][real].tolist(), ranked.item_ids[row][real].tolist(), strict=True))
        assert pairs == {*itertools.product(ACTIONS, expected[row]), (SEARCH, NONE)}
        by_item = predict(model, batch, of="item", top_k=10**6)
        assert set(by_item.item_ids[row].tolist()) - {PAD} == expected[row]
    output = model(**batch)
    assert torch.isinf(output.item_logits[:, :, [PAD, UNK, START]]).all()
    assert torch.isinf(output.item_logits[1, :, FIRST_NEW:FIRST_ITEM]).all()
    others = [action for action in range(NUM_ACTIONS) if action != SEARCH]
    assert (output.item_logits[:, others, NONE] < -50).all()


def test_rows_with_fewer_candidates_are_filled_with_id_zero_and_probability_zero(model: BertForNextBehavior) -> None:
    batch = make_batch([6, 6])
    batch["input_ids"] = torch.tensor([[FIRST_NEW, FIRST_NEW + 1, 9, 9, 9, 9], [8, 8, 8, 8, 8, 8]])
    ranked = predict(model, batch, of="item", top_k=10**6)
    assert ranked.item_ids.shape == (2, NUM_ITEMS + 2)
    assert ranked.item_ids[1, -2:].tolist() == [PAD, PAD]
    assert ranked.probabilities[1, -2:].tolist() == [0, 0]
    assert (ranked.item_ids[1, :-2] >= FIRST_ITEM).all()
    pairs = predict(model, batch, top_k=10**6)
    assert pairs.item_ids.shape == (2, len(ACTIONS) * (NUM_ITEMS + 2) + 1)
    missing = pairs.item_ids[1] == PAD
    assert int(missing.sum()) == 2 * len(ACTIONS)
    assert (pairs.action_ids[1][missing] == PAD).all()


def test_seen_items_are_left_out_when_asked(model: BertForNextBehavior) -> None:
    batch = make_batch([9, 1, 6])
    everything = predict(model, batch, of="item", top_k=10**6)
    ranked = predict(model, batch, of="item", top_k=10**6, exclude_seen=True)
    for row in range(3):
        seen = set(batch["input_ids"][row].tolist())
        assert set(ranked.item_ids[row].tolist()) - {PAD} == set(range(FIRST_ITEM, VOCAB)) - seen
        kept = torch.tensor([item not in seen for item in everything.item_ids[row].tolist()])
        expected = everything.probabilities[row][kept] / everything.probabilities[row][kept].sum()
        torch.testing.assert_close(ranked.probabilities[row][: len(expected)], expected, rtol=1e-4, atol=1e-6)
    pairs = predict(model, batch, top_k=10**6, exclude_seen=True)
    assert not set(pairs.item_ids[0].tolist()) & (set(batch["input_ids"][0].tolist()) - {PAD, NONE})
    assert NONE in pairs.item_ids[0].tolist()


def test_only_allowed_items_are_ranked(model: BertForNextBehavior) -> None:
    batch = make_batch([9, 6])
    for allowed in ([9, 12], torch.tensor([12, 9])):
        items = predict(model, batch, of="item", allowed_items=allowed, top_k=10**6)
        assert [set(row) for row in items.item_ids.tolist()] == [{9, 12}] * 2
        torch.testing.assert_close(items.probabilities.sum(dim=1), torch.ones(2))
    pairs = predict(model, batch, allowed_items=[9], top_k=10**6)
    found = set(zip(pairs.action_ids[0].tolist(), pairs.item_ids[0].tolist(), strict=True))
    assert found == {*((action, 9) for action in ACTIONS), (SEARCH, NONE)}


def test_nothing_is_left_when_all_allowed_items_were_seen(model: BertForNextBehavior) -> None:
    batch = make_batch([6])
    batch["input_ids"][:] = 9
    ranked = predict(model, batch, of="item", allowed_items=[9], exclude_seen=True, top_k=5)
    assert (ranked.probabilities == 0).all()
    assert (ranked.item_ids == PAD).all()


def test_small_chunks_of_rows_give_the_answers_of_one(
    model: BertForNextBehavior, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([9, 1, 6, 12, 3])
    whole = {of: predict(model, batch, of=of, top_k=10**6) for of in ("pair", "item", "action")}
    monkeypatch.setattr(ranking, "MAX_RANKED_ELEMENTS", 2 * NUM_ACTIONS * VOCAB)
    for of, expected in whole.items():
        ranked = predict(model, batch, of=of, top_k=10**6)
        assert ranked.probabilities.shape == expected.probabilities.shape
        torch.testing.assert_close(ranked.probabilities, expected.probabilities, rtol=1e-4, atol=1e-7)


def test_an_empty_history_has_an_answer(model: BertForNextBehavior) -> None:
    ranked = predict(model, empty_history(), top_k=4)
    assert ranked.item_ids.shape == (1, 4)
    assert (ranked.probabilities > 0).all()
    # Nothing to repeat, nothing to look up, but for what is named lately.
    assert (model(**empty_history()).path_logits[0, :, PATH_REPEAT] < -50).all()
    assert (random_model(memory_trend=0.0)(**empty_history()).path_logits[0, :, 2:] < -50).all()


def test_left_out_channels_count_as_unknown(model: BertForNextBehavior) -> None:
    items = make_batch([7, 7])["input_ids"]
    ones = torch.ones_like(items)
    explicit = model(items, token_type_ids=ones, time_gap_ids=ones, attention_mask=ones)
    torch.testing.assert_close(model(items).item_logits, explicit.item_logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "items"}, r'of=.items. is not a question: use "pair", "item" or "action"'),
        ({"action": 2}, "action=2 is not an action id, expected 3 to 6: use tokenizer.encode_action"),
        ({"action": NUM_ACTIONS}, "action=7 is not an action id"),
        ({"top_k": 0}, "top_k is 0"),
        ({"of": "action", "action": 3}, "do not apply to it"),
        ({"of": "action", "exclude_seen": True}, "do not apply to it"),
        ({"of": "item", "balanced": True}, 'use of="action"'),
        ({"of": "action", "balanced": True}, "this model has none"),
        ({"allowed_items": [PAD]}, f"item ids from {FIRST_NEW} to {VOCAB - 1}"),
        ({"allowed_items": [VOCAB]}, f"got .{VOCAB}.: use tokenizer.encode_item"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(
    model: BertForNextBehavior, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predict(model, make_batch([5]), **options)


def test_a_history_longer_than_the_model_is_refused(model: BertForNextBehavior) -> None:
    for ask in (model, model.predict, model.update_memory):
        with pytest.raises(ValueError, match=f"histories of {LONGEST + 1} events, but this model holds {LONGEST}"):
            ask(**make_batch([LONGEST + 1]))
    assert model(**make_batch([LONGEST])).action_logits.isfinite().all()
    with pytest.raises(ValueError, match=r"shape \(5,\), expected \(batch, events\)"):
        model(torch.ones(5, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 2])
def test_the_pointer_adds_up_what_every_gap_since_an_event_takes_off(padding: int) -> None:
    repeat = BertForNextBehavior(small_config()).repeat_path
    for weight in repeat.parameters():
        weight.zero_()
    repeat.gap_bias.copy_(torch.randn(NUM_ACTIONS, NUM_GAPS, generator=torch.Generator().manual_seed(5)))
    items, gaps = [7, 8, 9, 10], [1, 3, 5, 2]
    channels = (items, [3] * 4, gaps, [1] * 4)
    events = Events(*(torch.tensor([[0] * padding + channel]) for channel in channels))
    asked = torch.tensor([[padding + 3, padding + 2]])  # after all four events, and after the first three
    found = repeat(torch.zeros(1, 2, 20), torch.tensor([[4, 6]]), asked, torch.zeros(1, 4 + padding, 20), events)
    for query, (action, last) in enumerate(((4, 3), (6, 2))):
        scores = torch.stack(
            [BIAS_SCALE * repeat.gap_bias[action, gaps[j + 1 : last + 1]].sum() for j in range(last + 1)]
        )
        torch.testing.assert_close(found[0, query, padding : padding + last + 1], scores.log_softmax(dim=0))


# -- files and loading -------------------------------------------------------------------------------------------------


def test_a_saved_model_loads_as_it_was(model: BertForNextBehavior, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = BertForNextBehavior.from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.lm_head.weight is again.get_input_embeddings().weight
    batch = make_batch([9, 1, 6])
    assert torch.equal(again(**batch).item_logits, model(**batch).item_logits)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), BehaviorConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), BertForNextBehavior)


ELSEWHERE = """
import sys, torch
from transformers import AutoConfig, AutoModel
source, copy, batch, answer = sys.argv[1:]
assert AutoConfig.from_pretrained(source, trust_remote_code=True).model_type == "bert-next-behavior"
model = AutoModel.from_pretrained(source, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
model.save_pretrained(copy)
again = AutoModel.from_pretrained(copy, trust_remote_code=True)
batch = torch.load(batch)
with torch.no_grad():
    outputs = [dict(one(**batch)) for one in (model, again)]
torch.save(outputs, answer)
"""


def test_a_clean_process_elsewhere_computes_the_same_also_from_a_copy_it_saved(
    model: BertForNextBehavior, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    batch = make_batch([9, 1, 6])
    torch.save(batch, tmp_path / "batch.pt")
    paths = [str(tmp_path / name) for name in ("model", "copy", "batch.pt", "answer.pt")]
    run_python(tmp_path, "-I", "-c", ELSEWHERE, *paths)
    with torch.no_grad():
        here = model(**batch)
    for there in torch.load(tmp_path / "answer.pt"):
        for part in ("item_logits", "action_logits", "time_logits"):
            torch.testing.assert_close(there[part].exp(), here[part].exp(), rtol=0, atol=1e-5)
    for name in CODE_FILES:
        original = Path(modeling_behavior.__file__).with_name(name).read_bytes()
        assert (tmp_path / "model" / name).read_bytes() == original
        assert (tmp_path / "copy" / name).read_bytes() == original


def test_new_rows_of_the_item_table_change_old_answers_by_the_normaliser_alone(tmp_path: Path) -> None:
    model = random_model(memory=False)
    before = model(**empty_history()).item_logits[0]
    model.resize_token_embeddings(VOCAB + 4)
    assert model.config.vocab_size == VOCAB + 4
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.lm_head.weight.shape == (VOCAB + 4, 20)
    after = model(**empty_history()).item_logits[0]
    assert after.shape == (NUM_ACTIONS, VOCAB + 4)
    for action in ACTIONS:
        shift = (after[:, :VOCAB] - before)[action, FIRST_ITEM:]
        torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=1e-4, atol=1e-4)
        assert float(shift[0].detach()) < 0
    torch.testing.assert_close(after[SEARCH, NONE], before[SEARCH, NONE])
    ranked = predict(model, empty_history(), of="item", top_k=10**6)
    assert set(ranked.item_ids[0].tolist()) == set(range(FIRST_ITEM, VOCAB + 4))
    model.save_pretrained(tmp_path)
    again = BertForNextBehavior.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**empty_history()).item_logits[0], after)


def test_resizing_leaves_the_memory_alone(model: BertForNextBehavior) -> None:
    grown = copy.deepcopy(model)
    grown.resize_token_embeddings(VOCAB + 4)
    assert torch.equal(grown.associate_path.pair_counts, model.associate_path.pair_counts)
    batch = make_batch([9, 6])
    ranked = predict(grown, batch, of="item", top_k=10**6)
    torch.testing.assert_close(ranked.probabilities.sum(dim=1), torch.ones(2))
    batch["input_ids"][:, -1] = VOCAB + 3  # an item the memory has no row for
    assert grown(**batch).item_logits[:, 4, VOCAB + 3].isfinite().all()
    assert grown(**batch, **make_labels(batch)).loss.isfinite()


def test_a_model_in_bfloat16_answers_and_keeps_its_counts(model: BertForNextBehavior, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    low = BertForNextBehavior.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in low.parameters()} == {torch.bfloat16}
    for name in ("pair_keys", "pair_counts", "item_counts"):
        assert torch.equal(low.get_buffer(f"associate_path.{name}"), model.get_buffer(f"associate_path.{name}"))
    batch = make_batch([9, 1, 6])
    ranked = predict(low, batch, of="action", top_k=10)
    expected = predict(model, batch, of="action", top_k=10)
    one = torch.zeros(3, NUM_ACTIONS).scatter(1, ranked.action_ids, ranked.probabilities.float())
    two = torch.zeros(3, NUM_ACTIONS).scatter(1, expected.action_ids, expected.probabilities)
    torch.testing.assert_close(one, two, rtol=0, atol=0.1)
    for of in ("pair", "item"):
        probabilities = predict(low, batch, of=of, top_k=10**6).probabilities
        torch.testing.assert_close(probabilities.float().sum(dim=1), torch.ones(3), rtol=0, atol=1e-3)
    assert low(**batch, **make_labels(batch)).loss.isfinite()


def test_autocast_to_bfloat16_gives_a_close_loss_and_gradients(model: BertForNextBehavior) -> None:
    batch = make_batch([9, 1, 6])
    batch |= make_labels(batch)
    exact = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(**batch).loss
    assert float(low.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients(model, low).values())


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = random_model().train()
    batch = make_batch([9, 1, 6])
    batch |= make_labels(batch)
    plain = gradients(model, model(**batch).loss)
    calls = []
    model.get_submodule("bert.encoder.layer.0.intermediate").register_forward_hook(lambda *_: calls.append(1))
    # transformers below 5.21, the last for Python 3.10, knows the older name alone.
    newer = "activation_checkpointing_enable" in dir(model)
    enable: Any = model.activation_checkpointing_enable if newer else model.gradient_checkpointing_enable
    enable()
    again = gradients(model, model(**batch).loss)
    assert len(calls) == 2, "a checkpointed layer runs again in the backward pass"
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


def test_a_bert_checkpoint_loads_under_its_own_names(tmp_path: Path) -> None:
    shared: dict[str, Any] = {
        "hidden_size": 20, "num_attention_heads": 5, "num_hidden_layers": 2, "intermediate_size": 24,
        "max_position_embeddings": LONGEST,
    }  # fmt: skip
    torch.manual_seed(3)
    bert = BertModel(BertConfig(vocab_size=50, initializer_range=0.5, **shared))
    bert.save_pretrained(tmp_path)
    config = small_config(**shared)
    model: Any = BertForNextBehavior.from_pretrained(tmp_path, config=config)
    ours = model.bert.state_dict()
    same = {name for name, tensor in bert.state_dict().items() if name in ours and torch.equal(ours[name], tensor)}
    encoder = {name for name in bert.state_dict() if name.startswith("encoder.")}
    assert len(encoder) == 32
    assert same >= encoder | {"embeddings.position_embeddings.weight", "embeddings.LayerNorm.weight"}
    assert model.lm_head.weight is model.get_input_embeddings().weight
    # What BERT does not have starts as in a new model.
    assert all(weight.isfinite().all() and weight.abs().max() < 8 for weight in model.parameters())
    prior = -torch.tensor([1.0, 2, 3]).log() / BIAS_SCALE
    torch.testing.assert_close(model.repeat_path.recency_bias.weight[0, :3], prior)
    assert torch.equal(model.associate_path.item_counts, torch.zeros(1, dtype=torch.long))
    assert 0.15 < float(model.get_input_embeddings().weight.detach().std()) < 0.3
    batch = make_batch([9, 6])
    late: Batch = {name: value.clone() for name, value in batch.items()}
    late["input_ids"][:, -1] = 8 + (late["input_ids"][:, -1] == 8)
    labels = make_labels(batch)
    one, two = model.eval()(**batch, **labels), model(**late, **labels)
    torch.testing.assert_close(one.action_logits[:, :-1], two.action_logits[:, :-1])


def test_a_model_saved_before_gaps_counted_in_the_pointer_answers_as_it_did(tmp_path: Path) -> None:
    model = random_model()
    with torch.no_grad():
        model.repeat_path.gap_bias.zero_()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["repeat_path.gap_bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded: Any = BertForNextBehavior.from_pretrained(tmp_path, output_loading_info=True)
    older, report = loaded
    batch = make_batch([9, 6])
    torch.testing.assert_close(older.eval()(**batch).item_logits, model(**batch).item_logits)
    assert not report["missing_keys"]


# -- the memory --------------------------------------------------------------------------------------------------------

tokens = st.sampled_from([UNK, NONE, FIRST_NEW, FIRST_NEW + 1, 7, 8, 9, 10, 15])
histories = st.lists(st.lists(tokens, min_size=1, max_size=LONGEST), min_size=1, max_size=4)


def padded(rows: list[list[int]]) -> Batch:
    width = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def counted_by_hand(rows: list[list[int]], config: Any) -> tuple[Counter[tuple[int, int]], Counter[int]]:
    pairs: Counter[tuple[int, int]] = Counter()
    items: Counter[int] = Counter()
    for row in rows:
        known = [item for item in row if item >= FIRST_ITEM]
        runs = [item for item, _ in itertools.groupby(known)]
        items.update(runs)
        for (i, x), (j, y) in itertools.combinations(enumerate(runs), 2):
            if x != y and j - i <= config.memory_distance:
                pairs[x, y] += round(COUNT_UNIT * config.memory_decay ** (j - i - 1))
    return pairs, items


def tables(model: BertForNextBehavior) -> tuple[Counter[tuple[int, int]], Counter[int]]:
    memory = model.associate_path
    keys, counts = memory.pair_keys.tolist(), memory.pair_counts.tolist()
    assert keys == sorted(set(keys))
    pairs = Counter({(key >> 32, key & (2**32 - 1)): count for key, count in zip(keys, counts, strict=True)})
    return pairs, Counter({item: count for item, count in enumerate(memory.item_counts.tolist()) if count})


@settings(max_examples=40, deadline=None)
@given(rows=histories, distance=st.sampled_from([1, 3, 30]))
def test_the_memory_counts_what_a_python_loop_counts(rows: list[list[int]], distance: int) -> None:
    model = BertForNextBehavior(small_config(memory_distance=distance, memory_decay=0.7, num_hidden_layers=1))
    model.update_memory(**padded(rows), pairs="all")
    assert tables(model) == counted_by_hand(rows, model.config)


def test_pairs_that_the_weights_were_not_trained_on_count_more() -> None:
    model = random_model(memory=False, memory_freshness=3.0, memory_decay=0.5)
    model.update_memory(**padded([[7, 8, 9]]), pairs="all", trained=True)
    known, items = tables(model)
    model.update_memory(**padded([[10, 11, 12]]), pairs="all")
    both, items_after = tables(model)
    shifted = Counter({(x + 3, y + 3): 3 * count for (x, y), count in known.items()})
    assert both == known + shifted, "three times the pairs"
    assert items_after == items + Counter({item + 3: count for item, count in items.items()}), "and events as they are"


def test_generate_and_associate_share_an_item_by_what_the_memory_multiplies() -> None:
    model = random_model(memory=False, memory_power=0.6, memory_unit=0.05, memory_share=0.0)
    model.update_memory(**padded([[7, 8, 9], [7, 9], [8, 10, 9]]), pairs="all")
    batch = padded([[7, 8]])
    items = torch.tensor([[9, 10, 12]])
    shares = model.path_shares(
        batch["input_ids"], torch.full((1, 2), 4), torch.ones(1, 2).long(), batch["attention_mask"], items,
        torch.full((1, 3), 4),
    )[0]  # fmt: skip
    last, seen = torch.tensor([[1]]), seen_items(batch["input_ids"], model.config.vocab_size)
    recent = model.associate_path.recent_items(batch["input_ids"], batch["attention_mask"], last)[:, 0]
    scores = model.associate_path.score(recent, seen)[0]
    for item, share in zip(items[0].tolist(), shares, strict=True):
        mentions = float(model.associate_path.recent_counts[item]) / RECENT_UNIT if item < 11 else 0.0
        factor = (1 + float(scores[item]) / 0.05) ** 0.6 * (1 + mentions / TREND_UNIT) ** model.config.memory_trend
        assert float(share[PATH_GENERATE]) == pytest.approx(1 / factor, rel=1e-4)
        assert float(share[PATH_ASSOCIATE]) == pytest.approx(1 - 1 / factor, abs=1e-5)
    assert float(shares[0, PATH_ASSOCIATE]) > 0.5
    assert float(shares[2, PATH_ASSOCIATE]) == 0, "an item that nothing was seen with"


def test_balanced_actions_are_ranked_by_their_weights_and_keep_their_probabilities() -> None:
    model = random_model()
    batch = make_batch([9, 6])
    plain = predict(model, batch, of="action", top_k=10)
    rarest = int(plain.action_ids[0, -1])
    model.config.action_weights = [50.0 * (action == rarest) for action in range(NUM_ACTIONS)]
    balanced = predict(model, batch, of="action", top_k=10, balanced=True)
    assert balanced.action_ids[:, 0].tolist() == [rarest] * 2
    for one in (plain, balanced):
        table = torch.zeros(2, NUM_ACTIONS).scatter(1, one.action_ids, one.probabilities)
        torch.testing.assert_close(table, torch.softmax(model(**batch).action_logits, dim=-1))


def test_a_worked_example_of_counting() -> None:
    model = BertForNextBehavior(small_config(memory_decay=0.5))
    # Runs 7 8 7 9: an event without an item does not end a run, and an item is not its own neighbour.
    model.update_memory(torch.tensor([[7, NONE, 7, 8, FIRST_NEW, 7, 9]]), pairs="all")
    pairs, items = tables(model)
    assert pairs == {(7, 8): 1024, (8, 7): 1024, (7, 9): 1024 + 256, (8, 9): 512}
    assert items == {7: 2, 8: 1, 9: 1}


@settings(max_examples=15, deadline=None)
@given(rows=histories, shuffle_seed=st.integers(0, 10**6), batch_size=st.integers(1, 5))
def test_one_update_an_event_in_any_order_equals_one_update_a_history(
    rows: list[list[int]], shuffle_seed: int, batch_size: int
) -> None:
    whole = BertForNextBehavior(small_config(num_hidden_layers=1))
    streamed = copy.deepcopy(whole)
    for row in rows:
        whole.update_memory(**padded([row]), pairs="all")
    prefixes = [row[:end] for row in rows for end in range(1, len(row) + 1)]
    random.Random(shuffle_seed).shuffle(prefixes)
    for begin in range(0, len(prefixes), batch_size):
        streamed.update_memory(**padded(prefixes[begin : begin + batch_size]), pairs="last")
    assert tables(streamed) == tables(whole)
    for name in ("pair_keys", "pair_counts"):
        assert torch.equal(getattr(streamed.associate_path, name), getattr(whole.associate_path, name))


@settings(max_examples=25, deadline=None)
@given(rows=histories, news=histories, memory_neighbors=st.integers(1, 6))
def test_lists_changed_by_an_update_are_those_made_anew(
    rows: list[list[int]], news: list[list[int]], memory_neighbors: int
) -> None:
    model = BertForNextBehavior(small_config(num_hidden_layers=1, memory_neighbors=memory_neighbors))
    memory = model.associate_path
    model.update_memory(**padded(rows), pairs="all")
    with mock.patch.object(associative_memory, "FEW_PAIRS", 0):  # however small the memory is
        for row in news:
            before, items = memory.neighbors(), torch.arange(memory.neighbors().size)
            read = before.rows(items)
            model.update_memory(**padded([row]))
            assert all(map(torch.equal, before.rows(items), read)), "another thread may still read the old lists"
            assert_same_lists(memory.neighbors(), NeighborLists(memory.config, memory.tables()))


def assert_same_lists(found: NeighborLists, anew: NeighborLists) -> None:
    """Bit for bit: a model that is saved and loaded makes its lists anew, and must answer as before."""
    for name, table in vars(anew).items():
        if isinstance(table, torch.Tensor):
            assert torch.equal(getattr(found, name), table), name
    assert all(map(torch.equal, found._counted, anew._counted))
    assert (found.mean_sum, found.size, found.longest) == (anew.mean_sum, anew.size, anew.longest)


def test_an_update_in_inference_mode_can_be_followed_by_one_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(associative_memory, "FEW_PAIRS", 0)
    model = random_model()
    for row in ([7, 8], [8, 7], [7, 8, 9]):
        model.associate_path.neighbors()
        with torch.inference_mode(row != [8, 7]):
            model.update_memory(torch.tensor([row]))
    assert_same_lists(
        model.associate_path.neighbors(), NeighborLists(model.associate_path.config, model.associate_path.tables())
    )


def test_the_padding_side_does_not_change_what_is_counted() -> None:
    rows = [[7, 8, NONE, 9], [10], [8, 8, 7]]
    for pairs in ("all", "last"):
        left, right = BertForNextBehavior(small_config()), BertForNextBehavior(small_config())
        left.update_memory(**padded(rows), pairs=pairs)
        right.update_memory(
            torch.tensor([row + [PAD] * (4 - len(row)) for row in rows]),
            attention_mask=torch.tensor([[1] * len(row) + [0] * (4 - len(row)) for row in rows]),
            pairs=pairs,
        )
        assert tables(left) == tables(right)


def test_histories_that_add_nothing_leave_the_memory_as_it_is() -> None:
    model = BertForNextBehavior(small_config())
    for pairs in ("all", "last"):
        model.update_memory(**padded([[NONE, FIRST_NEW], [UNK]]), pairs=pairs)
        assert tables(model) == (Counter(), Counter())
    model.update_memory(**padded([[7, 8, 8], [9, NONE]]), pairs="last")
    assert tables(model) == (Counter(), Counter())
    with pytest.raises(ValueError, match=r'pairs=.first., expected "last" or "all"'):
        model.update_memory(**padded([[7, 8]]), pairs="first")


def test_the_memory_is_saved_with_the_model_and_goes_on_counting(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    again = BertForNextBehavior.from_pretrained(tmp_path)
    assert tables(again) == tables(model)
    for one in (model, again):
        one.update_memory(**padded([[7, 8, 15]]), pairs="all")
    assert tables(again) == tables(model)
    batch = make_batch([9, 6])
    assert torch.equal(again(**batch).item_logits, model(**batch).item_logits)
    again.save_pretrained(tmp_path / "second")
    assert tables(BertForNextBehavior.from_pretrained(tmp_path / "second")) == tables(model)


def test_counting_makes_a_neighbour_more_probable_without_training() -> None:
    model = random_model(memory=False, convolution_size=0)  # its random gate asks the memory
    batch = padded([[7, 9]])
    before = model.item_log_probabilities(**batch).exp()[0]
    for _ in range(5):
        model.update_memory(**padded([[9, 15], [9, 15]]), pairs="last")
    after = model.item_log_probabilities(**batch).exp()[0]
    assert after[15] > 3 * before[15]


def test_the_associate_path_names_the_neighbours_by_the_documented_formula() -> None:
    model = random_model(memory=False, memory_history=3, memory_neighbors=50)
    config, rows = model.config, [[7, 8, 9, 7, 10], [8, 10, 15], [9, 8, 7], [11, 12]]
    model.update_memory(**padded(rows), pairs="all")
    pairs, items = counted_by_hand(rows, config)
    strength = {
        (x, y): (pairs[x, y] + config.memory_backward * pairs[y, x]) / COUNT_UNIT
        for x, y in itertools.permutations(items, 2)
    }
    total = {x: sum(strength[x, y] for y in items if y != x) for x in items}
    history = [15, 9, 9, NONE, 7, 8]
    recent = [8, 7, 9]
    weights = [config.memory_history_decay**step for step in range(3)]
    scores = dict.fromkeys(items, 0.0)
    for weight, x in zip(weights, recent, strict=True):
        for y in items:
            if y != x and y not in history:
                degree = total[x] ** config.memory_degree_power * items[y] ** config.memory_count_power
                scores[y] += weight * strength[x, y] / degree
    batch = padded([history])
    last = torch.tensor([[len(history) - 1]])
    found_recent = model.associate_path.recent_items(batch["input_ids"], batch["attention_mask"], last)[0]
    assert found_recent.tolist() == [recent]
    seen = seen_items(batch["input_ids"], model.config.vocab_size)
    table = model.associate_path.score(found_recent, seen)[0]
    for item in items:
        assert float(table[item]) == pytest.approx(scores[item], rel=1e-4, abs=1e-6)
    assert table[seen[0]].tolist() == [0.0] * int(seen.sum())
    # Whole model: the memory names a share alone. Beside that an item is as many times as probable, against one that
    # the memory does not name, as documented.
    whole = model(**batch).item_logits[0, 4].detach().exp()
    model.config.memory_share = 0.0
    both = model(**batch).item_logits[0, 4].detach().exp()
    new = float(both[FIRST_ITEM:][~seen[0, FIRST_ITEM:]].sum())
    for item in items:
        if item not in history:
            counted = new * scores[item] / sum(scores.values())
            assert float(whole[item]) == pytest.approx(0.75 * float(both[item]) + 0.25 * counted, rel=1e-3)
    named = max(scores, key=lambda item: scores[item])
    nothing = next(item for item in range(FIRST_ITEM, VOCAB) if not table[item] and item not in history)
    answer = both.log()
    model.config.memory_power = 0.0
    alone = model(**batch).item_logits[0, 4].detach()
    rise = (answer[named] - answer[nothing]) - (alone[named] - alone[nothing])
    power, unit = BehaviorConfig.memory_power, BehaviorConfig.memory_unit
    assert float(rise) == pytest.approx(power * math.log1p(scores[named] / unit), rel=1e-3)


def test_lists_are_cut_to_the_strongest_neighbours() -> None:
    whole, cut = random_model(memory_neighbors=100), random_model(memory_neighbors=2)
    for item in range(FIRST_ITEM, whole.associate_path.neighbors().size):
        ids, values = (one.squeeze() for one in whole.associate_path.neighbors().rows(torch.tensor([item])))
        strongest = dict(sorted(zip(ids.tolist(), values.tolist(), strict=True), key=lambda pair: -pair[1])[:2])
        ids, values = cut.associate_path.neighbors().rows(torch.tensor([item]))
        found = dict(zip(ids[0].tolist(), values[0].tolist(), strict=True))
        assert sorted(found.values()) == pytest.approx(sorted(strongest.values()))


def test_training_does_not_lean_on_the_memory() -> None:
    model = random_model(memory=False, event_dropout=0.0).train()
    batch = make_batch([9, 12, 6])
    labels = make_labels(batch)
    before = model(**batch, **labels).loss
    held_out = model.eval()(**batch, **labels).item_loss
    model.update_memory(**make_batch([12, 12, 12, 12]), pairs="all")
    assert torch.equal(model.train()(**batch, **labels).loss, before)
    assert not torch.allclose(model.eval()(**batch, **labels).item_loss, held_out), "outside training it counts"


def test_a_mention_counts_half_after_as_many_others_as_the_half_life() -> None:
    model = BertForNextBehavior(small_config(memory_half_life=1))
    memory = model.associate_path
    model.update_memory(**padded([[7, 8, 9]]), pairs="all")
    assert (memory.recent_counts[7:10] / RECENT_UNIT).tolist() == [0.25, 0.5, 1]
    model.update_memory(**padded([[7, 8]]), pairs="last")
    assert (memory.recent_counts[7:10] / RECENT_UNIT).tolist() == [0.125, 1.25, 0.5]
    model.update_memory(**padded([[9, 10]]), pairs="all", trained=True)
    assert (memory.recent_counts[7:11] / RECENT_UNIT).tolist() == [0.125, 1.25, 0.5, 0], (
        "what was trained on is no news"
    )


def test_recent_popularity_fades_to_nothing_also_when_events_are_counted_one_by_one() -> None:
    model = BertForNextBehavior(small_config(memory_half_life=100, memory_recent_unit=COUNT_UNIT))
    memory = model.associate_path
    memory.recent_counts = torch.tensor([0] * 7 + [COUNT_UNIT] * 4)  # as it was saved before
    for _ in range(1000):
        memory.follow(torch.tensor([8]))
    assert float(memory.recent_counts[7]) / RECENT_UNIT == pytest.approx(2**-10, rel=1e-6)
    assert float(memory.recent_counts[8]) / RECENT_UNIT == pytest.approx(1 / (1 - 0.5**0.01), rel=1e-2)


def test_what_is_named_lately_is_more_probable_by_the_documented_factor() -> None:
    model = random_model(memory=False, memory_trend=0.3, memory_half_life=5, memory_share=0.0)
    batch = padded([[7, 9]])
    before = model(**batch).item_logits[0, 4]
    model.update_memory(**padded([[11], [12], [11]]), pairs="all")
    after = model(**batch).item_logits[0, 4]
    mentions = model.associate_path.recent_counts[11:13] / RECENT_UNIT
    expected = 0.3 * torch.log1p(mentions / TREND_UNIT)
    gain = (after - before)[[11, 12]] - (after - before)[13]
    torch.testing.assert_close(gain, expected, rtol=1e-4, atol=1e-5)
    assert expected[0] > expected[1] > 0


def test_a_model_saved_before_there_were_recent_counts_loads_without_a_trend(tmp_path: Path) -> None:
    model = random_model(memory_trend=0.0)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["associate_path.recent_counts"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = BertForNextBehavior.from_pretrained(tmp_path)
    assert not again.associate_path.recent_counts.any()
    assert tables(again) == tables(model)
    batch = make_batch([9, 6])
    assert torch.equal(again(**batch).item_logits, model(**batch).item_logits)


@torch.no_grad()
def test_a_training_target_is_predicted_by_the_memory_of_all_other_events() -> None:
    """Whole model: the loss with the full memory is -log p under a memory counted without the target's event."""
    generator = random.Random(0)
    users = [generator.sample(range(FIRST_ITEM, VOCAB), generator.randint(2, 8)) for _ in range(25)]
    # Without fading, what is left of the target's own mention is known.
    full = random_model(memory=False, memory_neighbors=100, memory_half_life=10**9)
    full.update_memory(**padded(users), pairs="all")
    checked = 0
    for index, user in enumerate(users[:8]):
        history, target = user[:-1], user[-1]
        others = random_model(memory=False, memory_neighbors=100, memory_half_life=10**9)
        others.update_memory(**padded([*users[:index], history, *users[index + 1 :]]), pairs="all")
        batch = padded([history])
        labels = torch.full_like(batch["input_ids"], IGNORED)
        actions = labels.clone()
        labels[0, -1], actions[0, -1] = target, 4
        loss = full(**batch, labels=labels, action_labels=actions).item_loss
        expected = -others(**batch).item_logits[0, 4, target]
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)
        echo = -full(**batch).item_logits[0, 4, target]
        checked += abs(float(echo) - float(expected)) > 1e-3
    assert checked > 4, "the target's own event must matter, or the test cannot fail"


def test_a_pair_seen_once_is_not_in_the_memory_that_predicts_it() -> None:
    model = random_model(memory=False)
    model.update_memory(**padded([[7, 8], [9, 10], [9, 10]]), pairs="all")
    recent = torch.tensor([[7] + [0] * 7, [9] + [0] * 7])
    left, rescale = model.associate_path.neighbors().leave_one_out(recent, torch.tensor([8, 10]))
    assert left[0].tolist() == [0.0] * 8
    assert float(left[1, 0]) > 0
    # Of two pairs one is left: the list's sum is half of what it was, before it is taken to the power.
    assert float(rescale[1, 0]) == pytest.approx(0.5**-model.config.memory_degree_power)


@settings(max_examples=25, deadline=None)
@given(rows=histories, kept=st.integers(1, 4))
def test_pruning_keeps_each_items_strongest_neighbours(rows: list[list[int]], kept: int) -> None:
    model = BertForNextBehavior(small_config(memory_decay=0.7, num_hidden_layers=1))
    model.update_memory(**padded(rows), pairs="all")
    before, items = tables(model)
    model.associate_path.prune(kept)
    after, items_after = tables(model)
    assert items_after == items
    assert after.items() <= before.items()
    for side in (0, 1):
        for item in items:
            counts = sorted((count for pair, count in before.items() if pair[side] == item), reverse=True)
            still = sorted((count for pair, count in after.items() if pair[side] == item), reverse=True)
            assert still[: min(kept, len(counts))] == counts[:kept]
    # A pair stays only if it is among the strongest of either of its items.
    for pair, count in after.items():
        stronger = [sum(other > count for p, other in before.items() if p[side] == pair[side]) for side in (0, 1)]
        assert min(stronger) < kept
