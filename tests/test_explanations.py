"""explain=True, "integrated_gradients" and "counterfactual": each number is what docs/explanations.md says it is."""

from __future__ import annotations

import json
import math
import tarfile
from itertools import combinations
from typing import Any

import pytest
import torch
from golden import ARCHIVE
from tiny import load

from next_behavior.model.encoder import CHANNELS, Events
from next_behavior.model.explaining_counterfactuals import MOST_REMOVED
from next_behavior.model.explaining_rules import LEAST_PROBABILITY
from next_behavior.model.pipeline_behavior import NextBehaviorPipeline
from next_behavior.model.ranking import Question

START = 1_700_000_000
WINDOW = 24


def walk(*items: str | None, action: str = "view", gap: int = 60) -> list[dict[str, Any]]:
    return [{"item": item, "action": action, "timestamp": START + gap * place} for place, item in enumerate(items)]


MIXED: list[dict[str, Any]] = [
    {"item": "i2", "action": "view", "timestamp": START},
    {"item": "x", "action": "view", "timestamp": START + 60},
    {"item": "y", "action": "buy", "timestamp": START + 90},
    {"action": "search", "timestamp": START + 200},
    {"item": "i5", "action": "view", "timestamp": START + 400_000},
    {"item": "x", "action": "buy", "timestamp": START + 400_020},
]
UNDATED = [{"item": "i7", "action": "view"}, {"item": "z", "action": "view"}, {"item": "i3", "action": "buy"}]
# Sorted once the only event without a time is left out.
HALF_DATED = [*walk("i1", "i4")[::-1], {"item": "i6", "action": "view"}]
LONG = walk(*(f"i{number % 15}" for number in range(WINDOW + 4)))
HISTORIES = {
    "mixed": MIXED,
    "out of order": MIXED[::-1],
    "without times": UNDATED,
    "one without a time": HALF_DATED,
    "longer than the window": LONG,
    "one event": MIXED[:1],
}
QUESTIONS: list[dict[str, Any]] = [{}, {"of": "item"}, {"of": "item", "action": "buy"}, {"of": "action"}]


