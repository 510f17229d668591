"""What may be asked of a model, and what an answer may never be: property-based over the options of a question."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from next_behavior.model.item_text import is_missing, text_of_item
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.training.vocabulary import assemble

ITEMS = ["84", "7", "9", "a"]
ACTIONS = ["view", "buy", "search"]
SEARCH, LONGEST = 5, 6
LAMP = {"events": [{"item": "84", "action": "view"}]}


@pytest.fixture(scope="module")
def predict() -> NextBehaviorPipeline:
    """A pipeline around a model in memory; one of its actions comes without an item."""
    tokenizer = assemble(ITEMS, ACTIONS, [60.0, 3600.0], num_new_items=2, max_length=LONGEST)
    tokenizer.describe_items([3, 2, 1, 1], ["Desk lamp", None, None, None])
    model = tiny_model(tokenizer, actions_without_item=[SEARCH], hidden_dropout_prob=0.5)
    return NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")


event = st.fixed_dictionaries(
    {"action": st.sampled_from(ACTIONS)}, optional={"item": st.sampled_from([*ITEMS, "new", "newer"])}
)


@settings(max_examples=150, deadline=None)
@given(
    history=st.lists(event, max_size=LONGEST + 2),
    retired=st.sets(st.sampled_from(ITEMS)),
    allowed=st.none() | st.lists(st.sampled_from(ITEMS), unique=True),
    exclude_seen=st.booleans(),
    of=st.sampled_from(["pair", "item"]),
    action=st.none() | st.sampled_from(ACTIONS),
    top_k=st.sampled_from([1, 3, 1000]),
)
def test_an_answer_is_a_candidate_and_its_probability_a_number(
    predict: NextBehaviorPipeline,
    history: list[dict[str, Any]],
    retired: set[str],
    allowed: list[str] | None,
    exclude_seen: bool,
    of: str,
    action: str | None,
    top_k: int,
) -> None:
    predict.model.config.retired_items = []
    predict.model.retire_items(predict.tokenizer, sorted(retired))
    options: dict[str, Any] = {
        "of": of,
        "action": action,
        "allowed_items": allowed,
        "exclude_seen": exclude_seen,
        "top_k": top_k,
    }
    answers = predict({"events": history}, **options)
    predict.model.config.retired_items = []
    kept, seen = ({one["item"] for one in some if "item" in one} for some in (history[-LONGEST:], history))
    candidates = (set(ITEMS) | kept if allowed is None else set(allowed)) - retired
    if exclude_seen:
        candidates -= seen
    named = {answer["item"] for answer in answers} - {None}
    assert named <= candidates
    assert all(0 <= answer["probability"] <= 1 + 1e-6 for answer in answers)
    if top_k == 1000:
        assert named == candidates
        assert not answers or math.isclose(sum(answer["probability"] for answer in answers), 1, abs_tol=1e-4)
    if not candidates and of == "item":
        assert answers == []


def test_a_question_is_answered_without_dropout_and_leaves_every_module_in_its_mode(
    predict: NextBehaviorPipeline,
) -> None:
    expected = predict(LAMP, top_k=20, paths=True)
    model = predict.model.train()
    model.action_head.eval()
    try:
        assert predict(LAMP, top_k=20, paths=True) == expected
        batch = predict.tokenizer([LAMP["events"]], return_tensors="pt")
        first, second = (model.item_log_probabilities(**batch) for _ in range(2))
        assert torch.equal(first, second)
        assert [model.training, model.bert.training, model.action_head.training] == [True, True, False]
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("x", {}, "got 'x', expected"),
        (7, {}, "got 7, expected"),
        ({"events": iter([])}, {}, "a dict whose events are"),
        (LAMP, {"top_k": 5.0}, "top_k is 5.0 .float., expected a whole number"),
        (LAMP, {"top_k": "3"}, "top_k is '3' .str., expected a whole number"),
        (LAMP, {"top_k": True}, "top_k is True"),
        (LAMP, {"batch_size": -1}, "batch_size is -1"),
        (LAMP, {"batch_size": 0}, "batch_size is 0"),
        (LAMP, {"batch_size": 2.0}, "batch_size is 2.0"),
    ],
)
def test_a_senseless_question_is_named_in_a_sentence(
    predict: NextBehaviorPipeline, inputs: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predict(inputs, **options)


def test_ids_of_any_whole_type_give_the_same_answers_and_others_are_named(predict: NextBehaviorPipeline) -> None:
    batch = predict.tokenizer([LAMP["events"]], return_tensors="pt")
    expected = predict.model.predict(**batch)
    answers = predict.model.predict(**{name: channel.int() for name, channel in batch.items()})
    assert torch.equal(answers.item_ids, expected.item_ids)
    with pytest.raises(ValueError, match=r"token_type_ids has shape .* torch.float32, expected whole numbers"):
        predict.model.predict(**{**batch, "token_type_ids": batch["token_type_ids"].float()})
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 2\)"):
        predict.model.predict(**{**batch, "attention_mask": torch.ones(1, 2, dtype=torch.long)})


def test_a_probability_that_is_not_finite_is_never_answered(predict: NextBehaviorPipeline) -> None:
    weight = predict.model.action_head.weight
    before = weight[3, 0].item()
    with torch.no_grad():
        weight[3, 0] = math.nan
        with pytest.raises(ValueError, match="not finite"):
            predict(LAMP)
        weight[3, 0] = before


def test_an_action_that_a_history_misspells_is_warned_of_once() -> None:
    tokenizer = assemble(["84"], ["view", "buy"], [60.0], num_new_items=2, max_length=LONGEST)
    with pytest.warns(UserWarning, match="action 'VIEW', which is unknown .* 'view', 'buy'"):
        ids = tokenizer([{"item": "84", "action": "VIEW"}, {"item": "84", "action": "VIEW"}])
    assert ids["token_type_ids"] == [[1, 1]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer([{"item": "84", "action": "VIEW"}])


@pytest.mark.parametrize("empty", [None, math.nan, np.float32("nan"), np.datetime64("NaT", "s")])
def test_an_empty_cell_is_no_text(empty: Any) -> None:
    assert is_missing(empty)
    assert text_of_item({"title": "Lamp", "brand": empty}, ["title", "brand"], None) == "Lamp"
    assert text_of_item({"title": empty, "brand": [empty]}, ["title", "brand"], None) is None


def test_pandas_empty_cells_and_arrays_are_read() -> None:
    pandas = pytest.importorskip("pandas")
    row = {"title": "Lamp", "brand": pandas.NA, "added": pandas.NaT, "tags": np.array(["red", None], dtype=object)}
    assert text_of_item(row, list(row), "{title} by {brand}{added} ({tags})") == "Lamp by (red)"


def test_a_model_with_item_text_can_be_resized(bert: str) -> None:
    tokenizer = assemble(ITEMS, ACTIONS, [60.0], num_new_items=2, max_length=LONGEST)
    text = {"text_size": 4, "text_encoder_size": 20, "text_encoder": bert, "text_columns": ["title"]}
    model = tiny_model(tokenizer, **text)
    model.resize_token_embeddings(len(tokenizer) + 3)
    batch = tokenizer([LAMP["events"]], return_tensors="pt")
    assert model(**batch).item_logits.shape[-1] == len(tokenizer) + 3
