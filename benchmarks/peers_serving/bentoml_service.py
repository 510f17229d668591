"""The predictor of this project behind BentoML.

BUNDLE=... .bench/venv-bentoml/bin/bentoml serve benchmarks.peers_serving.bentoml_service:NextBehavior --port 8002
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml

from next_behavior.serving.predictor import Predictor


@bentoml.service(workers=1, traffic={"timeout": 10}, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class NextBehavior:
    """Answers questions as POST /v1/predict does: the same body, the same list of answers."""

    def __init__(self) -> None:
        self.predictor = Predictor.load(Path(os.environ["BUNDLE"]))

    @bentoml.api(route="/v1/predict")
    def predict(self, events: list[dict[str, Any]], top_k: int = 10, of: str = "pair") -> dict[str, Any]:
        answers = self.predictor.answer(events, top_k=top_k, of=of)
        return {"answers": answers, "model": self.predictor.info.revision}
