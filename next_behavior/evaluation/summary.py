"""An evaluation in three lines for the screen: how well what is predicted, against the best baseline, what to do next.

    print(in_three_lines(result, "out/shop"))

All that was measured is in the tables (`tables.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from next_behavior.data.shown import to_width
from next_behavior.evaluation.comparison import ACTIONS, Result
from next_behavior.evaluation.rankers import MODEL
from next_behavior.evaluation.ranking import KEPT
from next_behavior.evaluation.tables import plain, saw_little


def in_three_lines(result: Result, folder: str) -> str:
    """The verdict on the model in `folder`; each of the three lines has at most two rows of a terminal."""
    row = judged(result["comparison"])
    lines = [
        f"Predicts:  {predicted(result)}",
        f"Compared:  {compared(row)}",
        f"Next:      {advice(result, row, folder)}",
    ]
    return "\n".join(to_width(line) for line in lines)


def of_several(result: Result) -> str:
    """The verdict on several models: what each predicts, against the best baseline, then each pair of them."""
    lines = []
    for model, comparison in result["comparisons"].items():
        beside = compared(judged(comparison))
        lines += [model, f"  Predicts:  {predicted(result, model)}", f"  Compared:  {beside}"]
    lines += ["Between them", *(f"  - {sentence}" for pair in result["pairs"] for sentence in pair["sentences"])]
    return "\n".join(to_width(line) for line in lines)


def judged(comparison: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The comparison that counts: the next item among the first ten, or else the next action; None without either."""
    wanted = [(KEPT, "all", "recall@10"), (ACTIONS, None, "accuracy")]
    rows = {(row["where"], row["group"], row["metric"]): row for row in comparison}
    return next((rows[key] for key in wanted if key in rows), None)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def predicted(result: Result, model: str = MODEL) -> str:
    """How often the next item is among the first ten, and how often the next action is the one predicted."""
    items, actions = result[model][KEPT]["items"]["all"], result[model][ACTIONS]
    parts = []
    if items["recall@10"] is not None:
        of = f"of {items['count']:,} test events"  # those that name an item
        parts.append(f"the next item is among its first ten answers in {percent(items['recall@10'])} {of}")
    if len(result["actions"]) > 1 and actions["accuracy"] is not None:
        of = f"of {actions['count']:,}{'' if parts else ' test events'}"
        parts.append(f"the next action is right in {percent(actions['accuracy'])} {of}")
    return f"{', '.join(parts) or 'nothing was measured'}."


def compared(row: dict[str, Any] | None) -> str:
    """The model and the best baseline, in points of a percent."""
    if row is None:
        return "no baseline was measured on these events."
    what = "next action" if row["where"] == ACTIONS else "next item"
    points = 100 * row["difference"]
    ends = row["difference_interval"]
    interval = "" if ends is None else f" (95 %: {100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"
    how = {"better": "better than", "worse": "worse than", "unclear": "not surely different from"}[outcome(row)]
    best = plain(row["best_baseline"])
    return f"{what}, {how} the best baseline, {best}, {percent(row['best'])}: {points:+.1f} points{interval}."


def outcome(row: dict[str, Any]) -> str:
    """better, worse, or unclear where the interval of the difference holds 0."""
    ends = row["difference_interval"]
    if ends is not None and ends[0] <= 0 <= ends[1]:
        return "unclear"
    return "better" if row["beats"] else "worse"


def advice(result: Result, row: dict[str, Any] | None, folder: str) -> str:
    """What to do next."""
    if saw_little(result.get("passes")):
        return (
            f"train on, it saw only {result['passes']:.2f} of a pass over its events: the same command with --resume "
            "and a larger --max_minutes."
        )
    if row is None:
        return "evaluate on a log that shares items and actions with the one trained on."
    more = "more events" if result.get("reads_text") else "more events or item text (--items)"
    remedy = f"give {more}, or a larger --max_minutes if the time was up"
    match outcome(row):
        case "better":
            return f'ask it: pipeline("next-behavior", model="{folder}", trust_remote_code=True).'
        case "unclear":
            return f"{remedy}, before you rely on it."
    return f"counting is better here: {remedy}."
