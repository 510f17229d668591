"""demo/predict.py: what it says of the first prediction is what the numbers say."""

from __future__ import annotations

import runpy
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from golden import SIZES
from processes import run_training

ROOT = Path(__file__).resolve().parent.parent
PREDICT = runpy.run_path(str(ROOT / "demo" / "predict.py"))
ACTIONS = ("buy", "buy_discounted", "buy_coupon")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log like the demo's, its titles, and a model of it: baskets of three of twelve products."""
    folder, draw = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    rows = []
    for user in range(30):
        clock = 1_700_000_000 + int(draw.integers(86_400))
        for _ in range(6):
            clock += int(draw.integers(86_400, 300_000))
            first = int(draw.integers(9))
            rows += [(str(user), str(first + place), ACTIONS[place], clock) for place in range(3)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "action", "timestamp"], orient="row")
    log.with_columns(pl.from_epoch("timestamp").dt.replace_time_zone("UTC")).write_parquet(folder / "events.parquet")
    items = pl.DataFrame({"item_id": [str(item) for item in range(12)], "title": [f"tea {item}" for item in range(12)]})
    items.write_parquet(folder / "items.parquet")
    run_training(folder / "events.parquet", folder / "model", *SIZES, "--max_epochs", "2")
    return folder


def test_three_households_are_shown_and_the_first_prediction_in_words(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(shop / "model"), "--events", str(shop / "events.parquet")]
    monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
    runpy.run_path(str(ROOT / "demo" / "predict.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 100
    words, tables = printed.split("Three households")
    assert tables.count("\nHousehold ") == 3
    first = tables.split("\n    1. ")[1].split("\n")[0].split()
    probability, action, title, path, share = first[0], first[1], " ".join(first[2:4]), first[4], first[5]
    said = " ".join(words.split())
    assert f'Expected next: "{title}", {PREDICT["HOW"][action]}, with a probability of {probability}.' in said
    assert f"(path `{path}`: {share} of this probability)" in said
    assert "bought 3 products on " in said
    assert "(median); within an hour with " in said


def household(events: pl.DataFrame) -> Any:
    """The household "a" of a log."""
    history = PREDICT["history_of"](events, "a")
    return PREDICT["Household"]("a", history, [], [], {"1": "Tea", "2": "Milk", "3": "Salt"})


def answer(item: str, **paths: float) -> dict[str, Any]:
    return {"item": item, "paths": {"generate": 0.0, "repeat": 0.0, "associate": 0.0} | paths}


def test_a_reason_is_the_largest_path_and_counts_what_the_log_holds() -> None:
    baskets = [("a", "1", 1), ("a", "2", 2), ("a", "1", 3), *[(user, item, 9) for user in "bcd" for item in "13"],
               ("e", "2", 9), ("e", "1", 9)]  # fmt: skip
    times = [datetime(2024, 3, day, tzinfo=timezone.utc) for _, _, day in baskets]
    users, items, _ = zip(*baskets, strict=True)
    events = pl.DataFrame({"user_id": users, "item_id": items, "action": "buy", "timestamp": times})
    reason = household(events).reason
    assert reason(answer("1", repeat=1.0), events) == (
        "because the household has bought it before, 2 times, last on March 3, 2024 (path `repeat`: 100% of this "
        "probability)."
    )
    assert reason(answer("2", repeat=0.7, associate=0.3), events).startswith(
        "mostly because the household has bought it before, once, last on March 2, 2024"
    )
    assert reason(answer("3", generate=0.4, associate=0.6), events).endswith(
        '(path `associate`: 60% of this probability). For example, it is beside "Tea" in 3 baskets of this log.'
    )
    assert reason(answer("3", generate=1.0), events).endswith("names it (path `generate`: 100% of this probability).")
    assert household(events).bought_together("2", events) is None, "one basket together is no reason"
