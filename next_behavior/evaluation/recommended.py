"""Metrics of what is recommended, besides being right: coverage, novelty, concentration, popularity, repeats.

    lists = RankingAccumulator(ItemPopularity.from_counts(counts, first_item_id))
    lists.add(ranks, targets, top)                    # batch by batch
    lists.list_metrics()

An accumulator holds one number per target and two per item of the catalog, never users x items. The popularity of an
item is how many training events name it.

References: novelty as self-information (Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma"), the Gini
index of recommended items (Fleder and Hosanagar 2009, "Blockbuster Culture's Next Rise or Fall"), average popularity
of the lists beside that of the users' histories (Abdollahpouri et al. 2020, "The Connection Between Popularity Bias,
Calibration, and Fairness in Recommendation").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from next_behavior.data.sequences import Sequences
from next_behavior.evaluation.metrics import Metrics
from next_behavior.model.special_ids import NONE

# Length of the lists that all of this is computed on; what fills a list that is shorter.
LIST_LENGTH = 10
NO_CANDIDATE = -1
# The first so many of a list whose coverage is given.
COVERAGE_CUTOFFS = (1, 5, LIST_LENGTH)


@dataclass(frozen=True)
class ItemPopularity:
    """How often the training events name each item.

    Attributes:
        first_item_id: the first id that is a real item.
        counts: (V,) int64 training events; 0 for ids that are no real items.
        information: (V,) float64, self-information in bits, -log2 of the item's share of the training events, every
            item counted once more than it occurs.
        percentile: (V,) float64 from 0 to 1: the share of real items that are rarer, ties by half; 0 for ids that are
            no real items.

    >>> popularity = ItemPopularity.from_counts(np.array([0, 0, 5, 1, 1, 1]), first_item_id=2)
    >>> popularity.percentile
    array([0.   , 0.   , 0.875, 0.375, 0.375, 0.375])
    >>> popularity.information[[2, 3]]
    array([1.       , 2.5849625])
    """

    first_item_id: int
    counts: np.ndarray
    information: np.ndarray
    percentile: np.ndarray

    @classmethod
    def from_counts(cls, counts: np.ndarray, first_item_id: int) -> ItemPopularity:
        """From (V,) counts of the training events per id."""
        real = counts[first_item_id:]
        ordered = np.sort(real)
        percentile = np.zeros(len(counts))
        rarer, not_commoner = (np.searchsorted(ordered, real, side=side) for side in ("left", "right"))
        percentile[first_item_id:] = (rarer + not_commoner) / 2 / max(1, len(real))
        information = -np.log2((counts + 1) / (real.sum() + max(1, len(real))))
        return cls(first_item_id, counts, information, percentile)


def history_popularity(sequences: Sequences, counts: np.ndarray) -> np.ndarray:
    """(E,) float64: the mean popularity of the distinct items that each event's user named before it, NaN for none.

    Args:
        counts: (V,) training events per id; an item that the vocabulary lacks has none.

    >>> offsets, empty = np.array([0, 4]), np.zeros(4, dtype=np.int64)
    >>> log = Sequences(offsets, np.array([5, 6, 5, 6]), empty, empty, empty, empty, ["u"], 7, 5)
    >>> history_popularity(log, np.array([0, 0, 0, 0, 0, 4, 1]))
    array([nan, 4. , 2.5, 2.5])
    """
    items, users = sequences.items.astype(np.int64), sequences.user_of_event()
    known = items < len(counts)
    popularity = np.where(known & (items != NONE), counts[np.where(known, items, NONE)], 0)
    # The first time that its user names an item: stable order keeps the earliest event first.
    order = np.lexsort((items, users))
    is_first = np.zeros(len(items), dtype=bool)
    is_first[order] = np.append(True, (np.diff(items[order]) != 0) | (np.diff(users[order]) != 0))[: len(items)]
    is_first &= items != NONE
    totals = [np.append(0, np.cumsum(values)) for values in (np.where(is_first, popularity, 0), is_first)]
    begins = sequences.offsets[users]
    total, number = (sums[:-1] - sums[begins] for sums in totals)
    return np.divide(total, number, out=np.full(len(items), np.nan), where=number > 0)


def gini(counts: np.ndarray) -> float | None:
    """How unevenly (N,) counts are spread: 0 where all are equal, near 1 where one has all; None where all are 0.

    It is half the mean difference of two of them, relative to their mean.

    >>> gini(np.array([3, 3, 3])), gini(np.array([0, 0, 0, 8])), gini(np.array([0, 0]))
    (0.0, 0.75, None)
    """
    size, total = len(counts), int(counts.sum())
    if not total:
        return None
    place = 2 * np.arange(1, size + 1) - size - 1
    return float((place * np.sort(counts)).sum() / (size * total))


class RankingAccumulator:
    """Collects ranks and recommended lists batch by batch.

    >>> popularity = ItemPopularity.from_counts(np.array([0, 0, 5, 1, 1, 1]), first_item_id=2)
    >>> lists = RankingAccumulator(popularity)
    >>> lists.add(ranks=np.array([1, 4]), targets=np.array([2, 5]), top=np.array([[2, 3], [2, -1]]))
    >>> lists.ranks()
    array([1, 4])
    >>> lists.list_metrics()["coverage@10"]        # two of four items were ever recommended
    0.5
    """

    def __init__(self, popularity: ItemPopularity) -> None:
        self.popularity = popularity
        self._ranks: list[np.ndarray] = []
        self._listed = np.zeros(len(popularity.counts), dtype=np.int64)  # lists that hold each item
        self._best_place = np.full(len(popularity.counts), LIST_LENGTH, dtype=np.int8)  # in any list, from 0
        self._information = self._percentile = self._count = self._target_percentile = self._history_count = 0.0
        self._lists = self._targets = self._histories = self._answers = self._repeats = 0

    def add(
        self,
        ranks: np.ndarray,
        targets: np.ndarray,
        top: np.ndarray,
        repeated: np.ndarray | None = None,
        history_popularity: np.ndarray | None = None,
    ) -> None:
        """Args:
        ranks: (B,) int64.
        targets: (B,) int64 ids, negative where the target has none.
        top: (B, `LIST_LENGTH`) int64 ids of the best candidates, `NO_CANDIDATE` where there were fewer.
        repeated: (B, `LIST_LENGTH`) bool, which of them the user has seen; None for none.
        history_popularity: (B,) float64, NaN where the history names no item; None for nothing known.
        """
        self._ranks.append(ranks)
        is_item = top != NO_CANDIDATE
        np.add.at(self._listed, top[is_item], 1)
        np.minimum.at(self._best_place, top[is_item], np.nonzero(is_item)[1].astype(np.int8))
        length = np.count_nonzero(is_item, axis=1)
        listed = length > 0

        def total_of_means(values: np.ndarray) -> float:
            return float((np.where(is_item, values[top], 0.0).sum(axis=1)[listed] / length[listed]).sum())

        self._information += total_of_means(self.popularity.information)
        self._percentile += total_of_means(self.popularity.percentile)
        self._count += total_of_means(self.popularity.counts)
        self._lists += int(listed.sum())
        self._answers += int(length.sum())
        if repeated is not None:
            self._repeats += int(np.count_nonzero(repeated & is_item))
        if history_popularity is not None:
            known = history_popularity[~np.isnan(history_popularity)]
            self._history_count += float(known.sum())
            self._histories += len(known)
        named = targets >= self.popularity.first_item_id
        self._target_percentile += float(self.popularity.percentile[targets[named]].sum())
        self._targets += int(named.sum())

    def ranks(self) -> np.ndarray:
        """(N,) int64, in the order they were added."""
        return np.concatenate(self._ranks) if self._ranks else np.zeros(0, dtype=np.int64)

    def list_metrics(self) -> Metrics:
        """Of the first ten recommended; means over the lists. None where nothing can be averaged.

        - coverage@k: share of the catalog that was among the first k of any list;
        - gini@10: how unevenly the lists name the items of the catalog (`gini`);
        - novelty@10: mean self-information in bits: the higher, the less known;
        - popularity_percentile@10: mean popularity percentile, 0 the rarest, 1 the most frequent;
        - popularity_bias@10: that, less the mean popularity percentile of the known targets: above 0 the ranker
          recommends more popular items than users took;
        - popularity@10: mean number of training events of the listed items;
        - history_popularity: the same of the distinct items of the history, averaged over the targets;
        - popularity_lift@10: popularity@10 / history_popularity - 1: above 0 the lists are more popular than what the
          users had before;
        - repeat_share@10: share of all listed items that the user has seen.
        """
        first = self.popularity.first_item_id
        places, listed = self._best_place[first:], self._listed[first:]
        percentile = ratio(self._percentile, self._lists)
        targets = ratio(self._target_percentile, self._targets)
        popularity, history = ratio(self._count, self._lists), ratio(self._history_count, self._histories)
        ten = f"@{LIST_LENGTH}"
        coverage = {f"coverage@{k}": float((places < k).mean()) if len(places) else None for k in COVERAGE_CUTOFFS}
        return {
            **coverage,
            f"gini{ten}": gini(listed),
            f"novelty{ten}": ratio(self._information, self._lists),
            f"popularity_percentile{ten}": percentile,
            f"popularity_bias{ten}": None if percentile is None or targets is None else percentile - targets,
            f"popularity{ten}": popularity,
            "history_popularity": history,
            f"popularity_lift{ten}": None if popularity is None or not history else popularity / history - 1,
            f"repeat_share{ten}": ratio(self._repeats, self._answers),
        }


def ratio(total: float, number: int) -> float | None:
    """The mean of what sums up to `total`; None for nothing."""
    return total / number if number else None
