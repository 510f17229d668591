"""`train --continue`: a trained model learns newer events, with new items and actions, and keeps what it knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest
import torch
from processes import run_training
from tiny import load, save_bert, sequences_of, tiny_model, write_events

from next_behavior.commands.evaluate import main as evaluate
from next_behavior.commands.train import main
from next_behavior.data.batches import TrainingCollator, training_windows
from next_behavior.data.sequences import TEST, TRAIN, VALIDATION, Sequences
from next_behavior.data.splits import Split
from next_behavior.model.special_ids import IGNORED
from next_behavior.training.continuing import with_new_actions, with_rows
from next_behavior.training.start import Start
from next_behavior.training.state import BatchStream
from next_behavior.training.tokenized_log import TokenizedLog
from next_behavior.training.vocabulary import assemble

START = 1_700_000_000
DAY = 86_400
SMALL = [
    *("--tokens_per_batch", "200", "--warmup_steps", "5", "--learning_rate", "0.01", "--ema_decay", "0.9"),
    *("--precision", "no", "--cpu", "--max_epochs", "2"),
]
SHAPE = ["--hidden_size", "24", "--num_attention_heads", "3", "--num_hidden_layers", "1"]
Row = tuple[str, "str | None", str, int]


def rows_of(first_day: int, last_day: int, items: int, actions: tuple[str, ...]) -> list[Row]:
    """30 users, four events a day of each: round a circle of items."""
    generator = np.random.default_rng(first_day)
    rows: list[Row] = []
    for day in range(first_day, last_day):
        for user in range(30):
            place = int(generator.integers(items))
            for step in range(4):
                moment = START + day * DAY + user * 60 + step * 3600
                item = None if step == 3 and user % 5 == 0 else f"item {(place + step) % items}"
                rows.append((f"u{user}", item, actions[(step + user) % len(actions)], moment))
    return rows


OLD = rows_of(0, 6, 20, ("view", "buy"))
NEW = rows_of(6, 9, 26, ("view", "buy", "share"))


def title_of(number: int) -> str:
    words = ["red", "blue", "green", "lip", "balm", "shoe"]
    return f"{words[number % 6]} {words[number // 6 % 6]}"


def item_table(path: Path) -> Path:
    rows = [(f"item {number}", title_of(number)) for number in range(26)]
    pl.DataFrame(rows, schema=["item_id", "title"], orient="row").write_csv(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with item text, trained on the whole of an old log, and one trained on its first 80 %."""
    folder = tmp_path_factory.mktemp("continue")
    items = item_table(folder / "items.csv")
    encoder = save_bert(folder / "encoder")
    write_events(folder / "newer.csv", NEW)
    text = ["--items", str(items), "--text_encoder", encoder, "--text_size", "6"]
    old = write_events(folder / "old.csv", OLD)
    run_training(old, folder / "whole", *SMALL, *SHAPE, *text, "--split", "none")
    run_training(old, folder / "by_time", *SMALL, *SHAPE, *text)
    return folder


@pytest.fixture(scope="module")
def continued(folder: Path) -> Path:
    more = ["--continue", str(folder / "by_time"), "--items", str(folder / "items.csv")]
    return run_training(folder / "newer.csv", folder / "continued", *SMALL, *more)


@pytest.fixture(scope="module")
def continued_whole(folder: Path) -> Path:
    more = ["--continue", str(folder / "whole"), "--split", "none"]
    return run_training(folder / "newer.csv", folder / "continued_whole", *SMALL, *more)


def sequences_in(folder: Path) -> Sequences:
    _, tokenizer = load(folder)
    dataset = datasets.Dataset.load_from_disk(str(folder / "prepared"))
    return Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)


