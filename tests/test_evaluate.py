"""Evaluation: what is counted where, for rankers that are known to be right or wrong; the table and the command."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny import load, sequences_of, tiny_model, write_events

from next_behavior.commands.evaluate import main
from next_behavior.data.batches import EvaluationBatch, evaluation_batches
from next_behavior.data.events import read_events
from next_behavior.data.known import check_known
from next_behavior.data.sequences import TEST, TRAIN, VALIDATION, Sequences, encode_events
from next_behavior.data.splits import Split, assign_parts, make_split, recorded_split
from next_behavior.evaluation.evaluator import evaluate, evaluate_model
from next_behavior.evaluation.item_baselines import Popularity, RepeatLast
from next_behavior.evaluation.leaks import Leak
from next_behavior.evaluation.rankers import UPDATED, ItemRanker, ModelRanker, UpdatedModelRanker
from next_behavior.evaluation.ranking import best_ids, last_items, rows_per_batch
from next_behavior.evaluation.summary import in_three_lines
from next_behavior.evaluation.tables import format_table
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import FIRST_NEW, NONE
from next_behavior.training import calibration
from next_behavior.training.vocabulary import build_tokenizer

FIRST_ITEM, VOCAB = 6, 31
A, B, C, D = FIRST_ITEM, FIRST_ITEM + 1, FIRST_ITEM + 2, FIRST_ITEM + 3
NEW_1 = FIRST_NEW
UNKNOWN, OTHER_UNKNOWN = VOCAB, VOCAB + 1
VIEW, BUY = 3, 4
ACTIONS = ["view", "buy"]
log = partial(sequences_of, vocab_size=VOCAB, first_item_id=FIRST_ITEM)


# Every kind of target: a repeat, a novel and a cold one, a repeat of an unknown item, and one that names no item.
LOG = log(
    [
        [(A, VIEW, TRAIN), (B, VIEW, TRAIN), (A, BUY, TEST), (C, VIEW, TEST)],
        [(C, VIEW, TRAIN), (D, BUY, TRAIN), (UNKNOWN, VIEW, TEST), (UNKNOWN, BUY, TEST)],
        [(D, VIEW, TRAIN), (D, VIEW, VALIDATION), (NONE, VIEW, TEST), (OTHER_UNKNOWN, VIEW, TEST)],
    ]
)
COUNTS = {"all": 5, "repeat": 2, "novel": 1, "cold": 2, "switch": 4}


class Oracle:
    """Gives the target, where it can be named, the highest score."""

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = Constant().scores(batch)
        rows = np.flatnonzero(batch.target_item >= FIRST_NEW)
        scores[rows, batch.target_item[rows]] = 1
        return scores


class Constant:
    """Scores all candidates alike."""

    def scores(self, batch: EvaluationBatch) -> np.ndarray:
        scores = np.zeros((len(batch), VOCAB), dtype=np.float32)
        scores[:, :FIRST_ITEM] = -np.inf
        rows, columns = np.nonzero((batch.input_ids >= FIRST_NEW) & (batch.input_ids < FIRST_ITEM))
        scores[rows, batch.input_ids[rows, columns]] = 0
        return scores


class Knower:
    """Gives the right action a probability of its own."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def action_probabilities(self, batch: EvaluationBatch) -> np.ndarray:
        probabilities = np.full((len(batch), 5), 1 - self.probability)
        probabilities[:, :3] = 0
        probabilities[np.arange(len(batch)), batch.target_action] = self.probability
        return probabilities


