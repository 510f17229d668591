"""The service, the predictor and batch scoring, measured; beside the same in RecTools and behind other servers.

    make bench-serving                                                # made-up models and a made-up log
    make bench-serving DATA=toys.parquet MODEL=out/shop MODEL_DATA=shop.parquet
    python -m benchmarks.serving --parts small events --repeats 1 --seconds 2      # a part of it, in a small form

The service has one core and the load generator another one; nothing else should run. What is a part is in PARTS. Each
part is measured --repeats times, and medians are reported. Results are kept in `serving.json` of the output folder by
part: a part that is measured again replaces its results, and `serving.md` is written from all there are. A part that
fails is named there with the reason, and the others go on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks import serving_peers
from benchmarks.peers import commit, machine
from benchmarks.serving_inputs import (
    LENGTH,
    START,
    batches_of_events,
    made_up_log,
    questions,
    random_walks,
    windows_of_log,
    write_lines,
)
from benchmarks.serving_process import ROOT, Cores, Running, free_port, http, json_of, module
from benchmarks.serving_report import report
from next_behavior.data.events import read_events
from next_behavior.serving.export import bundle_for
from next_behavior.serving.predictor import Predictor

QUESTIONS = 500
# Open-loop requests a second: shares of what a closed loop reached, and given ones.
SHARES, RATE, MILLION_RATE = (0.5, 0.8, 1.2), 2000.0, 50.0
# More than the service lets wait, so that overload meets its limit and not the client's.
OPEN_CONNECTIONS, CLOSED_CONNECTIONS = 400, 32
# Callers, events of a batch, batches.
EVENT_LOADS = ((1, 1, 400), (16, 1, 1500), (1, 100, 150), (4, 100, 300), (4, 500, 100))
WAIT_FOR_MEMORY = 60.0
STORE = "events.sqlite"
IMPORTS = "import next_behavior.serving.server, next_behavior.serving.service, next_behavior.serving.predictor"

Result = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A model that is measured: its folder, its bundle, and a file of questions to it."""

    name: str
    model: Path
    bundle: Path
    bodies: Path
    items: list[str]
    actions: list[str]


