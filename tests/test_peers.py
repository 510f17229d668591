"""The comparison with other libraries: the task, the scorer, the clock, the report and what is run again.

What needs another library runs in its environment (`make peers-install`) behind the marker `peers`.
"""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clean_processes
import numpy as np
import polars as pl
import pytest

from benchmarks import peers, peers_report
from benchmarks.peers_measure import ENVIRONMENTS, make_system
from benchmarks.peers_scoring import (
    NO_ITEM,
    PATIENCE,
    PATIENCE_BATCHES,
    Clock,
    Task,
    ranking_metrics,
    ranks,
    score,
    top_items,
)
from benchmarks.peers_systems import padded
from benchmarks.peers_task import make_task, prepare
from next_behavior.data.events import read_events
from next_behavior.data.splits import assign_parts, make_split
from next_behavior.evaluation.metrics import pessimistic_ranks
from next_behavior.evaluation.metrics import ranking_metrics as metrics_of_ranks

ROOT = Path(__file__).resolve().parent.parent


def small_task(**changed: Any) -> Task:
    """Two users, a catalogue of four items; user 0: 0 1 then 2; user 1: 3 3 then 3; a cold last event for each."""
    values: dict[str, Any] = {
        "offsets": np.array([0, 4, 8]),
        "items": np.array([0, 1, 2, 4, 3, 3, 3, 5]),
        "times": np.arange(8),
        "parts": np.array([0, 0, 1, 2, 0, 0, 1, 2], dtype=np.int8),
        "user_ids": np.array(["u", "v"]),
        "item_ids": np.array(["a", "b", "c", "d"]),
        "validation": np.array([2, 6]),
        "test": np.array([3, 7]),
        "way": "removed",
    }
    return Task(**values | changed)


# ----------------------------------------------------------------------------------------------------------------------
# Task and scorer
# ----------------------------------------------------------------------------------------------------------------------


def test_ranks_and_metrics_are_those_of_the_evaluator() -> None:
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 6, (200, 30)).astype(np.float32)
    scores[draw.random(scores.shape) < 0.1] = -np.inf
    scores[draw.random(scores.shape) < 0.01] = np.nan
    targets = draw.integers(0, 30, 200)
    targets[::17] = -1
    found = ranks(scores, targets)
    np.testing.assert_array_equal(found, pessimistic_ranks(scores, targets))
    expected = metrics_of_ranks(found, 30)
    assert ranking_metrics(found, 30) == pytest.approx(
        {key: expected[key] for key in ("count", "recall@10", "ndcg@10")}
    )


def test_a_scorer_that_knows_nothing_gets_nothing_in_a_catalogue_of_more_than_ten() -> None:
    assert ranking_metrics(ranks(np.zeros((5, 11)), np.arange(5)), 11)["recall@10"] == 0


def test_seen_items_stand_aside_and_repeats_count_only_where_they_are_kept() -> None:
    task = small_task()
    scores = np.array([[0.9, 0.8, 0.1, 0.2], [0.9, 0.8, 0.1, 0.2]], dtype=np.float32)
    found = score(lambda positions: scores.copy(), task, task.validation)
    assert found["kept"]["count"] == 2
    assert found["kept"]["ndcg@10"] == pytest.approx((1 / np.log2(5) + 1 / np.log2(4)) / 2)  # ranks 4 and 3
    assert found["removed"]["count"] == 1
    assert found["removed"]["ndcg@10"] == pytest.approx(1 / np.log2(3))  # only item 3 stands before item 2


def test_a_target_outside_the_catalogue_is_a_miss_and_no_item_is_no_target() -> None:
    task = small_task(items=np.array([0, 1, 2, 4, 3, 3, 3, NO_ITEM]))
    found = score(lambda positions: np.ones((len(positions), 4)), task, task.test)
    assert found["kept"] == {"count": 1, "recall@10": 0.0, "ndcg@10": 0.0}


def test_scores_of_another_catalogue_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got scores of shape \(2, 3\); expected \(2, 4\)"):
        score(lambda positions: np.ones((2, 3)), small_task(), np.array([2, 6]))


def test_best_items_come_best_first() -> None:
    assert top_items(np.array([0.0, 3.0, 1.0, 2.0]), 3).tolist() == [1, 3, 2]
    assert top_items(np.array([0.0, 3.0]), 10).tolist() == [1, 0]