def test_a_model_learns_new_items_and_actions_and_keeps_the_old_ids(folder: Path, continued: Path) -> None:
    _, before = load(folder / "by_time")
    model, tokenizer = load(continued)
    assert tokenizer.item_vocabulary[: len(before.item_vocabulary)] == before.item_vocabulary
    assert set(tokenizer.item_vocabulary) == {f"item {n}" for n in range(26)}
    assert tokenizer.action_vocabulary == [*before.action_vocabulary, "share"]
    assert tokenizer.title("item 25") == title_of(25)
    assert model.config.num_actions == tokenizer.num_actions
    assert model.config.id2label[tokenizer.encode_action("share")] == "share"
    ranked = model.predict(**tokenizer([{"item": "item 21", "action": "share"}], return_tensors="pt"), top_k=99)
    assert set(ranked.action_ids[0].tolist()) >= {tokenizer.encode_action(a) for a in ("view", "buy", "share")}
    assert float(ranked.probabilities.sum()) == pytest.approx(1, abs=1e-4)


def test_its_log_holds_each_event_of_both_logs_once(folder: Path, continued: Path) -> None:
    assert len(sequences_in(continued).items) == len(OLD) + len(NEW)
    both = write_events(folder / "both.csv", [*OLD, *NEW])
    again = run_training(both, folder / "both", *SMALL, "--continue", str(folder / "by_time"))
    ours, theirs = sequences_in(continued), sequences_in(again)
    for column in ("items", "actions", "time_gaps", "timestamps", "parts", "offsets"):
        np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column))


def test_what_was_learned_trains_and_only_later_events_are_tested(folder: Path, continued: Path) -> None:
    before, after = load(folder / "by_time")[0].config.learned_until, load(continued)[0].config.learned_until
    sequences = sequences_in(continued)
    assert before < after
    assert sequences.timestamps[sequences.parts == TRAIN].max() == after
    assert (sequences.timestamps[sequences.parts > TRAIN] > before).all()
    assert {VALIDATION, TEST} <= set(sequences.parts.tolist())


def test_the_memory_has_counted_each_training_event_once(folder: Path, continued: Path, continued_whole: Path) -> None:
    """As a memory that has counted the same events at once."""
    for out, last_part in ((continued, TRAIN), (continued_whole, VALIDATION)):
        sequences, memory = sequences_in(out), load(out)[0].associate_path
        items, _, _ = sequences.runs(sequences.parts <= last_part)
        counts = np.bincount(items, minlength=len(memory.item_counts))
        np.testing.assert_array_equal(counts, memory.item_counts.numpy())
    sequences, memory = sequences_in(continued), load(continued)[0].associate_path
    fresh = load(folder / "by_time")[0].associate_path
    items, users, _ = sequences.runs(sequences.parts == TRAIN)
    for name, table in fresh.named_buffers(recurse=False):
        setattr(fresh, name, table[:0] if name.startswith("pair") else torch.zeros_like(table))
    fresh.count(torch.from_numpy(items), torch.from_numpy(users), trained=True)
    assert torch.equal(memory.pair_keys, fresh.pair_keys)
    assert torch.equal(memory.pair_counts, fresh.pair_counts)


def test_the_vocabulary_says_how_often_each_item_was_learned(continued: Path) -> None:
    _, tokenizer = load(continued)
    sequences = sequences_in(continued)
    counts = np.bincount(sequences.items[sequences.parts == TRAIN], minlength=len(tokenizer))
    ids = range(tokenizer.first_item_id, len(tokenizer))
    assert [tokenizer.count_of(index) for index in ids] == [int(counts[index]) for index in ids]


def test_a_folder_without_its_log_learns_what_is_later(folder: Path, continued_whole: Path, tmp_path: Path) -> None:
    source = shutil.copytree(folder / "whole", tmp_path / "hub", ignore=shutil.ignore_patterns("prepared"))
    both = write_events(tmp_path / "both.csv", [*OLD, *NEW])
    out = run_training(both, tmp_path / "out", *SMALL, "--continue", str(source), "--split", "none")
    assert (out / "model.safetensors").read_bytes() == (continued_whole / "model.safetensors").read_bytes()


