"""The metric in a browser: a Space, or `python metric/next_behavior_ranking/app.py`.

`evaluate.utils.launch_gradio_widget`, which metric Spaces used to call, needs Gradio 3 (it asks for `gradio.inputs`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at import

import evaluate
import gradio as gr

HERE = Path(__file__).parent
EXAMPLES = [
    ["lists", '[["84", "7", "9"], ["5", "84", "7"]]', '["7", "5"]', "1, 3"],
    ["scores", "[[0.1, 0.9, 0.3], [0.5, 0.5, 0.2]]", "[2, 0]", "1, 3"],
]


def compute(configuration: str, predictions: str, references: str, k: str) -> dict[str, Any]:
    """The metrics of what was typed."""
    try:
        cutoffs = [int(cutoff) for cutoff in k.split(",")]
        metric = evaluate.load(str(HERE / "next_behavior_ranking.py"), configuration)
        return metric.compute(predictions=json.loads(predictions), references=json.loads(references), k=cutoffs)
    except ValueError as error:  # json's errors are ValueErrors too
        raise gr.Error(str(error)) from error


def build() -> gr.Interface:
    """The page."""
    _, _, text = (HERE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return gr.Interface(
        fn=compute,
        inputs=[
            gr.Radio(["lists", "scores"], value="lists", label="Configuration"),
            gr.Textbox(label="Predictions (JSON: a list for each row)", lines=4),
            gr.Textbox(label="References (JSON: one for each row)"),
            gr.Textbox("1, 5, 10", label="k"),
        ],
        outputs=gr.JSON(label="Metrics"),
        examples=EXAMPLES,
        title="Next-behavior ranking",
        article=text,
        flagging_mode="never",
    )


if __name__ == "__main__":
    build().launch()