def evaluated(
    item_rankers: Mapping[str, ItemRanker],
    sequences: Sequences = LOG,
    max_length: int = 50,
    batch_size: int | None = None,
    max_targets: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    return evaluate(
        sequences,
        TEST,
        item_rankers,
        {"good": Knower(0.9), "bad": Knower(0.2)},
        max_length=max_length,
        batch_size=batch_size,
        max_targets=max_targets,
        seed=seed,
        actions=ACTIONS,
        progress=False,
    )


def test_every_target_is_counted_in_its_group() -> None:
    row = evaluated({"oracle": Oracle()})["oracle"]
    assert {group: metrics["count"] for group, metrics in row["kept"]["items"].items()} == COUNTS
    removed = {group: metrics["count"] for group, metrics in row["removed"]["items"].items()}
    assert removed == {"all": 3, "repeat": 0, "novel": 1, "cold": 2, "switch": 3}


def test_an_oracle_is_perfect_but_for_cold_targets() -> None:
    row = evaluated({"oracle": Oracle()})["oracle"]
    kept, removed = row["kept"]["items"], row["removed"]["items"]
    for metric in ("recall@1", "ndcg@10", "mrr"):
        assert kept["repeat"][metric] == kept["novel"][metric] == removed["novel"][metric] == 1
        assert kept["cold"][metric] == removed["cold"][metric] == 0
        assert kept["all"][metric] == pytest.approx(3 / 5)
        assert removed["all"][metric] == pytest.approx(1 / 3)
        assert removed["repeat"][metric] is None


def test_a_ranker_without_an_opinion_hits_nothing() -> None:
    row = evaluated({"constant": Constant()})["constant"]
    assert row["kept"]["items"]["all"]["recall@20"] == 0
    assert row["removed"]["items"]["all"]["recall@20"] == 0


def test_seen_items_are_out_of_the_way_when_removed() -> None:
    # Popular first: A, then B; the target C comes third until A and B, which the user has seen, are gone.
    sequences = log([[(A, VIEW, TRAIN)] * 3 + [(B, VIEW, TRAIN)] * 2 + [(C, VIEW, TEST)], [(C, VIEW, TRAIN)]])
    row = evaluated({"popularity": Popularity().fit(sequences)}, sequences)["popularity"]
    assert row["kept"]["items"]["novel"]["mrr"] == pytest.approx(1 / 3)
    assert row["removed"]["items"]["novel"]["mrr"] == 1


def test_all_that_the_user_ever_saw_is_removed_not_only_the_window() -> None:
    sequences = log([[(A, VIEW, TRAIN)] * 3 + [(B, VIEW, TRAIN)] * 2 + [(C, VIEW, TEST)], [(C, VIEW, TRAIN)]])
    row = evaluated({"popularity": Popularity().fit(sequences)}, sequences, max_length=1)["popularity"]
    assert row["removed"]["items"]["novel"]["mrr"] == 1


def test_repeat_last_finds_an_item_that_training_never_saw() -> None:
    row = evaluated({"repeat_last": RepeatLast().fit(LOG)})["repeat_last"]
    # Of the two repeats one is the unknown item just seen, the other the item before last.
    assert row["kept"]["items"]["repeat"]["mrr"] == pytest.approx((1 + 1 / 2) / 2)


def test_coverage_counts_what_was_recommended_to_anyone() -> None:
    row = evaluated({"oracle": Oracle(), "popularity": Popularity().fit(LOG)})
    assert row["popularity"]["kept"]["coverage@10"] <= 11 / (VOCAB - FIRST_ITEM)
    assert 0 < row["oracle"]["kept"]["coverage@10"] <= 1


def test_actions_are_counted_on_every_target_also_those_without_an_item() -> None:
    result = evaluated({"oracle": Oracle()})
    assert result["targets"] == 6
    assert result["item_targets"] == 5
    good = result["good"]["actions"]
    assert good["count"] == 6
    assert good["accuracy"] == good["macro_f1"] == 1
    assert good["ece"] == pytest.approx(0.1)
    assert good["recall"] == {"view": 1, "buy": 1}
    # Targets whose action is not the one before: A BUY, C VIEW, UNKNOWN VIEW, UNKNOWN BUY.
    assert good["changes"]["count"] == 4
    assert result["bad"]["actions"]["accuracy"] == 0


MOSTLY_REPEATS = log([[(A, VIEW, TRAIN), (B, VIEW, TRAIN)] + [(A, VIEW, TEST)] * 4, [*[(C, BUY, TRAIN)] * 2],
                      [(A, VIEW, TRAIN), (C, BUY, TEST)]])  # fmt: skip


@pytest.mark.parametrize("sequences", [LOG, MOSTLY_REPEATS])
def test_the_batch_size_changes_nothing(sequences: Sequences) -> None:
    rankers: dict[str, ItemRanker] = {"oracle": Oracle(), "popularity": Popularity().fit(sequences)}
    one, many = evaluated(rankers, sequences, batch_size=1), evaluated(rankers, sequences, batch_size=100)
    for name in rankers:
        for way in ("kept", "removed"):
            assert one[name][way]["coverage@10"] == many[name][way]["coverage@10"]
            for group, metrics in one[name][way]["items"].items():
                other = many[name][way]["items"][group]
                for metric in ("count", "recall@10", "ndcg@10", "mrr"):
                    assert metrics[metric] == pytest.approx(other[metric], nan_ok=False), (name, way, group, metric)
    assert one["good"]["actions"]["accuracy"] == many["good"]["actions"]["accuracy"]


def test_a_sample_holds_whole_users_and_is_called_one() -> None:
    result = evaluated({"oracle": Oracle()}, max_targets=2)
    assert (result["sampled"], result["targets"], result["users"], result["all_targets"]) == (True, 2, 1, 6)
    assert "a sample of 2 of 6 test targets" in format_table(result)
    assert evaluated({"oracle": Oracle()})["sampled"] is False


def test_a_part_without_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="no event of part 1"):
        evaluate(log([[(A, VIEW, TRAIN), (B, VIEW, TEST)]]), VALIDATION, {}, {}, max_length=5, progress=False)


