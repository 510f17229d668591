"""Spark prepares a log as one machine does, byte for byte: with two executors of their own processes, one of which is
killed on the way, and from a table without an order of its rows. Its executors score users as one process does."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from golden import SIZES
from processes import reset_accelerate
from test_prepare import files_of, made_up_rows, quiet, write_parquet
from test_score import write_events

from next_behavior.commands import score as score_command
from next_behavior.data import prepared_folder
from next_behavior.data.prepared_folder import REJECTS, SEQUENCES, TOKENIZER
from next_behavior.data.read_options import ReadOptions
from next_behavior.preparation.prepare import PrepareSettings, prepare
from next_behavior.serving.score import Options
from next_behavior.serving.spark_scoring import score_with_spark

pytestmark = [
    pytest.mark.spark,
    pytest.mark.timeout(1200),  # three Java processes on a busy machine
    # Spark warns of pandas 3, which nothing here gives to it.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    """Two executors with a core each."""
    if shutil.which("java") is None and "SPARK_REQUIRED" not in os.environ:
        pytest.skip("Java is missing")
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        # Runs are too short to win back what the second compiler and parallel collectors take.
        patch.setenv("JDK_JAVA_OPTIONS", "-XX:+UseSerialGC -XX:TieredStopAtLevel=1")
        settings = {
            "spark.ui.enabled": "false",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": "2",
            "spark.executorEnv.PYTHONPATH": str(ROOT),
            "spark.ui.showConsoleProgress": "false",
        }
        builder = SparkSession.builder.master("local-cluster[2,1,1024]").appName("test")
        for name, value in settings.items():
            builder = builder.config(name, value)
        spark = builder.getOrCreate()
        spark.sparkContext.setLogLevel("FATAL")
        yield spark
        spark.stop()


def executors() -> list[psutil.Process]:
    """The processes of executors that this process has started."""
    running = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "CoarseGrainedExecutorBackend" in " ".join(child.cmdline()):
                running.append(child)
    return running


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_folder, "SHARD_EVENTS", 250)


def test_spark_writes_what_one_machine_writes_though_an_executor_is_killed(session: Any, tmp_path: Path) -> None:
    rows = made_up_rows()
    path = write_parquet(rows, tmp_path)
    for file in path.iterdir():  # Spark wants one type in all files
        pl.read_parquet(file).with_columns(pl.col("timestamp").cast(pl.Float64)).write_parquet(file)
    options = ReadOptions(
        max_reject_ratio=0.2, latest_time="2030-01-01", duplicates="drop", order_column="place", min_item_events=3,
        min_user_events=14, max_user_events=20,
    )  # fmt: skip
    expected = prepare(path, tmp_path / "expected", PrepareSettings(), options, say=quiet)
    killed = list[int]()

    def kill_one(text: str) -> None:
        if "are in order" in text and not killed:
            running = executors()
            assert len(running) == 2
            os.kill(running[0].pid, signal.SIGKILL)
            killed.append(running[0].pid)

    settings = PrepareSettings(partitions=5)
    prepared = prepare(path, tmp_path / "out", settings, options, say=kill_one, engine_name="spark")
    assert killed
    rules = pl.read_parquet(expected.path / REJECTS)["rule"]
    assert {"user_over_cap", "rare_item", "rare_user"} <= set(rules)
    assert files_of(prepared.path) == files_of(expected.path)


def test_a_table_of_spark_is_prepared_in_any_order_of_its_rows(session: Any, tmp_path: Path) -> None:
    rows = [row for row in made_up_rows(events=300) if all(row.values()) and row["timestamp"].startswith("17")]
    random.Random(0).shuffle(rows)
    names = list(rows[0])
    table = session.createDataFrame([tuple(row[name] for name in names) for row in rows], names).repartition(3)
    prepared = prepare(table, tmp_path / "out", PrepareSettings(partitions=2), say=quiet)
    # At one time, action and item decide.
    ordered = sorted(
        rows, key=lambda row: (row["user_id"].encode(), int(row["timestamp"]), row["action"], row["item_id"])
    )
    pl.DataFrame(ordered).write_parquet(tmp_path / "log.parquet")
    alone = prepare(tmp_path / "log.parquet", tmp_path / "alone", PrepareSettings(), say=quiet)
    for part in (SEQUENCES, TOKENIZER):
        assert files_of(prepared.path / part) == files_of(alone.path / part)


def test_spark_says_what_it_does_not_read(session: Any, tmp_path: Path) -> None:
    table = session.createDataFrame([("u", "a", "1700000000")], ["user_id", "item_id", "timestamp"])
    with pytest.raises(ValueError, match="expected neither"):
        prepare(table, tmp_path / "out", PrepareSettings(), ReadOptions(columns="user_id,item_id"), say=quiet)


def scored_in_one_process(model: Path, events: Path, folder: Path, *question: str) -> pl.DataFrame:
    score_command.main(["--model", str(model), "--events", str(events), "--output", str(folder), *question])
    return pl.read_parquet(folder / "*.parquet")


def assert_same_answers(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """The same rows in any order of the users; probabilities to rounding, because other users share a batch."""
    found, expected = found.sort("user_id", "rank"), expected.sort("user_id", "rank")
    assert found.schema == expected.schema
    assert found.drop("probability").equals(expected.drop("probability"))
    assert found["probability"].to_list() == pytest.approx(expected["probability"].to_list(), abs=1e-6)


def test_executors_score_a_table_as_one_process_does(session: Any, exported: Path, tmp_path: Path) -> None:
    log = write_events(tmp_path)
    expected = scored_in_one_process(exported, log, tmp_path / "top", "--top_k", "4")
    table = session.createDataFrame(pl.read_csv(log).sample(fraction=1, shuffle=True, seed=0).to_arrow())
    answers = score_with_spark(exported, table, Options(top_k=4), partitions=3, say=quiet)
    assert_same_answers(pl.DataFrame(answers.toArrow()), expected)


def test_the_command_scores_files_on_executors(session: Any, exported: Path, tmp_path: Path) -> None:
    pl.read_csv(write_events(tmp_path)).write_parquet(tmp_path / "log.parquet")
    question = ["--of", "item", "--action", "buy", "--exclude_seen", "--top_k", "3"]
    expected = scored_in_one_process(exported, tmp_path / "log.parquet", tmp_path / "top", *question)
    question += ["--engine", "spark", "--partitions", "2"]
    found = scored_in_one_process(exported, tmp_path / "log.parquet", tmp_path / "by spark", *question)
    assert_same_answers(found, expected)
    with pytest.raises(ValueError, match="is there already"):
        scored_in_one_process(exported, tmp_path / "log.parquet", tmp_path / "by spark", *question)


def test_a_missing_java_is_named(tmp_path: Path) -> None:
    code = "from next_behavior.preparation.spark_source import start_session; start_session(None)"
    environment = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
    environment |= {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "expected Java 17 or 21" in done.stderr


def test_the_lines_of_the_manual_lead_from_a_table_to_a_model(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    code = page.split("```python\nfrom pyspark.sql import SparkSession\n")[1].split("```")[0]
    session.sql(f"create database shop location '{tmp_path / 'shop'}'")
    rows = [row for row in made_up_rows() if all(row.values()) and row["timestamp"].startswith("17")]
    table = session.createDataFrame(pl.DataFrame(rows).to_arrow())
    table.write.saveAsTable("shop.events")
    monkeypatch.chdir(tmp_path)
    reset_accelerate()
    code = code.replace('"out/shop"]', '"out/shop", *SIZES]')
    exec(compile(f"from pyspark.sql import SparkSession\n{code}", "scale.md", "exec"), {"SIZES": SIZES})
    assert (tmp_path / "out" / "shop" / "model.safetensors").is_file()
