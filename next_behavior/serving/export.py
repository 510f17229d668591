"""From a saved model to its bundle."""

from __future__ import annotations

import numpy as np

from next_behavior.model.associative_memory import AssociativeMemory
from next_behavior.model.pair_tables import LOW

# Counts below this are stored in 32 bits.
SMALL_COUNT = 2**30


def memory_arrays(memory: AssociativeMemory) -> dict[str, np.ndarray]:
    """The tables of a memory as `bundle.MEMORY_ARRAYS` has them."""
    keys, counts = memory.pair_keys.cpu().numpy(), memory.pair_counts.cpu().numpy()
    mirrored = ((keys & LOW) << 32) + (keys >> 32)
    both = np.union1d(keys, mirrored)
    forward, backward = np.zeros(len(both), np.int64), np.zeros(len(both), np.int64)
    forward[np.searchsorted(both, keys)] = counts
    backward[np.searchsorted(both, mirrored)] = counts
    exact = np.int32 if counts.max(initial=0) < SMALL_COUNT else np.int64
    size = memory.config.vocab_size
    return {
        "row_starts": np.searchsorted(both, np.arange(size + 1) << 32),
        "neighbors": (both & LOW).astype(np.int32),
        "forward": forward.astype(exact),
        "backward": backward.astype(exact),
        "item_counts": memory.item_counts.cpu().numpy(),
        "recent": memory.recent_counts.cpu().numpy() / memory.config.memory_recent_unit,
        "link_ids": memory.borrow_ids.cpu().numpy().astype(np.int32),
        "link_weights": (memory.borrow_weights.cpu().numpy() / 1024).astype(np.float32),
    }
