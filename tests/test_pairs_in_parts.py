"""Item pairs counted in parts are those of the whole log."""

from __future__ import annotations

import pytest
import torch

from next_behavior.model.associative_memory import AssociativeMemory
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.training import pairs_in_parts
from next_behavior.training.pairs_in_parts import count_in_parts


@pytest.mark.parametrize(("most", "neighbors"), [(10**9, 4), (3000, 4), (3000, 1), (0, 7)])
def test_pairs_counted_in_parts_are_those_counted_at_once(
    most: int, neighbors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_in_parts, "PAIRS_AT_ONCE", 5000)
    torch.manual_seed(0)
    # Few popular items and many rare ones, whose counts tie.
    items = (torch.rand(3000) ** 3 * 150).long() + 70
    items = items[torch.cat([torch.tensor([True]), items[1:] != items[:-1]])]
    owner = (torch.rand(len(items)) < 0.03).long().cumsum(0)
    config = BehaviorConfig(vocab_size=220, num_new_items=64)
    whole, parts = AssociativeMemory(config), AssociativeMemory(config)
    whole.count(items, owner, trained=True)
    if len(whole.pair_keys) > most:
        whole.prune(neighbors)
    assert len(pairs_in_parts.ranges(items, config.memory_distance)) > 5
    count_in_parts(parts, items, owner, neighbors, most)
    for name, table in whole.named_buffers():
        assert torch.equal(table, parts.get_buffer(name)), name
