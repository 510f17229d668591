"""What has changed since a training: the numbers, the verdict, the page, and the command that writes it."""

from __future__ import annotations

import json
import math
import re
import shutil
from contextlib import closing
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from golden import write_log

from next_behavior.commands import drift as command
from next_behavior.data.columns import TIME
from next_behavior.data.events import read_events
from next_behavior.serving.drift import Drift, edges_of, events_in_store, judged_events, measure_drift
from next_behavior.serving.drift_predictions import drawn
from next_behavior.serving.drift_report import page_of
from next_behavior.serving.drift_verdict import verdict_of
from next_behavior.serving.event_store import StoredEvent
from next_behavior.serving.export import bundle_for, digest_of_model
from next_behavior.serving.open_store import open_store
from next_behavior.serving.predictor import Predictor
from next_behavior.serving.training_record import TrainingRecord, training_record

MIX = {"view": 570, "buy": 110, "search": 60}
HOSTILE = "<script>harm()</script>\u202e"
LATER = 1_710_000_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden log, and after it four days on which all buy i3 or something that the model has never heard of."""
    path, _ = write_log(tmp_path_factory.mktemp("log"))
    rows = [
        f"u{user},{HOSTILE if place % 3 == 0 else 'i3'},buy,{LATER + 86_400 * place + 60 * user}"
        for user in range(40)
        for place in range(4)
    ]
    path.write_text(path.read_text() + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor.load(bundle_for(exported))


def measured(predictor: Predictor, events: pl.DataFrame, **options: Any) -> Drift:
    record = TrainingRecord(actions=MIX, until=LATER - 1.0, recall=0.9, unknown=0.01)
    return measure_drift(predictor, events, record, **{"source": "the log", **options})


@pytest.fixture(scope="module")
def drift(exported: Path, predictor: Predictor, log: Path) -> Drift:
    return measured(predictor, read_events(str(log)).events)


def test_the_shares_are_those_of_the_events_after_the_training(drift: Drift) -> None:
    assert (drift.events, drift.users, drift.since_training) == (160, 40, True)
    assert drift.unknown == pytest.approx(0.5)
    shares = {share.action: (share.training, share.now) for share in drift.actions}
    assert shares == {"buy": (110 / 740, 1.0), "view": (570 / 740, 0.0), "search": (60 / 740, 0.0)}
    expected = sum((p - q) * math.log(p / q) for p, q in ((110 / 740, 1), (570 / 740, 1e-4), (60 / 740, 1e-4)))
    assert drift.action_psi == pytest.approx(expected)
    assert [period.unknown for period in drift.periods] == [1.0, 0.0, 0.0, 1.0], "by day"
    assert [item.item for item in drift.popularity.unknown] == [HOSTILE]
    assert drift.popularity.risen[0].item == "i3"
    assert drift.popularity.risen[0].now == 1.0
    assert sum(drift.popularity.bands) == pytest.approx(1)
    assert sum(drift.lengths.counts) == 160


def test_each_event_is_predicted_from_the_events_before_it(
    drift: Drift, predictor: Predictor, log: Path, exported: Path
) -> None:
    events = read_events(str(log)).events
    hits, masses = [], []
    for (_,), rows in events.group_by("user_id", maintain_order=True):
        history = [
            {"item": item, "action": action, "timestamp": time.timestamp()}
            for item, action, time in rows.select("item_id", "action", TIME).iter_rows()
        ]
        for place, event in enumerate(history):
            if place and event["timestamp"] >= LATER:  # an evaluation has no target without a history either
                items = predictor.answer(history[:place], of="item")
                hits.append(event["item"] in [answer["item"] for answer in items])
                masses += [answer["probability"] for answer in predictor.answer(history[:place], of="action")]
    said = drift.predictions
    assert said.recall == pytest.approx(sum(hits) / len(hits))
    assert said.recall is not None
    assert said.interval is not None
    assert said.interval[0] <= said.recall <= said.interval[1]
    bins = drift.calibration.bins
    assert sum(each.predictions for each in bins) == len(masses)
    assert sum(each.expected for each in bins) == pytest.approx(sum(masses))
    assert sum(each.happened for each in bins) == len(hits)


def test_users_are_drawn_until_there_are_enough_events_and_none_decides_alone() -> None:
    users = ["long"] * 400 + [f"u{number}" for number in range(100)]
    times = pl.Series(range(500)).cast(pl.Datetime("us", "UTC"))
    judged = pl.DataFrame({"user_id": users, "timestamp": times}).with_row_index("at").with_columns(place=1)
    assert drawn(judged, 1000, 0)["user_id"].value_counts(sort=True).row(0) == ("long", 50)
    few = drawn(judged, 30, 0)
    assert few.height == 30
    assert few.equals(drawn(judged, 30, 0)), "the same draw"
    assert few["timestamp"].is_sorted()


def test_periods_are_days_or_equal_spans(drift: Drift) -> None:
    begin, end = (pl.Series([drift.begin, drift.end]).str.to_datetime(time_zone="UTC")).to_list()
    assert len(edges_of(begin, end)) == 5
    assert len(edges_of(begin, begin)) == 13
    assert edges_of(begin, begin)[-1] > begin
    assert sum(period.events for period in drift.periods) == drift.events


def test_without_a_record_nothing_is_made_up(exported: Path, predictor: Predictor, log: Path) -> None:
    found = measure_drift(predictor, read_events(str(log)).events, TrainingRecord(), "the log", max_predictions=5)
    assert (found.action_psi, found.since, found.predictions.training_recall) == (None, None, None)
    assert {share.training for share in found.actions} == {None}
    assert "not recorded at the training" in page_of(found)


@pytest.mark.parametrize("since", [LATER + 10_000_000.0, None])
def test_a_log_without_events_to_judge_is_refused_with_a_remedy(log: Path, since: float | None) -> None:
    events = read_events(str(log)).events
    with pytest.raises(ValueError, match="--since 1970-01-01 takes all"):
        judged_events(events if since else events.clear(), since, "the log")
    with pytest.raises(ValueError, match="without times"):
        judged_events(events.with_columns(pl.lit(None).cast(pl.Datetime("us", "UTC")).alias(TIME)), since, "the log")


@pytest.mark.parametrize(
    ("level", "numbers"),
    [
        ("keep", {}),
        ("unclear", {"events": 99}),
        ("retrain", {"recall": 0.1, "interval": (0.08, 0.17)}),
        ("keep", {"recall": 0.1, "interval": (0.02, 0.19)}),  # it may be chance
        ("retrain", {"action_psi": 0.26}),
        ("watch", {"action_psi": 0.1}),
        ("watch", {"popularity_psi": 0.3}),
        ("watch", {"calibration_error": 0.11}),
        ("retrain", {"unknown": 0.21}),
        ("watch", {"unknown": 0.11}),
        ("keep", {"unknown": 0.25, "record": TrainingRecord(unknown=0.2)}),
        ("retrain", {"unknown": 0.25, "record": TrainingRecord(unknown=0.1)}),
    ],
)
def test_the_verdict_follows_the_numbers(level: str, numbers: dict[str, Any]) -> None:
    fine: dict[str, Any] = {
        "events": 1000, "recall": 0.2, "interval": (0.18, 0.22), "record": TrainingRecord(recall=0.2), "unknown": 0.01,
        "action_psi": 0.01, "popularity_psi": 0.01, "calibration_error": 0.01,
    }  # fmt: skip
    verdict = verdict_of(**{**fine, **numbers})
    assert verdict.level == level
    assert verdict.reasons


def test_a_loss_that_is_tolerated_is_still_said() -> None:
    record = TrainingRecord(recall=0.2)
    lower = verdict_of(1000, 0.19, (0.17, 0.21), record, 0.01, 0.01, 0.01, 0.01)
    assert lower.level == "keep"
    assert "19.0 % of cases; at the training it was 20.0 %" in lower.reasons[0]
    equal = verdict_of(1000, 0.2, (0.18, 0.22), record, 0.01, 0.01, 0.01, 0.01)
    assert "no worse than at the training (20.0 %)" in equal.reasons[0]


class Page(HTMLParser):
    """Tags of a page, and what would be loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_shows_ids_as_text(drift: Drift) -> None:
    source = page_of(drift)
    page = Page(source)
    assert not page.loaded
    assert not re.search(r"url\(|@import", source)
    assert "script" not in page.tags
    assert "<script>harm()</script>\\u202e" in page.text, "escaped, and what cannot be seen is shown"
    assert "Train again" in page.text
    assert page.tags.count("section") == 6
    json.dumps(asdict(drift), allow_nan=False)


