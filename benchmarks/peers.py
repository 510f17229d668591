"""Other recommenders on the same split, scored by one scorer, timed on the same core, beside this project's model.

    make peers DATA=beauty.parquet SPLIT=leave_one_out                  # builds the peers' environments first
    python -m benchmarks.peers --data beauty.parquet --split leave_one_out --output .bench/peers
    python -m benchmarks.peers --data beauty.parquet --split leave_one_out --systems ours rectools-esasrec-real --force

Each system is a process of its own, in the environment that has its library, with a time limit; its peak memory is the
process's. What it is, is in `benchmarks/peers_systems.py`; how it is scored, in `benchmarks/peers_scoring.py`.
Results are `SYSTEM-seedN.json` in the output folder: a finished system is not run again unless --force. `peers.md`
there is the table; `--report` writes it from what there is. Pin the core from outside: `taskset -c 1 python ...`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.peers_measure import CLASSIC, ENVIRONMENTS, OURS, TRANSFORMERS

ROOT = Path(__file__).resolve().parent.parent
# Of a process that runs longer than its training's limit, on a machine where it has only a part of a core: it is ended
# after this many times the limit, and this many seconds for scoring and latency.
PATIENCE_FACTOR, GRACE_SECONDS = 3, 900

Result = dict[str, Any]


def result_path(folder: Path, system: str, seed: int) -> Path:
    return folder / f"{system}-seed{seed}.json"


def is_finished(folder: Path, system: str, seed: int) -> bool:
    """Whether there is a result; one that says why there is none is tried again."""
    path = result_path(folder, system, seed)
    return path.exists() and "failed" not in json.loads(path.read_text())


def machine() -> dict[str, Any]:
    """What the measurements depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "date": datetime.now(timezone.utc).strftime("%Y-%m-%d")}


def run_system(
    system: str, python: str, folder: Path, seed: int, limit: float, command: Sequence[str] | None = None
) -> Result:
    """Runs a system's process and adds what only its parent sees.

    Args:
        python: the interpreter of its environment.
        limit: seconds that its training may take.
        command: instead of `benchmarks.peers_measure`, which writes `SYSTEM-seedN.result.json`.
    """
    written = folder / f"{system}-seed{seed}.result.json"
    written.unlink(missing_ok=True)
    started = time.time()
    if command is None:
        command = ["-m", "benchmarks.peers_measure", "--system", system, "--folder", str(folder), "--seed", str(seed)]
        command = [*command, "--limit", str(limit)]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, "1") | {"PYTHONWARNINGS": "ignore"}
    log_path = folder / f"{system}-seed{seed}.log"
    with open(log_path, "w") as log:
        process = subprocess.Popen([python, *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        deadline, usage = time.monotonic() + PATIENCE_FACTOR * limit + GRACE_SECONDS, None
        while usage is None:
            pid, status, found = os.wait4(process.pid, os.WNOHANG)
            if pid:
                usage = found
                process.returncode = os.waitstatus_to_exitcode(status)
            else:
                if time.monotonic() > deadline:
                    os.kill(process.pid, signal.SIGKILL)  # process.kill() would wait for it first, and lose its usage
                time.sleep(0.1)
    wall = time.time() - started
    result: Result = {"system": system, "seed": seed, "environment": ENVIRONMENTS.get(system)}
    if process.returncode == 0 and written.exists():
        result = json.loads(written.read_text())
        written.unlink()
    else:
        last = log_path.read_text(errors="replace").strip().splitlines()[-8:]
        why = "reached the time limit" if process.returncode == -9 else f"exit status {process.returncode}"
        result["failed"] = "\n".join([why, *last])
    return result | {
        "peak_mib": usage.ru_maxrss / (1024 if sys.platform != "darwin" else 2**20),
        "wall_seconds": wall,
        "busy_share": (usage.ru_utime + usage.ru_stime) / wall,
        "limit_seconds": limit,
        "machine": machine(),
        "commit": commit(),
    }


def commit() -> str | None:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="event log, columns under names that are recognized")
    parser.add_argument("--split", default="time", choices=["time", "leave_one_out"])
    parser.add_argument("--systems", nargs="+", default=list(ENVIRONMENTS), choices=list(ENVIRONMENTS), metavar="NAME")
    parser.add_argument("--output", default=".bench/peers", help="folder for task and results (default .bench/peers)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each system, with seeds 0, 1 ... (default 1)")
    parser.add_argument("--max_minutes", type=float, default=15, help="limit of a peer's training (default 15)")
    parser.add_argument("--force", action="store_true", help="run finished systems again")
    parser.add_argument("--report", action="store_true", help="only write the table from the results there are")
    parser.add_argument("--peers_python", default=".bench/venv-peers/bin/python", help="of RecTools and RecBole")
    parser.add_argument(
        "--classic_python", default=".bench/venv-peers-classic/bin/python", help="of implicit, LightFM, Surprise"
    )
    args = parser.parse_args(arguments)
    folder = Path(args.output).resolve()
    pythons = {OURS: sys.executable, TRANSFORMERS: args.peers_python, CLASSIC: args.classic_python}
    # Its own process, so that this one stays small: a process inherits the peak memory of the one that starts it.
    prepare = [
        sys.executable,
        "-m",
        "benchmarks.peers_task",
        "--data",
        str(Path(args.data).resolve()),
        "--split",
        args.split,
    ]
    if subprocess.run([*prepare, "--folder", str(folder)], cwd=ROOT).returncode:
        raise ValueError(f"the task could not be prepared from {args.data}")
    for seed in range(0 if args.report else args.seeds):
        for system in args.systems:
            if is_finished(folder, system, seed) and not args.force:
                print(f"{system}, seed {seed}: done before", flush=True)
                continue
            python = os.path.abspath(pythons[ENVIRONMENTS[system]])
            if not os.path.exists(python):
                raise FileNotFoundError(f"got no {python} for {system}; expected it from `make peers-install`")
            print(f"{system}, seed {seed} ...", flush=True)
            result = run_system(system, python, folder, seed, 60 * args.max_minutes)
            unfinished = folder / f"{system}-seed{seed}.part"
            unfinished.write_text(json.dumps(result, indent=1))
            os.replace(unfinished, result_path(folder, system, seed))
            print(f"  {result['wall_seconds']:.0f} s{'; failed' if 'failed' in result else ''}", flush=True)
    from benchmarks.peers_report import report

    text = report(folder)
    (folder / "peers.md").write_text(text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"benchmarks.peers: {error}")
