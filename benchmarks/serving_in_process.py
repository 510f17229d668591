"""The predictor without HTTP: microseconds of an answer, of learning an event, and of the answer right after that.

    python -m benchmarks.serving_in_process --bundle BUNDLE --bodies bodies.jsonl [--calls 2000]
    python -m benchmarks.serving_in_process --pipeline MODEL --bodies bodies.jsonl [--calls 50]

Also the floor of the machine: numpy's product of the item table with one vector, which no exact answer does without.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from next_behavior.serving.bundle import ITEM_TABLE

WARM_UP = 20


def microseconds(call: Callable[[int], Any], calls: int) -> dict[str, float]:
    """Percentiles of the wall time of single calls, which get their number."""
    for number in range(WARM_UP):
        call(number)
    times = np.zeros(calls)
    for number in range(calls):
        begin = time.perf_counter()
        call(WARM_UP + number)
        times[number] = time.perf_counter() - begin
    return {f"p{percentile}_us": float(1e6 * np.percentile(times, percentile)) for percentile in (50, 99)}


def floor(table: np.ndarray, calls: int) -> dict[str, float]:
    """Of a product with every row of the table."""
    rows = np.ascontiguousarray(table, np.float32)
    vectors = np.random.default_rng(0).standard_normal((16, rows.shape[1]), np.float32)
    scores = np.empty(len(rows), np.float32)
    return microseconds(lambda number: np.dot(rows, vectors[number % 16], out=scores), calls)


def of_predictor(bundle: Path, questions: Sequence[dict[str, Any]], calls: int) -> dict[str, Any]:
    from next_behavior.serving.predictor import Predictor

    begin = time.perf_counter()
    predictor = Predictor.load(bundle)
    loaded = time.perf_counter() - begin
    table = np.load(bundle / ITEM_TABLE)

    def question(number: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        asked = dict(questions[number % len(questions)])
        return asked.pop("events"), asked

    def answer(number: int) -> None:
        events, options = question(number)
        predictor.answer(events, **options)

    def count(number: int) -> None:
        predictor.count(question(number)[0])

    def after_count(number: int) -> float:
        count(number)
        begin = time.perf_counter()
        answer(number)
        return 1e6 * (time.perf_counter() - begin)

    found: dict[str, Any] = {"load_seconds": loaded, "floor": floor(table, calls)}
    found |= {"answer": microseconds(answer, calls), "count": microseconds(count, calls)}
    times = [after_count(number) for number in range(calls)]
    found["answer_after_count"] = {f"p{each}_us": float(np.percentile(times, each)) for each in (50, 99)}
    return found | {"items": predictor.info.items, "width": table.shape[1]}


def of_pipeline(model: Path, questions: Sequence[dict[str, Any]], calls: int) -> dict[str, Any]:
    import transformers

    make: Any = transformers.pipeline
    predict = make("next-behavior", model=str(model), trust_remote_code=True)

    def answer(number: int) -> None:
        asked = dict(questions[number % len(questions)])
        predict({"events": asked.pop("events")}, **asked)

    return {"answer": microseconds(answer, calls)}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--pipeline", type=Path, metavar="MODEL", help="the pipeline of this model instead")
    parser.add_argument("--bodies", type=Path, required=True, help="bodies of POST /v1/predict, one on each line")
    parser.add_argument("--calls", type=int, default=2000)
    args = parser.parse_args()
    questions = [json.loads(line) for line in args.bodies.read_bytes().splitlines()]
    if args.pipeline is not None:
        found = of_pipeline(args.pipeline, questions, args.calls)
    else:
        found = of_predictor(args.bundle, questions, args.calls)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
