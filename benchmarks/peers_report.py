"""The tables of a comparison, from its results: JSON in, Markdown out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers_measure import ENVIRONMENTS, STOCK_STEPS
from next_behavior.evaluation.tables import number, table

# Trained as shipped only long enough to measure throughput; the same loss is trained to the end by the other.
VARIANTS = {"rectools-esasrec": "rectools-esasrec-real", "rectools-sasrec": "rectools-sasrec-real"}
AT_EQUAL_SIZE = {
    "rectools-esasrec": ("ours-as-esasrec", "ours-as-esasrec-fp32"),
    "rectools-sasrec": ("ours-as-sasrec", "ours-as-sasrec-fp32"),
}

Result = dict[str, Any]


def median(results: Sequence[Result], *keys: str) -> float | None:
    """The median over seeds of a figure; None where no seed has it."""
    values = []
    for found in results:
        value: Any = found
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            values.append(float(value))
    return statistics.median(values) if values else None


def seconds_to(results: Sequence[Result], ndcg: float) -> float | None:
    """The median over seeds of the seconds until the validation NDCG@10 was first at least `ndcg`; None if a seed
    never reached it."""
    found = []
    for result in results:
        reached = [point["seconds"] for point in result.get("curve", []) if point["ndcg@10"] >= ndcg]
        if not reached:
            return None
        found.append(min(reached))
    return statistics.median(found) if found else None


def derived_seconds_to_best(stock: Sequence[Result], variant: Sequence[Result]) -> float | None:
    """Epochs to the variant's best times the seconds of a stock epoch."""
    epochs, rate = median(variant, "best_epoch"), median(stock, "targets_per_second")
    targets = median(stock, "targets_per_epoch")
    return None if epochs is None or rate is None or targets is None else epochs * targets / rate


def whole(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:,.0f}{unit}"


