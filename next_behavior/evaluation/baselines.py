"""The baselines that every result table holds. They count the training events and learn nothing, except LightGCN.

    items, actions = fit_baselines(sequences, num_actions=6)
    items["popularity"].scores(batch)

Each has `fit(sequences)`, which counts events of part 0 alone, and is an `ItemRanker` or an `ActionRanker`
(`rankers.py`). Scores only order. -inf stands for what is no candidate: [PAD], [UNK], [NONE], [START], and each [NEW_j]
that the row's history does not hold. Every call returns a fresh array that the caller may change.

The few constants of a baseline are chosen on validation events (`choice.py`). `chosen` says what was taken, `note` what
could not be done. Those with `count(sequences, counted)` can count later events, too (`updated_baselines.py`). A new
baseline is a class in a file beside this one, and a line below.
"""

from __future__ import annotations

import math
import time

import numpy as np
from tqdm import tqdm

from next_behavior.data.sequences import Sequences
from next_behavior.data.splits import Split
from next_behavior.evaluation.action_baselines import BalancedActions, LastActionMarkov
from next_behavior.evaluation.item_baselines import (
    DecayedRepeat,
    ItemTransition,
    Popularity,
    RecentPopularity,
    RepeatLast,
)
from next_behavior.evaluation.item_neighbors import ItemNeighbors, RepeatNeighbors
from next_behavior.evaluation.light_gcn import MOST_SECONDS, LightGCN
from next_behavior.evaluation.session_neighbors import SessionNeighbors
from next_behavior.evaluation.top_frequency import TopFrequency
from next_behavior.evaluation.transition_graph import TGH_1, TGH_2, TransitionGraph
from next_behavior.evaluation.updated_baselines import UpdatedBaseline, updated_copies
from next_behavior.evaluation.user_neighbors import UserNeighbors

Updatable = (
    RecentPopularity
    | ItemTransition
    | ItemNeighbors
    | RepeatNeighbors
    | SessionNeighbors
    | UserNeighbors
    | TransitionGraph
)
ItemBaseline = Updatable | Popularity | RepeatLast | DecayedRepeat | TopFrequency | LightGCN

# What --baselines may be: those that count, or also those that train.
COUNTING, ALL = "counting", "all"


def fit_baselines(
    sequences: Sequences,
    num_actions: int,
    progress: bool = False,
    neighbors: ItemNeighbors | None = None,
    texts: np.ndarray | None = None,
    which: str = COUNTING,
    until: float = math.inf,
) -> tuple[dict[str, ItemBaseline], dict[str, LastActionMarkov | BalancedActions]]:
    """Every item baseline and every action baseline by name, fitted.

    Args:
        num_actions: ids of the action vocabulary, the three specials included.
        progress: show a progress bar.
        neighbors: the item neighbors, where they are fitted already.
        texts: (V, D) float32 text vectors of the token ids, zeros where there is none; without it there is no TGH.
        which: COUNTING, or ALL.
        until: when choosing constants stops, by `time.monotonic`; each baseline tries one form at least.
    """
    repeat = DecayedRepeat()
    counted = ItemNeighbors().fit(sequences) if neighbors is None else neighbors
    # The names stand in saved evaluations, which is why two of them keep their spelling.
    items: dict[str, ItemBaseline] = {
        "popularity": Popularity(),
        "recent_popularity": RecentPopularity(),
        "repeat_last": RepeatLast(),
        "decayed_repeat": repeat,
        "item_transition": ItemTransition(),
        "item_neighbours": counted,
        "repeat_neighbours": RepeatNeighbors(repeat, counted),  # after its parts
        "gp_topfreq": TopFrequency(),
        "vmis_knn": SessionNeighbors(until=until),
        "tifu_knn": UserNeighbors(until=until),
    }
    if texts is not None:
        items |= {"tgh_1": TransitionGraph(TGH_1, texts, until), "tgh_2": TransitionGraph(TGH_2, texts, until)}
    if which == ALL:
        items["lightgcn"] = LightGCN(min(MOST_SECONDS, until - time.monotonic()), progress=progress)
    for baseline in tqdm(items.values(), desc="counting baselines", unit="", disable=not progress):
        if baseline is not counted:
            baseline.fit(sequences)
    markov = LastActionMarkov(num_actions).fit(sequences)
    return items, {"last_action_markov": markov, "last_action_markov, balanced": BalancedActions.fit(markov, sequences)}


def updated_baselines(
    items: dict[str, ItemBaseline], sequences: Sequences, part: int, split: Split
) -> dict[str, UpdatedBaseline]:
    """Copies that go on counting, of those of the fitted baselines whose order depends much on later events."""
    return updated_copies(
        {name: made for name, made in items.items() if isinstance(made, Updatable)}, sequences, part, split
    )
