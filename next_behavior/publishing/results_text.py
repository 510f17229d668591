"""The card's text and tables about test events: results beside the baselines, calibration, weak points, popularity.

Every function takes what it reads: `result` is evaluation.json, `measured` is as `measures.measure` returns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from next_behavior.data.splits import Split
from next_behavior.evaluation.rankers import BALANCED, MODEL, UPDATED, UPDATED_SUFFIX
from next_behavior.evaluation.ranking import KEPT, REMOVED
from next_behavior.evaluation.tables import marked, number, plain, table, verdict, with_interval
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.publishing.run_text import code, listed, moment, share

WAYS = {KEPT: "Next item, seen items kept", REMOVED: "Next item, seen items removed"}
GROUPS = {
    "repeat": "items the user had before",
    "novel": "items new to the user",
    "cold": "items that the published vocabulary lacks",
    "switch": "items other than the one before",
}
# An action with a lower recall is said to be rarely predicted.
RARELY = 0.1


def results(result: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of the model beside the baselines, and how it compares."""
    shown: dict[str, Any] = dict(result)
    tables = [item_table(result, way, title) for way, title in WAYS.items()]
    if len(result["actions"]) > 1:
        tables.append(action_table(result))
    return {
        "protocol": protocol(result),
        "tables": [entry for entry in tables if entry is not None],
        "verdict": verdict(shown, shown["comparison"]),
        "balanced": BALANCED in result["rankers"],
    }


def item_table(result: Mapping[str, Any], way: str, title: str) -> dict[str, str] | None:
    """Title and text of a table; None without targets."""
    names = [name for name in result["rankers"] if way in result[name]]
    rows = [result[name][way]["items"]["all"] for name in names]
    if not names or not rows[0]["count"]:
        return None
    columns = [
        ("Recall@10", marked([row["recall@10"] for row in rows])),
        ("NDCG@10", marked([row["ndcg@10"] for row in rows])),
        ("NDCG@10, 95 %", [with_interval(row, "ndcg@10") for row in rows]),
        ("MRR", marked([row["mrr"] for row in rows])),
    ]
    return {"title": f"{title} ({rows[0]['count']:,} targets):", "text": ranker_table(names, columns)}


def action_table(result: Mapping[str, Any]) -> dict[str, str] | None:
    """Title and text of a table; None where no ranker predicts actions."""
    names = [name for name in result["rankers"] if "actions" in result[name]]
    if not names:
        return None
    rows = [result[name]["actions"] for name in names]
    columns = [
        ("accuracy", marked([row["accuracy"] for row in rows])),
        ("accuracy, 95 %", [with_interval(row, "accuracy") for row in rows]),
        ("macro-F1", marked([row["macro_f1"] for row in rows])),
        ("macro-F1, 95 %", [with_interval(row, "macro_f1") for row in rows]),
        ("log-loss", marked([row["log_loss"] for row in rows], lower=True)),
        ("ECE", marked([row["ece"] for row in rows], lower=True)),
    ]
    return {"title": f"Next action ({rows[0]['count']:,} targets):", "text": ranker_table(names, columns)}


def row_name(ranker: str) -> str:
    return f"this {ranker}" if ranker in (MODEL, BALANCED) else plain(ranker)


def ranker_table(names: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]]) -> str:
    labels = [row_name(name) for name in names]
    rows = [list(row) for row in zip(labels, *(cells for _, cells in columns), strict=True)]
    return table(["", *(title for title, _ in columns)], rows)


def protocol(result: Mapping[str, Any]) -> str:
    """Which events the model was tested on."""
    split = None if result["split"] is None else Split.from_dict(result["split"])
    if split is not None and split.test_cut is not None and split.validation_cut is not None:
        when = f"events after {moment(split.test_cut)}; it was trained on events up to {moment(split.validation_cut)}"
    elif split is not None and split.how == "leave_one_out":
        when = (
            "each user's last event. Training saw other users' later events (leave-one-out leaks the future): compare "
            "these figures with published ones, but do not expect them in service"
        )
    else:
        when = "held-out events"
    sample = f", a sample of {result['targets']:,} of {result['all_targets']:,}" if result["sampled"] else ""
    groups = {group: row["count"] for group, row in result[MODEL][KEPT]["items"].items()}
    return (
        f"Tested on {when}. {result['targets']:,} test events of {result['users']:,} users{sample}; of the "
        f"{result['item_targets']:,} that name an item, {groups['repeat']:,} name one that the user had before, "
        f"{groups['novel']:,} one that is new to the user, and {groups['cold']:,} one that the published vocabulary "
        "lacks."
    )


# ----------------------------------------------------------------------------------------------------------------------
# Calibration
# ----------------------------------------------------------------------------------------------------------------------