def test_a_task_survives_its_file(tmp_path: Path) -> None:
    task = small_task()
    task.save(tmp_path / "task.npz")
    loaded = Task.load(tmp_path / "task.npz")
    for name, value in vars(task).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)


def test_a_history_ends_before_its_event_and_holds_catalogue_items_only() -> None:
    task = small_task(items=np.array([0, 4, 2, 1, 3, NO_ITEM, 3, 5]))
    assert task.history(3).tolist() == [0, 2]
    assert task.history(6).tolist() == [3]
    assert task.history(4).tolist() == []


def test_the_task_of_a_log_has_the_training_events_catalogue(tiny_log_rows: dict[str, list]) -> None:
    log = read_events(pl.DataFrame(tiny_log_rows))
    with pytest.warns(UserWarning, match="leaks the future"):
        events = assign_parts(log.events, make_split(log.events, "leave_one_out"))
    task = make_task(events, "leave_one_out")
    training = events.filter(pl.col("part") == 0)
    assert task.item_ids.tolist() == sorted(training["item_id"].drop_nulls().unique().to_list())
    named = [task.item_ids[i] if 0 <= i < task.num_items else None for i in task.items]
    assert named == [item if item in set(task.item_ids) else None for item in events["item_id"]]
    assert (task.items == NO_ITEM).sum() == 1
    np.testing.assert_array_equal(task.parts[task.test], 2)
    np.testing.assert_array_equal(task.parts[task.validation], 1)
    users, items = task.training()
    assert len(items) == training["item_id"].drop_nulls().len()
    assert task.next_item_targets() == len(users) - len(set(users.tolist()))
    assert (task.times == events["timestamp"].dt.epoch("us").to_numpy()).all()


def test_histories_are_padded_on_either_side_and_keep_the_newest() -> None:
    histories = [np.array([1, 2, 3]), np.array([4]), np.zeros(0, dtype=np.int64)]
    assert padded(histories, 2, left=True).tolist() == [[2, 3], [0, 4], [0, 0]]
    assert padded(histories, 2, left=False).tolist() == [[2, 3], [4, 0], [0, 0]]


# ----------------------------------------------------------------------------------------------------------------------
# Clock
# ----------------------------------------------------------------------------------------------------------------------


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_scoring_is_not_the_systems_time() -> None:
    task = small_task()
    clock = Clock(task, limit=1e9)
    before = clock.elapsed()

    def rows(positions: np.ndarray) -> np.ndarray:
        busy(0.2)
        return np.ones((len(positions), 4))

    assert clock.validate(rows)
    assert clock.elapsed() - before < 0.1
    assert clock.scoring_seconds >= 0.2


def test_training_stops_without_a_better_validation_or_in_time() -> None:
    clock = Clock(small_task(), limit=1e9)
    for epoch in range(PATIENCE + 1):
        assert clock.validate(lambda positions: np.ones((len(positions), 4))) == (epoch == 0)
        assert clock.is_finished() == (epoch == PATIENCE)
    assert clock.best_epoch == 1
    assert Clock(small_task(), limit=0).is_finished()


def test_short_epochs_do_not_stop_a_training_early() -> None:
    clock = Clock(small_task(), limit=1e9)
    for epoch in range(2 * PATIENCE):
        for _ in range(PATIENCE_BATCHES // 7):
            clock.batch(1)
        clock.validate(lambda positions: np.ones((len(positions), 4)))
        assert clock.is_finished() == (epoch >= 8)


def test_throughput_leaves_warm_up_and_validation_out() -> None:
    clock = Clock(small_task(), limit=1e9)
    for _ in range(20):
        busy(0.005)
        clock.batch(10)
    clock.validate(lambda positions: np.ones((len(positions), 4)))
    busy(0.3)
    clock.batch(10)
    rate = clock.targets_per_second()
    assert rate is not None
    assert 1000 < rate <= 2100


# ----------------------------------------------------------------------------------------------------------------------
# Running and running again
# ----------------------------------------------------------------------------------------------------------------------


def run(folder: Path, code: str, limit: float = 60) -> dict[str, Any]:
    return peers.run_system("popularity", sys.executable, folder, 0, limit, ["-c", code])


def test_a_process_gives_its_result_and_its_peak_memory(tmp_path: Path) -> None:
    written = tmp_path / "popularity-seed0.result.json"
    code = (
        f"x = bytearray(200 * 2**20); import json; json.dump({{'system': 'popularity'}}, open({str(written)!r}, 'w'))"
    )
    result = run(tmp_path, code)
    assert result["system"] == "popularity"
    assert "failed" not in result
    assert result["peak_mib"] >= 200
    assert not written.exists()


def test_a_failed_process_says_why_and_is_tried_again(tmp_path: Path) -> None:
    result = run(tmp_path, "raise RuntimeError('no such thing')")
    assert result["failed"].splitlines()[0] == "exit status 1"
    assert result["failed"].endswith("RuntimeError: no such thing")
    path = peers.result_path(tmp_path, "popularity", 0)
    assert not peers.is_finished(tmp_path, "popularity", 0)
    path.write_text(json.dumps(result))
    assert not peers.is_finished(tmp_path, "popularity", 0)
    path.write_text(json.dumps({"system": "popularity"}))
    assert peers.is_finished(tmp_path, "popularity", 0)


def test_a_process_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.5)
    assert run(tmp_path, "import time; time.sleep(60)", limit=0.1)["failed"].startswith("reached the time limit")


