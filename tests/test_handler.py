"""handler.py keeps the contract of Inference Endpoints: how huggingface-inference-toolkit finds, loads and calls it.

The toolkit puts the repository's folder on the module path, executes its handler.py under the name
`handler.EndpointHandler`, makes an `EndpointHandler(folder)`, and for every request calls it in a worker thread with
the JSON body, which holds `inputs` and perhaps `parameters`; the answer must be JSON, and what is raised becomes the
text of a 400 (utils.py, handler.py and webservice_starlette.py of that repository).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import load, tiny_model

from next_behavior.model.handler import EndpointHandler
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.training.vocabulary import assemble

HISTORY: list[dict[str, Any]] = [
    {"item": "84", "action": "view", "timestamp": 1_700_000_000},
    {"item": "brand new", "action": "cart", "timestamp": 1_700_000_050},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as it is cloned to an endpoint."""
    tokenizer = assemble(["84", "007", "5"], ["view", "cart"], [60.0, 3600.0], num_new_items=2, max_length=6)
    tokenizer.describe_items([3, 2, 1], ["Lamp", None, None])
    path = tmp_path_factory.mktemp("repository")
    tiny_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Any:
    """The handler as the toolkit loads it from the folder."""
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setitem(sys.modules, "handler.EndpointHandler", module)
        spec.loader.exec_module(module)
        yield module.EndpointHandler(str(folder))


def request(endpoint: Any, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON of an answer, as the toolkit's web service gives them."""

    async def answer() -> Any:
        return await asyncio.to_thread(endpoint, json.loads(json.dumps(body)))

    try:
        return 200, json.loads(json.dumps(asyncio.run(answer()), allow_nan=False))
    except Exception as error:  # the toolkit catches everything
        return 400, {"error": str(error)}


def test_the_answer_is_the_pipelines_as_json(endpoint: Any, folder: Path) -> None:
    model, tokenizer = load(folder)
    predict = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    body: dict[str, Any] = {"inputs": {"events": HISTORY}, "parameters": {"top_k": 3, "of": "item"}}
    status, answers = request(endpoint, body)
    assert status == 200
    expected = predict({"events": HISTORY}, top_k=3, of="item")
    assert [answer["item"] for answer in answers] == [answer["item"] for answer in expected]
    assert [answer["probability"] for answer in answers] == pytest.approx([a["probability"] for a in expected])
    assert answers[0].keys() == {"action", "item", "title", "probability", "when"}


def test_several_inputs_are_several_answers_and_parameters_may_be_absent_or_null(endpoint: Any) -> None:
    inputs = [{"events": HISTORY}, {"events": []}]
    for body in ({"inputs": inputs}, {"inputs": inputs, "parameters": None}, {"inputs": inputs, "parameters": {}}):
        status, answers = request(endpoint, body)
        assert status == 200
        assert len(answers) == 2
        assert all(len(one) > 1 for one in answers)


def test_parameters_of_a_query_string_which_are_numbers_and_booleans_work(endpoint: Any) -> None:
    status, answers = request(
        endpoint, {"inputs": {"events": HISTORY}, "parameters": {"top_k": 2, "exclude_seen": True, "action": "cart"}}
    )
    assert status == 200
    assert {answer["item"] for answer in answers} == {"007", "5"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"events": HISTORY}, 'expected {"inputs": {"events": [...]}}'),
        ({"inputs": "84"}, "inputs is '84', expected"),
        ({"inputs": {"events": [{"itme": "84"}]}}, "did you mean 'item'?"),
        ({"inputs": {"events": HISTORY}, "parameters": {"top": 3}}, "top is not an option"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_the_error(endpoint: Any, body: dict[str, Any], message: str) -> None:
    status, answer = request(endpoint, body)
    assert status == 400
    assert message in answer["error"]


def test_the_class_has_the_toolkits_signature(folder: Path) -> None:
    assert EndpointHandler.__name__ == "EndpointHandler"
    assert EndpointHandler(path=str(folder))({"inputs": {"events": []}})
