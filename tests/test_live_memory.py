"""The memory of a served model scores as the model's own does, after every event."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from next_behavior.model.associative_memory import AssociativeMemory
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.serving.bundle import Constants
from next_behavior.serving.live_memory import LiveMemory
from next_behavior.serving.write_bundle import memory_arrays

FIRST, ITEMS = 5, 40


def config_with(**changes: object) -> BehaviorConfig:
    values: dict[str, object] = {
        "vocab_size": FIRST + ITEMS, "num_new_items": 1, "memory_half_life": 7, "memory_trend": 0.4,
        "memory_history": 4, "memory_distance": 5, "memory_share": 0.1,
    }  # fmt: skip
    return BehaviorConfig(**values | changes)  # type: ignore[arg-type]


def constants_of(config: BehaviorConfig) -> Constants:
    apart: dict[str, Any] = {
        "revision": "r",
        "max_events": 50,
        "actions": ["view"],
        "training_actions": None,
        "time_edges": [],
        "has_time": False,
        "longest_row": 1.0,
    }
    return Constants(**apart, **{f.name: getattr(config, f.name) for f in fields(Constants) if f.name not in apart})


def trained_memory(config: BehaviorConfig, draw: random.Random, links: int) -> AssociativeMemory:
    """A memory that has counted some histories; the last items are never in them, and links join items at random."""
    memory = AssociativeMemory(config)
    for _ in range(25):
        items = [FIRST + min(draw.randrange(ITEMS - 8), draw.randrange(ITEMS - 8)) for _ in range(12)]
        runs = [item for place, item in enumerate(items) if place == 0 or item != items[place - 1]]
        memory.count(torch.tensor(runs), torch.zeros(len(runs), dtype=torch.long), trained=draw.random() < 0.8)
    if links:
        pairs = [(FIRST + draw.randrange(ITEMS), FIRST + draw.randrange(ITEMS)) for _ in range(links)]
        pairs = [(x, y) for x, y in pairs if x != y]
        memory.borrow_ids = torch.tensor(pairs)
        memory.borrow_weights = torch.tensor([draw.randrange(1, 1024) for _ in pairs])
    memory.changed()
    return memory


def check_equal(live: LiveMemory, memory: AssociativeMemory, draw: random.Random) -> None:
    size = memory.config.vocab_size
    for _ in range(4):
        recent = [FIRST + draw.randrange(ITEMS) for _ in range(draw.randrange(1, 5))]
        padded = torch.tensor([recent + [0] * (memory.config.memory_history - len(recent))])
        padded = padded * (padded < memory.neighbors().size)
        expected = memory.score(padded, torch.zeros(1, size, dtype=torch.bool))[0].numpy()
        found = np.zeros(size, np.float32)
        ids, scores = live.scores(recent)
        found[ids] = scores
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
    trend = live.trend()
    np.testing.assert_allclose(
        np.zeros(ITEMS) if trend is None else trend[FIRST:], memory.trend().numpy(), rtol=1e-5, atol=1e-7
    )
    items = np.arange(FIRST, size)
    np.testing.assert_array_equal(live.shares(items), memory.share().numpy())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    links=st.sampled_from([0, 12, 60]),
    neighbors=st.sampled_from([3, 6, 128]),
    text=st.sampled_from([(0.0, 0.0), (0.2, 0.0), (0.0, 0.35), (0.2, 0.35)]),
)
def test_counting_an_event_gives_the_scores_that_the_model_gives(
    seed: int, links: int, neighbors: int, text: tuple[float, float]
) -> None:
    draw = random.Random(seed)
    config = config_with(memory_neighbors=neighbors, memory_text=text[0], text_strength=text[1])
    memory = trained_memory(config, draw, links)
    live = LiveMemory(constants_of(config), memory_arrays(memory))
    check_equal(live, memory, draw)
    for _ in range(6):
        for _ in range(draw.randrange(1, 4)):
            items = [FIRST + draw.randrange(ITEMS) for _ in range(draw.randrange(1, 9))]
            runs = [item for place, item in enumerate(items) if place == 0 or item != items[place - 1]]
            live.count(runs)
            memory.count(torch.tensor(runs), torch.zeros(len(runs), dtype=torch.long), only_last=True)
        check_equal(live, memory, draw)
    again = LiveMemory(constants_of(config), memory_arrays(trained_memory(config, random.Random(seed), links)))
    again.take_state(live.state())
    check_equal(again, memory, draw)
    state = live.state()
    with pytest.raises(ValueError, match="another model or engine"):
        again.take_state({**state, "item_counts": state["item_counts"][:-1]})


def test_recent_popularity_is_held_in_one_place_for_each_item_however_long_it_counts() -> None:
    config = config_with(memory_half_life=1)
    draw = random.Random(3)
    memory = trained_memory(config, draw, 0)
    live = LiveMemory(constants_of(config), memory_arrays(memory))
    for _ in range(3000):
        runs = [FIRST + draw.randrange(3), FIRST + 3 + draw.randrange(2)]
        live.count(runs)
        memory.follow(torch.tensor(runs[-1:]))
    live.count([FIRST + 7])
    memory.follow(torch.tensor([FIRST + 7]))
    trend = live.trend()
    assert trend is not None
    np.testing.assert_allclose(trend[FIRST:], memory.trend().numpy(), rtol=1e-5, atol=1e-7)
    assert len(live._active) == len(set(live._active.tolist())) <= ITEMS
