"""Tables of ordered item pairs: ascending int64 keys, one number beside each.

The pair (x, y) has the key x * 2**32 + y, so that all pairs of x stand together and are found by binary search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

# The lower half of a pair's key.
LOW = 2**32 - 1


def best_of_group(group: torch.Tensor, value: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` largest values of each group, ordered by group, the largest first; ties by index.

    Args:
        group: (N,) int64, below 2**31; value: (N,) float32 or int64, none negative.
    """
    # One sort of whole numbers takes a quarter of two of floats, and the bits of such floats order as they do.
    size = value.view(torch.int32) if value.is_floating_point() else value.clamp(max=2**31 - 1)
    order = ((group << 32) - size).argsort(stable=True)
    return order[place_in_group(group[order]) < count]


def among_best(group: torch.Tensor, value: torch.Tensor, count: int) -> torch.Tensor:
    """(N,) bool: which are among the `count` largest values of their group, as `best_of_group` has it."""
    crowded = (group.bincount() > count)[group] if len(group) else group.bool()
    chosen, entries = ~crowded, crowded.nonzero()[:, 0]
    chosen[entries[best_of_group(group[entries], value[entries], count)]] = True
    return chosen


def mirrored(keys: torch.Tensor) -> torch.Tensor:
    """y * 2**32 + x for keys (N,) of x * 2**32 + y."""
    return ((keys & LOW) << 32) + (keys >> 32)


def summed(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct keys, ascending, and the sum of the values of each, for keys and values (N,)."""
    distinct, index = keys.unique(return_inverse=True)
    return distinct, values.new_zeros(len(distinct)).index_add_(0, index, values)


def find(keys: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where keys (M,) stand, or would stand, among keys (N,), ascending and distinct; and (M,) bool, which do not."""
    place = torch.searchsorted(keys, wanted)
    if not len(keys):
        return place, torch.ones_like(wanted, dtype=torch.bool)
    return place, keys[place.clamp(max=len(keys) - 1)] != wanted


def union(keys: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys (N,) and others (M,), each ascending and distinct, together; and where the N and the M stand in it."""
    entry, missing = find(keys, others)
    before = entry[missing].bincount(minlength=len(keys)).cumsum(0)[: len(keys)]
    old = torch.arange(len(keys), device=keys.device) + before
    new = entry + missing.cumsum(0) - missing.long()
    together = keys.new_empty(len(keys) + int(missing.sum()))
    return together.index_copy_(0, old, keys).index_copy_(0, new, others), old, new


def list_bounds(keys: torch.Tensor, items: torch.Tensor) -> tuple[list[int], list[int]]:
    """Where the keys of items (M,) begin and end among keys (N,), both ascending."""
    begins, ends = torch.searchsorted(keys, torch.stack([items, items + 1]) << 32).tolist()
    return begins, ends


def entries_of(keys: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Where the keys of items (M,) stand among keys (N,), both ascending."""
    lists = [torch.arange(*bounds, device=keys.device) for bounds in zip(*list_bounds(keys, items), strict=True)]
    return torch.cat([items[:0], *lists])


def with_keys(keys: torch.Tensor, values: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (N,), and those of the wanted keys (M,) that are missing with zeros; keys ascending, distinct."""
    entry, missing = find(keys, wanted)
    places, added = entry[missing].tolist(), wanted[missing]
    zeros = values.new_zeros(len(added))
    return replaced(keys, places, places, added.split(1)), replaced(values, places, places, zeros.split(1))


def replaced(table: torch.Tensor, begins: list[int], ends: list[int], pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """`table` (N,) with pieces in the places of what is between the M begins and ends, ascending."""
    if not begins:
        return table
    # Copying long pieces is many times faster than moving every entry to its new place.
    between = [table[end:begin] for end, begin in zip([0, *ends], [*begins, len(table)], strict=True)]
    return torch.cat([between[0], *(part for pair in zip(pieces, between[1:], strict=True) for part in pair)])


def place_in_group(group: torch.Tensor) -> torch.Tensor:
    """(N,) int64: 0, 1, 2 ... within each stretch of equal values of `group`."""
    position = torch.arange(len(group), device=group.device)
    starts = F.pad(group[1:] != group[:-1], (1, 0), value=True)
    return position - torch.where(starts, position, 0).cummax(dim=0).values if len(group) else position