@pytest.fixture(scope="module")
def predict(tmp_path_factory: pytest.TempPathFactory) -> NextBehaviorPipeline:
    """A trained model with item text, three actions, times and counts."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    model, tokenizer = load(folder / "model")
    assert tokenizer.model_max_length == WINDOW
    return NextBehaviorPipeline(model=model, tokenizer=tokenizer, device="cpu")


def key(answer: dict[str, Any]) -> tuple[Any, Any]:
    return answer["action"], answer["item"]


def probabilities(predict: NextBehaviorPipeline, events: list[dict[str, Any]], **options: Any) -> dict[Any, float]:
    return {key(answer): answer["probability"] for answer in predict({"events": events}, **options, top_k=10_000)}


def left_out(events: list[dict[str, Any]], *places: int) -> list[dict[str, Any]]:
    return [event for place, event in enumerate(events) if place not in places]


def fall(whole: float, less: float) -> float:
    return math.log(max(whole, LEAST_PROBABILITY)) - math.log(max(less, LEAST_PROBABILITY))


# -- leaving one event out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
@pytest.mark.parametrize("name", HISTORIES)
def test_a_contribution_is_how_far_the_log_probability_falls_without_the_event(
    predict: NextBehaviorPipeline, name: str, question: dict[str, Any]
) -> None:
    events = HISTORIES[name]
    answers = predict({"events": events}, explain=True, top_k=6, **question)
    for answer in answers:
        assert len(answer["contributions"]) == len(events)
    for place in range(len(events)):
        without = probabilities(predict, left_out(events, place), **question)
        for answer in answers:
            expected = fall(answer["probability"], without.get(key(answer), 0.0))
            assert answer["contributions"][place] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("name", HISTORIES)
def test_the_importance_is_the_mean_of_the_contribution_and_of_what_the_event_alone_does(
    predict: NextBehaviorPipeline, name: str
) -> None:
    events = HISTORIES[name]
    answers = predict({"events": events}, explain=True, top_k=6, of="item")
    empty = probabilities(predict, [], of="item")
    read = range(max(0, len(events) - WINDOW - 1), len(events))
    for place in read:
        alone = probabilities(predict, [events[place]], of="item")
        for answer in answers:
            rise = fall(alone.get(key(answer), 0.0), empty.get(key(answer), 0.0))
            expected = (answer["contributions"][place] + rise) / 2
            assert answer["importance"][place] == pytest.approx(expected, abs=2e-4)


def test_the_candidates_of_a_shorter_list_are_those_of_the_whole_one(predict: NextBehaviorPipeline) -> None:
    for events in (MIXED, LONG):
        seen = {event.get("item") for event in events}
        allowed = [item for item in predict.tokenizer.item_vocabulary if item not in seen]
        answers = predict({"events": events}, explain=True, of="item", exclude_seen=True)
        for place in range(len(events)):
            without = probabilities(predict, left_out(events, place), of="item", allowed_items=allowed)
            for answer in answers:
                expected = fall(answer["probability"], without[key(answer)])
                assert answer["contributions"][place] == pytest.approx(expected, abs=2e-4)


def test_without_its_only_event_an_unknown_item_has_the_least_probability(predict: NextBehaviorPipeline) -> None:
    answers = predict({"events": MIXED}, explain=True, of="item", top_k=100)
    only = next(answer for answer in answers if answer["item"] == "y")
    assert only["contributions"][2] == pytest.approx(math.log(only["probability"] / LEAST_PROBABILITY))
    assert all(math.isfinite(number) for answer in answers for number in answer["contributions"])


def test_events_that_are_not_read_contribute_nothing(predict: NextBehaviorPipeline) -> None:
    for explain in (True, "integrated_gradients"):
        for answer in predict({"events": LONG}, explain=explain, top_k=3):
            assert answer["contributions"][:3] == [0, 0, 0]
            assert answer["contributions"][-1] != 0


def test_explaining_changes_no_answer_and_a_batch_no_explanation(predict: NextBehaviorPipeline) -> None:
    inputs = [{"events": events} for events in (MIXED, [], LONG, UNDATED)]
    for options in ({}, {"of": "item", "exclude_seen": True}, {"of": "action"}):
        plain = predict(inputs, top_k=4, **options)
        for explain in (True, "counterfactual"):
            explained = predict(inputs, top_k=4, explain=explain, **options)
            added = ("paths", "contributions", "importance", "because", "counterfactual")
            assert [[{k: v for k, v in a.items() if k not in added} for a in one] for one in explained] == plain
            assert json.loads(json.dumps(explained)) == explained
        for one, answers in zip(inputs, predict(inputs, top_k=4, explain=True, **options), strict=True):
            for answer, alone in zip(answers, predict(one, top_k=4, explain=True, **options), strict=True):
                assert answer["contributions"] == pytest.approx(alone["contributions"], abs=2e-4)
                assert len(answer["contributions"]) == len(one["events"])


# -- the model's own parts ---------------------------------------------------------------------------------------------


def test_a_repeat_points_at_the_latest_event_of_its_item(predict: NextBehaviorPipeline) -> None:
    for events in (MIXED, MIXED[::-1], LONG):
        answers = predict({"events": events}, explain=True, of="item", action="view", top_k=100)
        times = [event["timestamp"] for event in events]
        shares = 0.0
        for answer in answers:
            places = [place for place, event in enumerate(events) if event.get("item") == answer["item"]]
            repeats = answer["because"]["repeats"]
            assert (repeats is None) == (not places), "all items of the long history are among those that are read"
            if places:
                assert repeats["event"] == max(places, key=times.__getitem__)
                assert answer["paths"]["repeat"] > 0
                shares += repeats["share"]
        assert shares == pytest.approx(1, abs=1e-4)


def test_counted_pairs_are_those_that_the_memory_has_counted(predict: NextBehaviorPipeline) -> None:
    model, tokenizer = predict.model, predict.tokenizer
    before = {name: table.clone() for name, table in model.associate_path.named_buffers()}
    walks = [walk("i20", "i19")] * 3 + [walk("i19", "i20")]
    batch = tokenizer(walks, return_tensors="pt")
    model.associate_path.pair_keys = model.associate_path.pair_keys[:0]
    model.associate_path.pair_counts = model.associate_path.pair_counts[:0]
    model.associate_path.changed()
    model.update_memory(**batch, pairs="all", trained=True)
    try:
        events = [*walk("i3", "i20", "i20"), {"action": "search", "timestamp": START + 999}]
        answers = predict({"events": events}, explain=True, of="item", top_k=100)
        because = {answer["item"]: answer["because"] for answer in answers}
        assert [(one["event"], one["item"]) for one in because["i19"]["counted"]] == [(2, "i20")]
        assert because["i19"]["counted"][0]["pairs"] == pytest.approx(3)
        assert because["i19"]["counted"][0]["reverse_pairs"] == pytest.approx(1)
        assert because["i8"]["counted"] == []
        assert because["i20"]["counted"] == [], "it is repeated"
    finally:
        for name, table in before.items():
            setattr(model.associate_path, name, table)
        model.associate_path.changed()


def test_the_shares_of_the_counted_pairs_make_up_the_memorys_score(predict: NextBehaviorPipeline) -> None:
    model, tokenizer = predict.model, predict.tokenizer
    events = walk("i2", "i3", "i5")
    batch = tokenizer([events], return_tensors="pt")
    memory, last = model.associate_path, torch.tensor([[2]])
    recent = memory.recent_items(batch["input_ids"], batch["attention_mask"], last)[:, 0]
    ids, values = memory.neighbors().rows(recent)  # (1, K, M)
    answers = predict({"events": events}, explain=True, of="item", top_k=100)
    for answer in answers:
        scores = [
            float(v[i == tokenizer.encode_item(answer["item"])].sum()) for i, v in zip(ids[0], values[0], strict=True)
        ]
        scores = [score * memory.config.memory_history_decay**k for k, score in enumerate(scores)]
        for one in answer["because"]["counted"]:
            assert one["share"] == pytest.approx(scores[2 - one["event"]] / sum(scores), abs=1e-5)
    assert any(answer["because"]["counted"] for answer in answers)


def test_similar_texts_are_named_by_the_cosine_of_their_vectors(predict: NextBehaviorPipeline) -> None:
    text, tokenizer = predict.model.bert.embeddings.item_text, predict.tokenizer
    events = walk(*(f"i{number}" for number in range(12)))
    named = 0
    for answer in predict({"events": events}, explain=True, of="item", exclude_seen=True, top_k=100):
        own = text.read(torch.tensor(tokenizer.encode_item(answer["item"])))
        for one in answer["because"]["similar_texts"]:
            assert events[one["event"]]["item"] == one["item"]
            other = text.read(torch.tensor(tokenizer.encode_item(one["item"])))
            assert one["similarity"] == pytest.approx(float(torch.cosine_similarity(own, other, dim=0)), abs=1e-5)
            named += 1
    assert named > 0
    assert all(a["because"] is None for a in predict({"events": events}, explain=True, of="action"))


# -- gradients ---------------------------------------------------------------------------------------------------------


def batch_of(predict: NextBehaviorPipeline, events: list[dict[str, Any]]) -> Events:
    batch = predict.tokenizer([events], return_tensors="pt")
    return Events(*(batch[name] for name in CHANNELS))


@pytest.mark.parametrize("action", [None, "buy"])
def test_integrated_gradients_sum_to_the_difference_from_the_baseline_and_agree_with_captum(
    predict: NextBehaviorPipeline, action: str | None
) -> None:
    captum = pytest.importorskip("captum.attr")
    model, tokenizer = predict.model, predict.tokenizer
    events = batch_of(predict, MIXED)
    tables = model.answer_tables(torch.device("cpu"))
    question = Question("item", 3, None if action is None else tokenizer.encode_action(action), False, None)
    ranked = model.predict(*events, top_k=3, of="item", action=question.action)
    given = (events, question, ranked.item_ids, ranked.action_ids, tables)
    found = model.integrated_gradients(*given, steps=40)[0]  # (k, T)
    embedded, baseline = (sums.detach() for sums in model.event_sums(events))
    with torch.no_grad():
        difference = (model.log_probabilities_from(sums, *given)[0] for sums in (embedded, baseline))
        whole, nothing = difference
    assert whole.exp().tolist() == pytest.approx(ranked.probabilities[0].tolist(), rel=1e-4)
    assert found.sum(dim=1).tolist() == pytest.approx((whole - nothing).tolist(), abs=2e-3)
    method = captum.IntegratedGradients(lambda sums: model.log_probabilities_from(sums, *given))
    for place in range(3):
        theirs = method.attribute(embedded, baseline, target=place, n_steps=40, method="gausslegendre")
        assert found[place].tolist() == pytest.approx(theirs.sum(dim=-1)[0].tolist(), abs=1e-5)


def test_integrated_gradients_come_in_the_users_order_also_from_inference_mode(predict: NextBehaviorPipeline) -> None:
    straight = predict({"events": MIXED}, explain="integrated_gradients", top_k=2)
    with torch.inference_mode():
        turned = predict({"events": MIXED[::-1]}, explain="integrated_gradients", top_k=2)
    for one, other in zip(straight, turned, strict=True):
        assert one["contributions"][::-1] == pytest.approx(other["contributions"], abs=1e-5)
        assert any(one["contributions"])
    assert predict({"events": []}, explain="integrated_gradients")[0]["contributions"] == []
    assert not any(parameter.grad is not None for parameter in predict.model.parameters())


# -- counterfactuals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("options", [{"of": "item"}, {}, {"of": "item", "exclude_seen": True}], ids=str)
def test_without_the_removed_events_another_answer_comes_first_and_none_of_them_can_stay(
    predict: NextBehaviorPipeline, name: str, options: dict[str, Any]
) -> None:
    events = HISTORIES[name]
    rest = dict(options)
    if rest.pop("exclude_seen", False):
        seen = {event.get("item") for event in events}
        rest["allowed_items"] = [item for item in predict.tokenizer.item_vocabulary if item not in seen]
    first = predict({"events": events}, explain="counterfactual", **options)[0]
    found = first["counterfactual"]
    if found["removed"] is None:
        assert len(events) > MOST_REMOVED or key(predict({"events": []}, **rest)[0]) == key(first)
        return
    removed = found["removed"]
    assert removed == sorted(set(removed))
    assert len(removed) <= MOST_REMOVED
    after = predict({"events": left_out(events, *removed)}, **rest)[0]
    assert key(after) == (found["answer"]["action"], found["answer"]["item"]) != key(first)
    if len(removed) > 1:
        for kept in combinations(removed, len(removed) - 1):
            assert key(predict({"events": left_out(events, *kept)}, **rest)[0]) == key(first)


def test_the_added_events_bring_the_target_among_the_answers(predict: NextBehaviorPipeline) -> None:
    questions: list[dict[str, Any]] = [{"of": "item"}, {}, {"of": "item", "action": "buy"}]
    for options in questions:
        ranked = [answer["item"] for answer in predict({"events": MIXED}, top_k=100, **options)]
        target = [item for item in ranked if item is not None and item.startswith("i")][-1]
        found = predict({"events": MIXED}, explain="counterfactual", target=target, top_k=3, **options)[0][
            "counterfactual"
        ]
        assert found["added"], "it was not among the answers"
        assert target not in {event["item"] for event in found["added"]}
        after = predict({"events": [*MIXED, *found["added"]]}, top_k=3, **options)
        assert after[found["rank"] - 1]["item"] == target
        assert after[found["rank"] - 1]["probability"] == pytest.approx(found["probability"], abs=1e-5)
    already = predict({"events": MIXED}, of="item", explain="counterfactual", target=ranked[0])[0]["counterfactual"]
    assert (already["added"], already["rank"]) == ([], 1)


def test_a_target_that_may_not_be_answered_is_not_reached(predict: NextBehaviorPipeline) -> None:
    found = predict({"events": MIXED}, of="item", exclude_seen=True, explain="counterfactual", target="i2")[0]
    assert found["counterfactual"] == {"added": None, "rank": None, "probability": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"explain": "gradients"}, "explain is 'gradients', expected True"),
        ({"explain": 1}, "explain is 1, expected True"),
        ({"target": "i1"}, "target is 'i1', expected explain"),
        ({"explain": "counterfactual", "target": "i1", "of": "action"}, "target is 'i1', an item"),
        ({"explain": "counterfactual", "target": "nowhere"}, "'nowhere'"),
    ],
)
def test_an_explanation_that_there_is_not_is_refused(
    predict: NextBehaviorPipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predict({"events": MIXED}, **options)
