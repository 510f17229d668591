"""train_accelerate.py: learns a small pattern, ends in a folder that anyone loads, and survives being killed."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest
import torch
from processes import end_of_command, reset_accelerate, run_python, run_training
from safetensors.torch import load_file
from tiny import sequences_of, write_events
from transformers import AutoModel, AutoTokenizer

from next_behavior.commands import calibrate
from next_behavior.commands.train import main
from next_behavior.data.batches import target_positions
from next_behavior.data.files import only_writer, replace_directory
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import TRAIN, VALIDATION, Sequences
from next_behavior.data.splits import Split
from next_behavior.model.associative_memory import AssociativeMemory
from next_behavior.model.configuration_behavior import CODE_FILES, BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.preparation.prepare import PrepareSettings, prepare
from next_behavior.training import loop, run, time_limit
from next_behavior.training.ahead import THREAD, made_ahead
from next_behavior.training.checkpoints import last_checkpoint
from next_behavior.training.phases import Phases
from next_behavior.training.prepared_log import hold_out_last_events, prepare_log
from next_behavior.training.probability_calibration import FEWEST_HURRIED, head_positions
from next_behavior.training.settings import RunSettings
from next_behavior.training.sharding import shard_items
from next_behavior.training.sizes import choose_sizes
from next_behavior.training.state import AveragedWeights, RunState, learning_rate
from next_behavior.training.time_limit import (
    FEWEST_CALIBRATED,
    FEWEST_FITTED,
    FEWEST_VALIDATED,
    TimeLimit,
    TrainingTime,
    affordable_calibration,
    affordable_fit,
    affordable_validation_targets,
)
from next_behavior.training.tokenized_log import TokenizedLog

ROOT = Path(__file__).resolve().parent.parent
NUM_ITEMS = 40
ITEM_TABLE = "bert.embeddings.embed_tokens.weight"
SMALL = [
    *("--hidden_size", "24", "--num_attention_heads", "3", "--num_hidden_layers", "1", "--dropout", "0.1"),
    *("--tokens_per_batch", "200", "--warmup_steps", "5", "--learning_rate", "0.01", "--ema_decay", "0.9"),
    *("--precision", "no", "--cpu"),
]


def write_log(path: Path, users: int = 60, seed: int = 0) -> Path:
    """Users walk round a circle of items, two steps back for a purchase now and then, with a search before it."""
    generator = np.random.default_rng(seed)
    rows: list[tuple[str, str | None, str, int]] = []
    for user in range(users):
        place = int(generator.integers(NUM_ITEMS))
        clock = 1_700_000_000 + int(generator.integers(86_400))
        for _ in range(int(generator.integers(8, 16))):
            clock += int(generator.integers(60, 7200))
            place = (place + 1) % NUM_ITEMS
            rows.append((f"u{user}", f"item {place}", "view", clock))
            if place % 7 == 0:
                rows.append((f"u{user}", None, "search", clock + 10))
                rows.append((f"u{user}", f"item {place}", "buy", clock + 20))
    return write_events(path, rows)


def train(events: Path, output: Path, *options: str) -> Path:
    return run_training(events, output, *SMALL, *options)


def options_of(events: Path, output: Path, *options: str) -> list[str]:
    return ["--events", str(events), "--output_dir", str(output), *SMALL, *options]


def run_state(folder: Path) -> dict[str, Any]:
    """Where the last checkpoint of a run stands."""
    return json.loads((folder / "checkpoints" / "last" / "state.json").read_text())["run"]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "events.csv")


@pytest.fixture(scope="module")
def trained(events: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the time split, from the raw file to the table."""
    return train(events, tmp_path_factory.mktemp("trained"), "--max_epochs", "8")


# -- what a run leaves behind ------------------------------------------------------------------------------------------


def test_the_output_folder_holds_the_model_and_how_it_came_to_be(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocabulary.tsv", "split.json",
        "weights.manifest.json", "vocabulary.manifest.json",
        "run.json", "cleaning_report.json", "evaluation.json", "evaluation.md", *CODE_FILES,
    }  # fmt: skip
    for name in CODE_FILES:
        assert (trained / name).read_bytes() == (ROOT / "next_behavior" / "model" / name).read_bytes()
    run = json.loads((trained / "run.json").read_text())
    assert run["settings"]["max_epochs"] == 8
    assert run["sizes"]["hidden_size"] == 24
    assert 0 < run["waiting_for_data"] < 1
    assert json.loads((trained / "split.json").read_text())["how"] == "time"
    config = json.loads((trained / "config.json").read_text())
    assert config["id2label"]["3"] == "view"
    tokenizer = BehaviorTokenizer.from_pretrained(trained)
    assert config["actions_without_item"] == [tokenizer.encode_action("search")]
    assert config["vocab_size"] == len(tokenizer)
    assert not list(trained.rglob("*.unfinished"))


def test_a_prepared_log_trains_the_same_model(trained: Path, events: Path, tmp_path: Path) -> None:
    prepare(events, tmp_path / "prepared", PrepareSettings(partitions=3), say=lambda text: None)
    reset_accelerate()
    output = tmp_path / "shop"
    main(["--prepared", str(tmp_path / "prepared"), "--output_dir", str(output), *SMALL, "--max_epochs", "8"])
    assert weights(output) == weights(trained)
    for name in ("evaluation.json", "split.json", "cleaning_report.json", "tokenizer.json", "vocabulary.tsv"):
        assert (output / name).read_bytes() == (trained / name).read_bytes()
    stored = datasets.Dataset.load_from_disk(str(output / "prepared"))
    assert stored[:] == datasets.Dataset.load_from_disk(str(trained / "prepared"))[:]


