"""Golden answers: what a model answered at the export, and whether its bundle still does.

This file imports the standard library alone.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# A probability may differ by this much from the model's, and a median time in relation.
TOLERANCE, MEDIAN_TOLERANCE = 1e-5, 1e-3

Answers = list[list[dict[str, Any]]]


def check_golden(answers_to: Callable[[Sequence[Any], Mapping[str, Any]], Answers], path: Path) -> None:
    """Asks the questions of a bundle's golden file again.

    Args:
        answers_to: of a predictor: the answers to several histories under some options.

    Raises:
        ValueError: an answer differs.
    """
    golden = json.loads(path.read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, question in enumerate(golden["questions"]):
            found = answers_to(golden["histories"], question)
            for history, (one, wanted) in enumerate(zip(found, golden["answers"][number], strict=True)):
                difference = difference_between(one, wanted)
                if difference:
                    raise ValueError(
                        f"the exported model does not answer as the model did, to history {history} and {question}: "
                        f"{difference}. Delete {path.parent}, and it is exported again."
                    )


def difference_between(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str | None:
    """What differs between two lists of answers; equal ones within TOLERANCE may stand in another order."""
    if len(found) != len(wanted):
        return f"{len(found)} answers, expected {len(wanted)}"
    expected = {(each["action"], each["item"]): each for each in wanted}
    for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if abs(one["probability"] - other["probability"]) > TOLERANCE:
            return f"answer {place} has probability {one['probability']}, expected {other['probability']}"
        same = expected.get((one["action"], one["item"]))
        if same is None and abs(one["probability"] - wanted[-1]["probability"]) > TOLERANCE:
            return f"answer {place} is {one['action']}, {one['item']}, expected {other['action']}, {other['item']}"
        if same is not None and abs(one["probability"] - same["probability"]) > TOLERANCE:
            return f"{one['action']}, {one['item']} has probability {one['probability']}, not {same['probability']}"
        if (
            same is not None
            and one.get("paths")
            and any(abs(share - same["paths"][path]) > MEDIAN_TOLERANCE for path, share in one["paths"].items())
        ):
            return f"answer {place} has the paths {one['paths']}, expected {same['paths']}"
        for name, value in (one["when"] or {}).items():
            right = other["when"][name]
            if abs(value - right) > (MEDIAN_TOLERANCE * right if name == "median_seconds" else TOLERANCE):
                return f"{name} of the next event is {value}, expected {right}"
    return None
