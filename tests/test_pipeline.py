"""pipeline("next-behavior") and handler.py: answers in the user's own ids, the same as the model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_python
from tiny import load, tiny_model
from transformers import pipeline

from next_behavior.model.answers import TimeUntilNext
from next_behavior.model.configuration_behavior import CODE_FILES
from next_behavior.model.encoder import Events
from next_behavior.model.handler import EndpointHandler
from next_behavior.model.mixture import seen_items
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.training.calibration import path_fits
from next_behavior.training.vocabulary import assemble

ITEMS = ["84", "007", "[PAD]", "garden chair, blue", "5", "6", "7"]
ACTIONS = ["view", "cart", "buy", "search", "login"]
EDGES = [60.0, 3600.0, 43200.0, 86400.0, 604800.0, 2592000.0]
WINDOW = 8

HISTORY: list[dict[str, Any]] = [
    {"item": "84", "action": "view", "timestamp": 1_700_000_000},
    {"item": "brand new", "action": "view", "timestamp": 1_700_000_050},
    {"action": "search", "timestamp": 1_700_000_090},
    {"item": "brand new", "action": "cart", "timestamp": 1_700_090_000},
]
OTHER: list[dict[str, Any]] = [{"item": "5", "action": "buy"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with random weights, and its tokenizer."""
    tokenizer = assemble(ITEMS, ACTIONS, EDGES, num_new_items=3, max_length=WINDOW)
    tokenizer.describe_items([1] * len(ITEMS), ["Lamp", None, "A trap", "Chair", None, None, None])
    without_item = [tokenizer.encode_action(action) for action in ("search", "login")]
    model = tiny_model(tokenizer, actions_without_item=without_item, initializer_range=0.5, time_temperature=1.7)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def predict(folder: Path) -> NextBehaviorPipeline:
    model, tokenizer = load(folder)
    return NextBehaviorPipeline(model=model.train(), tokenizer=tokenizer, device="cpu")


def total(answers: list[dict[str, Any]]) -> float:
    return sum(answer["probability"] for answer in answers)


def items_of(answers: list[dict[str, Any]]) -> set[str | None]:
    return {answer["item"] for answer in answers}


# -- answers -----------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_model_in_the_users_ids(predict: NextBehaviorPipeline) -> None:
    answers = predict({"events": HISTORY}, top_k=4)
    batch = predict.tokenizer([HISTORY], return_tensors="pt")
    ranked = predict.model.predict(**batch, top_k=4)
    assert [list(answer) for answer in answers] == [["action", "item", "title", "probability", "when"]] * 4
    assert [answer["probability"] for answer in answers] == pytest.approx(ranked.probabilities[0].tolist(), abs=1e-6)
    names = [predict.tokenizer.decode_action(index) for index in ranked.action_ids[0].tolist()]
    assert [answer["action"] for answer in answers] == names


def test_pairs_cover_every_candidate_once_and_sum_to_one(predict: NextBehaviorPipeline) -> None:
    answers = predict({"events": HISTORY}, top_k=10_000)
    pairs = {(answer["action"], answer["item"]) for answer in answers}
    expected = {(action, item) for action in ACTIONS for item in [*ITEMS, "brand new"]}
    assert pairs == expected | {("search", None), ("login", None)}
    assert len(answers) == len(pairs)
    assert total(answers) == pytest.approx(1, abs=1e-5)
    probabilities = [answer["probability"] for answer in answers]
    assert probabilities == sorted(probabilities, reverse=True)


def test_an_item_the_vocabulary_does_not_know_comes_back_as_the_users_id(predict: NextBehaviorPipeline) -> None:
    history = [{"item": item, "action": "view"} for item in ("x", "y", "84", "y")]
    items = items_of(predict({"events": history}, of="item", top_k=100))
    assert items == {*ITEMS, "x", "y"}
    assert "x" not in items_of(predict({"events": [*history, *[OTHER[0]] * WINDOW]}, of="item", top_k=100))