def calibration(measured: Mapping[str, Any] | None, num_actions: int, has_plot: bool) -> dict[str, Any] | None:
    """How far the probabilities are from what happened; None where it was not measured."""
    if measured is None:
        return None
    item = points(measured["item_calibration"]["ece"])
    text = f"The probability of the first-ranked item is off by **{item}** on average (expected calibration error)"
    if num_actions > 1:
        text += f", that of the predicted action by **{points(measured['action_calibration']['ece'])}**"
    return {"targets": f"{measured['targets']:,}", "text": f"{text}.", "plot": has_plot}


def points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} percentage points"


def temperatures(config: BehaviorConfig, num_actions: int, has_time: bool) -> str:
    """The fitted temperatures of the heads that predict something."""
    fitted = {"item": config.item_temperature}
    if num_actions > 1:
        fitted["action"] = config.action_temperature
    if has_time:
        fitted["time"] = config.time_temperature
    return ", ".join(f"{head} {temperature:.2f}" for head, temperature in fitted.items())


# ----------------------------------------------------------------------------------------------------------------------
# Where it fails
# ----------------------------------------------------------------------------------------------------------------------


def slices(result: Mapping[str, Any] | None, measured: Mapping[str, Any] | None) -> dict[str, str | None] | None:
    """Results by kind of target and by action; None where they were not measured."""
    if result is None or measured is None:
        return None
    items = result[MODEL][KEPT]["items"]
    baselines = [name for name in result["rankers"] if name not in (MODEL, UPDATED) and KEPT in result[name]]
    baselines = [name for name in baselines if not name.endswith(UPDATED_SUFFIX)]
    best = {group: best_baseline(result, baselines, group) for group in GROUPS if items[group]["count"]}
    sentences = []
    if items["cold"]["count"]:
        sentences.append(
            f"{share(items['cold']['count'], items['all']['count'])} of the targets are items that the vocabulary "
            "lacks: new ones, and those that too few users touched. None of them can be predicted."
        )
    lost = [f"{group} (by {name})" for group, (value, name) in best.items() if value > items[group]["ndcg@10"]]
    if lost:
        sentences.append(f"With seen items kept, a baseline ranks these better: {', '.join(lost)}.")
    several = len(result["actions"]) > 1
    recalls = result[MODEL]["actions"]["recall"] if several else {}
    missed = [f"{code(action)} ({number(recall, 2)})" for action, recall in recalls.items() if recall < RARELY]
    if missed:
        sentences.append(f"Rarely or never predicted as the next action, by recall: {listed(missed)}.")
    return {
        "groups": group_table(items, best),
        "text": " ".join(sentences),
        "actions": by_action_table(measured["by_action"]) if several else None,
    }


def best_baseline(result: Mapping[str, Any], baselines: Sequence[str], group: str) -> tuple[float, str]:
    """The highest NDCG@10 of a group of targets, and whose it is."""
    values = ((result[name][KEPT]["items"][group]["ndcg@10"], name) for name in baselines)
    value, name = max(values, default=(0.0, ""))
    return value, plain(name)


def group_table(items: Mapping[str, Any], best: Mapping[str, tuple[float, str]]) -> str:
    rows = [
        [
            f"{group}: {GROUPS[group]}",
            share(items[group]["count"], items["all"]["count"]),
            number(items[group]["recall@10"]),
            number(items[group]["ndcg@10"]),
            f"{number(value)} ({name})" if value else number(value),
        ]
        for group, (value, name) in best.items()
    ]
    return table(["targets, seen items kept", "count", "Recall@10", "NDCG@10", "best baseline's NDCG@10"], rows)


def by_action_table(by_action: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            code(action),
            f"{row['count']:,}",
            number(row["accuracy"], 3),
            number(row.get("recall@10")),
            number(row.get("ndcg@10")),
        ]
        for action, row in by_action.items()
    ]
    return table(["next action", "count", "action right", "item Recall@10", "item NDCG@10"], rows)


def popularity(result: Mapping[str, Any] | None) -> str:
    """How popular the first ten items are, and how much of the catalog they cover."""
    if result is None:
        return "Not measured. Rankings that are learned from behavior tend to repeat what is popular already."
    row = result[MODEL][KEPT]
    bias, coverage = row["popularity_bias@10"], row["coverage@10"]
    if bias is None or coverage is None:
        return "Not measured: there are too few test events."
    how = "more popular than" if bias > 0.01 else "less popular than" if bias < -0.01 else "as popular as"
    apart = "" if how.startswith("as") else f" by {abs(100 * bias):.0f} percentile points"
    return (
        f"The first ten items shown are {how} what users then took{apart}. Over the {result['users']:,} users tested "
        f"they cover {100 * coverage:.0f} % of the catalog; the rest was shown to none of them."
    )
