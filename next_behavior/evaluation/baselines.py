"""The baselines that every result table holds: counts of the training events, no learning.

    items, actions = fit_baselines(sequences, num_actions=6)
    items["popularity"].scores(batch)

Each has `fit(sequences)`, which counts events of part 0 alone, and is an `ItemRanker` or an `ActionRanker`
(`rankers.py`). Scores only order. -inf stands for what is no candidate: [PAD], [UNK], [NONE], [START], and each [NEW_j]
that the row's history does not hold. Every call returns a fresh array that the caller may change.

The few constants of a baseline are chosen on validation events (`choice.py`). `chosen` says what was taken, `note` what
could not be done. A new baseline is a class in one of the files beside this one, and a line below.
"""

from __future__ import annotations

from tqdm import tqdm

from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.action_baselines import BalancedActions, LastActionMarkov
from next_behavior.evaluation.item_baselines import (
    DecayedRepeat,
    ItemTransition,
    Popularity,
    RecentPopularity,
    RepeatLast,
)
from next_behavior.evaluation.item_neighbors import ItemNeighbors, RepeatNeighbors

ItemBaseline = (
    Popularity | RecentPopularity | RepeatLast | DecayedRepeat | ItemTransition | ItemNeighbors | RepeatNeighbors
)


def fit_baselines(
    sequences: Sequences, num_actions: int, progress: bool = False, neighbors: ItemNeighbors | None = None
) -> tuple[dict[str, ItemBaseline], dict[str, LastActionMarkov | BalancedActions]]:
    """Every item baseline and every action baseline by name, fitted.

    Args:
        num_actions: ids of the action vocabulary, the three specials included.
        progress: show a progress bar.
        neighbors: the item neighbors, where they are fitted already.
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
    }
    for baseline in tqdm(items.values(), desc="counting baselines", unit="", disable=not progress):
        if baseline is not counted:
            baseline.fit(sequences)
    markov = LastActionMarkov(num_actions).fit(sequences)
    return items, {"last_action_markov": markov, "last_action_markov, balanced": BalancedActions.fit(markov, sequences)}