def test_items_and_actions_are_answered_apart(predict: NextBehaviorPipeline) -> None:
    items = predict({"events": HISTORY}, of="item", top_k=100)
    assert [answer["action"] for answer in items] == [None] * (len(ITEMS) + 1)
    actions = predict({"events": HISTORY}, of="action", top_k=100)
    assert {answer["action"] for answer in actions} == set(ACTIONS)
    assert items_of(actions) == {None}
    given = predict({"events": HISTORY}, of="item", action="buy", top_k=100)
    assert {answer["action"] for answer in given} == {"buy"}
    assert total(items) == pytest.approx(1, abs=1e-5)
    assert total(actions) == pytest.approx(1, abs=1e-5)
    assert total(given) == pytest.approx(1, abs=1e-5)


def test_titles_are_shown_where_there_are_any(predict: NextBehaviorPipeline) -> None:
    titles = {answer["item"]: answer["title"] for answer in predict({"events": HISTORY}, of="item", top_k=100)}
    assert titles["84"] == "Lamp"
    assert titles["[PAD]"] == "A trap"
    assert titles["007"] is None
    assert titles["brand new"] is None


def test_a_batch_gives_what_single_inputs_give(predict: NextBehaviorPipeline) -> None:
    inputs = [{"events": events} for events in (HISTORY, [], OTHER, HISTORY[:2], OTHER * 30)]
    singles = [predict(one, top_k=5) for one in inputs]
    for batch_size in (None, 1, 2, 5):
        together = predict(inputs, top_k=5, batch_size=batch_size)
        assert len(together) == len(inputs)
        for batched, single in zip(together, singles, strict=True):
            assert [(a["action"], a["item"]) for a in batched] == [(a["action"], a["item"]) for a in single]
            assert [a["probability"] for a in batched] == pytest.approx([a["probability"] for a in single], abs=1e-6)
            assert batched[0]["when"] == pytest.approx(single[0]["when"], rel=1e-4)
    assert predict([]) == []
    assert [len(answers) for answers in predict(iter(inputs), top_k=2, batch_size=2)] == [2] * 5


def test_answers_are_plain_json(predict: NextBehaviorPipeline) -> None:
    answers = predict({"events": HISTORY}, top_k=3)
    assert json.loads(json.dumps(answers)) == answers


def test_the_model_is_in_eval_mode_and_answers_repeat(predict: NextBehaviorPipeline) -> None:
    assert not predict.model.training
    assert predict({"events": HISTORY}) == predict({"events": HISTORY})


# -- which items -------------------------------------------------------------------------------------------------------


def test_seen_items_are_left_out_also_beyond_the_window(predict: NextBehaviorPipeline) -> None:
    long = [{"item": item, "action": "view"} for item in ("6", "7", *["84", "brand new"] * WINDOW)]
    answers, short = predict([{"events": long}, {"events": OTHER}], of="item", top_k=100, exclude_seen=True)
    assert items_of(answers) == set(ITEMS) - {"6", "7", "84"}
    assert items_of(short) == set(ITEMS) - {"5"}
    assert total(answers) == pytest.approx(1, abs=1e-5)
    kept = {answer["item"]: answer["probability"] for answer in predict({"events": long}, of="item", top_k=100)}
    remaining = sum(kept[answer["item"]] for answer in answers)
    for answer in answers:
        assert answer["probability"] == pytest.approx(kept[answer["item"]] / remaining, rel=1e-4)


def test_only_allowed_items_are_ranked(predict: NextBehaviorPipeline) -> None:
    answers = predict({"events": HISTORY}, of="item", allowed_items=["84", "[PAD]", 7], top_k=100)
    assert items_of(answers) == {"84", "[PAD]", "7"}
    assert items_of(predict({"events": HISTORY}, allowed_items=["84"], top_k=100)) == {"84", None}


def test_nothing_is_answered_when_everything_allowed_was_seen(predict: NextBehaviorPipeline) -> None:
    long = [{"item": item, "action": "view"} for item in ("6", *["7"] * WINDOW)]
    for events, allowed in ((long, ["6"]), (long, ["7", "6"]), (OTHER, ["5"])):
        options: dict[str, Any] = {"exclude_seen": True, "allowed_items": allowed, "top_k": 100}
        assert predict({"events": events}, of="item", **options) == []
        assert items_of(predict({"events": events}, **options)) == {None}


