"""Train on public logs and write the tables of docs/results.md: from nothing, from trained models, from finished runs.

    python -m benchmarks.readme_table --retailrocket R --trivago T --beauty B --beauty_items I --ml1m M ...
    python -m benchmarks.readme_table --models DIR --retailrocket R --beauty B      # DIR/retailrocket, DIR/beauty ...
    python -m benchmarks.readme_table --report                                      # only write the tables again

Every run is what a user runs: `train_accelerate.py` with its defaults, then `evaluate_behavior.py --update_memory` on
all test targets. A finished run is not repeated, and logs without a path are left out. With `--models` nothing is
trained: the folder of that name is evaluated, and nothing is written there. Cells are medians over seeds; ± is half the
distance from the lowest to the highest seed. The tables replace what stands between the markers.

`--toys_attributes` and `--sports_attributes` name a table of item_id and a list of codes (brand, category). The graph
with text (TGH) reads them as its item features, where the model has none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.attribute_graph import add_attribute_graph
from next_behavior.evaluation.rankers import BALANCED, MODEL, UPDATED, UPDATED_SUFFIX
from next_behavior.evaluation.tables import number, plain, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
RESULT = "all_targets.json"

# The logs, how they are split, and the tables that may come with them.
LEAVE_ONE_OUT = ("beauty", "sports", "toys", "ml1m")
LOGS = {
    "beauty": "Beauty",
    "sports": "Sports",
    "toys": "Toys",
    "ml1m": "ML-1M",
    "retailrocket": "RetailRocket",
    "trivago": "Trivago",
}
# A run of the same log with item text has this after its name.
WITH_TEXT = "_text"

REMOVED_ROWS = (("Recall@10", ("removed", "all", "recall@10")), ("NDCG@10", ("removed", "all", "ndcg@10")))
KEPT_ROWS = (
    ("next item, Recall@10", ("kept", "all", "recall@10")),
    ("next item, NDCG@10", ("kept", "all", "ndcg@10")),
    ("repeated items, NDCG@10", ("kept", "repeat", "ndcg@10")),
    ("items new to the user (seen removed), NDCG@10", ("removed", "novel", "ndcg@10")),
)
ROWS = {log: REMOVED_ROWS if log in LEAVE_ONE_OUT else KEPT_ROWS for log in LOGS}
# Single rivals that every table shows: what a simple rule reaches.
RIVALS = ("repeat_last", "item_neighbours", "repeat_neighbours", "vmis_knn", "tifu_knn", "tgh_1", "tgh_2")
# The highest that was found under the same protocol: leave-one-out, whole catalog, seen items removed.
REFERENCES = {
    ("beauty", "recall@10"): (0.0928, "eSASRec"),
    ("beauty", "ndcg@10"): (0.0531, "SASRec with sampled softmax"),
    ("sports", "recall@10"): (0.0569, "SASRec with sampled softmax"),
    ("sports", "ndcg@10"): (0.0323, "eSASRec"),
    ("toys", "recall@10"): (0.0970, "SASRec with sampled softmax"),
    ("toys", "ndcg@10"): (0.0580, "SASRec with sampled softmax"),
    ("ml1m", "recall@10"): (0.3164, "FuXi-alpha"),
    ("ml1m", "ndcg@10"): (0.1821, "SASRec with cross-entropy"),
}
ACTION_ROWS = (
    ("accuracy", MODEL, "accuracy"),
    ("macro-F1 of the most probable action", MODEL, "macro_f1"),
    ("macro-F1, balanced", BALANCED, "macro_f1"),
    ("log-loss", MODEL, "log_loss"),
    ("expected calibration error", MODEL, "ece"),
)
ACTION_LOGS = ("retailrocket", "trivago")
LOWER_IS_BETTER = ("log_loss", "ece")

Result = dict[str, Any]
Cell = tuple[float, float] | None  # the median and half the distance from the lowest to the highest seed


# ----------------------------------------------------------------------------------------------------------------------
# Runs
# ----------------------------------------------------------------------------------------------------------------------


def run(name: str, args: argparse.Namespace, seed: int) -> None:
    """Evaluates one log with one seed on all test targets, trained here or found in `--models`, unless that is done."""
    folder: Path = args.output / f"{name}-seed{seed}"
    if (folder / RESULT).exists():
        return
    log = name.removesuffix(WITH_TEXT)
    events, items = getattr(args, log), getattr(args, f"{log}_items")
    print(f"{name}, seed {seed}", flush=True)
    if args.models is None:
        model = folder
        train = ["--events", events, "--output_dir", str(folder), "--seed", str(seed)]
        train += ["--split", "leave_one_out"] if log in LEAVE_ONE_OUT else []
        train += ["--items", items] if name.endswith(WITH_TEXT) else []
        subprocess.run([sys.executable, str(ROOT / "train_accelerate.py"), *train], check=True)
    else:
        model = args.models / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text((model / "run.json").read_text())
    unfinished = folder / f"evaluating_{RESULT}"
    evaluate = ["--model", str(model), "--events", events, "--update_memory", "--json", str(unfinished)]
    evaluate += ["--baselines", args.baselines]
    evaluate += ["--max_targets", str(args.max_targets)] if args.max_targets else []
    subprocess.run([sys.executable, str(ROOT / "evaluate_behavior.py"), *evaluate], check=True)
    attributes = getattr(args, f"{log}_attributes")
    if attributes is not None:
        result = json.loads(unfinished.read_text())
        if not result["reads_text"]:
            add_attribute_graph(result, model, events, Path(attributes), args.max_targets)
            unfinished.write_text(json.dumps(result, indent=1))
    unfinished.rename(folder / RESULT)


def runs_of(args: argparse.Namespace) -> list[str]:
    """The names of the runs that the arguments ask for."""
    names = []
    for log in LOGS:
        if getattr(args, log) is None:
            continue
        if args.models is None:
            names += [log] if getattr(args, f"{log}_items") is None else [log, f"{log}{WITH_TEXT}"]
        else:
            # A folder without weights is a training that goes on.
            found = [name for name in (log, f"{log}{WITH_TEXT}") if (args.models / name / "run.json").is_file()]
            if not found:
                print(f"{log}: no trained model in {args.models}", flush=True)
            names += found
    return names


# ----------------------------------------------------------------------------------------------------------------------
# Tables
# ----------------------------------------------------------------------------------------------------------------------


def figure(result: Result, ranker: str, place: tuple[str, ...]) -> float | None:
    """One number of an evaluation; None where the ranker or the group is not in it."""
    way, *keys = place
    value: Any = result.get(ranker, {}).get(way, {})
    for key in keys if way == "actions" else ("items", *keys):
        value = value.get(key, {})
    return None if value == {} or value is None else float(value)


def median(results: list[Result], ranker: str, place: tuple[str, ...]) -> Cell:
    """The median over seeds and half the distance from the lowest to the highest; None where a seed lacks it."""
    figures = [figure(result, ranker, place) for result in results]
    values = [value for value in figures if value is not None]
    if not values or len(values) < len(figures):
        return None
    return statistics.median(values), (max(values) - min(values)) / 2


def row(name: str, cells: list[Cell], own: int, lower_is_better: bool = False, several: bool = True) -> list[str]:
    """Cells as text, the best in bold unless it is shared; the first `own` are the model's and get their spread, where
    there are several seeds."""
    rounded = [None if cell is None else number(cell[0], 3) for cell in cells]
    values = [float(text) for text in rounded if text is not None]
    best = min(values) if lower_is_better else max(values)
    texts = []
    for index, (cell, text) in enumerate(zip(cells, rounded, strict=True)):
        if cell is None or text is None:
            texts.append("–")
            continue
        is_bold = float(text) == best and values.count(best) == 1
        spread = f" ±{number(cell[1])}" if index < own and several else ""
        texts.append(f"**{text}**{spread}" if is_bold else f"{text}{spread}")
    return [name, *texts]


def is_baseline(name: str, updated: bool) -> bool:
    return not name.startswith(MODEL) and name.endswith(UPDATED_SUFFIX) == updated


def best_of(results: list[Result], place: tuple[str, ...], chosen: Callable[[str], bool]) -> tuple[Cell, str]:
    """The best median among the chosen rankers of a log, and whose it is."""
    cells = {name: median(results, name, place) for name in results[0]["rankers"] if chosen(name)}
    known = {name: cell for name, cell in cells.items() if cell is not None}
    if not known:
        return None, ""
    best = max(known, key=lambda name: known[name][0])
    return known[best], plain(best).removesuffix(UPDATED_SUFFIX)


def titled(log: str, results: list[Result]) -> str:
    text = ", item text read" if results[0].get("reads_text") else ""
    return f"{LOGS[log.removesuffix(WITH_TEXT)]}{text}"


def main_table(results: dict[str, list[Result]]) -> str:
    """The model beside the best rival and the highest published figure; in bold what is highest in the row."""
    rows = []
    for log, found in results.items():
        for metric, place in ROWS[log.removesuffix(WITH_TEXT)]:
            rival, whose = best_of(found, place, lambda name: is_baseline(name, updated=False))
            updated, whose_updated = best_of(found, place, lambda name: is_baseline(name, updated=True))
            published = REFERENCES.get((log.removesuffix(WITH_TEXT), place[-1]))
            reference = None if published is None else (published[0], 0.0)
            cells = [median(found, MODEL, place), median(found, UPDATED, place), rival, updated, reference]
            if cells[0] is None:  # no target of that kind
                continue
            texts = row(f"{titled(log, found)}: {metric}", cells, own=2, several=len(found) > 1)
            for index, name in ((3, whose), (4, whose_updated), (5, "" if published is None else published[1])):
                texts[index] += f" {name}" if name else ""
            rows.append(texts)
    header = [
        "next item",
        "this model",
        "memory updated",
        "best rival",
        "best rival, updated",
        "highest open reference",
    ]
    return table(header, rows)


def rivals_table(results: dict[str, list[Result]]) -> str:
    """What single rivals reach, next to the model; each also updated where it counts."""
    rows = []
    for log, found in results.items():
        for metric, place in ROWS[log.removesuffix(WITH_TEXT)]:
            if median(found, MODEL, place) is None:
                continue
            cells = []
            for name in (MODEL, *RIVALS):
                first = median(found, name, place)
                later = median(found, UPDATED if name == MODEL else f"{name}{UPDATED_SUFFIX}", place)
                text = "–" if first is None else number(first[0], 3)
                cells.append(text if later is None else f"{text}; {number(later[0], 3)}")
            rows.append([f"{titled(log, found)}: {metric}", *cells])
    return table(["next item; updated", "this model", *map(plain, RIVALS)], rows)


def tables(results: dict[str, list[Result]]) -> str:
    """The tables of the logs with results."""
    actions = []
    for log in ACTION_LOGS:
        for name, ranker, metric in ACTION_ROWS if results.get(log) else ():
            markov = "last_action_markov" + (", balanced" if ranker == BALANCED else "")
            cells = [median(results[log], ranker, ("actions", metric)) for ranker in (ranker, markov)]
            lower, several = metric in LOWER_IS_BETTER, len(results[log]) > 1
            if any(cell is not None for cell in cells):
                actions.append(row(f"{LOGS[log]}, {name}", cells, own=1, lower_is_better=lower, several=several))
    parts = [main_table(results), rivals_table(results)]
    if actions:
        parts.append(table(["next action", "this model", "last-action Markov"], actions))
    return "\n\n".join(parts)


def origin(folders: list[Path], results: list[Result]) -> str:
    """Machine, date, seeds and minutes of the runs, in one sentence."""
    runs = [json.loads((folder / "run.json").read_text()) for folder in folders]
    machines = sorted({run["machine"]["description"] for run in runs})
    days = sorted(
        {datetime.fromtimestamp((folder / RESULT).stat().st_mtime, timezone.utc).date() for folder in folders}
    )
    seeds = sorted({run["settings"]["seed"] for run in runs})
    longest = max(run["seconds"] for run in runs) / 60
    when = f"{days[0]}" if len(days) == 1 else f"{days[0]} to {days[-1]}"
    sampled = ", a sample of the test targets" if any(result["sampled"] for result in results) else ""
    return (
        f"Measured on {'; '.join(machines)}, {when}, {'seed' if len(seeds) == 1 else 'seeds'} "
        f"{', '.join(map(str, seeds))}{sampled}; a training took at most {longest:.0f} minutes."
    )


def write(output: Path, page: Path) -> str:
    """Replaces the tables in `page` by those of the finished runs below `output`; returns them."""
    order = [name for log in LOGS for name in (log, f"{log}{WITH_TEXT}")]
    finished = [path.parent for path in output.glob(f"*-seed*/{RESULT}")]
    finished = sorted(finished, key=lambda folder: (order.index(folder.name.rsplit("-seed", 1)[0]), folder.name))
    if not finished:
        raise ValueError(f"got no finished run in {output}; give the logs' paths, or --output.")
    results: dict[str, list[Result]] = {}
    for folder in finished:
        result = json.loads((folder / RESULT).read_text())
        results.setdefault(folder.name.rsplit("-seed", 1)[0], []).append(result)
    text = f"{tables(results)}\n\n{origin(finished, [result for found in results.values() for result in found])}"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"got no {BEGIN} ... {END} in {page}; expected both, around the tables.")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return text


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for log in LOGS:
        parser.add_argument(f"--{log}", help="path of the log")
        parser.add_argument(f"--{log}_items", help="path of its item table: a second run reads it")
        parser.add_argument(f"--{log}_attributes", help="path of a table of codes, which TGH reads")
    parser.add_argument("--models", type=Path, help="trained models, a folder for each log: nothing is trained")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each log, with seeds 0, 1 ... (default 3)")
    parser.add_argument("--baselines", choices=["counting", "all"], default="counting", help="all: also LightGCN")
    parser.add_argument("--max_targets", type=int, help="about so many test targets of each log (default: all)")
    parser.add_argument("--output", type=Path, default=Path(".bench/readme"), help="folder of the runs")
    parser.add_argument("--report", action="store_true", help="only write the tables, from finished runs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parsed(arguments)
    for seed in range(0 if args.report else 1 if args.models is not None else args.seeds):
        for name in runs_of(args):
            run(name, args, seed)
    print(write(args.output, RESULTS))


if __name__ == "__main__":
    main()