def test_weights_that_new_events_make_worse_stay_as_they_were(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--continue", str(folder / "whole"), "--split", "none", "--max_epochs", "2", "--ema_decay", "0"]
    out = run_training(folder / "newer.csv", tmp_path / "out", *SMALL, *more, "--learning_rate", "30")
    assert "step 0 is kept" in capfd.readouterr().out
    old, new = load(folder / "whole")[0].state_dict(), load(out)[0].state_dict()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(old[name], new[name])


def test_the_new_model_is_compared_with_the_old_one_on_what_neither_has_seen(
    folder: Path, continued: Path, continued_whole: Path
) -> None:
    both = write_events(folder / "both.csv", [*OLD, *NEW])
    call = ["--model", str(folder / "by_time"), "--model", str(continued), "--events", str(both)]
    evaluate([*call, "--json", str(folder / "pair.json")])
    result = json.loads((folder / "pair.json").read_text())
    assert result["split"] == json.loads((continued / "split.json").read_text())
    assert [pair["models"] for pair in result["pairs"]] == [["model by_time", "model continued"]]
    # A model of a whole log is tested on what came after it.
    evaluate(["--model", str(folder / "whole"), "--events", str(both), "--json", str(folder / "later.json")])
    later = json.loads((folder / "later.json").read_text())
    assert later["split"]["test_cut"] == load(folder / "whole")[0].config.learned_until
    assert later["all_targets"] == len(NEW)
    with pytest.raises(ValueError, match=r"trained on its whole log, until 2023-.*later ones"):
        evaluate(["--model", str(continued_whole), "--events", str(both)])


def test_a_late_event_is_learned_and_never_tested(folder: Path, tmp_path: Path) -> None:
    late: list[Row] = [("u1", "item 3", "view", START + 7), ("u1", "item 4", "view", START + 7)]
    newer = write_events(tmp_path / "newer.csv", [*NEW, *late, OLD[0]])
    out = run_training(newer, tmp_path / "out", *SMALL, "--continue", str(folder / "whole"))
    sequences = sequences_in(out)
    place = np.flatnonzero(sequences.timestamps == (START + 7) * 1_000_000)
    assert len(place) == 2
    assert set(sequences.parts[place].tolist()) == {TRAIN}
    assert len(sequences.items) == len(OLD) + len(NEW) + 2


@pytest.mark.parametrize(
    ("events", "options", "message"),
    [
        (OLD, ["--split", "none"], "has all learned, the newest at 2023-1"),
        (NEW[:2], [], "three different times"),
        (NEW, ["--base_model", "there"], "leave out --base_model"),
        (NEW, ["--hidden_size", "8"], "leave out --hidden_size"),
        (NEW, ["--split", "leave_one_out"], "--split time or --split none"),
    ],
)
def test_what_cannot_be_gone_on_with_is_said(
    folder: Path, tmp_path: Path, events: list[Row], options: list[str], message: str
) -> None:
    log = write_events(tmp_path / "log.csv", events)
    call = ["--events", str(log), "--output_dir", str(tmp_path / "out"), "--continue", str(folder / "whole")]
    with pytest.raises(ValueError, match=message):
        main([*call, *SMALL, *options])


def test_another_folder_is_needed_and_one_with_a_model(folder: Path, tmp_path: Path) -> None:
    events = ["--events", str(folder / "newer.csv")]
    with pytest.raises(ValueError, match="the folder of --continue"):
        main([*events, "--output_dir", str(folder / "whole"), "--continue", str(folder / "whole")])
    with pytest.raises(ValueError, match=r"no config\.json"):
        main([*events, "--output_dir", str(tmp_path / "out"), "--continue", str(tmp_path)])
    bare = shutil.copytree(folder / "whole", tmp_path / "bare", ignore=shutil.ignore_patterns("prepared"))
    text = (bare / "config.json").read_text().replace('"learned_until"', '"learned_until_"')
    (bare / "config.json").write_text(text)
    with pytest.raises(ValueError, match="no learned_until"):
        main([*events, "--output_dir", str(tmp_path / "out"), "--continue", str(bare), *SMALL])


def test_windows_of_new_events_read_learned_ones_and_predict_none_of_them() -> None:
    users: Any = [[(9 + n % 5, 3, TRAIN) for n in range(count)] for count in (12, 5, 3)]
    sequences = sequences_of(users, 20, 9)
    learned = np.array([True] * 9 + [False] * 3 + [True] * 5 + [False] * 3)
    windows = training_windows(sequences, 4, learned)
    collator = TrainingCollator(sequences, windows, np.ones(20, dtype=np.int64), hide_share=0.0, start_share=0.0)
    targets = np.zeros(len(sequences.items), dtype=int)
    for index in np.flatnonzero(~windows.learned):
        start, stop = int(windows.start[index]), int(windows.stop[index])
        labels = collator(np.array([index]), np.random.default_rng(0))["labels"][0]
        targets[start + 1 : stop] += (labels != IGNORED)[-(stop - start - 1) :] if stop - start > 1 else 0
        assert stop - start <= 5
    # Each new event is predicted once, but a user's first one, which has nothing before it.
    assert targets.tolist() == [0] * 9 + [1] * 3 + [0] * 5 + [0, 1, 1]


def test_an_epoch_has_all_new_events_and_the_share_of_old_ones_that_is_asked_for() -> None:
    users: Any = [[(9 + n % 5, 3, TRAIN) for n in range(8)] for _ in range(100)]
    learned = np.repeat(np.arange(100) < 80, 8)
    log = TokenizedLog(sequences_of(users, 20, 9), Split("none"), 8, learned)
    stream = BatchStream(log, 64, 0, old_share=0.25)
    epochs = [np.sort(np.concatenate(stream.batches(epoch))) for epoch in range(2)]
    for windows in epochs:
        old = stream.collator.windows.learned[windows]
        assert (~old).sum() == 20
        assert old.sum() == round(20 / 3)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_rows_of_a_new_action_are_the_mean_of_those_there_are() -> None:
    table = torch.tensor([[0.0, 9.0], [9.0, 9.0], [9.0, 9.0], [1.0, 2.0], [3.0, 4.0]])
    grown = with_rows(table, torch.Size([6, 2]))
    assert torch.equal(grown[:5], table)
    assert grown[5].tolist() == [2.0, 3.0]
    square = torch.arange(25.0).reshape(5, 5)
    assert torch.equal(with_rows(square, torch.Size([7, 7]))[:5, 5], square[:, 3:].mean(dim=1))


def test_a_calibrated_model_answers_with_a_new_action() -> None:
    tokenizer = assemble([str(number) for number in range(9)], ["view", "buy"], [60.0], num_new_items=2, max_length=8)
    bias = np.random.default_rng(0).normal(size=(5, 5)).tolist()
    model = tiny_model(tokenizer, action_weights=[0.0, 0.0, 0.0, 1.0, -1.0], action_bias=bias)
    history = [{"item": "3", "action": "buy"}, {"item": "4", "action": "view"}]
    _, _, first = model.predict(**tokenizer(history, return_tensors="pt"), of="action").to_tuple()
    before = first[0].tolist()
    events = pl.DataFrame({"action": ["view", "share"]})
    grown = with_new_actions(Start("shop", behavior=model), tokenizer, events).behavior
    assert grown is not None
    ranked = grown.predict(**tokenizer(history, return_tensors="pt"), of="action", balanced=True)
    _, action_ids, probabilities = ranked.to_tuple()
    after = dict(zip(action_ids[0].tolist(), probabilities[0].tolist(), strict=True))
    assert set(after) == {3, 4, 5}
    # The old actions keep their proportion.
    assert after[3] / after[4] == pytest.approx(before[0] / before[1]) or after[4] / after[3] == pytest.approx(
        before[0] / before[1]
    )


def test_the_command_names_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--continue CONTINUE" in capsys.readouterr().out.replace("\n", " ")
