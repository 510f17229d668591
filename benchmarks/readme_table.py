"""Train on three public logs and write the tables of docs/results.md, from nothing or from finished runs.

    python -m benchmarks.readme_table --retailrocket R --trivago T --beauty B --beauty_items I
    python -m benchmarks.readme_table --report          # only write the tables again

Every run is what a user runs: `train_accelerate.py` with its defaults, then `evaluate_behavior.py --update_memory` on
all test targets. A finished run is not repeated, and logs without a path are left out. Cells are medians over seeds; ±
is half the distance from the lowest to the highest seed. The tables replace what stands between the markers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from next_behavior.evaluation.rankers import UPDATED
from next_behavior.evaluation.tables import number, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
RESULT = "all_targets.json"

BASELINES = ("popularity", "repeat_last", "item_transition", "item_neighbours", "repeat_neighbours")
# A row's name, the log it was measured on, and where its figure stands in the evaluation.
ITEM_ROWS = (
    ("RetailRocket, time split, next item, NDCG@10", "retailrocket", ("kept", "all", "ndcg@10")),
    ("RetailRocket, repeated items, NDCG@10", "retailrocket", ("kept", "repeat", "ndcg@10")),
    ("RetailRocket, items new to the user (seen removed), NDCG@10", "retailrocket", ("removed", "novel", "ndcg@10")),
    ("Trivago, time split, next item, NDCG@10", "trivago", ("kept", "all", "ndcg@10")),
    ("Beauty, leave-one-out, seen removed, Recall@10", "beauty", ("removed", "all", "recall@10")),
    ("Beauty, leave-one-out, seen removed, NDCG@10", "beauty", ("removed", "all", "ndcg@10")),
    ("The same with item text (`--items`), Recall@10", "beauty_text", ("removed", "all", "recall@10")),
    ("The same with item text (`--items`), NDCG@10", "beauty_text", ("removed", "all", "ndcg@10")),
)
ACTION_ROWS = (
    ("accuracy", "model", "accuracy"),
    ("macro-F1 of the most probable action", "model", "macro_f1"),
    ("macro-F1, balanced", "model, balanced", "macro_f1"),
    ("log-loss", "model", "log_loss"),
    ("expected calibration error", "model", "ece"),
)
ACTION_LOGS = (("RetailRocket", "retailrocket"), ("Trivago", "trivago"))
LOWER_IS_BETTER = ("log_loss", "ece")

Result = dict[str, Any]


def run(name: str, options: list[str], output: Path, seed: int) -> None:
    """Trains on one log with one seed and evaluates on all test targets, unless that is done."""
    folder = output / f"{name}-seed{seed}"
    if (folder / RESULT).exists():
        return
    print(f"{name}, seed {seed}", flush=True)
    events = options[options.index("--events") + 1]
    train = [*options, "--output_dir", str(folder), "--seed", str(seed)]
    evaluate = ["--model", str(folder), "--events", events, "--update_memory", "--json", str(folder / RESULT)]
    for script, arguments in (("train_accelerate.py", train), ("evaluate_behavior.py", evaluate)):
        subprocess.run([sys.executable, str(ROOT / script), *arguments], check=True)


def figure(result: Result, ranker: str, place: tuple[str, ...]) -> float | None:
    """One number of an evaluation; None where the ranker or the group is not in it."""
    way, *keys = place
    value: Any = result.get(ranker, {}).get(way, {})
    for key in keys if way == "actions" else ("items", *keys):
        value = value.get(key, {})
    return None if value == {} or value is None else float(value)


def median(results: list[Result], ranker: str, place: tuple[str, ...]) -> tuple[float, float] | None:
    """The median over seeds and half the distance from the lowest to the highest; None where a seed lacks it."""
    figures = [figure(result, ranker, place) for result in results]
    values = [value for value in figures if value is not None]
    if not values or len(values) < len(figures):
        return None
    return statistics.median(values), (max(values) - min(values)) / 2


def row(name: str, cells: list[tuple[float, float] | None], own: int, lower_is_better: bool = False) -> list[str]:
    """Cells as text, the best in bold unless it is shared; the first `own` are the model's and get their spread."""
    rounded = [None if cell is None else number(cell[0], 3) for cell in cells]
    values = [float(text) for text in rounded if text is not None]
    best = min(values) if lower_is_better else max(values)
    texts = []
    for index, (cell, text) in enumerate(zip(cells, rounded, strict=True)):
        if cell is None or text is None:
            texts.append("–")
            continue
        is_bold = float(text) == best and values.count(best) == 1
        spread = f" ±{number(cell[1])}" if index < own else ""
        texts.append(f"**{text}**{spread}" if is_bold else f"{text}{spread}")
    return [name, *texts]


