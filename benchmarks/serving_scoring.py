"""Batch scoring: users of a log that are answered in a second.

    python -m benchmarks.serving_scoring --model MODEL --events toys.parquet

The question is RecTools' default one: the ten best items that the user has not had. Reading the log is not counted, the
making of the lists of the memory and the writing of the Parquet files are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from next_behavior.data.events import read_events
from next_behavior.serving.export import bundle_for
from next_behavior.serving.predictor import Predictor
from next_behavior.serving.score import Options, score_log


def steps(numbers: Iterable[int], total: int, what: str) -> Iterable[int]:
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--events", required=True)
    args = parser.parse_args()
    predictor = Predictor.load(bundle_for(args.model))
    events = read_events(args.events).events
    users = events["user_id"].n_unique()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        score_log(predictor, events, Path(folder) / "top", Options(10, "item", None, True, None), steps)
        seconds = time.perf_counter() - begin
    print(json.dumps({"users": users, "users_per_second": users / seconds, "items": predictor.info.items}))


if __name__ == "__main__":
    main()
