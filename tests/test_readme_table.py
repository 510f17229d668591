"""The tables of docs/results.md from evaluations: medians, spread, what is bold, and where they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.attribute_graph import attribute_vectors
from benchmarks.readme_table import BEGIN, END, RESULT, RESULTS, parsed, row, runs_of, tables, write
from next_behavior.evaluation.rankers import UPDATED


def evaluation(ndcg: float) -> dict[str, Any]:
    def item_figures(value: float) -> dict[str, Any]:
        return {"items": {"all": {"recall@10": 2 * value, "ndcg@10": value}}}

    rows = {
        "model": {"removed": item_figures(ndcg), "kept": item_figures(ndcg)},
        UPDATED: {"removed": item_figures(ndcg + 0.01), "kept": item_figures(ndcg)},
        "popularity": {"removed": item_figures(0.005), "kept": item_figures(0.005)},
        "tgh_1": {"removed": item_figures(0.05), "kept": item_figures(0.004)},
        "tgh_1, updated": {"removed": item_figures(0.075), "kept": item_figures(0.004)},
    }
    return {**rows, "rankers": list(rows), "sampled": False}


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_a_cell_is_the_median_over_seeds_with_half_the_distance_from_lowest_to_highest() -> None:
    text = tables({"beauty": [evaluation(ndcg) for ndcg in (0.06, 0.064, 0.061)]})
    found = cells(text, "Beauty: NDCG@10")
    assert found == [".061 ±.0020", ".071 ±.0020", ".050 TGH-1", "**.075** TGH-1", ".053 SASRec with sampled softmax"]
    assert "RetailRocket" not in text
    assert "next action" not in text


def test_the_updated_model_stands_beside_updated_rivals_and_one_seed_has_no_spread() -> None:
    text = tables({"beauty": [evaluation(0.06)], "retailrocket": [evaluation(0.06)]})
    first, second = text.split("\n\n")
    assert cells(first, "Beauty: Recall@10") == [".120", ".140", ".100 TGH-1", "**.150** TGH-1", ".093 eSASRec"]
    assert cells(second, "Beauty: Recall@10")[:2] == [".120; .140", "–"]
    assert ".100; .150" in cells(second, "Beauty: Recall@10")
    # No published figure has this protocol.
    assert cells(first, "RetailRocket: next item, NDCG@10")[4] == "–"


def test_trained_models_are_taken_where_there_are_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("beauty", "beauty_text", "toys"):
        (tmp_path / name).mkdir()
        if name != "toys":  # it is still being trained
            (tmp_path / name / "run.json").write_text("{}")
    logs = ["--beauty", "b", "--toys", "t"]
    assert runs_of(parsed([*logs, "--models", str(tmp_path)])) == ["beauty", "beauty_text"]
    assert "toys: no trained model in" in capsys.readouterr().out
    assert runs_of(parsed([*logs, "--toys_items", "i"])) == ["beauty", "toys", "toys_text"]


def test_items_with_the_same_codes_are_alike_for_the_graph_and_rare_codes_count_more() -> None:
    codes = {"a": [1, 7], "b": [1, 7], "c": [2, 7], "d": [1, 9], "e": [3, 9], "f": [4, 5], "g": [6, 7]}
    vectors = attribute_vectors(codes, [*codes, "none"], first_item_id=3)
    assert not vectors[:3].any()
    assert vectors[-1] == pytest.approx(0, abs=1e-5)
    unit = vectors[3:-1] / np.linalg.norm(vectors[3:-1], axis=1, keepdims=True)
    likeness = unit @ unit.T
    assert likeness[0, 1] == pytest.approx(1, abs=1e-5)
    assert likeness[3, 4] > likeness[0, 2], "code 9 is rarer than code 7"


def test_the_best_cell_is_bold_unless_it_is_shared() -> None:
    assert row("x", [(0.8634, 0.0), (0.8626, 0.0)], own=0) == ["x", ".863", ".863"]
    assert row("x", [(0.5, 0.0), (0.6, 0.0)], own=0) == ["x", ".500", "**.600**"]
    assert row("x", [(0.5, 0.0), (0.6, 0.0), None], own=0, lower_is_better=True) == ["x", "**.500**", ".600", "–"]


def test_the_tables_replace_what_stands_between_the_markers_with_machine_date_and_seeds(tmp_path: Path) -> None:
    for seed in range(2):
        folder = tmp_path / f"beauty-seed{seed}"
        folder.mkdir()
        (folder / RESULT).write_text(json.dumps(evaluation(0.06)))
        run = {
            "machine": {"description": "a CPU, 2 cores, 1 thread"},
            "settings": {"seed": seed},
            "seconds": 90 + 300 * seed,
        }
        (folder / "run.json").write_text(json.dumps(run))
    page = tmp_path / "results.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    text = write(tmp_path, page)
    assert page.read_text() == f"before\n{BEGIN}\n{text}\n{END}\nafter\n"
    assert "Measured on a CPU, 2 cores, 1 thread, " in text
    assert "seeds 0, 1; a training took at most 6 minutes." in text


def test_a_page_without_markers_and_a_folder_without_runs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got no finished run"):
        write(tmp_path, tmp_path / "results.md")
    folder = tmp_path / "beauty-seed0"
    folder.mkdir()
    (folder / RESULT).write_text(json.dumps(evaluation(0.06)))
    (folder / "run.json").write_text(
        json.dumps({"machine": {"description": "a CPU"}, "settings": {"seed": 0}, "seconds": 60})
    )
    (tmp_path / "results.md").write_text("no markers")
    with pytest.raises(ValueError, match="expected both, around the tables"):
        write(tmp_path, tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text() == "no markers"


def test_the_page_of_results_has_the_markers() -> None:
    page = RESULTS.read_text(encoding="utf-8")
    assert 0 < page.index(BEGIN) < page.index(END)
