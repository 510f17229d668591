"""An evaluation as text that reads in a terminal and renders as Markdown.

    print(format_table(result))

A table has a row for each ranker, and the best number of a column is bold. Below the tables stands where the model
beats the best baseline, and where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from next_behavior.data.sequences import TEST, TRAIN, VALIDATION
from next_behavior.data.shown import shown
from next_behavior.data.splits import Split
from next_behavior.evaluation.comparison import ACTIONS, Result
from next_behavior.evaluation.probability_tables import probability_tables
from next_behavior.evaluation.rankers import ENSEMBLE, MODEL, UPDATED
from next_behavior.evaluation.ranking import KEPT, REMOVED
from next_behavior.evaluation.recommended import COVERAGE_CUTOFFS, LIST_LENGTH
from next_behavior.evaluation.table_cells import number, table

PART_NAMES = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}
# Columns of the lists' table: {metric: (title, digits)}; the last three say something only where seen items are kept.
LIST_COLUMNS = {
    **{f"coverage@{k}": (f"coverage@{k}", 3) for k in COVERAGE_CUTOFFS},
    f"gini@{LIST_LENGTH}": ("Gini", 3),
    f"novelty@{LIST_LENGTH}": ("novelty", 1),
    f"popularity_bias@{LIST_LENGTH}": ("popularity bias", 2),
    f"popularity_lift@{LIST_LENGTH}": ("popularity lift", 2),
    f"repeat_share@{LIST_LENGTH}": ("repeats listed", 3),
    "visited_recall@10": ("Recall@10 visited", 4),
    "unvisited_recall@10": ("Recall@10 unvisited", 4),
}
KEPT_ALONE = (f"repeat_share@{LIST_LENGTH}", "visited_recall@10", "unvisited_recall@10")
SLICE_TITLES = {
    "action": "NDCG@10 by action",
    "history": "NDCG@10 by events before",
    "popularity": "NDCG@10 by popularity",
}
PAIRED = (
    "Differences are paired: both rankers are measured on the same resampled users, and the brackets hold 95 % of the "
    "differences."
)
# Actions that the confusion table shows; the JSON holds all.
MOST_CONFUSED = 12


# ----------------------------------------------------------------------------------------------------------------------
# Numbers and tables
# ----------------------------------------------------------------------------------------------------------------------


def marked(values: Sequence[float | None], lower: bool = False, digits: int = 4) -> list[str]:
    """The numbers of a column as text, the best in bold where they differ."""
    known = [value for value in values if value is not None]
    best = (min if lower else max)(known) if len(set(known)) > 1 else None
    return [f"**{number(v, digits)}**" if v is not None and v == best else number(v, digits) for v in values]


def with_interval(metrics: Mapping[str, Any], metric: str) -> str:
    """The interval of a metric as text, a dash where it has none."""
    ends = metrics.get(f"{metric}_interval")
    return "–" if ends is None else f"{number(ends[0])}–{number(ends[1])}"


# What the literature calls some baselines.
PUBLISHED_NAMES = {
    "gp_topfreq": "GP-TopFreq",
    "vmis_knn": "VMIS-kNN",
    "tifu_knn": "TIFU-kNN",
    "tgh_1": "TGH-1",
    "tgh_2": "TGH-2",
    "lightgcn": "LightGCN",
}


def plain(ranker: str) -> str:
    """The name of a ranker as a reader wants it; a model that is called after its folder keeps that name."""
    if ranker.startswith(f"{MODEL} "):
        return ranker
    name, mark, rest = ranker.partition(",")
    return PUBLISHED_NAMES.get(name, name.replace("_", " ")) + mark + rest


# ----------------------------------------------------------------------------------------------------------------------
# An evaluation
# ----------------------------------------------------------------------------------------------------------------------


def items_table(result: Result, way: str) -> str:
    """The item metrics of all rankers, seen items kept or removed."""
    names = [name for name in result["rankers"] if way in result[name]]
    groups = {name: result[name][way]["items"] for name in names}
    shown = ("repeat", "novel", "cold", "switch") if way == KEPT else ("novel", "cold")
    columns = [
        ("Recall@10", marked([groups[name]["all"]["recall@10"] for name in names])),
        ("NDCG@10", marked([groups[name]["all"]["ndcg@10"] for name in names])),
        ("95 %", [with_interval(groups[name]["all"], "ndcg@10") for name in names]),
        ("MRR", marked([groups[name]["all"]["mrr"] for name in names])),
    ]
    for group in shown:
        if groups[names[0]][group]["count"]:
            columns.append((f"NDCG {group}", marked([groups[name][group]["ndcg@10"] for name in names])))
    rows = zip([plain(name) for name in names], *(cells for _, cells in columns), strict=True)
    return table(["next item", *(title for title, _ in columns)], [list(row) for row in rows])


def lists_table(result: Result, way: str) -> str:
    """What the lists of all rankers hold besides the target; columns that an earlier version did not measure are left
    out."""
    names = [name for name in result["rankers"] if way in result[name]]
    columns = []
    for metric, (title, digits) in LIST_COLUMNS.items():
        values = [result[name][way].get(metric) for name in names]
        if any(value is not None for value in values) and (way == KEPT or metric not in KEPT_ALONE):
            columns.append((title, [number(value, digits) for value in values]))
    rows = zip([plain(name) for name in names], *(cells for _, cells in columns), strict=True)
    return table(["lists of ten", *(title for title, _ in columns)], [list(row) for row in rows])


def slice_tables(result: Result) -> list[str]:
    """NDCG@10 of all rankers by action, length of the history and popularity of the target, seen items kept; nothing
    for a result of an earlier version."""
    names = [name for name in result["rankers"] if "slices" in result[name].get(KEPT, {})]
    if not names:
        return []
    tables = []
    for by, title in SLICE_TITLES.items():
        rows = {name: result[name][KEPT]["slices"][by] for name in names}
        slices = {name: row["count"] for name, row in rows[names[0]].items() if row["count"]}
        if len(slices) < 2:
            continue
        header = [title, *(f"{cell(name)} ({count:,})" for name, count in slices.items())]
        columns = [marked([rows[name][slice]["ndcg@10"] for name in names]) for slice in slices]
        lines = zip([plain(name) for name in names], *columns, strict=True)
        tables.append(table(header, [list(line) for line in lines]))
    return tables


def cell(text: str) -> str:
    """Text of a log as it may stand in a table."""
    return shown(text).replace("|", "\\|")


def actions_table(result: Result) -> str:
    """The action metrics of all rankers that have them, and the recall of each action."""
    names = [name for name in result["rankers"] if ACTIONS in result[name]]
    metrics = [result[name][ACTIONS] for name in names]
    columns = [
        ("accuracy", marked([row["accuracy"] for row in metrics])),
        ("accuracy, 95 %", [with_interval(row, "accuracy") for row in metrics]),
        ("macro-F1", marked([row["macro_f1"] for row in metrics])),
        ("macro-F1, 95 %", [with_interval(row, "macro_f1") for row in metrics]),
        ("log-loss", marked([row["log_loss"] for row in metrics], lower=True)),
        ("ECE", marked([row["ece"] for row in metrics], lower=True)),
        ("accuracy at changes", marked([row["changes"]["accuracy"] for row in metrics])),
    ]
    rows = zip([plain(name) for name in names], *(cells for _, cells in columns), strict=True)
    tables = [table(["next action", *(title for title, _ in columns)], [list(row) for row in rows])]
    occurring = list(metrics[0]["recall"])
    for metric in ("recall", "precision", "f1"):
        if metric in metrics[0]:
            values = [
                [plain(name), *(number(row[metric][action], 3) for action in occurring)]
                for name, row in zip(names, metrics, strict=True)
            ]
            title = "F1" if metric == "f1" else metric
            tables.append(table([f"{title} of", *(cell(action) for action in occurring)], values))
    if names[0] == MODEL and "confusion" in metrics[0]:
        tables.append(confusion_table(metrics[0]["confusion"]))
    return "\n\n".join(tables)


def confusion_table(confusion: Mapping[str, Mapping[str, int]]) -> str:
    """How often each action came (rows), and what the model predicted (columns)."""
    predicted = [name for name in confusion if any(name in row for row in confusion.values())]
    predicted += sorted({name for row in confusion.values() for name in row} - set(predicted))
    shown_actions = predicted[:MOST_CONFUSED]
    rows = [
        [cell(name), *(f"{row.get(guess, 0):,}" for guess in shown_actions)]
        for name, row in list(confusion.items())[:MOST_CONFUSED]
    ]
    return table(["came, model predicted", *map(cell, shown_actions)], rows)


def describe_split(result: Result) -> str:
    """What was evaluated: the split, the targets, their groups."""
    split = "not recorded" if result["split"] is None else str(Split.from_dict(result["split"]))
    what = PART_NAMES[result["part"]]
    drawn = (
        f"a sample of {result['targets']:,} of {result['all_targets']:,} {what} targets (whole users, seed "
        f"{result['seed']})"
        if result["sampled"]
        else f"all {result['targets']:,} {what} targets"
    )
    lines = [f"Split: {split}; {drawn} of {result['users']:,} users; {result['items']:,} items in the catalog."]
    first = next((result[name] for name in result["rankers"] if KEPT in result[name]), None)
    if first is not None:
        groups = {group: metrics["count"] for group, metrics in first[KEPT]["items"].items()}
        lines.append(
            f"{result['item_targets']:,} targets name an item: {groups['repeat']:,} repeat one of the user's own, "
            f"{groups['novel']:,} are new to the user, {groups['cold']:,} are cold (absent from training)."
        )
    return "\n".join(lines)


def audit_lines(result: Result) -> list[str]:
    """What the audit for leaks looked at, one line for each model; nothing for a result without one."""
    audits = {"": result["audit"]} if "audit" in result else {}
    audits |= {f" of {name}": one["audit"] for name, one in result.get("folders", {}).items() if "audit" in one}
    lines = []
    for whose, audit in audits.items():
        open_questions = f" Not decidable: {'; '.join(audit['undecided'])}." if audit["undecided"] else ""
        lines.append(f"Leak audit{whose} passed: {'; '.join(audit['checked'])}.{open_questions}")
    return lines


def saw_little(passes: float | None) -> bool:
    """Whether a model saw less than one pass over its training events; None is not recorded."""
    return passes is not None and passes < 1


def little_training(passes: float | None) -> str | None:
    """What a reader must know of a model that saw less than one pass; None for every other."""
    if passes is None or not saw_little(passes):
        return None
    return (
        f"**The model saw {passes:.2f} of a pass over its training events: the time limit ended its training. Trained "
        "longer, it may predict better.**"
    )


def verdict(result: Result, comparison: Sequence[Mapping[str, Any]]) -> str:
    """One line per comparison of a model with the best baseline, those it loses marked."""
    lines = []
    for row in comparison:
        if row["where"] == ACTIONS and len(result["actions"]) == 1:
            continue
        where = "next action" if row["group"] is None else f"{row['group']} targets, seen items {row['where']}"
        low_high = row["difference_interval"]
        doubt = "" if low_high is None else f" [{low_high[0]:+.4f}, {low_high[1]:+.4f}]"
        unclear = low_high is not None and low_high[0] <= 0 <= low_high[1]
        beats = "**does not beat**" if not row["beats"] else "is not surely better than" if unclear else "beats"
        ours, best = row.get("ranker", MODEL), plain(row["best_baseline"])
        lines.append(
            f"- {row['metric']}, {where}: the {ours} {beats} {best}: "
            f"{number(row['model'])} against {number(row['best'])}, difference {row['difference']:+.4f}{doubt}"
            f"{'; the interval holds 0' if unclear else ''}"
        )
    return "\n".join(lines)


def pairs_text(result: Result) -> str:
    """Each model beside each other one: what it comes to in words, then the paired differences."""
    sentences = [f"- {sentence}" for pair in result["pairs"] for sentence in pair["sentences"]]
    rows = []
    for pair in result["pairs"]:
        first, second = pair["models"]
        for row in pair["metrics"]:
            if row["where"] == ACTIONS and len(result["actions"]) == 1:
                continue
            ends = row["difference_interval"]
            where = "next action" if row["group"] is None else f"{row['group']}, seen {row['where']}"
            doubt = "–" if ends is None else f"[{ends[0]:+.4f}, {ends[1]:+.4f}]"
            better = row["better"] or ("–" if ends is None else "cannot tell")
            values = (number(row["first"]), number(row["second"]), f"{row['difference']:+.4f}")
            rows.append([f"{first}, {second}", f"{row['metric']}, {where}", *values, doubt, better])
    head = ["models", "metric", "first", "second", "difference", "95 %", "better"]
    return "\n".join(sentences) + "\n\n" + table(head, rows)


def notes_of(result: Result) -> list[str]:
    """What a reader must know of single rankers."""
    notes = []
    if UPDATED in result:
        counted = (
            f"before each of {result['memory_updates']} blocks of targets in time order its memory counted all earlier "
            "events"
            if result["split"]["how"] == "time"
            else "its memory counted every user's events between training and the target"
        )
        notes.append(
            f"- {UPDATED}: {counted}, without training; the baselines marked as updated counted the same events, the "
            "other rankers training events only"
        )
    if any(name.endswith("balanced") for name in result["rankers"]):
        notes.append(
            "- balanced: the action named is the best after weights that were fitted on validation events for "
            "macro-F1, so that rare actions are named too; its probabilities are not calibrated"
        )
    for name, folder in result.get("folders", {}).items():
        if folder["known_items"] < result["items"]:
            notes.append(
                f"- {name}: knows {folder['known_items']:,} of the {result['items']:,} items that are ranked; a target "
                "among the others counts as a miss for it"
            )
        if saw_little(folder["passes"]):
            notes.append(f"- {name}: saw {folder['passes']:.2f} of a pass over its training events")
    if ENSEMBLE in result:
        notes.append(f"- {ENSEMBLE}: the mean of the probabilities of the models, each weighing the same")
    baselines = result.get("baselines", {})
    return [*notes, *(f"- {plain(name)}: {entry['note']}" for name, entry in baselines.items() if entry["note"])]


def format_table(result: Result) -> str:
    """What `evaluate` returned, as text."""
    parts = [describe_split(result)]
    parts += audit_lines(result)
    if (little := little_training(result.get("passes"))) is not None:
        parts.append(little)
    for way, title in ((KEPT, "Seen items kept"), (REMOVED, "Seen items removed, targets new to the user")):
        counts = [result[name][way]["items"]["all"]["count"] for name in result["rankers"] if way in result[name]]
        if counts and counts[0]:
            parts.append(f"{title} ({counts[0]:,} targets)\n\n{items_table(result, way)}\n\n{lists_table(result, way)}")
    parts += slice_tables(result)
    if len(result["actions"]) == 1:
        parts.append(f"The log has one action, {result['actions'][0]}: there is nothing to predict.")
    elif any(ACTIONS in result[name] for name in result["rankers"]):
        parts.append(actions_table(result))
    if (trusted := probability_tables(result)) is not None:
        parts.append(trusted)
    if "comparison" in result:
        parts.append(PAIRED)
    for model, comparison in result.get("comparisons", {}).items():
        parts.append(f"The {model} against the best baseline:\n\n{verdict(result, comparison)}")
    if "pairs" in result:
        parts.append(f"The models against each other:\n\n{pairs_text(result)}")
    elif "comparison" in result:
        parts.append(f"The model against the best baseline:\n\n{verdict(result, result['comparison'])}")
    if "comparison_updated" in result:
        lines = verdict(result, result["comparison_updated"])
        parts.append(f"The updated model against the best baseline that has counted the same events:\n\n{lines}")
    if notes := notes_of(result):
        parts.append("Notes:\n\n" + "\n".join(notes))
    parts.append(
        "The whole catalog is ranked, ties against the ranker; intervals by bootstrap over users. NDCG columns are "
        "NDCG@10; switch: the target is not the item before it. Popularity: 1 is the rarest tenth of the items, 10 the "
        "most frequent, untrained has no training events. docs/evaluation.md of the project has all formulas."
    )
    return "\n\n".join(parts) + "\n"
