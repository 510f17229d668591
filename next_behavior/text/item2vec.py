"""Item rows from the log's own sequences, for logs without item text: skip-gram over histories (gensim's Word2Vec).

    rows = item2vec_rows(sequences, dimensions=128, seed=0)       # (V, 128) float32, for embed_tokens

Items that stand near one another in histories get rows that point the same way. The rows are scaled to what the model
starts its item table with, so that they change where training begins and not how fast it learns.

References: Mikolov et al. 2013, "Distributed Representations of Words and Phrases and their Compositionality"; Barkan
and Koenigstein 2016, "Item2Vec"; Caselles-Dupré et al. 2018, "Word2vec applied to Recommendation: Hyperparameters
Matter" (negatives drawn flatly and many passes suit items better than what suits words).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from next_behavior.data.sequences import TRAIN, Sequences

# A small spread, unless the caller names that of its item table.
INITIAL_STD = 0.02


@dataclass(frozen=True)
class Sentences:
    """Histories as lists of words, as often as asked; users in order.

    Attributes:
        items, users: (N,) int64.
    """

    items: np.ndarray
    users: np.ndarray

    def __iter__(self) -> Iterator[list[str]]:
        starts = np.flatnonzero(np.append(True, self.users[1:] != self.users[:-1]))
        for start, end in zip(starts, np.append(starts[1:], len(self.items)), strict=True):
            yield [str(item) for item in self.items[start:end]]


def item2vec_rows(
    sequences: Sequences,
    dimensions: int,
    seed: int = 0,
    *,
    window: int = 5,
    epochs: int = 20,
    negatives: int = 10,
    std: float = INITIAL_STD,
) -> np.ndarray:
    """Rows for an item table, from the training events. The same on every run: one worker.

    Args:
        sequences: V is its vocab_size; events without a known item are passed over, and of a run of one item the first
            counts, for an item is no neighbour of itself.
        dimensions: H.
        window: items up to this far apart are neighbours.
        epochs: passes over the histories.
        negatives: random items that each pair is told from.
        std: spread of the rows' entries.

    Returns:
        (V, H) float32. Tokens that no training event names keep a random row of the same spread.

    Raises:
        ValueError: gensim is not installed; no history has two different items in a row.
    """
    if importlib.util.find_spec("gensim") is None:
        raise ValueError(
            "got no library gensim, which item2vec needs; install it: pip install 'bert-for-next-behavior[item2vec]'"
        )
    from gensim.models import Word2Vec

    items, users, _ = sequences.runs(sequences.parts == TRAIN)
    if not (users[1:] == users[:-1]).any():
        raise ValueError(
            f"got {np.count_nonzero(sequences.parts == TRAIN):,} training events without two different items in a row; "
            "expected histories to learn from: start from random rows instead"
        )
    model = Word2Vec(
        Sentences(items, users),
        vector_size=dimensions,
        window=window,
        epochs=epochs,
        negative=negatives,
        ns_exponent=0.0,
        sg=1,
        min_count=1,
        sample=0.0,
        seed=seed,
        workers=1,
    )
    rows = np.random.default_rng(seed).normal(0.0, std, (sequences.vocab_size, dimensions)).astype(np.float32)
    named = np.unique(items)
    learnt = model.wv[[str(item) for item in named]]
    rows[named] = learnt * (std / learnt.std())
    return rows
