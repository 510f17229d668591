"""Every user of a log is scored as the pipeline would, file by file, and an interrupted run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from golden import write_log
from tiny import load

from next_behavior.commands import score as command
from next_behavior.data.events import read_events
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.serving.export import bundle_for
from next_behavior.serving.predictor import Predictor
from next_behavior.serving.score import Options, score_log

QUESTIONS: list[dict[str, Any]] = [
    {"top_k": 4},
    {"top_k": 6, "of": "item", "exclude_seen": True},
    {"top_k": 3, "of": "item", "action": "buy"},
    {"top_k": 2, "of": "action"},
    {"top_k": 3, "of": "item", "allowed_items": ["i1", "i2", "i3"]},
]


def quietly(steps: Any, total: int, what: str) -> Any:
    return steps


def options_of(**given: Any) -> Options:
    defaults = {"top_k": 10, "of": "pair", "action": None, "exclude_seen": False, "allowed_items": None}
    return Options(**{**defaults, **given})


def write_events(folder: Path) -> Path:
    """The golden log, some of its items under names that the model does not know, and one user with many events."""
    path, _ = write_log(folder)
    lines = path.read_text().splitlines()
    lines += [f"long,i{number % 9},view,{1_700_000_000 + 60 * number}" for number in range(40)]
    lines += [f"u{number},new {number % 3},view,{1_750_000_000 + place}" for number in range(9) for place in range(2)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return read_events(str(write_events(tmp_path_factory.mktemp("log")))).events


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor.load(bundle_for(exported))


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_every_user_has_the_answers_of_the_pipeline(
    exported: Path, predictor: Predictor, events: pl.DataFrame, tmp_path: Path, question: dict[str, Any]
) -> None:
    model, tokenizer = load(exported)
    pipeline = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    users = events.group_by("user_id", maintain_order=True).agg("item_id", "action", "timestamp").rows()
    histories = [
        [
            {"item": item, "action": action, "timestamp": time}
            for item, action, time in zip(items, actions, times, strict=True)
        ]
        for _, items, actions, times in users
    ]
    wanted = pipeline([{"events": history} for history in histories], **question)
    score_log(predictor, events, tmp_path / "top.parquet", options_of(**question), quietly, users_in_file=25)
    found = pl.read_parquet(tmp_path / "top.parquet" / "*.parquet")
    assert found["user_id"].unique(maintain_order=True).to_list() == [user for user, *_ in users]
    for (user, *_), answers in zip(users, wanted, strict=True):
        rows = found.filter(pl.col("user_id") == user)
        assert rows["rank"].to_list() == list(range(1, len(answers) + 1))
        assert rows["probability"].to_list() == pytest.approx([each["probability"] for each in answers], abs=1e-5)
        names = [(each["action"], each["item"]) for each in answers]
        assert list(zip(rows["action"].to_list(), rows["item_id"].to_list(), strict=True)) == names


def test_an_interrupted_run_goes_on_and_another_is_refused(
    predictor: Predictor, events: pl.DataFrame, tmp_path: Path
) -> None:
    output, options = tmp_path / "top.parquet", options_of(top_k=3)

    def interrupted(steps: Any, total: int, what: str) -> Any:
        for step in steps:
            if what == "scoring" and step == total - 1:
                raise KeyboardInterrupt
            yield step

    with pytest.raises(KeyboardInterrupt):
        score_log(predictor, events, output, options, interrupted, users_in_file=25)
    written = {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert sorted(written) == ["part-00000.parquet", "part-00001.parquet"], "the last is not there, nor a part of it"
    assert score_log(predictor, events, output, options, quietly, users_in_file=25) == 2
    assert {name: (output / name).stat().st_mtime_ns for name in written} == written
    score_log(predictor, events, tmp_path / "at once", options, quietly, users_in_file=25)
    for path in output.glob("*.parquet"):
        assert pl.read_parquet(path).equals(pl.read_parquet(tmp_path / "at once" / path.name))
    with pytest.raises(ValueError, match=r"another run \(options differ\)"):
        score_log(predictor, events, output, options_of(top_k=4), quietly, users_in_file=25)
    with pytest.raises(ValueError, match=r"another run \(log, users differ\)"):
        score_log(predictor, events.head(30), output, options, quietly, users_in_file=25)


def test_a_folder_with_other_files_is_refused(predictor: Predictor, events: pl.DataFrame, tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match="holds other Parquet files"):
        score_log(predictor, events, tmp_path, options_of(), quietly)


def test_the_command_scores_a_log(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = write_log(tmp_path)
    (tmp_path / "shelf.txt").write_text("i1\ni2\n")
    allowed = ["--allowed_items", str(tmp_path / "shelf.txt"), "--top_k", "2", "--of", "item"]
    arguments = ["--model", str(exported), "--events", str(path), "--output", str(tmp_path / "top"), *allowed]
    command.main(arguments)
    assert "the answers of 60 users are in" in capsys.readouterr().out
    found = pl.read_parquet(tmp_path / "top" / "*.parquet")
    assert found.height == 120
    assert set(found["item_id"]) == {"i1", "i2"}
    assert json.loads((tmp_path / "top" / "_score.json").read_text())["options"]["top_k"] == 2
    command.main(arguments)
    assert "1 files were there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--action", "steal"], "'steal' is unknown"), (["--of", "action", "--exclude_seen"], "do not apply")],
)
def test_a_senseless_question_is_refused_before_the_log_is_read(
    exported: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        command.main(
            ["--model", str(exported), "--events", "nowhere.csv", "--output", str(tmp_path / "top"), *arguments]
        )