# -- which path named it -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_memory(folder: Path) -> NextBehaviorPipeline:
    """The same model after counting, so that all four paths take part, and with calibration that is not 1."""
    model, tokenizer = load(folder)
    orders = (("84", "5", "6"), ("84", "6"), ("7", "5"))
    walks = [[{"item": item, "action": "view"} for item in order] for order in orders]
    model.update_memory(**tokenizer(walks, return_tensors="pt"), pairs="all")
    model.config.generate_temperature, model.config.action_temperature = 1.3, 0.8
    model.config.memory_share = 0.2
    return NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")


def contributions(predict: NextBehaviorPipeline, events: list[dict[str, Any]], answer: dict[str, Any]) -> list[float]:
    """p(item by path | history, action) for none, generate, repeat, associate: from what the gate is fitted on, and the
    factor of the memory."""
    tokenizer, model = predict.tokenizer, predict.model
    batch = tokenizer([events], return_tensors="pt")
    action = tokenizer.encode_action(answer["action"])
    if answer["item"] is None:
        item = 2
    elif tokenizer.encode_item(answer["item"]) >= tokenizer.first_item_id:
        item = tokenizer.encode_item(answer["item"])
    else:
        item = 4 + tokenizer.new_items(events).index(answer["item"])
    config, memory = model.config, model.associate_path
    now = {"temperatures": config.generate_temperature, "powers": config.memory_power, "units": config.memory_unit}
    candidates = {name: torch.tensor([value]) for name, value in now.items()}
    channels = ("input_ids", "token_type_ids", "time_gap_ids", "attention_mask")
    history = Events(*(batch[name] for name in channels))
    with torch.no_grad():
        tables = model.answer_tables(model.device)
        named = model.item_head.named_items(model.bert(*history), history, torch.tensor([[action]]), tables)
        fits, repeated, gate = path_fits(model, named, history.items, torch.tensor([item]), **candidates)
        last = torch.tensor([[batch["input_ids"].shape[1] - 1]])
        recent = memory.recent_items(batch["input_ids"], batch["attention_mask"], last)[:, 0]
        scores = memory.score(recent, seen_items(batch["input_ids"], model.config.vocab_size))
        alone = float((1 + scores[0, item] / config.memory_unit) ** -config.memory_power)
        none, repeat, new = gate[0].softmax(dim=-1).tolist()
        share = config.memory_share if scores.sum() else 0.0
        whole = (1 - share) * new * float(fits.exp())
        counted = share * new * float(scores[0, item] / scores.sum().clamp(min=1e-9))
        return [none * (item == 2), alone * whole, repeat * float(repeated.exp()), (1 - alone) * whole + counted]


def test_the_paths_reassemble_the_probability_of_each_pair(with_memory: NextBehaviorPipeline) -> None:
    histories = [HISTORY, OTHER, [], HISTORY[:1] * 3 + OTHER * 2]
    batched = with_memory([{"events": events} for events in histories], top_k=1000, paths=True)
    together: dict[str, float] = {"generate": 0.0, "repeat": 0.0, "associate": 0.0}
    for events, answers in zip(histories, batched, strict=True):
        actions = {a["action"]: a["probability"] for a in with_memory({"events": events}, of="action", top_k=100)}
        for answer in answers:
            none, *named = contributions(with_memory, events, answer)
            assert answer["probability"] == pytest.approx(actions[answer["action"]] * (none + sum(named)), rel=1e-4)
            if answer["item"] is None:
                assert answer["paths"] is None
                continue
            assert list(answer["paths"]) == ["generate", "repeat", "associate"]
            assert sum(answer["paths"].values()) == pytest.approx(1, abs=1e-5)
            for (path, share), value in zip(answer["paths"].items(), named, strict=True):
                assert share * answer["probability"] == pytest.approx(actions[answer["action"]] * value, abs=1e-6)
                together[path] += share * answer["probability"]
    assert min(together.values()) > 0.01, "every path is put to the test"


def test_the_paths_of_an_item_are_those_of_its_pairs_weighed_by_their_probability(
    with_memory: NextBehaviorPipeline,
) -> None:
    pairs = with_memory({"events": HISTORY}, top_k=1000, paths=True)
    for answer in with_memory({"events": HISTORY}, of="item", top_k=1000, paths=True):
        same = [pair for pair in pairs if pair["item"] == answer["item"]]
        for path, share in answer["paths"].items():
            weighed = sum(pair["probability"] * pair["paths"][path] for pair in same)
            assert share == pytest.approx(weighed / total(same), abs=1e-5)


