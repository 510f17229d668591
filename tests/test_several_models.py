"""Several models: compared on the same targets by the user's own ids, and averaged, by probabilities or by weights."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny import load, tiny_model, write_events

from next_behavior.commands import average
from next_behavior.commands.evaluate import main
from next_behavior.data.batches import evaluation_batches
from next_behavior.data.events import read_events
from next_behavior.data.sequences import TEST, TRAIN
from next_behavior.data.splits import Split, assign_parts, make_split
from next_behavior.evaluation.comparison import compare_pair
from next_behavior.evaluation.evaluator import evaluate_folder
from next_behavior.evaluation.leaks import Leak
from next_behavior.evaluation.rankers import ModelRanker
from next_behavior.evaluation.several_models import common_split, evaluate_folders, names_of
from next_behavior.evaluation.shared_catalog import Ensemble, SharedCatalog, SharedRanker, log_in_ids
from next_behavior.evaluation.tables import format_table
from next_behavior.model.special_ids import FIRST_ACTION
from next_behavior.training.averaging import TEMPERATURES, averaged, check_splits
from next_behavior.training.vocabulary import build_tokenizer

HOSTILE = "[PAD]|<script>alert(1)</script>"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve users who walk through nine items, with a search between; one item and one action have hostile names."""
    generator = np.random.default_rng(0)
    rows = []
    for user in range(12):
        item = int(generator.integers(9))
        for step in range(8):
            searches = generator.random() < 0.2
            name = HOSTILE if item == 8 else f"i{item}"
            action = "search" if searches else "view" if step % 3 else "<b>buy</b>"
            rows.append((f"u{user}", None if searches else name, action, 1_700_000_000 + 600 * step + user))
            item = (item + int(generator.integers(0, 3))) % 9
    return write_events(tmp_path_factory.mktemp("events") / "events.csv", rows)


@pytest.fixture(scope="module")
def split(path: Path) -> Split:
    return make_split(read_events(str(path)).events, "time")


@pytest.fixture(scope="module")
def events(path: Path, split: Split) -> pl.DataFrame:
    return assign_parts(read_events(str(path)).events, split)


def save(folder: Path, events: pl.DataFrame, split: Split, num_new_items: int, max_length: int, **sizes: Any) -> Path:
    """An untrained model of the events, beside its tokenizer and its split, as training leaves them."""
    tokenizer = build_tokenizer(events, num_new_items=num_new_items, max_length=max_length)
    tokenizer.save_pretrained(folder)
    # Far from uniform, so that models differ.
    model = tiny_model(tokenizer, initializer_range=0.5, **sizes)
    model.save_pretrained(folder)
    (folder / "split.json").write_text(json.dumps(split.to_dict()))
    return folder


