"""Inference Endpoints entry: {"inputs": {"events": [...]}, "parameters": {"top_k": 10}} to ranked next behaviors.

Everything goes through `pipeline("next-behavior")`; `inputs` may be a list of such dicts, `parameters` are the
pipeline's options.
"""

from __future__ import annotations

from typing import Any

from transformers import Pipeline, pipeline


class EndpointHandler:
    """Loads the model of a folder or Hub id once and answers requests.

    Args:
        path: folder or Hub id of the model; the endpoint passes the folder it cloned the repository to.
    """

    def __init__(self, path: str = "") -> None:
        load: Any = pipeline  # transformers' types list its own tasks alone
        self.predict: Pipeline = load("next-behavior", model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """The pipeline's answer to `data["inputs"]`: a list of dicts, or a list of such lists for a list.

        Raises:
            ValueError: `data` has no inputs, or something in it is not what the pipeline documents.
            TypeError: a parameter does not exist.
        """
        if "inputs" not in data:
            raise ValueError(f'got the keys {", ".join(data)}, expected {{"inputs": {{"events": [...]}}}}.')
        inputs = data["inputs"]
        if not isinstance(inputs, (dict, list)):  # the pipeline would answer another iterable with an iterator
            raise ValueError(f'inputs is {inputs!r:.80}, expected {{"events": [...]}} or a list of such.')
        return self.predict(inputs, **(data.get("parameters") or {}))