def test_an_item_that_only_the_history_holds_was_repeated(with_memory: NextBehaviorPipeline) -> None:
    answers = with_memory({"events": HISTORY}, top_k=1000, paths=True, action="buy")
    (new,) = [answer for answer in answers if answer["item"] == "brand new"]
    assert new["paths"] == {"generate": 0, "repeat": 1, "associate": 0}
    (known,) = with_memory({"events": OTHER}, of="item", action="buy", allowed_items=["6"], paths=True)
    assert known["paths"]["repeat"] == 0
    assert known["paths"]["associate"] > 0


def test_paths_change_nothing_else(with_memory: NextBehaviorPipeline) -> None:
    for options in ({}, {"of": "item", "exclude_seen": True}, {"of": "action"}, {"action": "buy", "top_k": 3}):
        with_paths = with_memory([{"events": HISTORY}, {"events": OTHER}], paths=True, **options)
        without = with_memory([{"events": HISTORY}, {"events": OTHER}], **options)
        assert [[{k: v for k, v in a.items() if k != "paths"} for a in one] for one in with_paths] == without


def test_a_calibrated_item_temperature_changes_no_share(folder: Path, with_memory: NextBehaviorPipeline) -> None:
    before = with_memory({"events": HISTORY}, top_k=1000, paths=True, action="buy")
    with_memory.model.config.item_temperature = 1.6
    after = with_memory({"events": HISTORY}, top_k=1000, paths=True, action="buy")
    with_memory.model.config.item_temperature = 1.0
    assert before[0]["probability"] != pytest.approx(after[0]["probability"], rel=0.01)
    shares = {answer["item"]: answer["paths"] for answer in after}
    for answer in before:
        assert shares[answer["item"]] == (None if answer["item"] is None else pytest.approx(answer["paths"], abs=1e-5))


# -- order and time ----------------------------------------------------------------------------------------------------


def test_events_out_of_order_are_sorted_when_all_have_a_time(predict: NextBehaviorPipeline) -> None:
    assert predict({"events": HISTORY[::-1]}) == predict({"events": HISTORY})
    mixed = [{"item": "5", "action": "view"}, *HISTORY]
    assert predict({"events": mixed[::-1]}) != predict({"events": mixed})
    tied = [{"item": item, "action": "view", "timestamp": "2024-05-17"} for item in ("5", "6", "7")]
    assert predict.tokenizer.in_time_order([tied]) == [tied]


def test_when_follows_the_calibrated_time_head(predict: NextBehaviorPipeline) -> None:
    when = predict({"events": HISTORY}, top_k=1)[0]["when"]
    with torch.no_grad():
        logits = predict.model(**predict.tokenizer([HISTORY], return_tensors="pt")).time_logits[0]
    buckets = logits.softmax(dim=-1)[2:]
    assert list(when) == ["median_seconds", "within_1_hour", "within_1_day", "within_7_days", "within_30_days"]
    for name, edge in (("within_1_hour", 2), ("within_1_day", 4), ("within_7_days", 5), ("within_30_days", 6)):
        assert when[name] == pytest.approx(float(buckets[:edge].sum()), abs=1e-5)


def test_a_worked_example_of_when() -> None:
    # 0.3 below a minute, 0.4 from a minute to an hour, 0.3 from an hour on.
    when = TimeUntilNext([60.0, 3600.0])(np.array([0.3, 0.4, 0.3]))
    assert when["median_seconds"] == pytest.approx(60 * 60**0.5)
    assert when["within_1_hour"] == pytest.approx(0.7)
    assert when["within_1_day"] == pytest.approx(1.0)
    # One hour lies halfway, in log time, between the edges 600 and 21600.
    assert TimeUntilNext([600.0, 21600.0])(np.array([0.2, 0.5, 0.3]))["within_1_hour"] == pytest.approx(0.2 + 0.5 / 2)
    assert TimeUntilNext([3600.0])(np.array([0.8, 0.2]))["median_seconds"] == pytest.approx(3600 * 0.5 / 0.8)
    assert TimeUntilNext([86400.0])(np.array([0.1, 0.9]))["within_1_hour"] == pytest.approx(0.1 / 24)


