"""What every answer reads and no history changes: the item table, the memory's lists, recent popularity, retired items.

One `AnswerTables` is made when something of it changes. It is replaced as a whole and never changed, so an answer that
took one goes on with it while another thread counts events or adds items.
"""

from __future__ import annotations

import copy
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .neighbor_lists import NeighborLists

# Held by who changes a model, one at a time. Locks of the process: a model that holds one could not be copied.
CHANGE_LOCK = threading.RLock()
# Held while tables are replaced, for a moment: what replaces them is made before.
TABLES_LOCK = threading.RLock()
# Whether weights are being loaded, which nothing has checked yet.
LOADING: ContextVar[bool] = ContextVar("LOADING", default=False)
# What `AnswerTables` is made of besides tensors.
SETTINGS = ("vocab_size", "memory_trend", "memory_share", "retired_items", "actions_without_item")


@dataclass(frozen=True)
class AnswerTables:
    """The tables for V ids, the first of an item at `first_item_id`, and A actions.

    Attributes:
        item_table: (V - first, H) rows of all items.
        lists: the memory's neighbor lists.
        trend: (V - first,) float32, what recent popularity adds to the logarithm of an item's probability.
        share: (V - first,) float32, the share of the answer that the memory alone gives to an item; None for none.
        nameable: (V,) bool, the items that are not retired.
        retired: (R,) int64, ids that are never answered; None for none.
        without_item: (A,) bool, the actions that come without an item.
    """

    vocab_size: int
    first_item_id: int
    item_table: torch.Tensor
    lists: NeighborLists
    trend: torch.Tensor
    share: torch.Tensor | None
    nameable: torch.Tensor
    retired: torch.Tensor | None
    without_item: torch.Tensor

    def with_items(self, item_table: torch.Tensor) -> AnswerTables:
        return AnswerTables(
            vocab_size=self.vocab_size,
            first_item_id=self.first_item_id,
            item_table=item_table,
            lists=self.lists,
            trend=self.trend,
            share=self.share,
            nameable=self.nameable,
            retired=self.retired,
            without_item=self.without_item,
        )


class Sources:
    """What tables were made of, so that a change is seen.

    Tensors are kept, so that no other gets their address, and compared by what they are and how often they were changed
    in place. Those made in inference mode do not count that; a memory's tables are replaced only.
    """

    def __init__(self, config: Any, state: tuple[Any, ...], tensors: tuple[torch.Tensor, ...]) -> None:
        settings = vars(config)
        self.settings = [copy.copy(settings[name]) for name in SETTINGS]
        self.state, self.tensors, self.versions = state, tensors, versions_of(tensors)

    def hold(self, config: Any, state: tuple[Any, ...], tensors: tuple[torch.Tensor, ...]) -> bool:
        """Whether the tables would be made of the same now."""
        settings = vars(config)
        return (
            self.state == state
            and self.versions == versions_of(tensors)
            and self.settings == [settings[name] for name in SETTINGS]
        )


def versions_of(tensors: tuple[torch.Tensor, ...]) -> list[int]:
    versions = []
    for tensor in tensors:
        versions += [id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version]
    return versions


class KeptTables(NamedTuple):
    """Tables, and what they and their `item_table` were made of; None for an item table that is not there."""

    sources: Sources
    of_items: Sources | None
    tables: AnswerTables


def is_traced() -> bool:
    """Whether `torch.export`, `torch.compile` or `torch.jit.trace` is recording what is computed."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
