"""On a CUDA device: what is trained, counted and answered there is what a CPU would say. Run with -m gpu."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_training
from test_training import SMALL, write_log
from tiny import load, save_bert, tiny_model

from next_behavior.data.events import read_events
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.splits import assign_parts, recorded_split
from next_behavior.evaluation.evaluator import evaluate_folder
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ON_GPU = [option for option in SMALL if option not in ("--precision", "no", "--cpu")]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "events.csv")


@pytest.fixture(scope="module")
def trained(events: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_training(events, tmp_path_factory.mktemp("trained"), *ON_GPU, "--max_epochs", "25")


def batch_of(tokenizer: Any) -> dict[str, torch.Tensor]:
    history = [
        {"item": f"item {place}", "action": "view", "timestamp": 1_700_000_000 + 60 * place} for place in range(9)
    ]
    return dict(tokenizer([history, history[2:5], history[:1]], return_tensors="pt"))


def on_gpu(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda() for name, tensor in batch.items()}


def test_a_run_in_bfloat16_learns_and_its_model_says_the_same_on_a_cpu(trained: Path) -> None:
    model, tokenizer = load(trained)
    batch = batch_of(tokenizer)
    with torch.no_grad():
        expected = model.item_log_probabilities(**batch)
        found = copy.deepcopy(model).cuda().item_log_probabilities(**on_gpu(batch)).cpu()
    torch.testing.assert_close(found.exp(), expected.exp(), atol=1e-5, rtol=1e-3)
    best = model.predict(**batch, top_k=1, of="item")
    assert best.item_ids[0, 0] == tokenizer.encode_item("item 9")


def test_an_evaluation_on_the_gpu_ranks_as_one_on_a_cpu(
    events: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, split = read_events(str(events), ReadOptions()), recorded_split(trained)
    assert split is not None
    parts = assign_parts(log.events, split)
    there = evaluate_folder(trained, parts, split, None, None, 0, memory_updates=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = evaluate_folder(trained, parts, split, None, None, 0, memory_updates=5)
    for ranker in ("model", "model, memory updated"):
        found, expected = (result[ranker]["kept"]["items"]["all"]["ndcg@10"] for result in (there, here))
        assert found == pytest.approx(expected, abs=5e-3)
    assert there["model"]["actions"]["log_loss"] == pytest.approx(here["model"]["actions"]["log_loss"], abs=1e-3)


def test_a_gradient_step_in_bfloat16_points_where_float32_points(trained: Path) -> None:
    tokenizer = BehaviorTokenizer.from_pretrained(trained)
    model: Any = tiny_model(tokenizer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, label_smoothing=0.1)
    batch = batch_of(tokenizer)
    labels = {
        "labels": batch["input_ids"].roll(-1, 1),
        "action_labels": batch["token_type_ids"].roll(-1, 1),
        "time_labels": batch["time_gap_ids"].roll(-1, 1),
    }
    for label in labels.values():
        label[:, -1] = -100
        label[batch["attention_mask"] == 0] = -100
    expected, found = model.train(), copy.deepcopy(model).to("cuda").train()
    expected(**batch, **labels).loss.backward()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = found(**on_gpu(batch | labels)).loss
    loss.backward()
    for (name, here), there in zip(expected.named_parameters(), found.parameters(), strict=True):
        if here.grad is None:
            assert there.grad is None, name
            continue
        assert there.grad is not None, name
        first, second = here.grad.flatten().double(), there.grad.cpu().flatten().double()
        assert there.grad.dtype == torch.float32
        assert first @ second >= 0.99 * first.norm() * second.norm() - 1e-12, name


@pytest.mark.parametrize("length", [9, 64, 192])
def test_padding_leaves_the_gradient_finite(trained: Path, length: int) -> None:
    """cuDNN's attention, which long rows go to, returned nan for positions that could read nothing."""
    tokenizer = BehaviorTokenizer.from_pretrained(trained)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 200, "convolution_size": 4}
    model: Any = tiny_model(tokenizer, **sizes)
    model.to("cuda").train()
    items = torch.randint(model.config.first_item_id, len(tokenizer), (2, length), device="cuda")
    actions, mask = torch.full_like(items, 3), torch.ones_like(items)
    mask[0, : length // 3] = 0
    labels = items.roll(-1, 1).masked_fill(mask == 0, -100)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(items * mask, actions * mask, mask, mask, labels=labels, action_labels=actions * mask).loss
    loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is None or weight.grad.isfinite().all(), name


def test_a_run_goes_on_where_it_was_interrupted(events: Path, tmp_path: Path) -> None:
    run_training(events, tmp_path, *ON_GPU, "--max_epochs", "2")
    run_training(events, tmp_path, *ON_GPU, "--max_epochs", "4", "--resume")
    whole = run_training(events, tmp_path / "whole", *ON_GPU, "--max_epochs", "4")
    first, second = (BertForNextBehavior.from_pretrained(folder).state_dict() for folder in (tmp_path, whole))
    first.pop("repeat_path.key.bias")  # takes part in nothing: what it is told is rounding
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=0.05, rtol=0.05, msg=name)


def test_the_memory_counts_there_what_it_counts_here(trained: Path) -> None:
    model, tokenizer = load(trained)
    batch, there = batch_of(tokenizer), copy.deepcopy(model).cuda()
    for pairs in ("all", "last"):
        model.update_memory(**batch, pairs=pairs)
        there.update_memory(**on_gpu(batch), pairs=pairs)
    for name, table in model.associate_path.named_buffers():
        assert torch.equal(there.associate_path.get_buffer(name).cpu(), table), name


def test_items_with_texts_are_trained_and_added_there(events: Path, tmp_path: Path) -> None:
    encoder, items = save_bert(tmp_path / "bert"), tmp_path / "items.csv"
    words = ["red shoe", "blue lace", "green comb", "nail polish", "lip balm"]
    items.write_text("item_id,title\n" + "".join(f"item {place},{words[place % 5]}\n" for place in range(40)))
    options = ["--items", str(items), "--text_encoder", encoder, "--max_epochs", "2"]
    folder = run_training(events, tmp_path / "out", *ON_GPU, *options)
    model, tokenizer = load(folder)
    model.to("cuda")
    (new,) = model.add_items(tokenizer, [{"item_id": "new", "title": "red shoe"}])
    scores = model.item_log_probabilities(**on_gpu(batch_of(tokenizer))).exp()
    assert scores.device.type == "cuda"
    assert scores[:, new].min() > 0
    np.testing.assert_allclose(scores.sum(dim=1).cpu().numpy(), 1, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_names_the_same_items(trained: Path, dtype: torch.dtype) -> None:
    model, tokenizer = load(trained)
    batch = batch_of(tokenizer)
    expected = model.predict(**batch, top_k=1, of="item")
    half: Any = BertForNextBehavior.from_pretrained(trained, dtype=dtype)
    found = half.to("cuda").eval().predict(**on_gpu(batch), top_k=1, of="item")
    assert torch.equal(found.item_ids.cpu(), expected.item_ids)