@pytest.fixture(scope="module")
def folders(events: pl.DataFrame, split: Split, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of all items and actions, and one that knows fewer, in another order, with other lengths and slots."""
    root = tmp_path_factory.mktemp("models")
    train = events.filter(pl.col("part") == TRAIN)
    few = train.filter(~pl.col("item_id").is_in(["i1", "i2", "i6"]) & (pl.col("action") != "search")).reverse()
    weights = [0.0, 0.0, 0.0, 0.0, 1.0]
    return save(root / "whole", train, split, 3, 6), save(
        root / "few", few, split, 2, 5, hidden_size=16, action_weights=weights
    )


@pytest.fixture(scope="module")
def result(folders: tuple[Path, Path], events: pl.DataFrame, split: Split) -> dict[str, Any]:
    return evaluate_folders(folders, events, split, ensemble=True, progress=False)


def test_a_model_has_the_same_ranks_in_the_shared_catalog_as_in_its_own(
    folders: tuple[Path, Path], events: pl.DataFrame, split: Split, result: dict[str, Any]
) -> None:
    for folder, name in zip(folders, names_of(folders), strict=True):
        alone = evaluate_folder(folder, events, split, None, None, seed=0)["model"]
        for way in ("kept", "removed"):
            for metric in ("count", "recall@1", "recall@5", "ndcg@5", "mrr"):
                expected = alone[way]["items"]["all"][metric]
                assert result[name][way]["items"]["all"][metric] == pytest.approx(expected), (name, way, metric)
        assert result[name]["actions"]["accuracy"] == alone["actions"]["accuracy"]


def test_each_model_is_audited_and_a_leak_names_its_model(
    folders: tuple[Path, Path], events: pl.DataFrame, split: Split, result: dict[str, Any], tmp_path: Path
) -> None:
    assert "vocabulary.tsv counts the training events" in result["folders"]["model whole"]["audit"]["checked"]
    assert "Leak audit of model few passed: " in format_table(result)
    leaked = save(tmp_path / "leaked", events, split, 3, 6)  # its vocabulary was made from all events
    with pytest.raises(Leak, match=r"--model .*leaked: got a model whose vocabulary.tsv counts \d+ tested events"):
        evaluate_folders([folders[0], leaked], events, split, progress=False)


def test_baselines_stand_once_and_every_pair_is_compared(result: dict[str, Any]) -> None:
    models = ["model whole", "model few", "ensemble"]
    assert result["models"] == models
    assert result["rankers"].count("popularity") == 1
    assert [pair["models"] for pair in result["pairs"]] == [models[:2], [models[0], "ensemble"], models[1:]]
    assert set(result["comparisons"]) == set(models)
    for comparison in result["comparisons"].values():
        assert {row["best_baseline"] for row in comparison}.isdisjoint([*models, "model few, balanced"])
    assert result["folders"]["model few"]["known_items"] < result["items"]


def test_a_difference_is_that_of_the_rows_and_its_interval_is_paired(result: dict[str, Any]) -> None:
    pair = result["pairs"][0]
    row = next(row for row in pair["metrics"] if (row["group"], row["metric"]) == ("all", "ndcg@10"))
    first, second = (result[name]["kept"]["items"]["all"]["ndcg@10"] for name in pair["models"])
    assert row["difference"] == pytest.approx(first - second)
    low, high = row["difference_interval"]
    assert low <= row["difference"] <= high


def probability_of(ranker: ModelRanker, tokenizer: Any, batch: Any, row: int) -> dict[str, float]:
    """The probability of every item that the model knows, by the user's id."""
    scores = ranker.scores(batch).double().exp()
    return {item: float(scores[row, tokenizer.encode_item(item)]) for item in tokenizer.item_vocabulary}


def test_an_ensemble_is_the_mean_of_the_probabilities_by_item_id_and_action_name(
    folders: tuple[Path, Path], events: pl.DataFrame
) -> None:
    loaded = [load(folder) for folder in folders]
    shared = SharedCatalog.of([tokenizer for _, tokenizer in loaded])
    rankers = [ModelRanker(model) for model, _ in loaded]
    members = [
        SharedRanker(ranker, ranker, tokenizer, shared, events, TEST)
        for ranker, (_, tokenizer) in zip(rankers, loaded, strict=True)
    ]
    own_ids = members[1].moved_rows(np.arange(len(loaded[1][1]))[:, None])[:, 0]
    for item, own_id in zip(shared.item_vocabulary, own_ids[shared.first_item_id :].tolist(), strict=True):
        assert own_id == (loaded[1][1].encode_item(item) if item in loaded[1][1].item_vocabulary else 0)
    ensemble, logs = Ensemble(members), [log_in_ids(events, tokenizer) for _, tokenizer in loaded]
    (batch,) = evaluation_batches(log_in_ids(events, shared), TEST, shared.model_max_length, 100)
    scores = ensemble.scores(batch).double().exp()
    actions = ensemble.action_probabilities(batch)
    assert torch.allclose(scores.sum(dim=1), torch.ones(len(batch), dtype=torch.float64), atol=1e-5)
    assert np.allclose(actions.sum(axis=1), 1)
    for row in range(len(batch)):
        said = []
        for ranker, (_, tokenizer), own in zip(rankers, loaded, logs, strict=True):
            positions = batch.position[row : row + 1]
            (one,) = evaluation_batches(own, TEST, tokenizer.model_max_length, 1, positions=positions)
            # An item of the history that the model does not know has a slot there.
            named = probability_of(ranker, tokenizer, one, 0)
            slots = ranker.scores(one).double().exp()[0]
            for column in range(1, one.input_ids.shape[1] + 1):
                slot, code = int(one.input_ids[0, -column]), int(batch.input_ids[row, -column])
                if 4 <= slot < tokenizer.first_item_id and code >= shared.first_item_id:
                    named[shared.item_vocabulary[code - shared.first_item_id]] = float(slots[slot])
            said.append((named, ranker.action_probabilities(one)[0], tokenizer))
        for place, item in enumerate(shared.item_vocabulary):
            mean = sum(named.get(item, 0.0) for named, _, _ in said) / 2
            assert float(scores[row, shared.first_item_id + place]) == pytest.approx(mean, abs=1e-6), item
        for place, action in enumerate(shared.action_vocabulary):
            known = [(own, tokenizer) for _, own, tokenizer in said if action in tokenizer.action_vocabulary]
            mean = sum(own[tokenizer.encode_action(action)] for own, tokenizer in known) / 2
            assert actions[row, FIRST_ACTION + place] == pytest.approx(mean, abs=1e-6), action


def test_the_order_of_the_models_changes_the_sign_alone() -> None:
    rows: dict[str, Any] = {
        name: {"actions": {"accuracy": value, "macro_f1": value, "log_loss": 1 - value, "recall": {"a": 1, "b": 1}}}
        for name, value in (("model a", 0.75), ("model b", 0.5))
    }
    one, other = compare_pair(rows, {}, "model a", "model b"), compare_pair(rows, {}, "model b", "model a")
    assert [row["difference"] for row in one["metrics"]] == [0.25, 0.25, 0.25]  # a lower log-loss is better
    assert [row["difference"] for row in other["metrics"]] == [-0.25, -0.25, -0.25]
    # Without an interval nothing is certain.
    assert "cannot tell which of model a and model b is better" in one["sentences"][0]


def test_a_model_and_its_copy_cannot_be_told_apart(
    folders: tuple[Path, Path], path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folders[0], tmp_path / "copy")
    target = tmp_path / "both.json"
    main(["--model", str(folders[0]), "--model", str(copy), "--events", str(path), "--json", str(target)])
    result = json.loads(target.read_text())
    assert all(row["difference"] == 0 and row["better"] is None for row in result["pairs"][0]["metrics"])
    assert "this log cannot tell which of model whole and model copy is better" in capsys.readouterr().out.replace(
        "\n    ", " "
    )
    tables = target.with_suffix(".md").read_text()
    assert "The models against each other" in tables
    assert "The model whole against the best baseline" in tables


def test_the_tables_say_what_a_model_does_not_know(result: dict[str, Any]) -> None:
    text = format_table(result)
    known, all_items = result["folders"]["model few"]["known_items"], result["items"]
    assert f"- model few: knows {known} of the {all_items} items that are ranked" in text
    assert "- ensemble: the mean of the probabilities" in text


def test_models_of_different_splits_are_refused_unless_a_split_is_asked_for(
    folders: tuple[Path, Path], path: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folders[1], tmp_path / "other")
    (other / "split.json").write_text(json.dumps(Split("leave_one_out").to_dict()))
    log = read_events(str(path)).events
    with pytest.raises(ValueError, match=r"different splits.*whole: time.*other: leave_one_out.*--split"):
        common_split([folders[0], other], log, None)
    with pytest.warns(UserWarning, match="differs from the split that the model was trained with"):
        assert common_split([folders[0], other], log, "time").how == "time"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert common_split(folders, log, None).how == "time"


def test_the_same_folder_twice_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="expected different ones"):
        names_of([folders[0], folders[0]])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ensemble"], "got one --model, expected several"),
        (["--json", "a.html"], "--json a.html: expected another ending"),
        (["--update_memory", "--model", "b"], "got several models"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "a", "--events", "e.csv", *flags])
    assert message in capsys.readouterr().err