class Bench:
    """All parts, with what they share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, Path(args.output).resolve()
        self.repeats, self.seconds = args.repeats, args.seconds
        self.cores = Cores.of_machine()
        self.log = self.folder / "serving.log"
        self.folder.mkdir(parents=True, exist_ok=True)

    # -- what is measured ----------------------------------------------------------------------------------------------

    def made_up(self, name: str, *arguments: object) -> Made:
        """A model that is made if it is not there."""
        model = self.folder / name
        if not (model / "config.json").exists():
            print(f"  making the model {name} ...", flush=True)
            command = module("benchmarks.made_up_model", "--output", model, *arguments)
            with self.log.open("a") as log:
                subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log)
        return self.of_folder(name, model, None)

    def of_folder(self, name: str, model: Path, log: pl.DataFrame | None) -> Made:
        """A saved model, with questions of a log, or made-up ones."""
        bundle = bundle_for(model, say=lambda line: print(f"  {line}", flush=True))
        predictor = Predictor.load(bundle)
        items = predictor.item_vocabulary()
        if log is None:
            walks = random_walks(np.random.default_rng(1), len(items), QUESTIONS, LENGTH)
        else:
            walks = full_windows(log, items)
        bodies = self.folder / f"{name}.jsonl"
        write_lines(bodies, questions(items, predictor.info.actions, walks))
        return Made(name, model, bundle, bodies, items, predictor.info.actions)

    def small(self) -> Made:
        return self.made_up("made-up-12000", "--items", 12_000, "--width", 128, "--layers", 2)

    def log_file(self) -> Path:
        """The log of batch scoring."""
        if self.args.data is not None:
            return Path(self.args.data).resolve()
        path = self.folder / "made-up-log.parquet"
        if not path.exists():
            made_up_log().write_parquet(path)
        return path

    def log_csv(self) -> Path:
        """The same log as other libraries read it: user, item, time."""
        events = read_events(str(self.log_file())).events.drop_nulls("item_id")
        path = self.folder / "log.csv"
        table = events.select(user="user_id", item="item_id").with_row_index("time").select("user", "item", "time")
        table.write_csv(path)
        return path

    # -- parts ---------------------------------------------------------------------------------------------------------

    def references(self) -> Result:
        """RecTools' call for one user, and for all users of the log."""
        python = serving_peers.python_of("peers")
        runs = []
        for _ in range(self.repeats):
            command = module("benchmarks.serving_rectools", "--log", self.log_csv(), python=python)
            runs.append(json_of(self.cores.service, command, self.log))
        return medians(runs)

    def service_small(self) -> Result:
        return self.service(self.small(), [*self.shares(), RATE])

    def service_model(self) -> Result:
        if self.args.model is None:
            raise ValueError("no --model was given")
        log = None if self.args.model_data is None else read_events(self.args.model_data).events
        return self.service(self.of_folder("model", Path(self.args.model).resolve(), log), [*self.shares(), RATE])

    def service_million(self) -> Result:
        made = self.made_up("made-up-1000000", "--items", 1_000_000, "--width", 64, "--layers", 2)
        return self.service(made, [*self.shares(), MILLION_RATE])

    def events(self) -> Result:
        """Events a second that are acknowledged as durable, and until the memory has counted them all."""
        made, runs = self.small(), []
        for repeat in range(self.repeats):
            found: Result = {}
            with self.serve(made, STORE) as server:
                total = 0
                for number, (callers, size, count) in enumerate(EVENT_LOADS):
                    count = max(5, round(count * min(1.0, self.seconds / 8)))
                    run, start = f"{repeat}-{number}-{time.time():.0f}", START + total
                    bodies = write_lines(
                        self.folder / "events.jsonl",
                        batches_of_events(made.items, made.actions, count, size, run, start),
                    )
                    load = self.load(server.port, bodies, "--connections", callers, "--once", "--path", "/v1/events")
                    behind = seconds_until_counted(server.port, made.items[0], run)
                    sent = count * size
                    total += sent
                    found[f"{callers} x {size}"] = load | {
                        "events_per_second": size * load["good_per_second"],
                        "counted_per_second": None if behind is None else sent / (load["seconds"] + behind),
                    }
            runs.append(found)
        return medians(runs)

    def imports(self) -> Result:
        """Seconds to import what the serving process imports, beyond an empty Python."""
        runs = []
        for _ in range(max(3, self.repeats)):
            times = []
            for source in ("pass", IMPORTS):
                begin = time.perf_counter()
                json_of(self.cores.service, [sys.executable, "-c", f"{source}; print(0)"], self.log)
                times.append(time.perf_counter() - begin)
            runs.append({"seconds": times[1] - times[0]})
        return medians(runs)

    def in_process(self) -> Result:
        """The predictor and the pipeline without HTTP."""
        made = self.small()
        calls, few = (2000, 100) if self.seconds >= 4 else (300, 20)
        alone = module("benchmarks.serving_in_process", "--bundle", made.bundle, "--bodies", made.bodies)
        pipeline = module("benchmarks.serving_in_process", "--pipeline", made.model, "--bodies", made.bodies)
        runs = []
        for _ in range(self.repeats):
            found = json_of(self.cores.service, [*alone, "--calls", str(calls)], self.log)
            found["pipeline"] = json_of(self.cores.service, [*pipeline, "--calls", str(few)], self.log)["answer"]
            runs.append(found)
        return medians(runs)

    def scoring(self) -> Result:
        """Users a second of batch scoring, and of the pipeline asked for one user after the other."""
        log = self.log_file()
        # As wide and as deep as RecTools' model of `references`.
        size = ("--width", 128, "--layers", 1)
        made = self.made_up(f"scoring-{log.stem}-{log.stat().st_size}", "--events", log, *size)
        score = module("benchmarks.serving_scoring", "--model", made.model, "--events", log)
        events = read_events(str(log)).events
        walks = windows_of_log(events, made.items)[:QUESTIONS]
        bodies = write_lines(self.folder / "scoring.jsonl", questions(made.items, made.actions, walks))
        pipeline = module("benchmarks.serving_in_process", "--pipeline", made.model, "--bodies", bodies, "--calls", 50)
        runs = []
        for _ in range(self.repeats):
            found = json_of(self.cores.service, score, self.log)
            one = json_of(self.cores.service, pipeline, self.log)["answer"]
            runs.append(found | {"pipeline_users_per_second": 1e6 / one["p50_us"]})
        return medians(runs) | {"log": log.name}

    def peers(self) -> Result:
        """The same predictor behind other servers, LibRecommender behind its own, and this service."""
        made, found = self.small(), {}
        servers: dict[str, Callable[[], Running]] = {
            "next-behavior serve": lambda: self.serve(made),
            "LitServe": lambda: serving_peers.litserve(made.bundle, self.cores.service, self.log, 1),
            "LitServe, batches": lambda: serving_peers.litserve(made.bundle, self.cores.service, self.log, 32),
            "BentoML": lambda: serving_peers.bentoml(made.bundle, self.cores.service, self.log),
        }
        for name, start in servers.items():
            print(f"  {name} ...", flush=True)
            try:
                found[name] = self.behind(start, made.bodies, "/v1/predict")
            except (ValueError, OSError) as error:
                found[name] = {"failed": str(error)}
        print("  LibRecommender ...", flush=True)
        try:
            with serving_peers.librecommender(self.log_csv(), self.folder, self.cores.service, self.log) as embed:
                found["LibRecommender RNN4Rec"] = self.behind(embed.server, embed.bodies, "/embed/recommend")
        except (ValueError, OSError) as error:
            found["LibRecommender RNN4Rec"] = {"failed": str(error)}
        return found

    # -- pieces --------------------------------------------------------------------------------------------------------

    def shares(self) -> list[float]:
        return list(SHARES)

    def serve(self, made: Made, store: str = "none") -> Running:
        """This project's service with its defaults: a line of the log for each request, in a file.

        Args:
            store: the name of a new file in the output folder, or "none".
        """
        port = free_port()
        if store != "none":
            for path in self.folder.glob(f"{store}*"):
                if path.is_file():
                    path.unlink()
            shutil.rmtree(self.folder / f"{store}.state", ignore_errors=True)
            store = str(self.folder / store)
        arguments = ["serve", "--model", made.model, "--port", port, "--store", store, "--drain_seconds", 0]
        command = module("next_behavior.commands", *arguments)
        return Running(command, port, self.cores.service, self.log, ("GET", "/readyz", b""))

    def load(self, port: int, bodies: Path, *arguments: object) -> Result:
        """A run of the load generator on its core."""
        command = module("benchmarks.load_generator", "--port", port, "--bodies", bodies, *arguments)
        found: Result = json_of(self.cores.client, command, self.log)
        return found

    def service(self, made: Made, rates: Sequence[float]) -> Result:
        """Start, memory, one connection, capacity, and open loops at rates: a share of the capacity if below 10."""
        starts, runs = [], []
        for _ in range(self.repeats):
            with self.serve(made, STORE) as server:
                starts.append({"ready_seconds": server.start_seconds, "at_ready": server.mebibytes()})
        with self.serve(made, STORE) as server:
            for repeat in range(self.repeats):
                seconds = ("--seconds", self.seconds)
                found: Result = {"one connection": self.load(server.port, made.bodies, "--connections", 1, *seconds)}
                closed = self.load(server.port, made.bodies, "--connections", CLOSED_CONNECTIONS, *seconds)
                found |= {"capacity": closed, "open": {}}
                for rate in rates:
                    share = rate < 10
                    asked = rate * closed["good_per_second"] if share else rate
                    found["open"][f"{rate:.0%} of capacity" if share else f"{rate:g} a second"] = self.load(
                        server.port, made.bodies, "--rate", asked, "--connections", OPEN_CONNECTIONS, *seconds,
                        "--seed", repeat,
                    ) | {"rate": asked}  # fmt: skip
                runs.append(found)
            after = server.mebibytes()
        command = module("benchmarks.serving_in_process", "--bundle", made.bundle, "--bodies", made.bodies)
        floor = json_of(self.cores.service, [*command, "--calls", "200"], self.log)
        return medians(runs) | {
            "start": medians(starts),
            "after_load": after,
            "in_process": floor,
            "items": len(made.items),
        }

    def behind(self, start: Callable[[], Running], bodies: Path, path: str) -> Result:
        """What any server is measured by: one connection, capacity, and 80 % of it in an open loop."""
        with start() as server:
            at_ready, runs = server.mebibytes(), []
            for repeat in range(self.repeats):
                common = ("--path", path, "--seconds", self.seconds, "--seed", repeat)
                closed = self.load(server.port, bodies, "--connections", CLOSED_CONNECTIONS, *common)
                rate = 0.8 * closed["good_per_second"]
                runs.append({
                    "one connection": self.load(server.port, bodies, "--connections", 1, *common),
                    "capacity": closed,
                    "80% of capacity": self.load(
                        server.port, bodies, "--rate", rate, "--connections", OPEN_CONNECTIONS, *common
                    ),
                })  # fmt: skip
            return medians(runs) | {"ready_seconds": server.start_seconds, "at_ready": at_ready}


