"""One machine against Spark on one log: the same bytes, seconds, processor time and peak memory.

    python -m benchmarks.spark --events events.parquet [--master 'local-cluster[2,1,1024]'] [--partitions 4]

Each engine prepares the log in a process of its own. Its memory is the sum over that process and all that it starts,
Java and the Python processes of executors among them. Needs the extra [spark] and Java.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
SAMPLED_EVERY = 0.2  # seconds
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.shuffle.partitions": "2",
    "spark.executorEnv.PYTHONPATH": str(ROOT),
    "spark.ui.showConsoleProgress": "false",
}


def prepare_once(engine: str, events: str, output: str, partitions: int | None, master: str) -> None:
    from next_behavior.preparation.prepare import PrepareSettings, prepare

    if engine == "spark":
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.master(master)
        for name, value in SETTINGS.items():
            builder = builder.config(name, value)
        builder.getOrCreate().sparkContext.setLogLevel("ERROR")
    prepare(events, output, PrepareSettings(partitions=partitions), engine_name=engine)


def measured(command: list[str]) -> dict[str, float]:
    """Seconds, processor seconds and peak MiB of a command with all processes that it starts."""
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    environment["PYTHONPATH"] = str(ROOT)
    began, peak, processor = time.perf_counter(), 0, dict[tuple[int, float], float]()
    with subprocess.Popen(command, env=environment, stdout=sys.stderr) as started:
        top = psutil.Process(started.pid)
        while started.poll() is None:
            resident = 0
            for process in [top, *children_of(top)]:
                try:
                    with process.oneshot():
                        times = process.cpu_times()
                        processor[process.pid, process.create_time()] = times.user + times.system
                        resident += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, resident)
            time.sleep(SAMPLED_EVERY)
    if started.returncode:
        raise SystemExit(started.returncode)
    return {"s": time.perf_counter() - began, "processor s": sum(processor.values()), "peak MiB": peak / 2**20}


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def files_that_differ(one: Path, other: Path) -> list[str]:
    """The names of files that are not the same in both folders, byte for byte."""
    names = sorted({str(path.relative_to(folder)) for folder in (one, other) for path in folder.rglob("*")})
    return [name for name in names if bytes_of(one / name) != bytes_of(other / name)]


def bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", required=True, help="log in Parquet")
    parser.add_argument("--master", default="local-cluster[2,1,1024]", help="of Spark")
    parser.add_argument("--partitions", type=int, help="of both preparations (default: by the log's rows)")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        prepare_once(args.once[0], args.events, args.once[1], args.partitions, args.master)
        return
    with tempfile.TemporaryDirectory() as folder:
        outputs = {engine: Path(folder) / engine for engine in ("one_machine", "spark")}
        for engine, output in outputs.items():
            command = [sys.executable, "-m", "benchmarks.spark", *sys.argv[1:], "--once", engine, str(output)]
            print(f"{engine}: " + ", ".join(f"{value:,.0f} {name}" for name, value in measured(command).items()))
        differ = files_that_differ(*outputs.values())
    print("every file is the same, byte for byte" if not differ else f"these differ: {', '.join(differ)}")


if __name__ == "__main__":
    main()