def test_a_prepared_log_keeps_its_vocabulary_and_its_length(trained: Path, events: Path, tmp_path: Path) -> None:
    folder = prepare(events, tmp_path / "prepared", say=lambda text: None).path
    for options, message in (
        (["--base_model", str(trained)], "has a vocabulary of its own"),
        (["--max_length", "100"], "prepare it with --max_length 100"),
        (["--events", str(events)], "both name a log"),
    ):
        reset_accelerate()
        with pytest.raises(ValueError, match=message):
            main(["--prepared", str(folder), "--output_dir", str(tmp_path / "out"), "--cpu", *options])


def test_the_model_ranks_well_above_popularity_on_test_events(trained: Path) -> None:
    result = json.loads((trained / "evaluation.json").read_text())
    model, popularity = (result[name]["kept"]["items"]["all"]["ndcg@10"] for name in ("model", "popularity"))
    assert popularity < 0.25
    assert model > 0.6
    assert model > 2 * popularity


def test_temperatures_and_the_memory_are_fitted_and_saved(trained: Path) -> None:
    config = BertForNextBehavior.from_pretrained(trained).config
    assert config.memory_size > NUM_ITEMS
    fitted = [config.action_temperature, config.item_temperature, config.time_temperature]
    assert all(0.5 <= temperature <= 2 for temperature in fitted)
    assert fitted != [1.0] * 3
    assert len(config.action_weights) == config.num_actions
    rankers = json.loads((trained / "evaluation.json").read_text())["rankers"]
    assert ("model, balanced" in rankers) == any(config.action_weights)


def test_a_run_records_how_far_its_probabilities_can_be_trusted(trained: Path) -> None:
    fit = json.loads((trained / "run.json").read_text())["calibration"]
    for head in ("action", "time"):
        assert fit[head]["way"] == min(fit[head]["held_out_log_loss"], key=fit[head]["held_out_log_loss"].get)
        assert fit[head]["before"]["count"] == fit[head]["after"]["count"] > 0
        assert sum(each["count"] for each in fit[head]["after"]["bins"]) == fit[head]["after"]["count"]
    assert len(fit["item"]["after"]["top10"]["by_rank"]) == 10
    result = json.loads((trained / "evaluation.json").read_text())
    assert set(result["calibration"]) == {"action", "item", "top10", "time"}
    assert result["time"]["model"]["log_loss"] > 0
    assert set(result["time"]) == {"count", "model", "training_gaps", "user_median_gap"}
    tables = (trained / "evaluation.md").read_text()
    assert "| calibration " in tables
    assert "| time until the next event " in tables


def test_a_trained_model_is_calibrated_again_without_training(trained: Path, events: Path, tmp_path: Path) -> None:
    calibrate.main(["--model", str(trained), "--events", str(events), "--output_dir", str(tmp_path / "again")])
    before, after = (BertForNextBehavior.from_pretrained(each) for each in (trained, tmp_path / "again"))
    changed = [name for name, one in before.state_dict().items() if not torch.equal(one, after.state_dict()[name])]
    assert set(changed) <= {"path_gate.weight", "path_gate.bias"}
    assert after.config.action_temperature == pytest.approx(before.config.action_temperature, rel=0.05)
    lonely = write_events(tmp_path / "one.csv", [("u", "item 1", "view", 1_600_000_000 + second) for second in (0, 9)])
    with pytest.raises(ValueError, match="no event to calibrate"):
        calibrate.main(["--model", str(trained), "--events", str(lonely), "--output_dir", str(tmp_path / "none")])


def leave_out_the_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations have the same log-loss, and the model is saved as it was trained."""
    monkeypatch.setattr(loop, "fit_gate", lambda *_: 1.0)
    monkeypatch.setattr(loop, "action_log_loss", lambda *_: 0.0)
    monkeypatch.setattr(run, "fit_memory", lambda *_: None)


def test_the_saved_model_is_the_best_and_not_the_last(
    events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.3, 0.2, 0.3])
    saved: list[torch.Tensor] = []

    def score(model: BertForNextBehavior, *_: Any) -> float:
        saved.append(model.get_submodule("action_head").state_dict()["weight"].clone())
        return next(scores)

    monkeypatch.setattr(loop, "validation_ndcg", score)
    leave_out_the_fits(monkeypatch)
    train(events, tmp_path, "--max_epochs", "4")
    found = BertForNextBehavior.from_pretrained(tmp_path).state_dict()["action_head.weight"]
    assert torch.equal(found, saved[1])
    assert not torch.equal(found, saved[3])


def test_the_memory_is_fitted_on_as_many_users_as_the_time_allows() -> None:
    sequences = sequences_of([[(7, 3, TRAIN), (8, 3, VALIDATION), (9, 3, VALIDATION)]] * 1000, 12, 7)
    positions = target_positions(sequences, VALIDATION)

    def fitted(seconds_left: float) -> np.ndarray:
        return affordable_fit(sequences, positions, 1e-3, seconds_left, seed=0)

    assert fitted(math.inf).tolist() == positions.tolist()
    some = fitted(80.0)
    assert FEWEST_FITTED <= len(some) < len(positions)
    assert (sequences.user_of_event()[some][::2] == sequences.user_of_event()[some][1::2]).all(), "whole users"
    assert not len(fitted(5.0))
    assert not len(fitted(-1.0))


def test_temperatures_are_fitted_on_what_the_time_is_enough_for_and_never_on_nothing() -> None:
    sequences = sequences_of([[(7, 3, TRAIN), (8, 3, VALIDATION)]] * 1000, 12, 7)
    positions = target_positions(sequences, VALIDATION)

    def calibrated(seconds_left: float) -> int:
        return len(affordable_calibration(sequences, positions, 6, 1e-3, seconds_left, seed=0))

    assert calibrated(math.inf) == 1000
    assert calibrated(22.0) == 500
    assert calibrated(-1.0) == FEWEST_CALIBRATED
    log = TokenizedLog(sequences, Split("leave_one_out"), 4)
    heads = [len(head_positions(log, 50, most_encoded)) for most_encoded in (math.inf, 500.0, -1.0)]
    assert heads == [1000, 500, FEWEST_HURRIED]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that `TimeLimit` reads from a clock that only the test moves."""
    now = [0.0]
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_training_ends_early_enough_for_what_follows_as_it_was_measured(clock: list[float]) -> None:
    budget = TrainingTime(TimeLimit(0.0, 10.0), begin=60.0)
    assert budget.end() == 450, "three quarters"
    budget.validation_seconds, budget.fixed_seconds, budget.step_seconds = 200.0, 50.0, 3.0
    assert budget.end() == 600 - 3 - 1.4 * 250
    clock[0] = 60.0
    assert budget.progress() == 0
    clock[0] = 60 + (budget.end() - 60) / 2
    assert budget.progress() == pytest.approx(0.5)
    clock[0] = 300.0
    assert budget.progress() == 1


