"""transformers.Trainer trains the model as any other: the example of the README, checkpoints, accumulation."""

from __future__ import annotations

import copy
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from datasets import Dataset
from processes import run_python
from tiny import tiny_model
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, pipeline

from next_behavior.model.configuration_behavior import CODE_FILES
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.vocabulary import assemble

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "finetune_with_trainer.py"
ITEMS, ACTIONS, EDGES = [f"i{place}" for place in range(12)], ["view", "buy", "search"], [60.0, 3600.0]
WINDOW, USERS = 10, 400
LABELS = ["labels", "action_labels", "time_labels"]


def make_tokenizer() -> BehaviorTokenizer:
    tokenizer = assemble(ITEMS, ACTIONS, EDGES, num_new_items=3, max_length=WINDOW)
    tokenizer.describe_items([1] * len(ITEMS), [None] * len(ITEMS))
    return tokenizer


def make_model() -> BertForNextBehavior:
    tokenizer = make_tokenizer()
    without_item = [tokenizer.encode_action("search")]
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return tiny_model(tokenizer, actions_without_item=without_item, **dropout)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def other_log(path: Path) -> Path:
    """Another shop: known items in steps of three, an item the model has never seen, searches, one user of one event,
    and one longer than the model's window."""
    rows: list[tuple[str, str | None, str, int]] = [("alone", "007", "view", 1_700_000_000)]
    for user in range(USERS):
        clock, place = 1_700_000_000 + user, user
        for step in range(25 if user == 3 else 6):
            clock += 600
            place = (place + 3) % len(ITEMS)
            item = "brand new" if step in (1, 3) else None if step == 4 else ITEMS[place]
            rows.append((f"u{user}", item, "search" if item is None else "view", clock))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "action", "timestamp"], orient="row")
    frame.sample(fraction=1.0, shuffle=True, seed=1).write_csv(path)
    return path


# -- the example -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finetuned(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    events = other_log(folder / "events.csv")
    run_python(folder, "-I", str(SCRIPT), str(saved), str(events), str(folder / "out"))
    return folder / "out"


