"""What is removed from a model before others see it, and what can still be learned about the people in its log.

    published, privacy = without_rare(trained, "time", min_item_users=5, min_pair_users=2)
    privacy = look_for_people(trained, published, privacy)

An item that fewer than k users touched says something about those users, and so does a counted pair of items that fewer
than k users share (k-anonymity, Sweeney 2002).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from next_behavior.data.sequences import TRAIN, Sequences
from next_behavior.data.shown import shown
from next_behavior.publishing.membership import membership_inference
from next_behavior.publishing.publication import Publication
from next_behavior.publishing.scores import BAR_AFTER
from next_behavior.publishing.shrink import shrink

# A phone number needs a plus or separators: item ids are often nothing but digits.
PERSONAL = {
    # From the @ on: beginning with the name, a long word without an @ takes quadratic time.
    "e-mail address": re.compile(r"(?<=[\w.+-])@[\w-]+\.[A-Za-z]{2,}"),
    "phone number": re.compile(
        r"(?<![\w.])(?:\+\d[\d ()./-]{7,}\d|\(\d{2,5}\) ?\d[\d -]{5,}\d|\d{3}-\d{3}-\d{4})(?!\w)"
    ),
    "URL": re.compile(r"(?:https?://|www\.)\S+", flags=re.IGNORECASE),
}

# Below this share of the items, or of the events that name one, a published model is asked for twice.
FEW_LEFT = 0.1


@dataclass(frozen=True)
class Privacy:
    """What was removed, what that cost, and what can still be learned.

    Attributes:
        items, removed_items, pairs, removed_pairs: numbers before the removals, and how many of them were removed.
        events, removed_events: learned events that name an item of the model, and how many of them name a removed one.
        traces: {kind: item ids} that look like personal data.
        membership, membership_as_trained: `membership_inference` after and before; None where it was not measured.
        cost: {metric: (as trained, as published)} on the same test events.
    """

    min_item_users: int
    min_pair_users: int
    items: int = 0
    removed_items: int = 0
    pairs: int = 0
    removed_pairs: int = 0
    events: int = 0
    removed_events: int = 0
    traces: dict[str, list[str]] = field(default_factory=dict)
    membership: dict[str, Any] | None = None
    membership_as_trained: dict[str, Any] | None = None
    cost: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def shrunk(self) -> bool:
        return bool(self.removed_items or self.removed_pairs)

    @property
    def nearly_nothing_left(self) -> bool:
        """Whether a model over what is left knows nearly nothing of what was learned."""
        parts = ((self.items, self.removed_items), (self.events, self.removed_events))
        return any(whole - removed < FEW_LEFT * whole for whole, removed in parts)

    def left(self) -> str:
        """What is left, with its shares."""
        parts = (
            ("items", self.items, self.removed_items),
            ("events with an item", self.events, self.removed_events),
            ("counted pairs", self.pairs, self.removed_pairs),
        )
        return ", ".join(
            f"{whole - removed:,} of {whole:,} {what} ({100 * (whole - removed) / max(whole, 1):.1f} %)"
            for what, whole, removed in parts
        )

    def to_dict(self) -> dict[str, Any]:
        """For evaluation.json: how many items look like personal data, but not which."""
        return asdict(self) | {"traces": {kind: len(items) for kind, items in self.traces.items()}}

    def summary(self) -> str:
        """For the terminal."""
        lines = [
            f"Removed {self.removed_items:,} of {self.items:,} items (fewer than {self.min_item_users} users) and "
            f"{self.removed_pairs:,} of {self.pairs:,} counted pairs (fewer than {self.min_pair_users} users)."
        ]
        for name, (before, after) in self.cost.items():
            lines.append(f"  {name}: {before:.4f} as trained, {after:.4f} as published")
        for name, measured in (("as trained", self.membership_as_trained), ("as published", self.membership)):
            if measured is not None:
                lines.append(f"  membership inference {name}: AUC {measured['auc']:.3f} (0.5 is guessing)")
        return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# How many users share what
# ----------------------------------------------------------------------------------------------------------------------


def learned_events(sequences: Sequences, how: str) -> np.ndarray:
    """(E,) bool: the events that the weights and the memory were made from. With the split `none` these are all."""
    return np.ones(len(sequences.parts), dtype=bool) if how == "none" else sequences.parts == TRAIN


def users_per_item(sequences: Sequences, learned: np.ndarray) -> np.ndarray:
    """(V,) int64: users with a learned event of each token id."""
    known = learned & sequences.known_items()
    users = sequences.user_of_event()[known]
    both = np.unique(sequences.items[known].astype(np.int64) * sequences.num_users + users)
    return np.bincount(both // max(1, sequences.num_users), minlength=sequences.vocab_size)


def users_per_pair(sequences: Sequences, learned: np.ndarray, pair_keys: np.ndarray, distance: int) -> np.ndarray:
    """(P,) int64: users in whose learned history x comes before y, at most `distance` runs of items apart.

    Args:
        pair_keys: (P,) int64 ascending, x * 2**32 + y, as the model's memory holds them.
    """
    items, users, _ = sequences.runs(learned)
    pairs_with_user = [np.zeros(0, dtype=np.int64)]
    for apart in range(1, distance + 1):
        near = users[apart:] == users[:-apart]
        if not near.any() or not len(pair_keys):
            break
        keys = (items[:-apart][near] << 32) + items[apart:][near]
        index = np.minimum(np.searchsorted(pair_keys, keys), len(pair_keys) - 1)
        stored = pair_keys[index] == keys
        pairs_with_user.append(np.unique(index[stored] * sequences.num_users + users[apart:][near][stored]))
    both = np.unique(np.concatenate(pairs_with_user))
    return np.bincount(both // max(1, sequences.num_users), minlength=len(pair_keys))


# ----------------------------------------------------------------------------------------------------------------------
# What is removed, and what is left
# ----------------------------------------------------------------------------------------------------------------------


def without_rare(
    trained: Publication, how: str, min_item_users: int, min_pair_users: int
) -> tuple[Publication, Privacy]:
    """The model without rare items and rarely shared pairs, and how many those were.

    Args:
        how: the split of the run, which says what was learned from.
    """
    memory = trained.model.associate_path
    first, keys = trained.tokenizer.first_item_id, memory.pair_keys.numpy()
    learned = learned_events(trained.sequences, how)
    users = users_per_item(trained.sequences, learned)
    counted = np.pad(memory.item_counts.numpy(), (0, max(0, len(users) - len(memory.item_counts))))[: len(users)]
    keep_items, keep_pairs = np.ones(len(users), dtype=bool), np.ones(len(keys), dtype=bool)
    if min_item_users > 1:
        # An item that nobody has touched came in with `add_items`: a catalog says nothing about users.
        keep_items = (users >= min_item_users) | ((users == 0) & (counted == 0))
    if min_pair_users > 1:
        distance = trained.model.config.memory_distance
        keep_pairs = users_per_pair(trained.sequences, learned, keys, distance) >= min_pair_users
    known = trained.sequences.items[learned & trained.sequences.known_items()]
    privacy = Privacy(min_item_users, min_pair_users, items=len(keep_items) - first, pairs=len(keys), events=len(known))
    if keep_items[first:].all() and keep_pairs.all():
        return trained, privacy
    published = shrink(trained, keep_items, keep_pairs)
    return published, replace(
        privacy,
        removed_items=privacy.items - (len(published.tokenizer) - first),
        removed_pairs=privacy.pairs - len(published.model.associate_path.pair_keys),
        removed_events=int((~keep_items[known]).sum()),
    )


def look_for_people(trained: Publication, published: Publication, privacy: Privacy) -> Privacy:
    """Adds how well training events can be told from others, and what looks like personal data, which is warned of."""
    window = published.tokenizer.model_max_length
    titles = [title for _, title in published.item_facts]
    rows = zip(published.tokenizer.item_vocabulary, titles, strict=True)
    traces = personal_traces(tqdm(rows, "looking for personal data", len(titles), unit=" items", delay=BAR_AFTER))
    for kind, items in traces.items():
        warnings.warn(
            f"{len(items):,} items look like personal data ({kind}), e.g. {', '.join(map(shown, items[:3]))}: do you "
            "want them public?",
            stacklevel=1,
        )
    as_trained = None
    if published is not trained:
        as_trained = membership_inference(trained.model, trained.sequences, window)
    return replace(
        privacy,
        traces=traces,
        membership=membership_inference(published.model, published.sequences, window),
        membership_as_trained=as_trained,
    )


def personal_traces(rows: Iterable[tuple[str, str | None]]) -> dict[str, list[str]]:
    """{kind: item ids}: which items have an id or a title that looks like an e-mail address, a phone number or a URL.

    Args:
        rows: item id and title of every item.

    >>> personal_traces([("7", "call +49 30 1234567"), ("jo@example.org", None), ("15550001111", "Lamp")])
    {'phone number': ['7'], 'e-mail address': ['jo@example.org']}
    """
    traces: dict[str, list[str]] = {}
    for item, title in rows:
        for kind, pattern in PERSONAL.items():
            if pattern.search(item) or (title and pattern.search(title)):
                traces.setdefault(kind, []).append(item)
    return traces
