"""The predictor answers what the model answers, without torch, to every question."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from served import check_explained, predictor_in_memory
from tiny import tiny_model

from next_behavior.model.histories import as_arrays
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.special_ids import FIRST_NEW, NONE
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.serving import distribution
from next_behavior.serving.batch_scoring import BatchScorer, Wanted
from next_behavior.serving.golden import check_golden, difference_between
from next_behavior.serving.predictor import Predictor
from next_behavior.serving.questions import Asked
from next_behavior.training.vocabulary import assemble

ITEMS, ACTIONS, LONGEST = [str(number) for number in range(30)], ["view", "buy", "search"], 8
UNCOUNTED = ITEMS[-4:]


def tokenizer_of_items(items: list[str] = ITEMS) -> BehaviorTokenizer:
    tokenizer = assemble(items, ACTIONS, [60.0, 3600.0], num_new_items=2, max_length=LONGEST)
    tokenizer.describe_items([1] * len(items), [f"title {item}" if int(item) % 2 else None for item in items])
    return tokenizer


def random_model(tokenizer: BehaviorTokenizer, seed: int, text: bool, **changes: Any) -> BertForNextBehavior:
    """A model whose every weight and table is random, also what starts at zero, so that no part is silent."""
    sizes = {"text_size": 6, "text_encoder": "none", "text_encoder_size": 9, "memory_text": 0.1} if text else {}
    model = tiny_model(tokenizer, actions_without_item=[5], **sizes | changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        first = tokenizer.first_item_id
        end = max(len(tokenizer) - len(UNCOUNTED), first + 1)
        histories = torch.randint(first, end, (9, 7), generator=generator)
        model.update_memory(histories[:6], pairs="all", trained=True)
        model.update_memory(histories[6:], pairs="all")
        if text:
            item_text = model.bert.embeddings.item_text
            assert item_text is not None
            shape = item_text.vectors.shape
            item_text.vectors = torch.randint(-99, 99, shape, generator=generator).to(torch.int8)
            model.associate_path.borrow(item_text)
    return model


event = st.fixed_dictionaries(
    {"action": st.sampled_from([*ACTIONS, "unknown"])},
    optional={
        "item": st.sampled_from([*ITEMS[:6], *UNCOUNTED, "new", "newer", "newest"]),
        "timestamp": st.integers(1_700_000_000, 1_700_100_000),
    },
)
question = st.fixed_dictionaries(
    {"top_k": st.sampled_from([1, 3, 10, 1000])},
    optional={
        "of": st.sampled_from(["pair", "item"]),
        "action": st.sampled_from(ACTIONS),
        "exclude_seen": st.booleans(),
        "allowed_items": st.lists(st.sampled_from(ITEMS), unique=True, max_size=12),
        "paths": st.booleans(),
    },
)
about_sets = st.fixed_dictionaries({"of": st.sampled_from(["item", "action"]), "coverage": st.floats(0.01, 0.99)})
about_actions = st.fixed_dictionaries({"top_k": st.integers(1, 9), "of": st.just("action"), "balanced": st.booleans()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundle")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    text=st.booleans(),
    retired=st.lists(st.sampled_from(ITEMS), unique=True, max_size=8) | st.just(ITEMS),
    temperature=st.sampled_from([1.0, 0.8, 1.4]),
    largest_logit=st.sampled_from([distribution.LARGEST_LOGIT, -1.0]),
    share=st.sampled_from([0.0, 0.3]),
    trend=st.sampled_from([0.0, 0.5]),
    asked=st.lists(
        st.tuples(st.lists(event, max_size=LONGEST + 3), question | about_sets | about_actions), min_size=1, max_size=6
    ),
)
def test_a_predictor_answers_as_the_pipeline_does(
    folder: Path,
    seed: int,
    text: bool,
    retired: list[str],
    temperature: float,
    largest_logit: float,
    share: float,
    trend: float,
    asked: list[tuple[list[dict[str, Any]], dict[str, Any]]],
) -> None:
    tokenizer = tokenizer_of_items()
    model = random_model(
        tokenizer, seed, text, item_temperature=temperature, generate_temperature=1.2, action_temperature=0.9,
        time_temperature=1.1, memory_share=share, memory_trend=trend, action_weights=[0.0, 0.0, 0.0, 0.1, 0.9, -0.2],
        action_bias=np.random.default_rng(seed).normal(size=(6, 6)).tolist(),
        time_bias=np.random.default_rng(seed).normal(size=tokenizer.num_time_gaps).tolist(),
        item_set_limits=np.linspace(0.003, 0.983, 99).tolist(), action_set_limits=np.linspace(0, 0.9, 99).tolist(),
    )  # fmt: skip
    model.retire_items(tokenizer, retired)
    predictor = predictor_in_memory(model, tokenizer, folder)
    pipeline = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mock.patch.object(distribution, "LARGEST_LOGIT", largest_logit):
            found = predictor.answers([predictor.ask(history, **options) for history, options in asked])
        for (history, options), answers in zip(asked, found, strict=True):
            wanted = pipeline({"events": history}, **options)
            assert difference_between(answers, wanted) is None, (history, options)
            assert [sorted(each) for each in answers] == [sorted(each) for each in wanted]
            assert {each["item"]: each["title"] for each in answers} == {each["item"]: each["title"] for each in wanted}


@pytest.mark.parametrize("items", [ITEMS[:1], ITEMS[:2]])
def test_answers_after_the_whole_catalog_are_those_of_the_pipeline(folder: Path, items: list[str]) -> None:
    tokenizer = tokenizer_of_items(items)
    for trend, temperature in ((0.5, 1.0), (0.0, 1.4), (3.0, 0.5)):
        model = random_model(tokenizer, 1, False, memory_trend=trend, item_temperature=temperature)
        check_all(folder, model, tokenizer, [{"item": item, "action": "view"} for item in items])


@pytest.mark.parametrize(("temperature", "share"), [(0.2, 0.0), (0.2, 0.3), (0.5, 0.999), (2.0, 0.999), (1.0, 1.0)])
def test_no_temperature_and_no_share_of_the_memory_takes_an_answer_out_of_range(
    folder: Path, temperature: float, share: float
) -> None:
    tokenizer = tokenizer_of_items()
    model = random_model(
        tokenizer, 1, False, item_temperature=temperature, memory_share=share, generate_temperature=0.3
    )
    check_all(folder, model, tokenizer, [{"item": item, "action": "view"} for item in ITEMS[:3]])


def test_paths_are_said_of_a_given_action_however_improbable_it_is(folder: Path) -> None:
    tokenizer = tokenizer_of_items()
    model = random_model(tokenizer, 1, text=False, action_temperature=0.003)
    pipeline = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    history = [{"item": "3", "action": "view"}]
    predictor = predictor_in_memory(model, tokenizer, folder)
    for action in ACTIONS:
        for answers in (
            pipeline({"events": history}, action=action, of="item", paths=True),
            predictor.answer(history, action=action, of="item", paths=True),
        ):
            assert all(each["paths"] for each in answers)


def check_all(
    folder: Path, model: BertForNextBehavior, tokenizer: BehaviorTokenizer, history: list[dict[str, Any]]
) -> None:
    """Asks several questions of predictor, pipeline and batch scoring."""
    predictor = predictor_in_memory(model, tokenizer, folder)
    pipeline = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    options: dict[str, Any]
    for options in ({"of": "item"}, {"of": "pair", "action": "buy"}, {"exclude_seen": True}):
        wanted = pipeline({"events": history}, top_k=40, paths=True, **options)
        found = predictor.answer(history, top_k=40, paths=True, **options)
        assert difference_between(found, wanted) is None, options
        one, none = predictor.ask(history, top_k=40, **options), np.zeros(0, np.int64)
        asked = Wanted(40, one.of, one.action, one.exclude is not None, None)
        items, actions, time_gaps, mask = as_arrays([one.ids], len(one.ids.items))
        best = BatchScorer(predictor).best(items, actions, time_gaps, mask, asked, (none, none))
        probabilities = [each["probability"] for each in wanted]
        np.testing.assert_allclose(best.probabilities, probabilities, atol=1e-5, err_msg=str(options))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    text=st.booleans(),
    histories=st.lists(st.lists(event, min_size=1, max_size=LONGEST + 3), min_size=1, max_size=5),
)
def test_counting_an_event_changes_the_next_answer_as_update_memory_does(
    folder: Path, seed: int, text: bool, histories: list[list[dict[str, Any]]]
) -> None:
    tokenizer = tokenizer_of_items()
    model = random_model(tokenizer, seed, text, memory_trend=0.4, memory_half_life=3)
    predictor = predictor_in_memory(model, tokenizer, folder)
    pipeline = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for history in histories:
            ordered = tokenizer.in_time_order([history])
            predictor.count(history)
            model.update_memory(**tokenizer(ordered, return_tensors="pt"))
            wanted = pipeline({"events": history}, top_k=40, of="item")
            assert difference_between(predictor.answer(history, top_k=40, of="item"), wanted) is None


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    text=st.booleans(),
    retired=st.lists(st.sampled_from(ITEMS), unique=True, max_size=8),
    share=st.sampled_from([0.0, 0.3]),
    history=st.lists(event, max_size=LONGEST + 3),
    learned=st.lists(event, min_size=1, max_size=LONGEST),
    options=question | about_actions,
)
def test_a_predictor_explains_as_the_pipeline_does(
    folder: Path,
    seed: int,
    text: bool,
    retired: list[str],
    share: float,
    history: list[dict[str, Any]],
    learned: list[dict[str, Any]],
    options: dict[str, Any],
) -> None:
    tokenizer = tokenizer_of_items()
    model = random_model(
        tokenizer, seed, text, item_temperature=1.2, memory_share=share, memory_trend=0.4, memory_half_life=3,
        action_weights=[0.0, 0.0, 0.0, 0.1, 0.9, -0.2],
    )  # fmt: skip
    model.retire_items(tokenizer, retired)
    predictor = predictor_in_memory(model, tokenizer, folder)
    pipeline = NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")
    options = options | {"top_k": min(options["top_k"], 10), "explain": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predictor.count(learned)
        model.update_memory(**tokenizer(tokenizer.in_time_order([learned]), return_tensors="pt"))
        check_explained(predictor.answer(history, **options), pipeline({"events": history}, **options))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    tokenizer = tokenizer_of_items()
    return predictor_in_memory(random_model(tokenizer, 1, text=True), tokenizer, tmp_path_factory.mktemp("small"))


def test_an_answer_does_not_depend_on_who_shares_the_batch(small: Predictor) -> None:
    draw = random.Random(2)
    asked = [
        small.ask([{"item": draw.choice(ITEMS), "action": "view"} for _ in range(length)], top_k=7, paths=True)
        for length in (1, 8, 3, 0, 8, 2)
    ]
    together = small.answers(asked)
    for one, answers in zip(asked, together, strict=True):
        assert difference_between(small.answers([one])[0], answers) is None


def test_a_snapshot_brings_back_what_was_learned(small: Predictor, tmp_path: Path) -> None:
    history = [{"item": "3", "action": "view"}, {"item": "29", "action": "view"}]
    before = small.answer(history[:1], of="item", top_k=40)
    learned = small.count(history)
    assert [(first, second) for first, second, _ in learned.pairs] == [("3", "29")]
    after = small.answer(history[:1], of="item", top_k=40)
    assert probability_of("29", after) > probability_of("29", before)
    small.snapshot(tmp_path / "memory.npz")
    small.count(history)
    small.restore(tmp_path / "memory.npz")
    assert difference_between(small.answer(history[:1], of="item", top_k=40), after) is None


def test_a_damaged_snapshot_is_refused_and_changes_nothing(small: Predictor, tmp_path: Path) -> None:
    history = [{"item": "5", "action": "view"}, {"item": "28", "action": "view"}]
    small.count(history)
    path = tmp_path / "memory.npz"
    small.snapshot(path)
    small.count(history)
    whole, before = path.read_bytes(), small.answer(history, top_k=40)
    method, encrypted = whole.rindex(b"PK\x01\x02") + 10, whole.rindex(b"PK\x01\x02") + 8
    damaged = [b"", whole[:100], whole[:-9], whole[:200] + b"x" + whole[201:]]
    for place, value in ((method, b"\x07"), (encrypted, b"\x01")):
        damaged.append(whole[:place] + value + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"memory\.npz is damaged"):
            small.restore(path)
    assert small.answer(history, top_k=40) == before


def probability_of(item: str, answers: list[dict[str, Any]]) -> float:
    return next(each["probability"] for each in answers if each["item"] == item)


def test_a_repeated_or_unknown_item_teaches_nothing(small: Predictor) -> None:
    view = {"item": "3", "action": "view"}
    assert small.count([view, view]).pairs == []
    assert small.count([view, {"item": "not in the catalog", "action": "view"}]).pairs == []
    assert small.count([view, {"action": "search"}]).pairs == []


def test_a_question_says_what_was_unknown_and_left_out(small: Predictor) -> None:
    asked = small.ask([{"item": "nowhere", "action": "view"}] * (LONGEST + 1))
    assert (asked.unknown_items, asked.truncated, asked.cold_start) == (LONGEST, True, False)
    assert small.ask([]).cold_start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "user"}, "not a question"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 2.0}, "top_k is 2.0"),
        ({"action": "steal"}, "'steal' is unknown, expected one of 'view'"),
        ({"allowed_items": ["3", "nowhere"]}, "unknown to this model"),
        ({"allowed_items": "3"}, "expected a list"),
        ({"of": "action", "exclude_seen": True}, "do not apply"),
        ({"balanced": True}, "ranks actions"),
    ],
)
def test_a_senseless_question_is_refused_in_a_sentence(small: Predictor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small.ask([], **options)


def test_a_bundle_that_answers_otherwise_is_refused(small: Predictor, tmp_path: Path) -> None:
    history = [{"item": "3", "action": "view"}]
    golden: dict[str, Any] = {
        "histories": [history],
        "questions": [{"top_k": 3}],
        "answers": [[small.answer(history, top_k=3)]],
    }
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(golden))
    check_golden(small.answers_to, path)
    golden["answers"][0][0][0]["probability"] += 1e-3
    path.write_text(json.dumps(golden))
    with pytest.raises(ValueError, match="does not answer as the model did"):
        check_golden(small.answers_to, path)


def name_of(predictor: Predictor, item: int, asked: Asked) -> str | None:
    if item <= NONE:
        return None
    slot = item - FIRST_NEW
    return asked.new_items[slot] if item < predictor.first_item_id else ITEMS[item - predictor.first_item_id]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    text=st.booleans(),
    retired=st.lists(st.sampled_from(ITEMS), unique=True, max_size=8),
    temperature=st.sampled_from([1.0, 1.4]),
    share=st.sampled_from([0.0, 0.3]),
    trend=st.sampled_from([0.0, 0.5]),
    scale=st.sampled_from([1.0, 40.0]),
    histories=st.lists(st.lists(event, max_size=LONGEST + 3), min_size=1, max_size=5),
    options=question | about_actions,
)
def test_many_histories_at_once_have_the_answers_of_each(
    folder: Path,
    seed: int,
    text: bool,
    retired: list[str],
    temperature: float,
    share: float,
    trend: float,
    scale: float,
    histories: list[list[dict[str, Any]]],
    options: dict[str, Any],
) -> None:
    tokenizer = tokenizer_of_items()
    model = random_model(
        tokenizer, seed, text, item_temperature=temperature, memory_share=share, memory_trend=trend,
        generate_temperature=1 / scale,
    )  # fmt: skip
    model.retire_items(tokenizer, retired)
    predictor = predictor_in_memory(model, tokenizer, folder)
    options = {name: value for name, value in options.items() if name not in ("paths", "balanced")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = [predictor.ask(history, **options) for history in histories]
        each = predictor.answers(asked)
    first, longest = predictor.first_item_id, max(len(one.ids.items) for one in asked)
    before = [
        (row, index)
        for row, one in enumerate(asked)
        for index in ([] if one.exclude is None else one.exclude.tolist())
        if index >= first
    ]
    seen = (np.array([row for row, _ in before], np.int64), np.array([index for _, index in before], np.int64))
    of = options.get("of", "pair")
    wanted = Wanted(options["top_k"], of, asked[0].action, options.get("exclude_seen", False), asked[0].allowed)
    items, actions, time_gaps, mask = as_arrays([one.ids for one in asked], longest)
    found = BatchScorer(predictor).best(items, actions, time_gaps, mask, wanted, seen)
    for row, answers in enumerate(each):
        here = found.rows == row
        assert here.sum() == len(answers)
        np.testing.assert_allclose(
            found.probabilities[here], [answer["probability"] for answer in answers], atol=1e-5, rtol=1e-3
        )
        known = {(answer["action"], answer["item"]): answer["probability"] for answer in answers}
        for item, action, probability in zip(
            found.items[here].tolist(), found.actions[here].tolist(), found.probabilities[here].tolist(), strict=True
        ):
            name = name_of(predictor, item, asked[row])
            pair = (ACTIONS[action - 3] if action else None, name)
            assert pair in known or abs(probability - answers[-1]["probability"]) < 1e-5
            assert known.get(pair, probability) == pytest.approx(probability, abs=1e-5)