def test_the_example_is_short_and_imports_nothing_of_ours() -> None:
    source = SCRIPT.read_text()
    code = [line for line in source.split('"""', 2)[2].splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 38
    for name in ("behavior", "modeling_behavior", "tokenization_behavior", "tokenizer_build", "train_accelerate"):
        assert f"import {name}" not in source
        assert f"from {name}" not in source


def test_the_finetuned_folder_is_whole_and_loads(finetuned: Path, saved: Path) -> None:
    for name in (*CODE_FILES, "vocabulary.tsv"):
        assert (finetuned / name).read_bytes() == (saved / name).read_bytes()
    model, tokenizer = AutoModel.from_pretrained(finetuned), AutoTokenizer.from_pretrained(finetuned)
    assert isinstance(model, BertForNextBehavior)
    before = BertForNextBehavior.from_pretrained(saved).state_dict()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any("encoder" in name for name in changed)
    assert model.associate_path.item_counts.sum() > 0
    assert tokenizer.item_vocabulary == ITEMS


def test_the_finetuned_model_has_learned_the_other_log(finetuned: Path, saved: Path) -> None:
    load: Any = pipeline
    history = {"events": [{"item": item, "action": "view", "timestamp": 1_700_000_000 + 600 * place}
                          for place, item in enumerate(["i1", "brand new", "i7", "brand new"])]}  # fmt: skip
    probabilities = []
    for folder in (saved, finetuned):
        predict = load("next-behavior", model=folder, trust_remote_code=True, device="cpu")
        answers = {answer["action"]: answer["probability"] for answer in predict(history, of="action", top_k=5)}
        probabilities.append(answers["search"] + answers["view"])
        items = {answer["item"]: answer["probability"] for answer in predict(history, of="item", top_k=50)}
        assert set(items) == {*ITEMS, "brand new"}
        assert sum(items.values()) == pytest.approx(1, abs=1e-5)
    assert probabilities[1] > probabilities[0] + 0.05, "this log has no purchases"


@pytest.fixture(scope="module")
def examples(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The script's own names after a run in this process without any training step."""
    folder = tmp_path_factory.mktemp("names")
    events = other_log(folder / "events.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), str(saved), str(events), str(folder / "out")])
        patch.setattr(Trainer, "train", lambda _: None)
        return runpy.run_path(str(SCRIPT))


@pytest.mark.filterwarnings("ignore:a history has the action 'wish'")
def test_labels_are_the_next_event(examples: dict[str, Any]) -> None:
    tokenizer = examples["tokenizer"]
    times = [1_700_000_000, 1_700_000_010, 1_700_000_010, 1_700_100_000, 1_700_100_010, 1_700_100_020]
    history = [
        {"item": item, "action": action, "timestamp": time}
        for item, action, time in zip(
            ["i5", "x", "y", "x", None, "i5"], ["view", "buy", "wish", "view", "search", "buy"], times, strict=True
        )
    ]
    made = examples["example"](history)
    i5, (view, buy, search) = tokenizer.encode_item("i5"), (tokenizer.encode_action(action) for action in ACTIONS)
    assert made["input_ids"] == [i5, 4, 5, 4, 2]
    assert made["labels"] == [4, 5, 4, 2, i5]
    assert made["action_labels"] == [buy, 1, view, search, buy]
    assert made["time_labels"] == [2, 2, 4, 2, 2]
    assert {len(row) for row in made.values()} == {5}


def test_windows_hold_every_event_after_a_users_first_as_a_target_once(examples: dict[str, Any]) -> None:
    assert sum(len(window) - 1 for window in examples["windows"]) == (USERS - 1) * 5 + 24
    assert max(len(window) for window in examples["windows"]) == WINDOW
    assert len(examples["data"]) == len(examples["windows"]) == (USERS - 1) + 3


def test_ids_stay_as_the_file_writes_them(examples: dict[str, Any]) -> None:
    assert [user[0]["item"] for user in examples["histories"] if len(user) == 1] == ["007"]


def test_the_collator_pads_every_channel_on_the_left(examples: dict[str, Any]) -> None:
    rows = [examples["example"](window) for window in examples["windows"][:8]]
    rows[0] = {name: row[-2:] for name, row in rows[0].items()}
    batch = examples["trainer"].data_collator(rows)
    assert {tuple(value.shape) for value in batch.values()} == {(8, max(len(row["labels"]) for row in rows))}
    padding = batch["attention_mask"] == 0
    assert padding[0, 0]
    for name in ("input_ids", "token_type_ids", "time_gap_ids"):
        assert (batch[name][padding] == 0).all()
    for name in LABELS:
        assert (batch[name][padding] == -100).all()
    assert examples["model"](**batch).loss.isfinite()


# -- Trainer -----------------------------------------------------------------------------------------------------------


def random_rows(count: int, seed: int = 0) -> Dataset:
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(generator.integers(2, WINDOW))
        row = {
            "input_ids": generator.integers(7, 19, length), "token_type_ids": generator.integers(3, 6, length),
            "time_gap_ids": generator.integers(1, 5, length), "attention_mask": np.ones(length, dtype=int),
            "labels": np.where(generator.random(length) < 0.3, -100, generator.integers(7, 19, length)),
            "action_labels": generator.integers(3, 6, length), "time_labels": generator.integers(2, 5, length),
        }  # fmt: skip
        rows.append({name: values.tolist() for name, values in row.items()})
    return Dataset.from_list(rows)


def run(model: BertForNextBehavior, data: Dataset, output: Path, **options: Any) -> Trainer:
    tokenizer = make_tokenizer()
    arguments = TrainingArguments(
        str(output), label_names=LABELS, use_cpu=True, logging_steps=1, disable_tqdm=True, **options
    )
    trainer = Trainer(
        model, arguments, DataCollatorWithPadding(tokenizer), data, eval_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    return trainer


def test_a_trainer_checkpoint_is_a_model_folder_with_all_its_code(tmp_path: Path) -> None:
    trainer = run(make_model(), random_rows(8), tmp_path, max_steps=2, save_steps=2)
    checkpoint = tmp_path / "checkpoint-2"
    for name in CODE_FILES:
        assert (checkpoint / name).read_bytes() == (ROOT / "next_behavior" / "model" / name).read_bytes()
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_behavior.BertForNextBehavior"
    again = AutoModel.from_pretrained(checkpoint)
    trained: Any = trainer.model
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())


def test_eight_by_one_and_two_by_four_end_in_the_same_weights(tmp_path: Path) -> None:
    model, data = make_model(), random_rows(16)
    other = copy.deepcopy(model)
    start = copy.deepcopy(model.state_dict())
    shared: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "learning_rate": 0.3, "optim": "sgd"}
    one = run(model, data, tmp_path, per_device_train_batch_size=8, **shared)
    two = run(other, data, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **shared)
    losses = [[float(entry["loss"]) for entry in run.state.log_history if "loss" in entry] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    moved = 0.0
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
        moved += float((tensor - start[name]).abs().sum())
    assert moved > 1


def test_evaluation_reports_the_loss_of_the_model(tmp_path: Path) -> None:
    data = random_rows(6)
    options: dict[str, Any] = {"max_steps": 1, "save_strategy": "no", "prediction_loss_only": True}
    trainer = run(make_model(), data, tmp_path, **options)
    found = trainer.evaluate()["eval_loss"]
    batch = trainer.data_collator([data[row] for row in range(6)])
    model: Any = trainer.model
    with torch.no_grad():
        assert found == pytest.approx(float(model.eval()(**batch).loss), rel=1e-4)


def test_training_with_gradient_checkpointing_runs(tmp_path: Path) -> None:
    # transformers below 5.21, the last for Python 3.10, knows the older name alone.
    names = TrainingArguments.__dataclass_fields__
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    options: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", checkpointing: True}
    trainer = run(make_model(), random_rows(8), tmp_path, **options)
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


def test_neftune_noise_reaches_the_encoder_with_item_text_too(tmp_path: Path) -> None:
    text = {"text_size": 4, "text_encoder": "an encoder", "text_encoder_size": 4, "hidden_dropout_prob": 0.0}
    losses = []
    for alpha in (None, 5.0):
        model = tiny_model(make_tokenizer(), attention_probs_dropout_prob=0.0, text_dropout=0.0, id_dropout=0.0, **text)
        options: dict[str, Any] = {"max_steps": 1, "save_strategy": "no", "neftune_noise_alpha": alpha}
        trainer = run(model, random_rows(4), tmp_path, **options)
        losses += [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]


def test_label_smoothing_by_trainer_is_refused_with_the_setting_that_smooths(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 1, "save_strategy": "no", "label_smoothing_factor": 0.1}
    with pytest.raises(ValueError, match=r"label_smoothing_factor .* model\.config\.label_smoothing"):
        run(make_model(), random_rows(4), tmp_path, **options)
