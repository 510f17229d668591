"""How far events are from the training and from what was predicted: a service says it and names nobody."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from service_parts import Client, FakeInfo, FakePredictor, fake_service, started

from next_behavior.serving.event_store import StoredEvent
from next_behavior.serving.metrics import Metrics
from next_behavior.serving.shift import stability_index
from next_behavior.serving.watch import Watch

PAST = {"item": "i1", "action": "view", "timestamp": 1.0}
NEXT = {"item": "i2", "action": "buy", "timestamp": 2.0}
ANN = StoredEvent("e", "ann", "i2", "buy", 2.0, 2)


class Sure(FakePredictor):
    """Says "view" with 0.75 and "buy" with 0.25; the first ten items are all."""

    def answers(self, asked: Any) -> list[list[dict[str, Any]]]:
        actions = [{"action": "view", "probability": 0.75}, {"action": "buy", "probability": 0.25}]
        return [actions if one.options["of"] == "action" else self._answers(one) for one in asked]


def watch(share_of_time: float = 1.0, most_users: int = 9, **info: Any) -> tuple[Watch, Sure]:
    predictor = Sure(FakeInfo(**info))
    watching = Watch(Metrics(), most_users, share_of_time)
    watching.serves(predictor.info)
    return watching, predictor


def value(watching: Watch, name: str, **labels: str) -> float | None:
    return watching.metrics.registry.get_sample_value(f"nextbehavior_{name}", labels)


def test_the_next_event_is_held_against_the_last_prediction_once() -> None:
    watching, predictor = watch()
    watching.predict(predictor, "ann", [PAST])
    for _ in range(2):
        watching.happened(ANN, [PAST, NEXT])
    assert value(watching, "calibration_predictions_total", bin="0.7-0.8") == 0.75
    assert value(watching, "calibration_predictions_total", bin="0.2-0.3") == 0.25
    assert value(watching, "calibration_outcomes_total", bin="0.2-0.3") == 1
    assert value(watching, "calibration_outcomes_total", bin="0.7-0.8") is None
    assert (value(watching, "hit_predictions_total"), value(watching, "hits_total")) == (1, 1)
    assert watching.users == 0


def test_an_event_that_was_read_before_the_prediction_is_not_held_against_it() -> None:
    watching, predictor = watch()
    watching.predict(predictor, "ann", [PAST, NEXT])
    watching.happened(ANN, [PAST, NEXT])
    assert value(watching, "hit_predictions_total") == 0
    assert watching.users == 1, "it waits for the one after"
    watching.happened(ANN, None)  # late
    strange = StoredEvent("f", "ann", "elsewhere", "buy", 3.0, 3)
    watching.happened(strange, [PAST, NEXT, {"item": "elsewhere", "action": "buy", "timestamp": 3.0}])
    assert (value(watching, "hit_predictions_total"), value(watching, "hits_total")) == (1, 0)


def test_users_in_memory_are_bounded_and_an_erased_one_is_gone() -> None:
    watching, predictor = watch(most_users=3)
    for number in range(9):
        watching.predict(predictor, f"u{number}", [])
    assert watching.users == 3
    watching.forget("u8")
    assert watching.users == 2
    watching.serves(predictor.info)
    assert watching.users == 0, "what another model said is not held against this one"


def test_predictions_of_its_own_take_a_share_of_the_time() -> None:
    watching, predictor = watch(share_of_time=1e-6)
    watching.predict(predictor, "ann", [])
    watching.predict(predictor, "ben", [])
    assert watching.users == 1


def test_the_action_mix_is_compared_with_that_of_the_training() -> None:
    mix = {"view": 90, "buy": 5, "wishlist": 5}
    watching, _ = watch(training_actions=mix)
    for number in range(200):
        action = "view" if number % 2 else None
        watching.happened(StoredEvent(str(number), "ann", None, action, 1.0), None)
        watching.publish()
        if number < 99:
            assert value(watching, "action_mix_psi", revision="rev-1") is None, "too few events"
    expected = stability_index({"view": 90, "buy": 5, "unknown": 5}, {"view": 100, "unknown": 100})
    assert value(watching, "action_mix_psi", revision="rev-1") == pytest.approx(expected)
    watching.serves(FakeInfo("rev-2"))
    last = value(watching, "action_mix_psi", revision="rev-1")
    assert last is not None
    assert math.isnan(last)


def test_without_a_record_of_the_training_the_gauge_is_absent() -> None:
    watching, _ = watch()
    for number in range(200):
        watching.happened(StoredEvent(str(number), "ann", None, "view", 1.0), None)
    watching.publish()
    assert b"action_mix_psi{" not in watching.metrics.text()


def test_a_service_counts_what_followed_its_answers_and_names_nobody(tmp_path: Path) -> None:
    def event(number: int) -> dict[str, Any]:
        return {
            "event_id": f"e{number}",
            "user_id": "ann",
            "item": "i1",
            "action": "view",
            "timestamp": 1000.0 + number,
        }

    async def test(client: Client) -> None:
        await client.post("/v1/events", {"events": [event(1)], "learned": True})
        await client.get("/v1/users/ann/next?top_k=1&allowed_items=i7")
        await asyncio.sleep(0)
        assert client.service.watch.users == 1
        await client.post("/v1/events", {"events": [event(2)], "learned": True})
        metrics = (await client.get("/metrics")).body
        assert b"nextbehavior_hits_total 1.0" in metrics
        assert b'nextbehavior_calibration_predictions_total{bin="0.1-0.2"} 0.125' in metrics
        assert b"ann" not in metrics
        assert b"i1" not in metrics
        await client.get("/v1/users/ann/next")
        await client.call("DELETE", "/v1/users/ann")
        assert client.service.watch.users == 0

    async def whole() -> None:
        async with started(fake_service(store=str(tmp_path / "events.sqlite"))) as client:
            await test(client)

    asyncio.run(whole())