def test_a_result_file_that_is_named_as_a_folder_is_refused(folders: tuple[Path, Path], path: Path) -> None:
    with pytest.raises(ValueError, match=r"got --json .*results, which is a folder; expected a file"):
        main(["--model", str(folders[0]), "--events", str(path), "--json", f"{path.parent}/results/"])


# The mean of weights


def test_the_mean_of_weights_is_exact_and_that_of_a_model_and_itself_is_the_model(folders: tuple[Path, Path]) -> None:
    model, tokenizer = load(folders[0])
    more, less = copy.deepcopy(model), copy.deepcopy(model)
    for name, weight in more.named_parameters():
        change = 0.25 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        weight.data += change
        dict(less.named_parameters())[name].data -= change
    more.config.item_temperature, less.config.item_temperature = 0.8, 1.25
    mean = averaged([(more, tokenizer), (less, tokenizer)], ["more", "less"])
    assert mean.config.item_temperature == pytest.approx(1.0)
    for name, weight in mean.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-6, rtol=0)
    batch = tokenizer([[{"item": "i3", "action": "view", "timestamp": 1_700_000_000}]], return_tensors="pt")
    torch.testing.assert_close(mean(**batch).item_logits, model(**batch).item_logits, atol=1e-4, rtol=0)
    for name, weight in averaged([(model, tokenizer)] * 2, ["a", "b"]).state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_models_that_have_no_mean_are_refused_with_the_reason(
    folders: tuple[Path, Path], events: pl.DataFrame, split: Split, tmp_path: Path
) -> None:
    one, few = load(folders[0]), load(folders[1])
    with pytest.raises(ValueError, match="have different vocabularies"):
        averaged([one, few], ["one", "few"])
    train = events.filter(pl.col("part") == TRAIN)
    wider = load(save(tmp_path / "wider", train, split, 3, 6, hidden_size=24))
    with pytest.raises(ValueError, match=r"differ in their architecture \(hidden_size: 20 in one, 24 in wider"):
        averaged([one, wider], ["one", "wider"])
    other = copy.deepcopy(one[0])
    other.associate_path.item_counts += 1
    with pytest.raises(ValueError, match="whose memories have counted different events"):
        averaged([one, (other, one[1])], ["one", "other"])
    with pytest.raises(ValueError, match="got 1 models to average"):
        averaged([one], ["one"])