@pytest.mark.parametrize("wrong", [{"max_targets": 0}, {"batch_size": 0}, {"max_length": 0}, {"seed": -1}])
def test_a_number_that_is_too_small_is_refused(wrong: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"got {name}={value}; expected at least"):
        evaluated({"oracle": Oracle()}, **wrong)  # type: ignore[arg-type]
    if name != "max_length":
        with pytest.raises(SystemExit):
            main(["--model", "out/shop", "--events", "events.csv", f"--{name}={value}"])
        assert f"--{name} {value}: expected at least" in capsys.readouterr().err


def test_a_score_matrix_stays_within_8_mebibytes() -> None:
    for size in (10, 30_000, 1_000_000, 50_000_000):
        rows = rows_per_batch(size)
        assert rows == 1 or rows * size * 4 <= 2**23
    assert rows_per_batch(30_000, batch_size=16) == 16


def test_the_model_is_said_to_lose_where_it_loses_and_to_win_where_it_wins() -> None:
    lost = evaluated({"model": Constant(), "oracle": Oracle()})
    table = format_table(lost)
    assert "the model **does not beat** oracle: .0000 against .6000" in table
    assert not any(row["beats"] for row in lost["comparison"])
    won = evaluated({"model": Oracle(), "constant": Constant()})
    assert "does not beat" not in format_table(won)
    assert all(row["beats"] for row in won["comparison"])
    assert {(row["where"], row["metric"]) for row in won["comparison"]} >= {("kept", "ndcg@10"), ("removed", "ndcg@10")}


def test_a_model_that_equals_a_baseline_does_not_beat_it() -> None:
    [*rows] = evaluated({"model": Oracle(), "oracle": Oracle()})["comparison"]
    assert rows
    assert all(row["difference"] == 0 and not row["beats"] for row in rows)
    assert all(row["difference_interval"] == [0, 0] for row in rows if row["difference_interval"] is not None)


def test_a_lower_log_loss_is_better() -> None:
    result = evaluate(
        LOG, TEST, {}, {"model": Knower(0.9), "other": Knower(0.6)}, max_length=5, actions=ACTIONS, progress=False
    )
    [loss] = [row for row in result["comparison"] if row["metric"] == "log_loss"]
    assert loss["difference"] == pytest.approx(np.log(0.9 / 0.6))
    assert loss["beats"]


