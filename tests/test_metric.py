"""The `evaluate` module in metric/: equal to evaluation/metrics.py, alone in its folder, and loadable from a Hub."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from hub_server import HubServer
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python

from next_behavior.evaluation.metrics import CUTOFFS, pessimistic_ranks, ranking_metrics

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "metric" / "next_behavior_ranking"

# Few distinct scores make ties likely.
SCORE = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.nan])


@pytest.fixture(scope="module")
def lists() -> Any:
    return evaluate.load(str(FOLDER))


@pytest.fixture(scope="module")
def scores() -> Any:
    return evaluate.load(str(FOLDER), "scores")


@st.composite
def score_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    size, rows = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    values = draw(st.lists(st.lists(SCORE, min_size=size, max_size=size), min_size=rows, max_size=rows))
    targets = draw(st.lists(st.integers(-1, size - 1), min_size=rows, max_size=rows))
    return np.array(values), np.array(targets, dtype=np.int64)


@settings(deadline=None, max_examples=40)
@given(score_rows())
def test_scores_give_what_the_repositorys_metrics_give(scores: Any, case: tuple[np.ndarray, np.ndarray]) -> None:
    values, targets = case
    expected = ranking_metrics(pessimistic_ranks(values, targets), num_ids=values.shape[1])
    found = scores.compute(predictions=values, references=targets)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected)


def test_lists_of_the_whole_catalogue_give_what_its_scores_give(lists: Any, scores: Any) -> None:
    generator = np.random.default_rng(0)
    values, targets = generator.permuted(np.tile(np.arange(40.0), (25, 1)), axis=1), generator.integers(40, size=25)
    ranked = [[str(item) for item in row] for row in np.argsort(-values, axis=1)]
    found = lists.compute(predictions=ranked, references=[str(target) for target in targets])
    assert found == pytest.approx(scores.compute(predictions=values, references=targets))
    assert found == pytest.approx(ranking_metrics(pessimistic_ranks(values, targets), num_ids=40))


def test_a_target_beyond_the_list_counts_as_a_miss(lists: Any) -> None:
    found = lists.compute(predictions=[["a", "b"], ["a", "b"], []], references=["b", "c", "a"], k=[2, 1])
    assert list(found) == ["count", "recall@1", "recall@2", "ndcg@1", "ndcg@2", "mrr"]
    assert found == pytest.approx(
        {"count": 3, "recall@1": 0, "recall@2": 1 / 3, "ndcg@1": 0, "ndcg@2": 1 / np.log2(3) / 3, "mrr": 0.5 / 3}
    )


def test_a_ranker_that_scores_everything_alike_gets_nothing(scores: Any) -> None:
    found = scores.compute(predictions=np.zeros((3, 100)), references=[0, 50, 99], k=[10])
    assert found["recall@10"] == found["ndcg@10"] == 0


def test_batches_give_what_one_call_gives(lists: Any) -> None:
    rows, targets = [["a", "b"], ["b", "c"], ["c", "a"]], ["b", "b", "b"]
    together = lists.compute(predictions=rows, references=targets, k=[1, 2])
    for row, target in zip(rows, targets, strict=True):
        lists.add_batch(predictions=[row], references=[target])
    assert lists.compute(k=[1, 2]) == together


def test_no_row_gives_no_number(lists: Any) -> None:
    found = lists.compute(predictions=[], references=[])
    assert found == {"count": 0, **{name: None for name in found if name != "count"}}
    assert [f"recall@{k}" for k in CUTOFFS] == [name for name in found if name.startswith("recall")]


@pytest.mark.parametrize(
    ("configuration", "arguments", "message"),
    [
        ("lists", {"predictions": [["a", "a"]], "references": ["a"], "k": [1]}, "names an id twice, in row 0"),
        ("lists", {"predictions": [["a", "b"]], "references": ["a"]}, r"got k=20 for lists of at most 2.*k=\[2\]"),
        ("lists", {"predictions": [["a"]], "references": ["a"], "k": [0]}, r"got k=\[0\]"),
        ("lists", {"predictions": [["a"], ["b"]], "references": ["a"], "k": [1]}, "Mismatch in the number"),
        ("scores", {"predictions": [[0.5, 0.1]], "references": [2]}, "target 2 for 2 scores, in row 0"),
    ],
)
def test_bad_input_is_named(configuration: str, arguments: dict[str, Any], message: str) -> None:
    metric = evaluate.load(str(FOLDER), configuration)
    with pytest.raises(ValueError, match=message):
        metric.compute(**arguments)


def test_a_configuration_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"configuration 'ranks'; expected \"lists\""):
        evaluate.load(str(FOLDER), "ranks")


def test_the_readmes_example_is_true(lists: Any, scores: Any) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text("utf-8"), flags=re.DOTALL)
    calls = re.findall(r"^(\w+)\.compute\((.*)\)\n# (.*)$", code, flags=re.MULTILINE)
    assert [name for name, _, _ in calls] == ["ranking", "scores"]
    for (_, arguments, claim), metric in zip(calls, (lists, scores), strict=True):
        found = eval(f"metric.compute({arguments})", {"metric": metric})
        claimed = json.loads(claim.replace("'", '"').replace("...", ""))
        assert found == pytest.approx(claimed, abs=1e-3)


def test_the_space_shows_the_metric_and_its_errors() -> None:
    gradio = pytest.importorskip("gradio", reason="needs the extra 'space': pip install '.[space]'")
    app = runpy.run_path(str(FOLDER / "app.py"))
    for example in app["EXAMPLES"]:
        assert app["compute"](*example)["count"] == 2
    with pytest.raises(gradio.Error, match="names an id twice"):
        app["compute"]("lists", '[["a", "a"]]', '["a"]', "1")
    with pytest.raises(gradio.Error, match="Expecting value"):
        app["compute"]("lists", "a, b", '["a"]', "1")
    assert "sampled negatives" in str(app["build"]().article)


def test_pushed_as_a_space_it_loads_by_its_id_and_then_offline(hub: HubServer, tmp_path: Path) -> None:
    push = f"""
from huggingface_hub import HfApi
HfApi().create_repo("ana/next_behavior_ranking", repo_type="space", space_sdk="gradio")
HfApi().upload_folder(repo_id="ana/next_behavior_ranking", repo_type="space", folder_path={str(FOLDER)!r})
"""
    load = """
import evaluate
metric = evaluate.load("ana/next_behavior_ranking")
print(metric.compute(predictions=[["84", "7"]], references=["7"], k=[2])["mrr"])
"""
    for code, home, offline in ((push, "pusher", False), (load, "stranger", False), (load, "stranger", True)):
        environment = hub.environment(tmp_path / home, offline=offline)
        done = run_python(tmp_path, "-I", "-c", code, environment=environment)
        assert code is push or done.stdout.split() == ["0.5"]
