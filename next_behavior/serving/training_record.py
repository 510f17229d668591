"""What the folder of a trained model records of its training, beside the model itself.

    record = training_record(Path("out/shop"))
    record.actions                              # {"view": 75374, "buy": 9551}; None where nothing is recorded

A folder from the Hub may have none of these files: then what they say is not known, and nothing takes its place. This
file imports the standard library alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

CLEANING, SPLIT, EVALUATION = RECORD_FILES = ("cleaning_report.json", "split.json", "evaluation.json")


@dataclass(frozen=True)
class TrainingRecord:
    """What is recorded; None for what is not.

    Attributes:
        actions: events by action of the log.
        until: seconds since 1970 UTC; no event after it was trained on.
        median_events: of a user.
        recall, ndcg: at 10, on the test events, candidates seen before kept.
        calibration_error: of the next action, on the test events.
        unknown: the share of the test events' items that were not in training.
    """

    actions: dict[str, int] | None = None
    until: float | None = None
    median_events: float | None = None
    recall: float | None = None
    ndcg: float | None = None
    calibration_error: float | None = None
    unknown: float | None = None


def training_record(folder: Path) -> TrainingRecord:
    """Reads the record of a model's folder.

    Raises:
        ValueError: a file is not what a training wrote.
    """
    cleaning, split, evaluation = (content(folder / name) for name in RECORD_FILES)
    until = None
    if split.get("test_cut") is not None:
        until = split["test_cut"] / 1_000_000
    elif cleaning.get("last_time") is not None:
        until = datetime.fromisoformat(cleaning["last_time"]).timestamp()
    model = evaluation.get("model", {})
    groups = model.get("kept", {}).get("items", {})
    items, cold = groups.get("all", {}), groups.get("cold", {})
    return TrainingRecord(
        actions=cleaning.get("actions"),
        until=until,
        median_events=cleaning.get("median_user_events"),
        recall=items.get("recall@10"),
        ndcg=items.get("ndcg@10"),
        calibration_error=model.get("actions", {}).get("ece"),
        unknown=cold["count"] / items["count"] if cold and items.get("count") else None,
    )


def content(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one without the file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, expected JSON as the training wrote it: remove it ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged, expected a JSON object as the training wrote it: remove it.")
    return values