def test_intervals_hold_their_value_and_repeat_with_the_seed() -> None:
    result = evaluated({"repeat_last": RepeatLast().fit(LOG)}, seed=4)
    for group in ("all", "novel"):
        metrics = result["repeat_last"]["kept"]["items"][group]
        for metric in ("recall@10", "ndcg@10"):
            low, high = metrics[f"{metric}_interval"]
            assert low <= metrics[metric] <= high
    low, high = result["good"]["actions"]["accuracy_interval"]
    assert low == high == 1
    assert result == evaluated({"repeat_last": RepeatLast().fit(LOG)}, seed=4)


def test_the_table_is_aligned_and_the_result_is_json() -> None:
    result = evaluate_model(None, LOG, TEST, 50, actions=ACTIONS, progress=False, split=Split("leave_one_out"))
    text = format_table(result)
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) <= 1
    assert "leave_one_out" in text
    assert "all 6 test targets of 3 users" in text
    for name in ("popularity", "recent popularity", "repeat last", "decayed repeat", "item transition",
                 "item neighbours", "last action markov"):  # fmt: skip
        assert f"| {name} " in text, name
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_best_ids_leave_out_what_is_no_candidate() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, 3.0], [-torch.inf, -torch.inf, 0.0]])
    assert best_ids(scores, k=2).tolist() == [[2, 1], [2, -1]]


def test_the_last_item_is_the_last_one_named() -> None:
    sequences = log([[(A, VIEW, TRAIN), (B, VIEW, TRAIN), (NONE, VIEW, TRAIN), (C, VIEW, TEST)]])
    [batch] = evaluation_batches(sequences, TEST, 50, 1)
    assert last_items(batch).tolist() == [B]
    [batch] = evaluation_batches(sequences, TEST, 1, 1)
    assert last_items(batch).tolist() == [-2]


# The model in its place


def write_log(path: Path) -> Path:
    """Twelve users who walk through eight items, with a search between; times ten minutes apart."""
    generator = np.random.default_rng(0)
    rows = []
    for user in range(12):
        item = int(generator.integers(8))
        for step in range(8):
            searches = generator.random() < 0.15
            rows.append((f"u{user}", None if searches else f"i{item}", "search" if searches else "view",
                         1_700_000_000 + 600 * step + user))  # fmt: skip
            item = (item + int(generator.integers(0, 3))) % 8
    return write_events(path, rows)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("events") / "events.csv")