def test_a_folder_holds_one_task(tiny_log_csv: Path, tmp_path: Path) -> None:
    folder = tmp_path / "peers"
    with pytest.warns(UserWarning, match="leaks the future"):
        prepare(str(tiny_log_csv), "leave_one_out", folder)
    prepare(str(tiny_log_csv), "leave_one_out", folder)
    with pytest.raises(ValueError, match="expected another --output"):
        prepare(str(tiny_log_csv), "time", folder)


def test_the_command_measures_once_and_reports(
    tiny_log_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The process that prepares the task is forked; the one that measures is started anew, for its memory is measured.
    fork = functools.partial(clean_processes.run, env=os.environ, timeout=120)
    monkeypatch.setattr(peers, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": fork}))
    monkeypatch.setattr(peers, "commit", lambda: None)
    arguments = ["--data", str(tiny_log_csv), "--split", "leave_one_out"]
    arguments += ["--output", str(tmp_path), "--systems", "popularity"]
    peers.main(arguments)
    first = capsys.readouterr().out
    peers.main(arguments)
    second = capsys.readouterr().out
    assert "done before" not in first
    assert "popularity, seed 0: done before" in second
    text = (tmp_path / "peers.md").read_text()
    assert "| popularity |" in text
    assert text.strip() in second
    assert json.loads((tmp_path / "popularity-seed0.json").read_text())["agreement"] == 1


def test_every_system_can_be_made_without_its_library(tmp_path: Path) -> None:
    for name in ENVIRONMENTS:
        assert make_system(name, 0, tmp_path).libraries
    with pytest.raises(ValueError, match="got the system 'oracle'"):
        make_system("oracle", 0, tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# Report
# ----------------------------------------------------------------------------------------------------------------------


def result(system: str, seed: int = 0, ndcg: float | None = None, **values: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"system": system, "seed": seed, "peak_mib": 500.0, "busy_share": 0.9, "what": "defaults"}
    made |= {"machine": {"cpu": "a CPU", "date": "2026-01-02"}, "latency": {"median_ms": 1.25}, "training_seconds": 60}
    if ndcg is not None:
        made["test"] = {way: {"count": 7, "recall@10": 2 * ndcg, "ndcg@10": ndcg} for way in ("kept", "removed")}
    return made | values


@pytest.fixture
def results() -> list[dict[str, Any]]:
    """RecTools as shipped at 100 targets a second, the variant at 400 and best after 10 epochs; ours at 1,500."""
    curve = [{"epoch": 1, "seconds": 12.0, "ndcg@10": 0.04}, {"epoch": 2, "seconds": 30.0, "ndcg@10": 0.06}]
    variant: dict[str, Any] = {
        "best_epoch": 10,
        "best_validation": 0.05,
        "seconds_to_best": 80.0,
        "stopped_by_time": True,
    }
    return [
        result("rectools-esasrec", targets_per_second=100, targets_per_epoch=2000),
        result("rectools-esasrec-real", ndcg=0.044, targets_per_second=400, targets_per_epoch=2000, **variant),
        result("ours", ndcg=0.06, curve=curve),
        result("ours", ndcg=0.07, seed=1, curve=curve),
        result("ours-as-esasrec", targets_per_second=1500),
        result("lightfm", failed="exit status 1\nModuleNotFoundError: No module named 'lightfm'"),
    ]


def written_report(folder: Path, results: list[dict[str, Any]]) -> str:
    (folder / "task.json").write_text(json.dumps({"data": "beauty.parquet", "split": "leave_one_out"}))
    for found in results:
        (folder / f"{found['system']}-seed{found['seed']}.json").write_text(json.dumps(found))
    return peers_report.report(folder)


def row(text: str, *begin: str) -> list[str]:
    """Cells of the table's row that begins with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return next(cells for cells in rows if cells[: len(begin)] == list(begin))


def test_the_report_marks_what_is_derived_cut_short_or_failed(tmp_path: Path, results: list[dict[str, Any]]) -> None:
    text = written_report(tmp_path, results)
    # 10 epochs of 2,000 targets at 100 a second
    assert row(text, "rectools-esasrec ¹") == ["rectools-esasrec ¹", "–", "–", "100", "–", "200 ¹", "500", "1.2"]
    assert row(text, "rectools-esasrec-real ²")[1:6] == [".0880", ".0440", "400", "60.0", "80.0"]
    assert row(text, "ours")[1:3] == [".1300 ±.0100", ".0650 ±.0050"]
    assert row(text, "lightfm (failed)")[1] == "–"
    assert "lightfm failed: exit status 1; ModuleNotFoundError: No module named 'lightfm'" in text
    assert "seed(s) 0, 1" in text


def test_the_goals_are_judged_and_a_lost_one_says_so(tmp_path: Path, results: list[dict[str, Any]]) -> None:
    text = written_report(tmp_path, results)
    speed = "targets/s, ours-as-esasrec"
    assert row(text, "rectools-esasrec", speed)[2:] == ["100", "1,500", "15.00", "≥ 10", "yes"]
    assert row(text, "rectools-esasrec-real", speed)[2:] == ["400", "1,500", "3.75", "≥ 3", "yes"]
    to_best = "s to its best validation NDCG@10 (.0500 ²)"
    assert row(text, "rectools-esasrec ¹", to_best)[2:] == ["200", "30", "0.15", "≤ 0.1", "no"]
    assert row(text, "rectools-esasrec-real", to_best)[2:] == ["80", "30", "0.38", "≤ 0.33", "no"]


def test_a_best_that_one_seed_never_reaches_is_not_reached(results: list[dict[str, Any]]) -> None:
    ours = [found for found in results if found["system"] == "ours"]
    assert peers_report.seconds_to(ours, 0.05) == 30
    assert peers_report.seconds_to(ours, 0.07) is None


def test_an_empty_folder_has_no_results(tmp_path: Path) -> None:
    assert peers_report.report(tmp_path) == "No results yet.\n"


# ----------------------------------------------------------------------------------------------------------------------
# With the other libraries
# ----------------------------------------------------------------------------------------------------------------------

SAME_LOSS = """
import sys, torch, numpy as np
from rectools.models import SASRecModel
from benchmarks.peers_systems import RecToolsTransformer, loss_at_real_positions

users = np.repeat(np.arange(40), 6)
items = np.random.default_rng(0).integers(0, 25, len(users))
kind = loss_at_real_positions()
for loss in ("softmax", "sampled_softmax"):
    model = SASRecModel(n_factors=8, n_blocks=1, n_heads=1, session_max_len=9, loss=loss, n_negatives=5,
                        lightning_module_type=kind, recommend_torch_device="cpu")
    model._build_model_from_dataset(RecToolsTransformer._dataset(users, items))
    module = model.lightning_model.eval()
    module.log = lambda *args, **named: None
    module._xavier_normal_init()
    batch = next(iter(model.data_preparator.get_dataloader_train()))
    ours, stock = kind.training_step(module, batch, 0), super(kind, module).training_step(batch, 0)
    gradients = [torch.autograd.grad(one, module.torch_model.item_model.parameters())[0] for one in (ours, stock)]
    torch.testing.assert_close(ours, stock)
    torch.testing.assert_close(*gradients)
print("equal")
"""


@pytest.mark.peers
def test_the_loss_at_real_positions_is_the_loss_as_shipped() -> None:
    python = Path(os.environ.get("PEERS_PYTHON", ROOT / ".bench" / "venv-peers" / "bin" / "python"))
    if not python.exists():
        pytest.skip("needs `make peers-install`")
    found = subprocess.run([python, "-c", SAME_LOSS], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert found.stdout.strip().endswith("equal"), found.stderr