def small(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def with_spread(results: Sequence[Result], way: str, metric: str) -> str:
    """The median over seeds, and half the spread where there are several."""
    values = [found["test"][way][metric] for found in results if "test" in found]
    if not values:
        return "–"
    spread = f" ±{number((max(values) - min(values)) / 2)}" if len(values) > 1 else ""
    return number(statistics.median(values)) + spread


def systems_table(results: dict[str, list[Result]], way: str) -> str:
    header = ["system", "Recall@10", "NDCG@10", "targets/s", "training s", "s to its best", "peak MiB", "ms a call"]
    rows = []
    for system, found in results.items():
        if all("failed" in result for result in found):
            rows.append([f"{system} (failed)", *["–"] * (len(header) - 1)])
            continue
        to_best, name = small(median(found, "seconds_to_best")), system
        if any(result.get("stopped_by_time") for result in found):
            name += " ²"
        training = small(median(found, "training_seconds"))
        if system in VARIANTS:
            derived = derived_seconds_to_best(found, results.get(VARIANTS[system], []))
            name, to_best, training = f"{name} ¹", "–" if derived is None else f"{derived:,.0f} ¹", "–"
        rows.append(
            [
                name,
                with_spread(found, way, "recall@10"),
                with_spread(found, way, "ndcg@10"),
                whole(median(found, "targets_per_second")),
                training,
                to_best,
                whole(median(found, "peak_mib")),
                small(median(found, "latency", "median_ms")),
            ]
        )
    return table(header, rows)


def goals_table(results: dict[str, list[Result]]) -> str:
    """Throughput at equal width, depth and loss, and the time to a peer's own best validation NDCG@10."""
    header = ["against", "what", "peer", "ours", "ratio", "goal", "holds"]
    rows: list[list[str]] = []

    def add(peer: str, what: str, theirs: float | None, ours: float | None, goal: float, higher: bool) -> None:
        if theirs is None:
            return
        if ours is None:
            rows.append([peer, what, whole(theirs), "not reached", "–", f"{goal:g}", "no"])
            return
        ratio = ours / theirs
        holds = ratio >= goal if higher else ratio <= goal
        sign = "≥" if higher else "≤"
        rows.append(
            [peer, what, whole(theirs), whole(ours), f"{ratio:.2f}", f"{sign} {goal:.2g}", "yes" if holds else "no"]
        )

    for stock, variant in VARIANTS.items():
        for ours in AT_EQUAL_SIZE[stock]:
            if results.get(ours):
                rate = median(results[ours], "targets_per_second")
                what = f"targets/s, {ours}"
                add(stock, what, median(results.get(stock, []), "targets_per_second"), rate, 10, True)
                add(variant, what, median(results.get(variant, []), "targets_per_second"), rate, 3, True)
        best = median(results.get(variant, []), "best_validation")
        if best is not None and results.get("ours"):
            seconds = seconds_to(results["ours"], best)
            cut = " ²" if any(found.get("stopped_by_time") for found in results[variant]) else ""
            what = f"s to its best validation NDCG@10 ({number(best)}{cut})"
            derived = derived_seconds_to_best(results.get(stock, []), results[variant])
            add(f"{stock} ¹", what, derived, seconds, 0.1, False)
            add(variant, what, median(results[variant], "seconds_to_best"), seconds, 1 / 3, False)
    return table(header, rows) if rows else ""


def report(folder: Path) -> str:
    """The tables of the results in a folder, as Markdown."""
    results: dict[str, list[Result]] = {}
    for system in ENVIRONMENTS:
        found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{system}-seed*.json"))]
        if found := [result for result in found if result["system"] == system]:
            results[system] = [result for result in found if "failed" not in result] or found
    if not results:
        return "No results yet.\n"
    task, every = json.loads((folder / "task.json").read_text()), [one for found in results.values() for one in found]
    way = "removed" if task["split"] == "leave_one_out" else "kept"
    first = every[0]
    seeds = sorted({result["seed"] for result in every})
    dates = sorted({result["machine"]["date"] for result in every})
    busy = [result["busy_share"] for result in every]
    counts = next((one["test"][way]["count"] for one in every if "test" in one), 0)
    lines = [
        f"{Path(task['data']).name}, split {task['split']}, {counts:,} test targets, seen items {way}, full catalog, "
        f"ties against the system. {first['machine']['cpu']}, one thread each, "
        f"{' to '.join(dict.fromkeys([dates[0], dates[-1]]))}; seed(s) {', '.join(map(str, seeds))}. Seconds are those "
        f"that a process computed; it had {min(busy):.0%} to {max(busy):.0%} of a core.",
        systems_table(results, way),
    ]
    if goals := goals_table(results):
        lines.append(goals)
    lines += [
        f"¹ Measured on {STOCK_STEPS} batches as shipped, not trained to the end. Accuracy is that of the variant with "
        "the loss at real positions only, which is the same loss. *Derived*: epochs to the variant's best times the "
        "seconds of an epoch as shipped.",
        "² Stopped by the time limit before its validation NDCG@10 stopped rising: its accuracy is a lower bound, and "
        "so is the best that ours is timed to.",
        "targets/s: events that a loss was computed for, padding left out (masked ones for BERT4Rec; for LightFM and "
        "SVD, events), over the seconds of the training batches. s to its best: the process until the epoch with the "
        "best validation NDCG@10, imports and reading included, scoring left out; for ours everything, its own "
        "validations included. peak MiB: of the whole process, scoring included; for ours also its table of baselines. "
        "ms a call: median of one user's ten items through the library's public call, from the user's events.",
    ]
    notes = [f"- {system}: {found[0].get('what', '')}{versions(found[0])}" for system, found in results.items()]
    notes += [
        f"- {system} failed: {found[0]['failed'].splitlines()[0]}; {found[0]['failed'].splitlines()[-1]}"
        for system, found in results.items()
        if "failed" in found[0]
    ]
    return "\n\n".join([*lines, "\n".join(notes)]) + "\n"


def versions(result: Result) -> str:
    found = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    return f" ({found})" if found else ""