@pytest.fixture(scope="module")
def model_dir(events: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model beside its tokenizer and its split, as training leaves them."""
    directory = tmp_path_factory.mktemp("model")
    log = read_events(str(events))
    split = make_split(log.events, "time")
    train = assign_parts(log.events, split).filter(pl.col("part") == TRAIN)
    tokenizer = build_tokenizer(train, num_new_items=3, max_length=6)
    tokenizer.save_pretrained(directory)
    tiny_model(tokenizer, actions_without_item=[tokenizer.encode_action("search")]).save_pretrained(directory)
    (directory / "split.json").write_text(json.dumps(split.to_dict()))
    return directory


def test_the_model_ranks_by_its_own_probabilities(events: Path, model_dir: Path) -> None:
    model, tokenizer = load(model_dir)
    split = recorded_split(model_dir)
    assert split is not None
    dataset = encode_events(
        assign_parts(read_events(str(events)).events, split),
        item_vocabulary=tokenizer.item_vocabulary,
        first_item_id=tokenizer.first_item_id,
        action_vocabulary=tokenizer.action_vocabulary,
        time_edges=tokenizer.time_edges,
    )
    sequences = Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    ranker = ModelRanker(model)
    for batch in evaluation_batches(sequences, TEST, 6, 4):
        channels = (batch.input_ids, batch.token_type_ids, batch.time_gap_ids, batch.attention_mask)
        with torch.no_grad():
            output = model(*(torch.from_numpy(channel) for channel in channels))
        probabilities = output.action_logits.double().softmax(dim=1)
        assert ranker.action_probabilities(batch) == pytest.approx(probabilities.numpy(), abs=1e-6)
        joint = (probabilities[:, :, None] * output.item_logits.double().exp()).sum(dim=1)
        joint[:, NONE] = 0
        expected = joint / joint.sum(dim=1, keepdim=True)
        scores = ranker.scores(batch)
        assert scores.exp().numpy() == pytest.approx(expected.numpy(), abs=1e-5)
        assert (scores[:, :FIRST_NEW] == -torch.inf).all()


def test_the_command_writes_the_model_and_every_baseline(
    events: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "results" / "evaluation.json"
    main(["--model", str(model_dir), "--events", str(events), "--json", str(target)])
    result = json.loads(target.read_text())
    assert result["rankers"][0] == "model"
    assert result["split"] == json.loads((model_dir / "split.json").read_text())
    for name in result["rankers"]:
        if "markov" not in name:
            for way in ("kept", "removed"):
                assert {"all", "repeat", "novel", "cold"} <= set(result[name][way]["items"])
    for name in ("model", "last_action_markov", "last_action_markov, balanced"):
        assert {"accuracy", "macro_f1", "log_loss", "ece", "recall", "count"} <= set(result[name]["actions"])
    printed = capsys.readouterr().out.replace(str(tmp_path), "/t").replace(str(model_dir), "/m")
    assert not [line for line in printed.replace(str(events), "/e").splitlines() if len(line) > 80]
    assert printed.endswith("All tables are in /t/results/evaluation.md.\n")
    assert re.findall(r"^(\w+):", printed[printed.index("Predicts:") :], re.MULTILINE) == [
        "Predicts", "Compared", "Next",
    ]  # fmt: skip
    tables = (target.parent / "evaluation.md").read_text()
    assert "The model against the best baseline" in tables
    assert f"all {result['targets']} test targets" in tables


def judged_result(difference: float, ends: list[float] | None, **changes: Any) -> dict[str, Any]:
    """A result whose model finds the next item in .2 of the targets."""
    row = {
        "where": "kept", "group": "all", "metric": "recall@10", "model": 0.2, "best_baseline": "repeat_last",
        "best": 0.2 - difference, "difference": difference, "difference_interval": ends, "beats": difference > 0,
    }  # fmt: skip
    items = {"all": {"recall@10": 0.2, "count": 2500}}
    model = {"kept": {"items": items}, "actions": {"accuracy": 0.625, "count": 3000}}
    return {"model": model, "actions": ["view", "buy"], "targets": 3000, "comparison": [row], **changes}


@pytest.mark.parametrize(
    ("result", "compared", "advice"),
    [
        (judged_result(0.05, [0.01, 0.09]), "better than the best baseline, repeat last, 15.0 %: +5.0 points (95 %: "
         "+1.0 to +9.0).", 'ask it: pipeline("next-behavior", model="out/shop"'),
        (judged_result(0.05, [-0.01, 0.09]), "not surely different from the best baseline, repeat last",
         "give more events or item text (--items), or a larger --max_minutes if the time was up"),
        (judged_result(0.05, [-0.01, 0.09], reads_text=True), "not surely", "give more events, or a larger"),
        (judged_result(-0.05, [-0.09, -0.01]), "worse than the best baseline, repeat last, 25.0 %: -5.0 points",
         "counting is better here"),
        (judged_result(0.05, [0.01, 0.09], passes=0.43), "better than", "it saw only 0.43 of a pass"),
        (judged_result(0.05, None, passes=1.0, comparison=[]), "no baseline was measured", "evaluate on a log"),
    ],
)  # fmt: skip
def test_the_verdict_says_how_well_against_what_and_what_to_do_next(
    result: dict[str, Any], compared: str, advice: str
) -> None:
    lines = re.split(r"\n(?=\w)", in_three_lines(result, "out/shop"))
    assert all(len(row) <= 80 for line in lines for row in line.split("\n"))
    first, second, third = (" ".join(line.split()) for line in lines)
    assert first == (
        "Predicts: the next item is among its first ten answers in 20.0 % of 2,500 test events, the next action is "
        "right in 62.5 % of 3,000."
    )
    assert compared in second
    assert advice in third


@pytest.mark.filterwarnings("ignore:leave_one_out leaks the future")
def test_a_split_that_tests_what_the_model_was_trained_on_is_warned_of_and_stops(events: Path, model_dir: Path) -> None:
    with (
        pytest.warns(UserWarning, match="may have been trained on what is tested here"),
        pytest.raises(Leak, match=r"fitted on 2 \(user 'u0', .*leave --split out"),
    ):
        main(["--model", str(model_dir), "--events", str(events), "--split", "leave_one_out"])


def test_a_model_trained_on_its_whole_log_needs_a_split(events: Path, model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a recorded split"):
        main(["--model", str(tmp_path), "--events", str(events)])
    (tmp_path / "split.json").write_text(json.dumps(Split("none").to_dict()))
    with pytest.raises(ValueError, match="pass --split time or --split leave_one_out"):
        main(["--model", str(tmp_path), "--events", str(events)])


def test_a_log_of_which_the_model_knows_no_item_or_no_action_is_refused(
    events: Path, model_dir: Path, tmp_path: Path
) -> None:
    log = pl.read_csv(events, schema_overrides={"item_id": pl.String})
    for what, column in (("item", "item_id"), ("action", "action")):
        log.with_columns(("x" + pl.col(column)).alias(column)).write_csv(tmp_path / "other.csv")
        for more in ([], ["--update_memory"]):
            with pytest.raises(ValueError, match=rf"the model knows no {what} \(e\.g\. 'x.*check --{what}_column"):
                main(["--model", str(model_dir), "--events", str(tmp_path / "other.csv"), *more])


def test_a_log_of_which_the_model_knows_little_is_warned_of_with_the_share() -> None:
    events = pl.DataFrame({"item_id": ["a", *"bcdefghi", None], "action": ["view"] * 10})
    with pytest.warns(UserWarning, match=r"knows the item of 11\.1 % of the events only"):
        check_known(events, ["a"], ["view"])
    check_known(events, ["a", "b"], ["view"])  # a fifth is usual where a catalog changes fast


def test_the_tables_of_a_model_in_a_read_only_folder_are_printed(
    events: Path, model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model_dir / "evaluation.md").unlink(missing_ok=True)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write in any folder
    main(["--model", str(model_dir), "--events", str(events)])
    assert "| recall of" in capsys.readouterr().out
    assert not (model_dir / "evaluation.md").exists()


def test_a_model_that_is_not_there_is_reported(events: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder of a trained model"):
        main(["--model", "no/such/model", "--events", str(events)])


# The memory that goes on counting

BY_TIME, LEAVE_ONE_OUT = Split("time", 49, 69), Split("leave_one_out")  # the cuts of `timed_log`


def counting_model(sequences: Sequences) -> BertForNextBehavior:
    """An untrained model that has counted the training events of the log."""
    torch.manual_seed(0)
    config = BehaviorConfig(
        vocab_size=VOCAB, num_new_items=FIRST_ITEM - FIRST_NEW, num_actions=5, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=24, max_position_embeddings=40, memory_distance=8,
    )  # fmt: skip
    model = BertForNextBehavior(config).eval()
    count_events(model, sequences, np.flatnonzero(sequences.parts == TRAIN))
    return model


def count_events(model: BertForNextBehavior, sequences: Sequences, positions: np.ndarray) -> None:
    """Counts the events one by one, each after its user's whole history."""
    for position in positions:
        begin = sequences.offsets[np.searchsorted(sequences.offsets, position, side="right") - 1]
        items = sequences.items[begin : position + 1].astype(np.int64)
        model.update_memory(torch.from_numpy(np.where(items >= VOCAB, NEW_1, items))[None], pairs="last")


def memory_tables(model: Any) -> list[list[int]]:
    memory = model.associate_path
    counts = np.trim_zeros(memory.item_counts.numpy(), "b").tolist()
    return [memory.pair_keys.tolist(), memory.pair_counts.tolist(), counts]


def timed_log() -> Sequences:
    """Eight users with runs, unknown items and events without one; many events share a time."""
    generator = np.random.default_rng(0)
    items = [*[A] * 9, NONE, NONE, UNKNOWN, *range(B, VOCAB)]
    parts = [TRAIN] * 12 + [VALIDATION] * 4 + [TEST] * 8
    starts, lengths = [0, 50, 70], [50, 20, 30]  # each part is a stretch of time
    users, times = [], []
    for _ in range(8):
        users.append([(int(generator.choice(items)), VIEW, part) for part in parts])
        times += sorted(starts[part] + int(generator.integers(lengths[part])) for part in parts)
    return log(users, times=times)


class Watched(UpdatedModelRanker):
    """Writes down which targets were ranked with which memory."""

    def scores(self, batch: EvaluationBatch) -> torch.Tensor:
        self.ranked = [*getattr(self, "ranked", []), (batch.position, memory_tables(self.model))]
        return super().scores(batch)


def test_each_block_is_ranked_by_a_memory_of_all_that_happened_earlier_and_of_nothing_else() -> None:
    sequences = timed_log()
    model = counting_model(sequences)
    trained = memory_tables(model)
    watched = Watched(model, sequences, TEST, BY_TIME, updates=5)
    evaluate(sequences, TEST, {UPDATED: watched}, {}, max_length=40, batch_size=3, progress=False)
    ranked = np.concatenate([positions for positions, _ in watched.ranked])
    targets = np.flatnonzero((sequences.parts == TEST) & (sequences.items != NONE))
    assert sorted(ranked) == targets.tolist()
    blocks = list(watched.blocks(targets))
    assert len(blocks) == 5
    assert (np.diff([sequences.timestamps[block].min() for block in blocks]) > 0).all()
    for positions, tables in watched.ranked:
        [block] = [block for block in blocks if np.isin(positions, block).all()]
        earlier = sequences.timestamps < sequences.timestamps[block].min()
        one_by_one = copy.deepcopy(model)
        count_events(one_by_one, sequences, np.flatnonzero((sequences.parts > TRAIN) & earlier))
        assert tables == memory_tables(one_by_one) != trained
    assert memory_tables(model) == trained
    next(watched.blocks(targets))
    assert memory_tables(watched.model) == watched.ranked[0][1], "ranked again, it starts from the trained memory"


def test_the_future_changes_nothing_that_is_counted_before_it() -> None:
    sequences = timed_log()
    model = counting_model(sequences)
    targets = np.flatnonzero(sequences.parts == TEST)

    def counted(items: np.ndarray) -> list[Any]:
        changed = dataclasses.replace(sequences, items=items.astype(np.int32))
        ranker = UpdatedModelRanker(model, changed, TEST, BY_TIME, updates=4)
        return [memory_tables(ranker.model) for _ in ranker.blocks(targets)]

    expected = counted(sequences.items)
    for index, block in enumerate(UpdatedModelRanker(model, sequences, TEST, BY_TIME, updates=4).blocks(targets)):
        future = sequences.timestamps >= sequences.timestamps[block].min()
        found = counted(np.where(future, D, sequences.items))
        assert found[: index + 1] == expected[: index + 1]
        assert all(one != other for one, other in zip(found[index + 1 :], expected[index + 1 :], strict=True))


def test_leave_one_out_counts_every_users_validation_event_and_no_test_event() -> None:
    generator = np.random.default_rng(1)
    parts = [TRAIN] * 5 + [VALIDATION, TEST]
    sequences = log([[(int(generator.integers(A, A + 5)), VIEW, part) for part in parts] for _ in range(9)])
    model = counting_model(sequences)
    ranker = UpdatedModelRanker(model, sequences, TEST, LEAVE_ONE_OUT, updates=5)
    targets = np.flatnonzero(sequences.parts == TEST)
    [block] = ranker.blocks(targets)
    assert block.tolist() == targets.tolist()
    count_events(model, sequences, np.flatnonzero(sequences.parts == VALIDATION))
    assert memory_tables(ranker.model) == memory_tables(model)
    assert list(ranker.blocks(targets[:0])) == []


@pytest.mark.parametrize("split", [BY_TIME, LEAVE_ONE_OUT])
def test_freshness_is_fitted_on_validation_events_by_the_events_before_them_and_never_by_test_events(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, ranked = timed_log(), list[tuple[float, Any, np.ndarray]]()
    model = counting_model(sequences)
    validation = np.flatnonzero((sequences.parts == VALIDATION) & (sequences.items != NONE))

    def watch(updated: Any, blocks: Iterator[np.ndarray], targets: Any) -> float:
        assert targets == "encoded"
        positions = np.concatenate(list(blocks))
        ranked.append((updated.config.memory_freshness, memory_tables(updated), positions))
        return -abs(updated.config.memory_freshness - 4.0)

    monkeypatch.setattr(calibration, "mean_ndcg", watch)
    prepared: Any = SimpleNamespace(sequences=sequences, split=split, max_length=40)
    encoded: Any = "encoded"
    calibration.fit_freshness(model, prepared, validation, encoded)
    assert [freshness for freshness, *_ in ranked] == list(calibration.FRESHNESS)
    assert model.config.memory_freshness == 4.0
    for freshness, tables, positions in ranked:
        if split == BY_TIME:
            assert sorted(positions) == validation.tolist()
            continue
        assert np.isin(positions, validation).all()
        others = sequences.parts == VALIDATION
        others[positions] = False
        assert len(positions) == (np.count_nonzero(sequences.parts == VALIDATION) + 1) // 2
        one_by_one = counting_model(sequences)
        one_by_one.config.memory_freshness = freshness
        count_events(one_by_one, sequences, np.flatnonzero(others))
        assert tables == memory_tables(one_by_one)


@pytest.mark.parametrize("split", [BY_TIME, LEAVE_ONE_OUT])
def test_the_updated_model_stands_beside_the_model_and_changes_no_other_row(split: Split) -> None:
    sequences = timed_log()
    model = counting_model(sequences)
    without, updated = (
        evaluate_model(model, sequences, TEST, 40, split=split, actions=ACTIONS, memory_updates=updates, progress=False)
        for updates in (None, 6)
    )
    assert updated["rankers"][:2] == ["model", UPDATED]
    assert updated["memory_updates"] == (6 if split == BY_TIME else 1)
    assert set(updated[UPDATED]) == {"kept", "removed"}
    assert updated[UPDATED]["kept"]["items"]["all"]["count"] == without["model"]["kept"]["items"]["all"]["count"]
    assert updated[UPDATED]["kept"] != updated["model"]["kept"]
    for name in without["rankers"]:
        for way in set(without[name]) & {"kept", "removed"}:
            for group, metrics in without[name][way]["items"].items():
                for metric, value in metrics.items():
                    assert updated[name][way]["items"][group][metric] == pytest.approx(value), (name, way, metric)
    assert [row["best_baseline"] for row in updated["comparison"]] == [
        row["best_baseline"] for row in without["comparison"]
    ]
    assert f"| {UPDATED} " in format_table(updated)
    assert f"- {UPDATED}: " in format_table(updated)
    assert UPDATED not in format_table(without)


def test_updating_needs_a_model_and_a_split() -> None:
    for split in (None, Split("none")):
        with pytest.raises(ValueError, match="memory_updates=3"):
            evaluate_model(counting_model(LOG), LOG, TEST, 40, split=split, actions=ACTIONS, memory_updates=3)


def test_the_command_updates_the_memory(events: Path, model_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "evaluation.json"
    command = ["--model", str(model_dir), "--events", str(events), "--json", str(target)]
    main([*command, "--update_memory", "--memory_updates", "3"])
    result = json.loads(target.read_text())
    assert result["rankers"][:2] == ["model", UPDATED]
    assert result["memory_updates"] == 3
    with pytest.raises(SystemExit):
        main([*command, "--update_memory", "--memory_updates", "0"])
