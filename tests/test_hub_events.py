"""Event logs that are data sets: one row per event or per user, on the Hub or in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
from hub_server import HubServer
from processes import run_python

from next_behavior.data.events import read_events
from next_behavior.data.hub import is_hub_dataset

# One push, then three ways to read it, and names that are no data set; prints what the test compares.
CHILD = """
import datasets, sys
from next_behavior.data.events import read_events

rows = datasets.Dataset.from_dict(
    {"user_id": ["7", "8"], "item_id": [["a", None, "b"], ["a"]], "action": [["view", "search", "buy"], ["view"]]}
)
rows.push_to_hub("ana/log", private=True)
for name in ("ana/log", "hf://datasets/ana/log", "ana/log@main"):
    log = read_events(name)
    print(name, log.report.source, log.events.select("user_id", "item_id", "action").rows())
print(len(list(datasets.load_dataset("ana/log", split="train", streaming=True))))
datasets.DatasetDict({"a": rows, "b": rows}).push_to_hub("ana/two")
for name in ("ana/nothing", "ana/two"):
    try:
        read_events(name)
    except (FileNotFoundError, ValueError) as error:
        print(type(error).__name__, error)
"""


def per_user(**lists: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"user_id": [1, 2], **lists})


def test_lists_of_a_row_become_events_in_their_order() -> None:
    data = per_user(item_id=[["b", "a"], []], action=[["view", "buy"], []])
    log = read_events(data)
    assert log.events.select("user_id", "item_id", "action").rows() == [("1", "b", "view"), ("1", "a", "buy")]
    assert any("one row per user" in note for note in log.report.notes)
    assert read_events(data.to_polars()).events.equals(log.events)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different lengths in row 1 \(item_id, action\)"):
        read_events(per_user(item_id=[["a", "b"], ["a"]], action=[["x", "x"], ["x", "x"]]))


def test_a_file_here_is_never_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    pl.DataFrame({"user_id": ["1", "1"], "item_id": ["a", "b"]}).write_parquet(tmp_path / "out" / "log")
    assert is_hub_dataset("out/other")
    assert not is_hub_dataset("out/log")
    assert not is_hub_dataset("out/events.csv")
    assert not is_hub_dataset(str(tmp_path))


def test_a_data_set_on_the_hub_is_read_by_its_name_and_others_are_explained(hub: HubServer, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    lines = run_python(root, "-c", CHILD, environment=hub.environment(tmp_path)).stdout.splitlines()
    events = "[('7', 'a', 'view'), ('7', None, 'search'), ('7', 'b', 'buy'), ('8', 'a', 'view')]"
    for line, name in zip(lines, ("ana/log", "hf://datasets/ana/log", "ana/log@main"), strict=False):
        assert line == f"{name} {name} {events}"
    assert lines[3] == "2"
    assert lines[4].startswith("FileNotFoundError got ana/nothing, which is neither a file here nor a data set")
    assert lines[5].startswith("ValueError got ana/two with the splits a, b; expected one called train")
