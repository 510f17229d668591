"""The probabilities of a model as tables: calibration, the time until the next event, prediction sets.

print(probability_tables(result))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from next_behavior.evaluation.table_cells import number, table

TIME_ROWS = {
    "model": "model",
    "training_gaps": "all training gaps",
    "user_median_gap": "the user's median gap",
}


def calibration_table(calibration: Mapping[str, Any]) -> str:
    """How often what was given a probability came true."""
    rows = {"next action": calibration["action"]}
    if "item" in calibration:
        top = calibration["top10"]
        rows |= {"first item": calibration["item"], "repeats in the first ten": top["repeat"]}
        rows["new items in the first ten"] = top["new"]
    if "time" in calibration:
        rows["bucket of the time"] = calibration["time"]
    cells = [
        [name, f"{row['count']:,}", number(row["confidence"]), number(row["accuracy"]), number(row["ece"])]
        for name, row in rows.items()
    ]
    if "item" in calibration:
        cells.insert(2, ["first ten items, mean over ranks", "–", "–", "–", number(calibration["top10"]["ece"])])
    return table(["calibration", "predictions", "mean probability", "right", "ECE"], cells)


def time_table(time: Mapping[str, Any]) -> str:
    """The time until the next event."""
    cells = [
        [
            title,
            number(time[name]["log_loss"]),
            number(time[name]["ece"]),
            number(time[name]["log_error"], 3),
            number(time[name]["hours_error"], 3),
        ]
        for name, title in TIME_ROWS.items()
    ]
    header = ["time until the next event", "log-loss", "ECE", "error of the median, log", "hours"]
    return table(header, cells)


def sets_table(sets: Mapping[str, Any]) -> str:
    """Coverage and size of the prediction sets."""
    cells = []
    for of in ("item", "action"):
        for percent, row in (sets[of] or {}).items():
            if percent == "unnameable":
                continue
            groups = {f"{of}, {percent} %": row}
            if of == "item":
                groups |= {f"{of}, {percent} %, {group} targets": row[group] for group in ("repeat", "new")}
            for name, values in groups.items():
                size = "–" if values["median_size"] is None else f"{values['median_size']:,.0f}"
                cells.append([name, f"{values['count']:,}", number(values["coverage"], 3), size])
    return table(["prediction set", "targets", "coverage", "median size"], cells)


def probability_tables(result: Mapping[str, Any]) -> str | None:
    """All three, None for a result without."""
    if "calibration" not in result:
        return None
    parts = [
        "How far the model's probabilities can be trusted\n\n" + calibration_table(result["calibration"]),
    ]
    if result["time"] is not None:
        parts.append(time_table(result["time"]))
    sets = result["prediction_sets"]
    if sets["item"] is not None or sets["action"] is not None:
        note = ""
        if sets["item"] is not None:
            unknown = sets["item"]["unnameable"]
            note = f"\n\nItem sets cover targets that the model can name; {unknown:.1%} are unknown to it."
        parts.append(sets_table(sets) + note)
    return "\n\n".join(parts)
