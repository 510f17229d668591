"""The tables of docs/results.md from evaluations: medians, spread, what is bold, and where they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme_table import BEGIN, END, RESULT, RESULTS, row, tables, write
from next_behavior.evaluation.rankers import UPDATED


def evaluation(ndcg: float) -> dict[str, Any]:
    def item_figures(value: float) -> dict[str, Any]:
        return {"items": {"all": {"recall@10": 2 * value, "ndcg@10": value}}}

    return {
        "model": {"removed": item_figures(ndcg), "kept": item_figures(ndcg)},
        UPDATED: {"removed": item_figures(ndcg + 0.01), "kept": item_figures(ndcg)},
        "popularity": {"removed": item_figures(0.005), "kept": item_figures(0.005)},
    }


def test_a_cell_is_the_median_over_seeds_with_half_the_distance_from_lowest_to_highest() -> None:
    text = tables({"beauty": [evaluation(ndcg) for ndcg in (0.06, 0.064, 0.061)]})
    ndcg = next(line for line in text.splitlines() if "seen removed, NDCG@10" in line)
    assert [cell.strip() for cell in ndcg.split("|")[2:5]] == [".061 ±.0020", "**.071** ±.0020", ".005"]
    assert "RetailRocket" not in text
    assert "next action" not in text


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