def test_models_of_different_splits_are_not_averaged(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(folders[0], tmp_path / "other")
    (other / "split.json").write_text(json.dumps(Split("leave_one_out").to_dict()))
    with pytest.raises(ValueError, match="different splits"):
        check_splits([folders[0], other])


def test_the_command_averages_fits_anew_and_writes_a_folder_that_loads_and_is_evaluated(
    folders: tuple[Path, Path], path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(folders[0], tmp_path / "copied")
    output = tmp_path / "average"
    both = ["--model", str(folders[0]), "--model", str(copied)]
    average.main([*both, "--output_dir", str(tmp_path / "plain")])
    plain, _ = load(tmp_path / "plain")
    assert [getattr(plain.config, name) for name in TEMPERATURES] == pytest.approx([1.0] * len(TEMPERATURES))
    average.main([*both, "--events", str(path), "--output_dir", str(output)])
    printed = capsys.readouterr().out
    assert "average: NDCG@10" in printed
    fitted, _ = load(output)
    assert [getattr(fitted.config, name) for name in TEMPERATURES] != pytest.approx([1.0] * len(TEMPERATURES))
    assert json.loads((output / "run.json").read_text())["averaged"]["models"] == ["whole", "copied"]
    main(["--model", str(output), "--events", str(path), "--json", str(tmp_path / "r.json")])
    with pytest.raises(ValueError, match="expected a new folder"):
        average.main([*both, "--output_dir", str(output)])