def test_a_model_without_time_says_nothing_of_when() -> None:
    tokenizer = assemble(["84", "5"], ACTIONS, [], num_new_items=1, max_length=WINDOW)
    tokenizer.describe_items([1, 1], [None, None])
    predict = NextBehaviorPipeline(model=tiny_model(tokenizer), tokenizer=tokenizer, device="cpu")
    assert [answer["when"] for answer in predict({"events": HISTORY}, of="item", top_k=2)] == [None, None]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (HISTORY, {}, r'input 0 is a dict with the keys .item., .action., .timestamp., expected {"events"'),
        ({"events": HISTORY, "top_k": 3}, {}, "'events', 'top_k'"),
        ({"events": "84"}, {}, "list of events"),
        (["84"], {}, "input 0 is '84'"),
        ([{"events": HISTORY}, {"events": [{"itme": "84"}]}], {}, "event 0 of history 1 has the key 'itme'"),
        ({"events": HISTORY}, {"action": "wish"}, "'wish' is unknown.*'view', 'cart', 'buy', 'search', 'login'"),
        ({"events": HISTORY}, {"allowed_items": ["84", "nowhere", "brand new"]}, r"\['nowhere', 'brand new'\]"),
        ({"events": HISTORY}, {"allowed_items": "84"}, "expected a list"),
        ({"events": HISTORY}, {"of": "items"}, "of='items'"),
        ({"events": HISTORY}, {"top_k": 0}, "top_k is 0"),
    ],
)
def test_bad_input_is_named(predict: NextBehaviorPipeline, inputs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(inputs, **options)


def test_an_option_that_does_not_exist_is_named(predict: NextBehaviorPipeline) -> None:
    with pytest.raises(TypeError, match="explains is not an option, expected top_k, of, action"):
        predict({"events": HISTORY}, explains=True)


# -- as loaded by users ------------------------------------------------------------------------------------------------


def test_options_at_construction_are_defaults_that_a_call_overrides(folder: Path) -> None:
    load: Any = pipeline  # transformers' types list its own tasks alone
    predict = load(
        "next-behavior", model=folder, trust_remote_code=True, top_k=2, of="item", batch_size=3, device="cpu"
    )
    assert len(predict({"events": HISTORY})) == 2
    assert len(predict({"events": HISTORY}, top_k=3)) == 3
    assert predict({"events": HISTORY}, of="action")[0]["item"] is None


def test_the_endpoint_answers_what_the_pipeline_answers(folder: Path, predict: NextBehaviorPipeline) -> None:
    handler = EndpointHandler(str(folder))
    request = {"inputs": [{"events": HISTORY}, {"events": OTHER}], "parameters": {"top_k": 3, "of": "item"}}
    answers = handler(request)
    expected = predict(request["inputs"], top_k=3, of="item")
    assert [items_of(one) for one in answers] == [items_of(one) for one in expected]
    assert len(handler({"inputs": {"events": HISTORY}})) == 10
    with pytest.raises(ValueError, match=r'expected {"inputs"'):
        handler({"events": HISTORY})


REMOTE = """
import json, sys
from transformers import pipeline
source, target, request = sys.argv[1:]
pipeline("next-behavior", model=source, trust_remote_code=True).save_pretrained(target)
predict = pipeline("next-behavior", model=target, trust_remote_code=True)
assert type(predict).__module__.startswith("transformers_modules"), type(predict)
print(json.dumps(predict(json.loads(request), top_k=3)))
"""


def test_a_clean_process_elsewhere_gives_the_same_answers_also_from_a_copy_it_saved(
    folder: Path, predict: NextBehaviorPipeline, tmp_path: Path
) -> None:
    request = [{"events": HISTORY}, {"events": OTHER}]
    done = run_python(tmp_path, "-I", "-c", REMOTE, str(folder), str(tmp_path / "copy"), json.dumps(request))
    for there, here in zip(json.loads(done.stdout), predict(request, top_k=3), strict=True):
        assert [(a["action"], a["item"], a["title"]) for a in there] == [
            (a["action"], a["item"], a["title"]) for a in here
        ]
        assert [a["probability"] for a in there] == pytest.approx([a["probability"] for a in here], abs=1e-5)
    for name in (*CODE_FILES, "vocabulary.tsv"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
