"""Whether the probabilities of an evaluation can be trusted, for its page (`page.py`): calibration, times, and sets.

A result of an earlier version, or of several models, has the calibration error of the actions alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from next_behavior.data.page_pieces import percent, section, table, text
from next_behavior.evaluation.comparison import ACTIONS, Result
from next_behavior.evaluation.page_charts import reliability_chart
from next_behavior.evaluation.rankers import balanced
from next_behavior.evaluation.tables import number, plain

# Fewer predictions in a bin say little, and are not drawn.
FEWEST_IN_A_BIN = 10
TIMES = {
    "model": "the model",
    "user_median_gap": "the user's own median gap",
    "training_gaps": "the median gap of the training",
}


def probabilities_section(result: Result, models: Sequence[str]) -> str:
    """Calibration: a probability against how often it came true."""
    parts = []
    calibration: Mapping[str, Any] = result.get("calibration") or {}
    curves = {"First item": calibration.get("item")}
    if len(result["actions"]) > 1:
        curves = {"Next action": calibration.get("action"), **curves}
    charts = [drawn_curve(title, curve) for title, curve in curves.items() if curve is not None]
    if any(charts):
        says = "On the dashed line the model is right; below it, it is too sure. Large circles are many predictions."
        parts.append(f'<div class="pair">{"".join(charts)}</div><p class="key">{says}</p>')
    if "top10" in calibration:
        top = calibration["top10"]
        rows = [
            [title, percent(row["confidence"]), percent(row["accuracy"])]
            for title, row in (("items taken again", top["repeat"]), ("new items", top["new"]))
            if row["count"]
        ]
        parts.append(table(("in the first ten", "said", "came"), rows))
    if len(result["actions"]) > 1:
        parts.append(action_errors(result, models))
    if not "".join(parts):
        return ""
    says = (
        "What is called 30 % probable should come in 30 % of cases. The calibration error is how far the probabilities "
        "are from that, on average. A low log-loss says that what came had a high probability."
    )
    return section("Can the probabilities be trusted?", says, *parts)


def action_errors(result: Result, models: Sequence[str]) -> str:
    """The action probabilities of every ranker in two numbers; weighted ones are no probabilities."""
    weighted = {*map(balanced, models), *(name for name in result["rankers"] if name.endswith(", balanced"))}
    rows = [
        [text(plain(name)), percent(row["ece"]), number(row["log_loss"], 3)]
        for name in result["rankers"]
        if name not in weighted and (row := result[name].get(ACTIONS)) is not None and row["ece"] is not None
    ]
    return table(("next action", "calibration error", "log-loss"), rows) if rows else ""


def drawn_curve(title: str, curve: Mapping[str, Any]) -> str:
    """The bins of a head, nothing where none has predictions enough."""
    bins = [
        (one["confidence"], one["accuracy"], one["count"]) for one in curve["bins"] if one["count"] >= FEWEST_IN_A_BIN
    ]
    if not bins:
        return ""
    caption = f"<figcaption>{title}: off by {percent(curve['ece'])}</figcaption>"
    return f"<figure>{caption}{reliability_chart(bins)}</figure>"


def times_section(result: Result) -> str:
    """How well the time until the next event is known; nothing where it was not measured."""
    times: Mapping[str, Any] = result.get("time") or {}
    if not times:
        return ""
    rows = [[title, duration(times[name]["hours_error"])] for name, title in TIMES.items() if name in times]
    ours = times["model"]["hours_error"]
    rule = min((name for name in TIMES if name != "model"), key=lambda name: times[name]["hours_error"])
    found = "closer than" if ours < times[rule]["hours_error"] else "no closer than"
    says = (
        f"Half of the predicted times until the next event are off by at most {duration(ours)}. That is {found} the "
        f"better simple rule, {TIMES[rule]}."
    )
    return section("Does it know when?", says, table(("predicted by", "typical error"), rows))


def duration(hours: float) -> str:
    """Hours in the unit that suits them.

    >>> [duration(hours).replace("\u00a0", " ") for hours in (0.01, 0.5, 3.25, 72)]
    ['36 s', '30 min', '3.2 h', '3.0 days']
    """
    for unit, size, digits in (("days", 24, 1), ("h", 1, 1), ("min", 1 / 60, 0)):
        if hours >= 2 * size:
            return f"{hours / size:,.{digits}f}\u00a0{unit}"
    return f"{3600 * hours:,.0f}\u00a0s"


def sets_section(result: Result) -> str:
    """How often a set that should hold the next item or action does; nothing where it was not measured."""
    sets: Mapping[str, Any] = result.get("prediction_sets") or {}
    rows = []
    for of in ("item", "action"):
        if of == "action" and len(result["actions"]) < 2:
            continue
        for share, row in (sets.get(of) or {}).items():
            if isinstance(row, Mapping) and row["count"]:
                rows.append([f"{of}, {share} %", percent(row["coverage"]), f"{row['median_size']:,.0f}"])
    if not rows:
        return ""
    says = (
        "Asked for a set that holds the next item with 90 %, the model gives as many items as that takes. The set "
        "should hold it in 90 % of cases, and be small."
    )
    unknown = (sets.get("item") or {}).get("unnameable")
    left_out = f"Items that the model cannot name are left out: {percent(unknown)}."
    note = f'<p class="key">{left_out}</p>' if unknown else ""
    return section("Do sets keep their promise?", says, table(("asked for", "holds it", "median size"), rows), note)
