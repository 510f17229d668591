"""Counts the item pairs of a large log in parts, so that memory does not grow with it.

    count_in_parts(model.associate_path, items, users, neighbors=64, most=4_000_000)

A part has the pairs whose first item lies in a range of ids. Once more than `most` pairs are held, each part keeps only
those that are among the most counted of either of their items: every pair that the whole table would keep is among
them. The result is that of counting and pruning all at once.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from next_behavior.model.associative_memory import AssociativeMemory
from next_behavior.model.neighbor_lists import COUNT_UNIT
from next_behavior.model.pair_tables import LOW, among_best, summed

# Pairs of events that are held at once, some 40 bytes each.
PAIRS_AT_ONCE = 50_000_000


def count_in_parts(
    memory: AssociativeMemory, items: torch.Tensor, owner: torch.Tensor, neighbors: int, most: int
) -> None:
    """Counts trained events into an empty memory, and prunes it to `neighbors` if there are more than `most` pairs.

    Args:
        items, owner: (N,) int64, as for `AssociativeMemory.count`.
    """
    kept = list[tuple[torch.Tensor, torch.Tensor]]()
    is_pruned = False
    for low, high in ranges(items, memory.config.memory_distance):
        kept.append(pairs_of(memory, items, owner, low, high))
        if is_pruned:
            kept[-1] = pruned(*kept[-1], neighbors)
        elif sum(len(keys) for keys, _ in kept) > most:
            kept, is_pruned = [pruned(*part, neighbors) for part in kept], True
    memory.pair_keys = torch.cat([memory.pair_keys, *(keys for keys, _ in kept)])
    memory.pair_counts = torch.cat([memory.pair_counts, *(counts for _, counts in kept)])
    counted = items.bincount(minlength=len(memory.item_counts))
    memory.item_counts = F.pad(memory.item_counts, (0, len(counted) - len(memory.item_counts))) + counted
    memory.recent_counts = F.pad(memory.recent_counts, (0, len(counted) - len(memory.recent_counts)))
    memory.changed()
    if is_pruned:
        memory.prune(neighbors)


def ranges(items: torch.Tensor, distance: int) -> list[tuple[int, int]]:
    """Ranges of item ids, ascending, whose events make at most about PAIRS_AT_ONCE pairs."""
    events = items.bincount()
    part = (events.cumsum(0) - events) * distance // PAIRS_AT_ONCE
    starts = F.pad(part[1:] != part[:-1], (1, 0), value=True).nonzero()[:, 0].tolist()
    return list(zip(starts, [*starts[1:], len(events)], strict=True))


def pairs_of(
    memory: AssociativeMemory, items: torch.Tensor, owner: torch.Tensor, low: int, high: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys, ascending, and counts of the pairs whose first item is in `low:high`."""
    places = ((items >= low) & (items < high)).nonzero()[:, 0]
    keys, counts = [items[:0]], [items[:0]]
    for distance in range(1, memory.config.memory_distance + 1):
        places = places[places + distance < len(items)]
        places = places[owner[places] == owner[places + distance]]
        if not len(places):
            break
        first, second = items[places], items[places + distance]
        other = first != second
        merged, occurrences = ((first[other] << 32) + second[other]).unique(return_counts=True)
        keys.append(merged)
        counts.append(occurrences * round(COUNT_UNIT * memory.config.memory_decay ** (distance - 1)))
    return summed(torch.cat(keys), torch.cat(counts))


def pruned(keys: torch.Tensor, counts: torch.Tensor, neighbors: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs that are among the `neighbors` most counted of either item."""
    keep = among_best(keys >> 32, counts, neighbors) | among_best(keys & LOW, counts, neighbors)
    return keys[keep], counts[keep]