PARTS: dict[str, Callable[[Bench], Result]] = {
    "references": Bench.references,
    "small": Bench.service_small,
    "model": Bench.service_model,
    "million": Bench.service_million,
    "events": Bench.events,
    "imports": Bench.imports,
    "in-process": Bench.in_process,
    "scoring": Bench.scoring,
    "peers": Bench.peers,
}


def full_windows(log: pl.DataFrame, items: Sequence[str]) -> np.ndarray:
    """(n, LENGTH) windows of users with at least LENGTH known items; shorter ones if there are none."""
    windows = windows_of_log(log, items)
    full = windows[(windows >= 0).all(axis=1)]
    return (full if len(full) else windows)[:QUESTIONS]


def seconds_until_counted(port: int, item: str, run: str) -> float | None:
    """Seconds until the memory has counted all events sent before; None if it takes longer than a minute.

    It counts in the order of arrival, and the service can be asked to wait for one event: a last one is sent.
    """
    begin = time.perf_counter()
    for number in itertools.count():
        event = {
            "event_id": f"{run}-last-{number}",
            "user_id": f"{run}-last",
            "item": item,
            "timestamp": START + number,
        }
        body = json.dumps({"events": [event], "learned": True}).encode()
        status, answer = http(port, "POST", "/v1/events", body, WAIT_FOR_MEMORY)
        if status != 200:
            raise ValueError(f"got status {status} for an event to learn: {answer[:200]!r}")
        seconds = time.perf_counter() - begin
        if "learned" in json.loads(answer)["events"][0]:
            return seconds
        if seconds > WAIT_FOR_MEMORY:
            return None
    return None