def test_where_preparation_was_long_training_still_gets_two_fifths_of_the_time(clock: list[float]) -> None:
    clock[0] = 270.0
    budget = TrainingTime(TimeLimit(0.0, 10.0), begin=270.0)
    assert budget.end() - 270 == 0.4 * 600
    assert budget.outlook(120.0, min_epochs=0) == (
        "Time: 4:30 of 10:00 are spent; training has 4:00, about 2.0 passes over its events."
    )


def test_before_training_a_run_says_that_it_cannot_see_all_of_its_events(clock: list[float]) -> None:
    clock[0] = 480.0
    budget = TrainingTime(TimeLimit(0.0, 10.0), begin=480.0)
    said = budget.outlook(240.0, min_epochs=0)
    assert "training has 2:00, about 0.5 passes over its events. Preparation took so long" in said
    assert "--min_epochs 1, lets it see them all" in said
    assert "--min_epochs 2 takes longer" in budget.outlook(240.0, min_epochs=2)


@pytest.mark.parametrize("limit", [(), ("--max_minutes", "60")])
def test_with_a_time_limit_a_dear_validation_waits_for_the_end_of_the_epoch(
    limit: tuple[str, ...], events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[int] = []

    def score(run: loop.Training) -> tuple[float, float]:
        validated.append(run.state.step)
        return 0.5, 1.0

    monkeypatch.setattr(loop.Training, "score", score)
    monkeypatch.setattr(time_limit.TrainingTime, "has_time_to_validate", lambda *_: False)
    monkeypatch.setattr(run, "fit_memory", lambda *_: None)
    train(events, tmp_path, "--max_epochs", "1", "--validation_steps", "2", *limit)
    last = run_state(tmp_path)["step"]
    assert last > 2
    assert validated == ([last] if limit else [*range(2, last, 2), last])


def test_a_validation_is_dear_where_it_takes_a_twentieth_of_the_time_since_the_last() -> None:
    budget = TrainingTime(TimeLimit(0.0, 10.0), begin=0.0, validation_seconds=2.0)
    assert budget.has_time_to_validate(40.0)
    assert not budget.has_time_to_validate(39.0)


def test_without_a_limit_training_has_no_end(clock: list[float]) -> None:
    budget = TrainingTime(TimeLimit(0.0, None), begin=0.0)
    assert (budget.end(), budget.progress()) == (math.inf, 0)


def test_with_a_time_limit_a_validation_ranks_what_a_small_part_of_it_is_enough_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sequences = sequences_of([[(7, 3, TRAIN), (8, 3, VALIDATION)]] * 2000, 12, 7)
    log = TokenizedLog(sequences, Split("none"), max_length=40)
    accelerator: Any = SimpleNamespace(gather=lambda tensor: tensor, device="cpu")
    model, clock = torch.nn.Linear(1, 1), [0.0]

    def encode(_model: Any, _sequences: Any, _part: int, _length: int, positions: np.ndarray) -> np.ndarray:
        assert not model.training
        clock[0] += len(positions) * 5e-3
        return positions

    def rank(_model: Any, positions: np.ndarray) -> float:
        assert not model.training
        clock[0] += len(positions) * 2e-3
        return 0.5

    monkeypatch.setattr(time_limit, "encode_targets", encode)
    monkeypatch.setattr(time_limit, "validation_ndcg", rank)
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def chosen(minutes: float | None, is_fixed: bool = False) -> int:
        trained: Any = model
        budget = TrainingTime(TimeLimit(0.0, minutes), begin=0.0)
        found = affordable_validation_targets(trained, log, 1500, is_fixed, budget, seed=0, accelerator=accelerator)
        assert model.training
        assert minutes is None or budget.seconds_per_target == pytest.approx(7e-3)
        return found

    assert chosen(None) == 1500
    assert chosen(60.0) == 1500
    assert chosen(2.0) == int(120 * 0.05 / (5e-3 + 3 * 2e-3))
    assert chosen(0.01) == FEWEST_VALIDATED
    assert chosen(0.01, is_fixed=True) == 1500, "as the user says"


def test_where_rankings_draw_the_lower_log_loss_decides_and_a_higher_ranking_wins_over_any() -> None:
    state, kept = RunState(), list[int]()
    scores = [(1, 0.85, 0.9), (2, 0.8501, 0.8), (3, 0.8499, 0.7), (4, 0.8495, 0.1), (5, 0.9, 2.0)]
    for state.step, metric, loss in scores:
        if state.judge(metric, loss):
            kept.append(state.step)
    assert kept == [1, 2, 3, 5]


ELSEWHERE = """
import json, sys
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline
folder, request, answer = sys.argv[1:]
history = json.loads(request)
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "bert-next-behavior"
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
for one in (model, tokenizer):
    assert type(one).__module__.startswith("transformers_modules"), type(one)
with torch.no_grad():
    output = model(**tokenizer([history], return_tensors="pt"))
ranked = pipeline("next-behavior", model=folder, trust_remote_code=True)({"events": history}, top_k=5)
torch.save({"action": output.action_logits, "item": output.item_logits, "ranked": ranked}, answer)
"""


def test_a_clean_process_elsewhere_gives_the_probabilities_of_training(trained: Path, tmp_path: Path) -> None:
    history = [
        {"item": "item 3", "action": "view", "timestamp": 1_700_000_000},
        {"item": "never seen", "action": "view", "timestamp": 1_700_000_100},
        {"action": "search", "timestamp": 1_700_000_200},
        {"item": "item 4", "action": "view", "timestamp": 1_700_000_300},
    ]
    run_python(tmp_path, "-I", "-c", ELSEWHERE, str(trained), json.dumps(history), str(tmp_path / "answer.pt"))
    there = torch.load(tmp_path / "answer.pt")
    model, tokenizer = AutoModel.from_pretrained(trained).eval(), BehaviorTokenizer.from_pretrained(trained)
    with torch.no_grad():
        here = model(**tokenizer([history], return_tensors="pt"))
    for name, logits in (("action", here.action_logits), ("item", here.item_logits)):
        torch.testing.assert_close(there[name].exp(), logits.exp(), rtol=0, atol=1e-5)
    pairs = here.action_logits.softmax(-1)[0, :, None] * here.item_logits[0].exp()
    best = pairs.flatten().topk(5).values
    assert [answer["probability"] for answer in there["ranked"]] == pytest.approx(best.tolist(), abs=1e-5)
    assert there["ranked"][0]["item"] == "item 5"


# -- other ways to run -------------------------------------------------------------------------------------------------


def test_all_of_a_file_can_be_trained_on(events: Path, tmp_path: Path) -> None:
    train(events, tmp_path, "--split", "none", "--max_epochs", "2")
    assert json.loads((tmp_path / "split.json").read_text())["how"] == "none"
    assert not (tmp_path / "evaluation.json").exists(), "nothing is held out, nothing is evaluated"
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert sorted(tokenizer.item_vocabulary) == sorted(f"item {place}" for place in range(NUM_ITEMS))
    model = AutoModel.from_pretrained(tmp_path)
    assert isinstance(model, BertForNextBehavior)
    # What was held out to decide when to stop is counted in the end, beside what came before it.
    stored = datasets.Dataset.load_from_disk(str(tmp_path / "prepared"))
    log = Sequences.from_dataset(stored, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    items, users, _ = log.runs(np.ones(len(log.items), dtype=bool))
    at_once = AssociativeMemory(BehaviorConfig(memory_distance=model.config.memory_distance))
    at_once.count(torch.from_numpy(items), torch.from_numpy(users))
    assert model.associate_path.item_counts.tolist() == at_once.item_counts.tolist()
    assert model.associate_path.pair_keys.tolist() == at_once.pair_keys.tolist()


def test_without_a_split_the_latest_events_of_some_users_are_held_out() -> None:
    rows = [(f"u{user:03}", 100 * place + user) for user in range(90) for place in range(20 if user % 3 else 10)]
    log = pl.DataFrame(rows, schema=["user_id", "second"], orient="row")
    log = log.with_columns(pl.from_epoch("second", "s").cast(pl.Datetime("us", "UTC")).alias("timestamp"))
    parts = hold_out_last_events(log, seed=3)
    assert parts.equals(hold_out_last_events(log, seed=3))
    assert not parts.equals(hold_out_last_events(log, seed=4))
    held_out = parts.filter(pl.col("part") == VALIDATION)
    late = pl.col("timestamp") > log["timestamp"].sort()[math.ceil(0.9 * len(log)) - 1]
    assert 10 < held_out["user_id"].n_unique() <= 30, "those of a third of the users who were there lately"
    assert held_out.filter(late).height == held_out.height
    assert log.filter(late & pl.col("user_id").is_in(held_out["user_id"].implode())).height == held_out.height
    learned = log.select(late).to_series().to_numpy()
    again = hold_out_last_events(log, seed=3, learned=learned)
    assert not (again.filter(pl.Series(learned))["part"] == VALIDATION).any(), "what is learned is not held out"


def test_in_a_log_without_times_the_last_events_of_some_users_are_held_out() -> None:
    lengths = [1, 2, 9, 20, 35] * 30
    rows = [(f"u{user}", None) for user, length in enumerate(lengths) for _ in range(length)]
    log = pl.DataFrame(rows, schema={"user_id": pl.String, "timestamp": pl.Datetime("us", "UTC")}, orient="row")
    parts = hold_out_last_events(log, seed=3)
    held_out = {
        user: part.count(VALIDATION)
        for user, part in parts.group_by("user_id").agg("part").rows()
        if VALIDATION in part
    }
    assert len(held_out) == 120 / 3, "a third of the users with more than one event"
    assert all(count == {2: 1, 9: 1, 20: 2, 35: 3}[lengths[int(user[1:])]] for user, count in held_out.items())
    assert all(part == sorted(part) for part in parts.group_by("user_id").agg("part")["part"].to_list())
    assert hold_out_last_events(log, seed=3, most=7).filter(pl.col("part") == VALIDATION)["user_id"].n_unique() == 7
    lonely = log.filter(pl.len().over("user_id") == 1)
    assert (hold_out_last_events(lonely, seed=3)["part"] == TRAIN).all()


def test_leave_one_out_holds_out_each_users_last_event(events: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="future"):
        train(events, tmp_path, "--split", "leave_one_out", "--max_epochs", "2")
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["targets"] == 60


def test_a_log_without_actions_times_and_titles_trains(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [(f"u{user}", f"{(start + step) % 12}") for user, start in enumerate(generator.integers(12, size=20))
            for step in range(6)]  # fmt: skip
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").write_parquet(tmp_path / "log.parquet")
    with pytest.warns(UserWarning, match="future"):
        train(tmp_path / "log.parquet", tmp_path / "out", "--split", "leave_one_out", "--max_epochs", "1")
    tokenizer = BehaviorTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.action_vocabulary == ["interact"]
    assert not tokenizer.has_time


def test_a_log_whose_held_out_events_name_no_item_trains(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"{(user + step) % 9}" if step < 8 else None, "view" if step < 8 else "search",
             1_700_000_000 + 3600 * step + user) for user in range(30) for step in range(10)]  # fmt: skip
    train(write_events(tmp_path / "log.csv", rows), tmp_path / "out", "--max_epochs", "2")
    assert isinstance(AutoModel.from_pretrained(tmp_path / "out"), BertForNextBehavior)


def test_the_time_limit_ends_a_run_with_a_saved_model(events: Path, tmp_path: Path, capsys: Any) -> None:
    train(events, tmp_path, "--max_minutes", "0.0001", "--max_epochs", "1000")
    printed = capsys.readouterr().out
    assert "the time is up" in printed
    assert (tmp_path / "model.safetensors").exists()
    passes = json.loads((tmp_path / "run.json").read_text())["passes"]
    assert 0 < passes < 1
    assert f"it saw only {passes:.2f} of a pass" in " ".join(printed.split())
    assert f"saw {passes:.2f} of a pass over its training events" in (tmp_path / "evaluation.md").read_text()
    assert not [line for line in printed.replace(str(tmp_path), "/t").splitlines() if len(line) > 80]


@pytest.mark.slow  # two minutes, which is what it is about
@pytest.mark.alone
def test_two_minutes_are_held_to_a_tenth_beside_two_busy_processes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    popular = generator.zipf(1.3, size=30_000) % 3_000
    rows = [(f"u{row % 100}", f"i{item}", "view", 1_700_000_000 + row) for row, item in enumerate(popular.tolist())]
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(3_000)]})
    items = items.with_columns(title=pl.format("Lamp number {}", "item_id"))
    items.write_csv(tmp_path / "items.csv")
    write_events(tmp_path / "events.csv", rows)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    begin = time.monotonic()
    try:
        done = run_python(
            ROOT, "train_accelerate.py", "--events", str(tmp_path / "events.csv"), "--max_minutes", "2",
            "--items", str(tmp_path / "items.csv"), "--output_dir", str(tmp_path / "out"), "--max_epochs", "1000",
            "--patience", "1000", anew=True,
            environment={"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "2"},
        )  # fmt: skip
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert 90 < time.monotonic() - begin < 1.1 * 120, done.stdout
    assert (tmp_path / "out" / "evaluation.md").is_file()


def test_training_stops_when_validation_no_longer_improves(
    events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "validation_ndcg", lambda *_: 0.25)
    leave_out_the_fits(monkeypatch)
    train(events, tmp_path, "--patience", "2", "--max_epochs", "50", "--split", "none")
    state = run_state(tmp_path)
    assert state["epoch"] == 3


def test_the_time_limit_cuts_no_pass_short_that_is_asked_for(events: Path, tmp_path: Path) -> None:
    """The time is up before the first step."""
    options = ("--max_minutes", "0.0001", "--validation_steps", "1000")

    def stopped(folder: Path) -> tuple[int, int]:
        state = run_state(folder)
        return state["epoch"], state["step_in_epoch"]

    assert stopped(train(events, tmp_path, *options)) == (0, 1)
    assert stopped(train(events, tmp_path, *options, "--min_epochs", "1", "--resume")) == (1, 0)
    assert stopped(train(events, tmp_path, *options, "--min_epochs", "2", "--resume")) == (2, 0)


def test_every_phase_is_announced_with_how_long_it_took(
    events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(events, tmp_path, "--max_minutes", "90", "--min_epochs", "1", "--max_epochs", "2")
    printed = re.sub(r"\n {8}(?=\S)", " ", capsys.readouterr().out)  # a long line is broken under its text
    begun = re.findall(r"^\[ \d:\d\d\] (.*) \.\.\.$", printed, flags=re.MULTILINE)
    targets = json.loads((tmp_path / "evaluation.json").read_text())["targets"]
    fitted = [phase for phase in begun if phase.startswith("Fitting")]
    assert [re.sub(r"[\d,]+", "N", phase) for phase in fitted] == [
        "Fitting the memory on N validation events", "Fitting probabilities on N validation events",
    ]  # fmt: skip
    assert begun == [
        f"Reading the log {events}", "Counting which items follow which", "Building the model and its memory",
        "Training: at least 1, at most 2 epochs, until about 67:30", "Reading the best model again", *fitted,
        f"Saving the model in {tmp_path}", f"Evaluating on {targets:,} test events, beside the baselines",
    ]  # fmt: skip
    assert len(re.findall(r"^\[ \d:\d\d\]   done in \d:\d\d$", printed, flags=re.MULTILINE)) == len(begun)


def test_twenty_steps_overfit_one_batch(events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = watch_losses(monkeypatch)
    train(events, tmp_path, "--max_epochs", "20", "--tokens_per_batch", "100000", "--dropout", "0", "--split", "none",
          "--learning_rate", "0.02")  # fmt: skip
    assert len(losses) == 20
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


def watch_losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of every training batch of the runs that follow."""
    losses: list[float] = []
    forward = BertForNextBehavior.forward

    def watched(self: BertForNextBehavior, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        if output.loss is not None:
            losses.append(output.loss.item())
        return output

    monkeypatch.setattr(BertForNextBehavior, "forward", watched)
    return losses


def test_accumulating_two_batches_takes_about_the_same_steps_as_one(
    events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = watch_losses(monkeypatch)
    options = ("--split", "none", "--max_epochs", "6", "--tokens_per_batch", "400", "--dropout", "0")
    train(events, tmp_path / "one", *options)
    once, twice = losses.copy(), losses
    losses.clear()
    train(events, tmp_path / "two", *options, "--gradient_accumulation_steps", "2")
    pairs = [(first + second) / 2 for first, second in zip(twice[::2], twice[1::2], strict=True)]
    assert abs(len(pairs) - len(once)) <= 6, "one step more an epoch at most"
    count = min(len(pairs), len(once))
    assert np.mean(pairs[:3]) == pytest.approx(np.mean(once[:3]), rel=0.1)
    assert np.mean(pairs[count - 4 : count]) == pytest.approx(np.mean(once[count - 4 : count]), rel=0.15)
    assert np.mean(once[-4:]) < 0.8 * np.mean(once[:4])


def test_out_of_memory_halves_the_batch_and_accumulates(
    events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = BertForNextBehavior.forward
    sizes: list[int] = []

    def limited(self: BertForNextBehavior, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("labels") is not None:
            if kwargs["input_ids"].numel() > 130:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            sizes.append(kwargs["input_ids"].numel())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BertForNextBehavior, "forward", limited)
    train(events, tmp_path, "--max_epochs", "1", "--split", "none")
    assert sizes
    assert 90 < max(sizes) <= 110, "half of 200, and start positions"
    state = run_state(tmp_path)
    assert 2 * state["step"] - 1 <= len(sizes) <= 2 * state["step"], "a step still holds 200 events"
    first = weights(tmp_path)
    # Later the same machine goes on from the checkpoint of the smaller batch.
    train(events, tmp_path, "--max_epochs", "1", "--split", "none", "--resume")
    assert weights(tmp_path) == first


# -- killed and resumed ------------------------------------------------------------------------------------------------


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from next_behavior.commands.train import main

def kill_as_soon_as_there_is(path):
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill_as_soon_as_there_is, args=[Path(sys.argv[1])], daemon=True).start()
main(sys.argv[2:])
"""


def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(events: Path, tmp_path: Path) -> None:
    options = ("--max_epochs", "4", "--validation_steps", "3", "--patience", "1000")
    whole = train(events, tmp_path / "whole", *options)
    killed = tmp_path / "killed"
    arguments = (str(killed / "checkpoints" / "last"), *options_of(events, killed, *options))
    environment = {"PYTHONPATH": str(ROOT)}
    run_python(tmp_path, "-c", KILLED, *arguments, environment=environment, status=-signal.SIGKILL)
    assert not (killed / "model.safetensors").exists()
    train(events, killed, *options, "--resume")
    assert weights(killed) == weights(whole)
    assert (killed / "config.json").read_bytes() == (whole / "config.json").read_bytes()
    first, second = (json.loads((folder / "evaluation.json").read_text()) for folder in (whole, killed))
    assert first["model"] == second["model"]


def threads_of_batches() -> int:
    return sum(thread.name.startswith(THREAD) for thread in threading.enumerate())


@pytest.mark.parametrize("ahead", [0, 2])
def test_results_made_ahead_come_in_order_and_failures_in_their_place(ahead: int) -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return 10 // (4 - number)

    results = made_ahead(make, range(9), ahead)
    assert [next(results) for _ in range(4)] == [2, 3, 5, 10]
    assert len(made) <= 4 + ahead
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not threads_of_batches()
    with closing(made_ahead(make, range(4), ahead)) as results:
        assert next(results) == 2
    assert not threads_of_batches()


def test_batches_made_ahead_train_the_same_weights_also_after_an_interruption(
    trained: Path, events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.STEPS_AHEAD, "cpu", 2)
    learned = AveragedWeights.update

    def interrupted(self: AveragedWeights, model: BertForNextBehavior, step: int) -> None:
        assert threads_of_batches() == 1
        if step == 9:
            raise KeyboardInterrupt
        learned(self, model, step)

    monkeypatch.setattr(AveragedWeights, "update", interrupted)
    with pytest.raises(KeyboardInterrupt, match="continue with --resume"):
        train(events, tmp_path, "--max_epochs", "8")
    monkeypatch.setattr(AveragedWeights, "update", learned)
    assert not threads_of_batches()
    train(events, tmp_path, "--max_epochs", "8", "--resume")
    assert weights(tmp_path) == weights(trained)


def test_a_finished_run_resumes_to_itself(trained: Path, events: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    spent = json.loads((again / "run.json").read_text())["seconds"]
    train(events, again, "--max_epochs", "8", "--resume")
    assert weights(again) == weights(trained)
    state = run_state(again)
    now = json.loads((again / "run.json").read_text())["seconds"]
    assert 0 < state["seconds"] < spent
    assert now > state["seconds"], "what was spent before counts"


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_checkpoint_survives_a_stop_at_every_moment_of_its_replacement(moment: str, tmp_path: Path) -> None:
    final, unfinished, old = (tmp_path / name for name in ("last", "last.unfinished", "last.old"))
    for folder, text in ((final, "first"), (unfinished, "second")):
        folder.mkdir()
        (folder / "state").write_text(text)
    if moment != "before":
        os.replace(final, old)
    if moment == "after":
        os.replace(unfinished, final)
    assert (last_checkpoint(tmp_path) / "state").read_text() == ("second" if moment == "after" else "first")


def test_a_checkpoint_of_an_earlier_version_is_refused_and_nothing_in_it_is_unpickled(
    trained: Path, events: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    last = again / "checkpoints" / "last"
    (last / "state.safetensors").unlink()
    bomb = b"cos\nmkdir\n(V" + str(tmp_path / "harm").encode() + b"\ntR."
    for name in ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin"):
        (last / name).write_bytes(bomb)
    with pytest.raises(ValueError, match="held pickles, which can run code"):
        train(events, again, "--max_epochs", "8", "--resume")
    assert not (tmp_path / "harm").exists()


def test_the_only_good_checkpoint_is_never_deleted_before_the_next_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop between the renames `last.old` is the only one: replacing it must not begin with its deletion."""
    final, unfinished, old = (tmp_path / name for name in ("last", "last.unfinished", "last.old"))
    rename = os.replace
    for start in ({final: "1"}, {old: "1"}, {final: "1", old: "0"}):
        for folder in (final, unfinished, old):
            shutil.rmtree(folder, ignore_errors=True)
        for folder, text in {**start, unfinished: "2"}.items():
            folder.mkdir()
            (folder / "state").write_text(text)
        seen: list[set[str]] = []

        def watched(source: Path, target: Path, seen: list[set[str]] = seen) -> None:
            seen.append({(folder / "state").read_text() for folder in (final, old) if folder.exists()})
            rename(source, target)
            seen.append({(folder / "state").read_text() for folder in (final, old) if folder.exists()})

        monkeypatch.setattr(os, "replace", watched)
        replace_directory(unfinished, final)
        monkeypatch.setattr(os, "replace", rename)
        assert all(good & {"1", "2"} for good in seen)
        assert (final / "state").read_text() == "2"
        assert {path.name for path in tmp_path.iterdir()} == {"last"}


def test_resuming_without_a_checkpoint_says_so(events: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--resume: there is no checkpoint in .* start without --resume"):
        train(events, tmp_path, "--resume")


def test_resuming_with_other_settings_names_them_and_other_stopping_rules_are_free(
    events: Path, tmp_path: Path
) -> None:
    train(events, tmp_path, "--max_epochs", "1")
    with pytest.raises(ValueError, match=r"learning_rate: 0.01 then, 0.5 now.* start without --resume"):
        train(events, tmp_path, "--resume", "--learning_rate", "0.5")
    best = run_state(tmp_path)
    train(events, tmp_path, "--resume", "--max_epochs", "2")
    assert run_state(tmp_path) != best


def test_resuming_on_another_log_or_reading_it_otherwise_is_named(events: Path, tmp_path: Path) -> None:
    train(events, tmp_path / "out", "--max_epochs", "1")
    moved = shutil.copy(events, tmp_path / "moved.csv")
    with pytest.raises(ValueError, match=r"options of reading the log differ \(min_user_events: 1 then, 2 now\)"):
        train(events, tmp_path / "out", "--resume", "--min_user_events", "2")
    train(Path(moved), tmp_path / "out", "--resume", "--max_epochs", "1")
    lines = events.read_text().splitlines()
    other = tmp_path / "other.csv"
    other.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="the events are not those that it was training on"):
        train(other, tmp_path / "out", "--resume")


def test_the_learning_rate_warms_up_and_falls_only_when_asked() -> None:
    constant = [learning_rate(0.2, 4, "constant", step, 0.5) for step in (0, 1, 3, 9)]
    assert constant == pytest.approx([0.05, 0.1, 0.2, 0.2])
    linear = [learning_rate(0.2, 0, "linear", 9, progress) for progress in (0, 0.5, 1)]
    assert linear == pytest.approx([0.2, 0.11, 0.02])


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "random"], "--split random is unknown, expected time, leave_one_out or none"),
        (["--schedule", "cosine"], "--schedule cosine is unknown, expected constant or linear"),
        (["--precision", "fp8"], "--precision fp8 is unknown, expected auto, bf16 or no"),
        (["--tracker", "wandb"], "--tracker wandb is unknown, expected tensorboard"),
        (["--max_epochs", "0"], "--max_epochs is 0, expected at least 1"),
        (["--min_epochs", "-1"], "--min_epochs is -1, expected at least 0"),
        (["--min_epochs", "9", "--max_epochs", "5"], "--min_epochs is 9, expected at most --max_epochs 5"),
        (["--tokens_per_batch", "-5"], "--tokens_per_batch is -5, expected at least 1"),
        (["--max_minutes", "0"], "--max_minutes is 0.0, expected more than 0"),
        (["--max_minutes", "-1"], "--max_minutes is -1.0, expected more than 0"),
        (["--event_dropout", "3"], "--event_dropout is 3.0, expected at least 0 and less than 1"),
        (["--dropout", "1"], "--dropout is 1.0, expected at least 0 and less than 1"),
        (["--label_smoothing", "5"], "--label_smoothing is 5.0, expected at least 0 and less than 1"),
        (["--ema_decay", "2"], "--ema_decay is 2.0, expected at least 0 and less than 1"),
        (["--weight_decay", "-1"], "--weight_decay is -1.0, expected at least 0"),
        (["--num_negatives", "-1"], "--num_negatives is -1, expected at least 0"),
        (["--learning_rate", "0"], "--learning_rate is 0.0, expected more than 0"),
        (["--learning_rate", "nan"], "--learning_rate is nan, expected more than 0"),
        (["--learning_rate", "inf"], "--learning_rate is inf, expected more than 0"),
        (["--learning_rate", "1e9"], "the loss is nan at step .* lower --learning_rate"),
        (["--max_gradient_norm", "0"], "--max_gradient_norm is 0.0, expected more than 0"),
        (["--seed", "-1"], "--seed is -1, expected at least 0"),
        (["--text_size", "0"], "--text_size is 0, expected at least 1"),
        (["--min_item_count", "0"], "--min_item_count is 0, expected at least 1"),
        (["--test_targets", "-1"], "--test_targets is -1, expected at least 0"),
        (["--item_column", "sku"], "sku"),
        (["--shard_items"], "--shard_items divides the item table among processes, and got one"),
        (
            ["--shard_items", "--lora_r", "4", "--base_model", "x"],
            "--shard_items divides an item table that is trained",
        ),
    ],
)
def test_bad_arguments_are_named(events: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(events, tmp_path, *options)


@pytest.mark.parametrize(("steps", "how"), [(2, "nothing was kept yet, start again"), (9, "continue with --resume")])
def test_an_interrupted_run_says_where_it_is_and_how_to_continue(
    events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, how: str
) -> None:
    learned = AveragedWeights.update

    def interrupted(self: AveragedWeights, model: BertForNextBehavior, step: int) -> None:
        if step == steps:
            raise KeyboardInterrupt
        learned(self, model, step)

    monkeypatch.setattr(AveragedWeights, "update", interrupted)
    with pytest.raises(KeyboardInterrupt, match=rf"interrupted at step {steps}; {how}"):
        train(events, tmp_path, "--validation_steps", "4")
    monkeypatch.setattr(AveragedWeights, "update", learned)
    if steps > 4:
        train(events, tmp_path, "--validation_steps", "4", "--max_epochs", "1", "--resume")
        assert (tmp_path / "model.safetensors").exists()


def test_an_output_folder_that_is_a_file_is_one_line(events: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    end = end_of_command("train_accelerate.py", *options_of(events, tmp_path / "out"))
    assert re.fullmatch(r"train_accelerate.py: got --output_dir .*out, which is a file; expected a folder.*", str(end))


def test_a_second_run_in_one_folder_is_refused(events: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path / "checkpoints"), pytest.raises(ValueError, match="another run is writing"):
        train(events, tmp_path, "--max_epochs", "1")
    assert not (tmp_path / "prepared").exists()


def test_a_model_stays_whole_until_a_new_one_takes_its_place(
    trained: Path, events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    files = ("model.safetensors", "config.json", "tokenizer.json", "vocabulary.tsv", "run.json", "split.json")
    before = {name: (again / name).read_bytes() for name in files}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BertForNextBehavior, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        train(events, again, "--max_epochs", "8", "--resume")
    assert {name: (again / name).read_bytes() for name in files} == before


def test_events_and_output_are_required(capsys: Any) -> None:
    for given, missing in (("--events", "output_dir"), ("--output_dir", "events")):
        with pytest.raises(SystemExit):
            main([given, "x"])
        assert f"--{missing} is required" in capsys.readouterr().err


def test_a_bad_call_ends_in_one_line_without_a_traceback(tmp_path: Path) -> None:
    end = end_of_command("train_accelerate.py", *options_of(tmp_path / "nowhere.csv", tmp_path / "out"))
    assert re.fullmatch(r"train_accelerate.py: .*nowhere\.csv.*", str(end))


# -- two processes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a check of the launcher and of gloo; the arithmetic of shares is tested above by accumulation
def test_two_processes_train_one_model(events: Path, tmp_path: Path) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    options = options_of(events, tmp_path, "--max_epochs", "6", "--tokens_per_batch", "100")
    run_python(tmp_path, *launch, str(ROOT / "train_accelerate.py"), *options, anew=True)
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["model"]["kept"]["items"]["all"]["ndcg@10"] > 0.4


@pytest.mark.slow  # two interpreters that import everything
def test_two_processes_train_the_model_of_one_that_accumulates_as_many_batches(events: Path, tmp_path: Path) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    options = ("--dropout", "0", "--event_dropout", "0", "--max_epochs", "4")
    two = options_of(events, tmp_path / "two", *options, "--tokens_per_batch", "100")
    run_python(tmp_path, *launch, str(ROOT / "train_accelerate.py"), *two, anew=True)
    accumulated = (*options, "--tokens_per_batch", "200", "--gradient_accumulation_steps", "2")
    train(events, tmp_path / "one", *accumulated)
    states = [run_state(tmp_path / name) for name in ("one", "two")]
    assert states[0]["step"] == states[1]["step"] >= 20
    assert states[1]["kept_loss"] == pytest.approx(states[0]["kept_loss"], abs=1e-4)
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow  # two interpreters that import everything, twice
def test_two_processes_that_divide_the_item_table_train_the_model_of_one(events: Path, tmp_path: Path) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "train_accelerate.py"))
    options = ("--num_negatives", "20", "--validation_steps", "4")
    train(events, tmp_path / "one", *options, "--max_epochs", "4")
    two = options_of(events, tmp_path / "two", *options, "--shard_items")
    run_python(tmp_path, *launch, *two, "--max_epochs", "2", anew=True)
    run_python(tmp_path, *launch, *two, "--max_epochs", "4", "--resume", anew=True)
    states = [run_state(tmp_path / name) for name in ("one", "two")]
    assert states[0]["step"] == states[1]["step"] >= 20
    assert states[1]["kept_loss"] == pytest.approx(states[0]["kept_loss"], abs=1e-4)
    tables = [load_file(tmp_path / name / "model.safetensors")[ITEM_TABLE] for name in ("one", "two")]
    torch.testing.assert_close(tables[1], tables[0], rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )


def test_a_run_is_not_resumed_by_another_number_of_processes(trained: Path, events: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    record = last_checkpoint(again / "checkpoints") / "settings.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"readers": 2}))
    with pytest.raises(ValueError, match=r"1 process\(es\) would share its batches, and 2 did: start as many"):
        train(events, again, "--max_epochs", "8", "--resume")


def test_items_with_text_are_divided_only_where_negatives_are_sampled() -> None:
    config = BehaviorConfig(
        vocab_size=90, num_new_items=60, num_actions=5, num_time_gaps=6, hidden_size=8, num_attention_heads=1,
        num_hidden_layers=1, intermediate_size=8, text_size=4, text_encoder_size=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"add --num_negatives 4096 \(fewer than there are items\)"):
        shard_items(BertForNextBehavior(config), torch.device("cpu"), processes=2)


def test_fewer_events_lose_their_item_in_training_where_items_repeat(tmp_path: Path) -> None:
    def share(items: list[list[str]]) -> float:
        rows = [(f"u{user}", item, "view", time) for user, row in enumerate(items) for time, item in enumerate(row)]
        path = write_events(tmp_path / "log.csv", rows)
        settings = RunSettings(events=str(path), output_dir=str(tmp_path), split="none")
        reset_accelerate()
        accelerator = run.make_accelerator(settings, on_gpu=False)
        prepared = prepare_log(settings, ReadOptions(), accelerator, Phases(0.0, accelerator.print))
        return choose_sizes(settings, prepared.log.sequences, on_gpu=False).event_dropout

    assert share([list("abcd")] * 60) == pytest.approx(0.2)
    held_out = 20  # of the sixty second i, which are the latest tenth of the log: those of a third of the users
    assert share([list("abcdefghii")] * 60) == pytest.approx(540 / (600 - held_out) - 0.8)
    assert share([list("aabb")] * 60) == 0