def tables(results: dict[str, list[Result]]) -> str:
    """The two tables, of the logs with results."""
    header = ["next item", "this model", "memory updated", *(name.replace("_", " ") for name in BASELINES)]
    header[-1] = "repeat + neighbours"
    rankers = ("model", UPDATED, *BASELINES)
    items = [
        row(name, [median(results[log], ranker, place) for ranker in rankers], own=2)
        for name, log, place in ITEM_ROWS
        if results.get(log)
    ]
    actions = []
    for title, log in ACTION_LOGS:
        for name, ranker, metric in ACTION_ROWS if results.get(log) else ():
            markov = "last_action_markov" + (", balanced" if "balanced" in ranker else "")
            cells = [median(results[log], ranker, ("actions", metric)) for ranker in (ranker, markov)]
            actions.append(row(f"{title}, {name}", cells, own=1, lower_is_better=metric in LOWER_IS_BETTER))
    return "\n\n".join(
        [
            table(header, items),
            *([table(["next action", "this model", "last-action Markov"], actions)] if actions else []),
        ]
    )


def origin(folders: list[Path]) -> str:
    """Machine, date, seeds and minutes of the runs, in one sentence."""
    runs = [json.loads((folder / "run.json").read_text()) for folder in folders]
    machines = sorted({run["machine"]["description"] for run in runs})
    days = sorted(
        {datetime.fromtimestamp((folder / RESULT).stat().st_mtime, timezone.utc).date() for folder in folders}
    )
    seeds = sorted({run["settings"]["seed"] for run in runs})
    longest = max(run["seconds"] for run in runs) / 60
    when = f"{days[0]}" if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        f"Measured on {'; '.join(machines)}, {when}, seeds {', '.join(map(str, seeds))}; a training took at most "
        f"{longest:.0f} minutes."
    )


def write(output: Path, page: Path) -> str:
    """Replaces the tables in `page` by those of the finished runs below `output`; returns them."""
    finished = sorted(path.parent for path in output.glob(f"*-seed*/{RESULT}"))
    if not finished:
        raise ValueError(f"got no finished run in {output}; give the logs' paths, or --output.")
    results: dict[str, list[Result]] = {}
    for folder in finished:
        result = json.loads((folder / RESULT).read_text())
        results.setdefault(folder.name.rsplit("-seed", 1)[0], []).append(result)
    text = f"{tables(results)}\n\n{origin(finished)}"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"got no {BEGIN} ... {END} in {page}; expected both, around the tables.")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("retailrocket", "trivago", "beauty", "beauty_items"):
        parser.add_argument(f"--{name}", help="path of the log" if name != "beauty_items" else "path of the item table")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each log, with seeds 0, 1 ... (default 3)")
    parser.add_argument("--output", type=Path, default=Path(".bench/readme"), help="folder of the runs")
    parser.add_argument("--report", action="store_true", help="only write the tables, from finished runs")
    args = parser.parse_args()
    logs = {"retailrocket": ["--events", args.retailrocket], "trivago": ["--events", args.trivago]}
    logs["beauty"] = ["--events", args.beauty, "--split", "leave_one_out"]
    logs["beauty_text"] = [*logs["beauty"], "--items", args.beauty_items]
    for seed in range(0 if args.report else args.seeds):
        for name, options in logs.items():
            if None not in options:
                run(name, options, args.output, seed)
    print(write(args.output, RESULTS))


if __name__ == "__main__":
    main()