def medians(runs: Sequence[Any]) -> Any:
    """Equal structures as one: the median of each number, and of anything else the first.

    >>> medians([{"a": 1, "b": {"c": 5.0}, "d": "x"}, {"a": 3, "b": {"c": 6.0}, "d": "x"}])
    {'a': 2.0, 'b': {'c': 5.5}, 'd': 'x'}
    """
    if isinstance(runs[0], dict):
        return {name: medians([run[name] for run in runs if name in run]) for name in runs[0]}
    numbers = [value for value in runs if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return statistics.median(numbers) if numbers else runs[0]


def this_machine(cores: Cores) -> Result:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime", "uvicorn", "starlette")}
    return machine() | {
        "avx512": "avx512f" in flags,
        "avx512_vnni": "avx512_vnni" in flags,
        "python": sys.version.split()[0],
        "versions": versions,
        "pinned": cores.service is not None,
        "commit": commit(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    parser.add_argument("--data", help="event log of batch scoring and of the reference; default: a made-up one")
    parser.add_argument("--model", help="folder of a trained model, for the part `model`")
    parser.add_argument("--model_data", help="its log, whose histories are asked about; default: made-up ones")
    parser.add_argument("--output", default=".bench/serving", help="folder of models, results and table")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--table", type=Path, help="write the table here, too")
    args = parser.parse_args(arguments)
    bench = Bench(args)
    path = bench.folder / "serving.json"
    results: Result = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    results["machine"] = this_machine(bench.cores)
    for part in args.parts:
        if part == "model" and args.model is None:
            continue
        print(f"{part} ...", flush=True)
        begin, load = time.perf_counter(), os.getloadavg()
        try:
            found = PARTS[part](bench)
        except (ValueError, OSError, subprocess.SubprocessError) as error:
            found = {"failed": str(error)}
            print(f"  failed: {error}", flush=True)
        results["parts"][part] = found | {
            "load_average_before": load[0],
            "minutes": (time.perf_counter() - begin) / 60,
            "repeats": args.repeats,
            "seconds": args.seconds,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        }
        path.write_text(json.dumps(results, indent=1))
    text = report(results)
    for table in (bench.folder / "serving.md", args.table):
        if table is not None:
            table.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
