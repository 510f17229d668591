"""The next behaviors of every user of a log, scored by Spark's executors: the rows of `score.py`.

    session = SparkSession.builder.getOrCreate()                            # or next-behavior score --engine spark
    answers = score_with_spark("out/shop", session.table("shop.events"), Options(top_k=20, of="item"))
    answers.write.parquet("s3a://shop/top.parquet")                         # or saveAsTable

The log is cleaned and moved to the partitions of its users as for a preparation (`preparation/spark.py`). Each
partition is then scored where it lies. Nothing but counts comes to the driver.

The exported model is sent to the executors with `SparkContext.addArchive`, so it does not have to lie where they can
read it. Each Python process of an executor loads it once, checks that it answers as the model did, and keeps it for
all partitions of the run.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import polars as pl
import pyarrow as pa

from next_behavior.data.columns import ACTION, ITEM, USER
from next_behavior.data.events import check_users, naming
from next_behavior.data.known import check_counted
from next_behavior.data.log_statistics import LogStatistics
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.splits import Split
from next_behavior.preparation.outcome import check_read, counted_rejects, report_on
from next_behavior.preparation.partition import Parts
from next_behavior.preparation.spark import Spark
from next_behavior.preparation.spark_rows import as_table
from next_behavior.preparation.spark_source import open_spark, start_session
from next_behavior.serving.batch_scoring import BatchScorer
from next_behavior.serving.export import bundle_for
from next_behavior.serving.predictor import Predictor
from next_behavior.serving.score import Options, score_users, wanted_of

ANSWERS = pa.schema(
    {
        USER: pa.string(),
        "rank": pa.int32(),
        ACTION: pa.string(),
        ITEM: pa.string(),
        "probability": pa.float32(),
    }
)


def score_with_spark(
    model: str | Path,
    source: object,
    options: Options | None = None,
    read: ReadOptions | None = None,
    *,
    revision: str | None = None,
    partitions: int | None = None,
    say: Callable[[str], None] = print,
) -> Any:
    """A DataFrame of Spark with the answers for every user of a log.

    The cleaned events stay on the disks of the executors as long as the session lives.

    Args:
        model: the folder of a saved model, or a Hub id; revision: of a Hub id.
        source: a DataFrame of Spark, a table's name or files, as in `open_spark`.
        partitions: how many the users are divided into; None: by the rows of the log.

    Returns:
        user_id, rank, action, item_id and probability; the rows of a user are together, in the order of their ranks.

    Raises:
        ValueError: as `read_events` and `score_log`, or Spark cannot be started.
    """
    bundle, options = bundle_for(model, revision, say), options or Options()
    predictor = Predictor.load(bundle)
    wanted_of(predictor, options)  # a senseless question is refused before the log is read
    # One moment for all executors, after which times lie in the future.
    read = read or ReadOptions()
    read = replace(read, latest_time=read.latest().isoformat())
    session = start_session(None)
    with naming(source):
        notes: list[str] = []
        log, frame, ends = open_spark(source, session, read, notes)
        engine = Spark(frame, log, ends, read, partitions, say)
        rows = engine.read()
        check_read(engine, rows, log, read, None)
        statistics = engine.clean()
        counts = engine.count([Parts(Split("none")) for _ in statistics])
        whole = sum(statistics, LogStatistics())
        report = report_on(rows, whole, counts, log, engine.survey, read, notes, counted_rejects(engine.rejects()))
        check_users(report)
    say(str(report))
    actions = pl.DataFrame([*counts.actions.items()], schema={ACTION: pl.String, "events": pl.Int64}, orient="row")
    check_counted(counts.items, actions, predictor.item_vocabulary(), predictor.info.actions)
    name = send(bundle, session)

    def answers(events: pl.DataFrame) -> pa.Table:
        return as_table(score_users(scorer_of(name), events, options), ANSWERS)

    return engine.of_cleaned(answers, ANSWERS)


def check_new_folder(output: str, session: Any) -> None:
    """ValueError if there is something where Spark is to write."""
    from pyspark.errors import AnalysisException

    try:
        session.read.text(output)
    except AnalysisException as error:
        if error.getCondition() == "PATH_NOT_FOUND":
            return
        raise
    raise ValueError(
        f"got --output {output}, which is there already; expected a new folder: Spark does not go on with an "
        "interrupted run. A folder without the file _SUCCESS is unfinished and can be removed"
    )


def send(bundle: Path, session: Any) -> str:
    """Sends a bundle to the executors, those that join later too; returns the name that it has there."""
    name, context = f"model-{bundle.name}", session.sparkContext
    if any(archive.endswith(f"#{name}") for archive in context.listArchives):
        return name
    # Executors fetch it when they first need it: it stays until this process ends.
    folder = Path(tempfile.mkdtemp(prefix="next-behavior-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    archive = folder / f"{name}.zip"
    with ZipFile(archive, "w") as file:  # not compressed: tables of numbers hardly become smaller
        for path in sorted(bundle.iterdir()):
            file.write(path, path.name)
    context.addArchive(f"{archive}#{name}")
    return name


@lru_cache(maxsize=1)
def scorer_of(name: str) -> BatchScorer:
    """The scorer of a bundle that was sent, in the process of an executor: loaded once."""
    from pyspark import SparkFiles

    return BatchScorer(Predictor.load(Path(SparkFiles.get(name))))