def test_the_command_reads_a_store_that_a_service_goes_on_writing(
    exported: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "events.sqlite"
    events = read_events(str(log)).events
    rows = events.sort(TIME, maintain_order=True).select("user_id", "item_id", "action", TIME).iter_rows()
    with closing(open_store(str(path))) as store:
        stored = [StoredEvent(f"e{place}", user, item, action, time.timestamp())
                  for place, (user, item, action, time) in enumerate(rows)]  # fmt: skip
        store.append(stored)
        assert events_in_store(str(path)).equals(events.drop("row"))
        command.main([
            *("--model", str(exported), "--store", str(path), "--output", str(tmp_path / "drift.html")),
            *("--json", str(tmp_path / "drift.json"), "--since", "2024-03-01", "--max_predictions", "40"),
        ])  # fmt: skip
    found = json.loads((tmp_path / "drift.json").read_text())
    assert found["events"] == 160
    assert found["predictions"]["events"] == 40
    assert found["since"] == "2024-03-01T00:00:00+00:00"
    assert found["verdict"]["sentence"] in capsys.readouterr().out
    assert (tmp_path / "drift.html").read_text().startswith("<!doctype html>")


def test_an_empty_store_and_a_senseless_time_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "empty.sqlite")
    open_store(path).close()
    with pytest.raises(ValueError, match="without events"):
        events_in_store(path)
    with pytest.raises(SystemExit):
        command.parsed(["--model", "m", "--store", path, "--output", "o.html", "--since", "yesterday"])
    assert "expected a date or a time" in capsys.readouterr().err


def test_the_record_of_a_training_is_read_and_is_part_of_the_bundles_name(exported: Path, tmp_path: Path) -> None:
    assert training_record(tmp_path) == TrainingRecord()
    copy = tmp_path / "model"
    shutil.copytree(exported, copy, ignore=shutil.ignore_patterns("serving"))
    before = training_record(copy)
    assert before.actions is None
    assert before.recall is not None
    assert before.unknown is not None
    digest = digest_of_model(copy)
    assert digest == digest_of_model(exported)
    (copy / "cleaning_report.json").write_text(json.dumps({"actions": MIX, "last_time": "2023-11-17T00:00:00+00:00"}))
    assert training_record(copy).actions == MIX
    assert training_record(copy).until == before.until, "no event after the cut was trained on"
    (copy / "split.json").unlink()
    assert training_record(copy).until == 1_700_179_200
    assert digest_of_model(copy) != digest, "a bundle holds the actions"
    (copy / "cleaning_report.json").write_text("[")
    with pytest.raises(ValueError, match="is damaged"):
        training_record(copy)
