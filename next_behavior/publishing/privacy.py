"""What leaves a model before strangers see it, and how much of its training data it gives away.

    published = shrink(trained, keep_items, keep_pairs)                     # rare items and rare pairs are gone
    membership = membership_inference(model, sequences, max_length)         # can training events be told from others?

An item that fewer than k users touched, or a counted pair of items that fewer than k users share, says something about
those users (k-anonymity, Sweeney 2002). The membership figure is the loss-threshold attack (Yeom et al. 2018): guess
that an event was trained on if the model finds it probable; its AUC is 0.5 where guessing is all there is.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from next_behavior.data.batches import REPEAT, target_positions
from next_behavior.data.sequences import TEST, TRAIN, Sequences
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.model.vocabulary import VocabularyTable
from next_behavior.publishing.measures import score_targets
from next_behavior.training.vocabulary import assemble

# Tables with one row per item, and the memory's: what `shrink` knows how to rebuild.
ITEM_TABLES = ("bert.embeddings.embed_tokens.weight", "lm_head.weight")
TEXT_TABLE = "bert.embeddings.item_text.vectors"  # of a model with item text
MEMORY_TABLES = tuple(f"associate_path.{name}" for name in ("pair_keys", "pair_counts", "item_counts", "recent_counts"))
BORROWED_TABLES = ("associate_path.borrow_ids", "associate_path.borrow_weights")
LOW = 2**32 - 1

# A phone number needs a plus or separators: item ids are often nothing but digits.
PERSONAL = {
    "e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.[A-Za-z]{2,}"),
    "phone number": re.compile(
        r"(?<![\w.])(?:\+\d[\d ()./-]{7,}\d|\(\d{2,5}\) ?\d[\d -]{5,}\d|\d{3}-\d{3}-\d{4})(?!\w)"
    ),
    "URL": re.compile(r"(?:https?://|www\.)\S+", flags=re.IGNORECASE),
}
# Targets of either kind that the membership figure is measured on, about.
MEMBERSHIP_TARGETS = 2000


# ----------------------------------------------------------------------------------------------------------------------
# Who shares what
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
    found = [np.zeros(0, dtype=np.int64)]
    for apart in range(1, distance + 1):
        near = users[apart:] == users[:-apart]
        if not near.any() or not len(pair_keys):
            break
        keys = (items[:-apart][near] << 32) + items[apart:][near]
        index = np.minimum(np.searchsorted(pair_keys, keys), len(pair_keys) - 1)
        stored = pair_keys[index] == keys
        found.append(np.unique(index[stored] * sequences.num_users + users[apart:][near][stored]))
    both = np.unique(np.concatenate(found))
    return np.bincount(both // max(1, sequences.num_users), minlength=len(pair_keys))


# ----------------------------------------------------------------------------------------------------------------------
# Taking it out
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Publication:
    """A model, its tokenizer, and the log it was trained on in their token ids.

    Attributes:
        item_facts: count and title of every item in id order, as vocabulary.tsv has them; None where it says nothing.
    """

    model: BertForNextBehavior
    tokenizer: BehaviorTokenizer
    item_facts: list[tuple[int | None, str | None]]
    sequences: Sequences


def read_item_facts(vocabulary: Path) -> list[tuple[int | None, str | None]]:
    """Count and title of every item of a vocabulary.tsv, in id order."""
    table = VocabularyTable(vocabulary.read_bytes())
    rows = (table.fields(line) for line in range(1, len(table.line_starts) - 1))
    return [(int(count) if count else None, title or None) for _, _, count, title in rows]


def shrink(trained: Publication, keep_items: np.ndarray, keep_pairs: np.ndarray) -> Publication:
    """The same over fewer items and fewer counted pairs.

    Answers stay what they were but for what is gone: its probability goes to the rest, and a removed item in a history
    is an item the vocabulary does not know.

    Args:
        keep_items: (V,) bool; special tokens are kept whatever it says.
        keep_pairs: (P,) bool, for the memory's pairs in their order; pairs of removed items go too.

    Raises:
        ValueError: no item is left, or the model holds a table per item that this code does not know.
    """
    config: Any = copy.deepcopy(trained.model.config)
    keep = keep_items.copy()
    keep[: config.first_item_id] = True
    if not keep[config.first_item_id :].any():
        raise ValueError(
            f"none of {len(keep) - config.first_item_id:,} items is left; expected some to publish: lower "
            "--min_item_users."
        )
    check_tables(trained.model)
    kept = torch.from_numpy(np.flatnonzero(keep))
    new_id = torch.from_numpy(np.where(keep, np.cumsum(keep) - 1, -1))
    state = trained.model.state_dict()
    keys, counts, *of_items = (state[name] for name in MEMORY_TABLES)
    before, after = new_id[keys >> 32], new_id[keys & LOW]
    pairs = torch.from_numpy(keep_pairs) & (before >= 0) & (after >= 0)
    # Smaller ids stand in the order of the old ones, so the keys stay ascending.
    memory = (
        (before[pairs] << 32) + after[pairs],
        counts[pairs],
        *(table[kept[kept < len(table)]] for table in of_items),
    )
    per_item = [name for name in (*ITEM_TABLES, TEXT_TABLE) if name in state]
    state |= dict(zip(MEMORY_TABLES, memory, strict=True)) | {name: state[name][kept] for name in per_item}
    config.vocab_size = len(kept)
    config.memory_size, config.memory_vocab_size = len(memory[0]), len(memory[2])
    if BORROWED_TABLES[0] in state:  # of a model that can be given items
        links, weights = (state[name] for name in BORROWED_TABLES)
        links = new_id[links]  # (L, 2)
        both = (links >= 0).all(dim=1)
        state |= dict(zip(BORROWED_TABLES, (links[both], weights[both]), strict=True))
        config.memory_borrowed = int(both.sum())
        config.retired_items = [int(new_id[item]) for item in config.retired_items if keep[item]]
    smaller = BertForNextBehavior(config)
    smaller.load_state_dict(state)
    tokenizer, facts = shrink_tokenizer(trained.tokenizer, trained.item_facts, keep[config.first_item_id :])
    return Publication(smaller.eval(), tokenizer, facts, shrink_sequences(trained.sequences, keep))


def check_tables(model: BertForNextBehavior) -> None:
    """ValueError for a table with a row per item, or a table of the memory, that `shrink` would leave as it is."""
    state, sizes = model.state_dict(), (model.config.hidden_size, model.config.intermediate_size)
    per_item = {name for name, table in state.items() if table.ndim and table.shape[0] == len(state[ITEM_TABLES[0]])}
    per_item = {name for name in per_item if state[name].shape[0] not in sizes}
    memory = {f"associate_path.{name}" for name, _ in model.associate_path.named_buffers()}
    known = {*ITEM_TABLES, TEXT_TABLE, *MEMORY_TABLES, *BORROWED_TABLES}
    if unknown := (per_item | memory) - known:
        raise ValueError(
            f"got a model with the tables {sorted(unknown)}; expected only {sorted(known)} to hold items: publish with "
            "the version of this project that trained it, or publish all of it with --min_item_users 1 "
            "--min_pair_users 1."
        )


def shrink_tokenizer(
    tokenizer: BehaviorTokenizer, item_facts: list[tuple[int | None, str | None]], keep: np.ndarray
) -> tuple[BehaviorTokenizer, list[tuple[int | None, str | None]]]:
    """The tokenizer of the items that `keep` (I,) bool says, with their counts and titles."""
    kept = np.flatnonzero(keep).tolist()
    facts = [item_facts[index] for index in kept]
    smaller = assemble(
        [tokenizer.item_vocabulary[index] for index in kept],
        tokenizer.action_vocabulary,
        tokenizer.time_edges,
        num_new_items=tokenizer.num_new_items,
        max_length=tokenizer.model_max_length,
    )
    smaller.describe_items([count for count, _ in facts], [title for _, title in facts])
    return smaller, facts


def shrink_sequences(sequences: Sequences, keep: np.ndarray) -> Sequences:
    """The same events in the smaller vocabulary; removed items become unknown ones, each with a code of its own."""
    size, removed = int(keep.sum()), int((~keep).sum())
    new_id = np.where(keep, np.cumsum(keep) - 1, size + np.cumsum(~keep) - 1)
    known = sequences.items < len(keep)
    items = np.where(
        known, new_id[np.minimum(sequences.items, len(keep) - 1)], sequences.items - len(keep) + size + removed
    )
    return replace(sequences, items=items.astype(np.int32), vocab_size=size)


# ----------------------------------------------------------------------------------------------------------------------
# What is left in it
# ----------------------------------------------------------------------------------------------------------------------


def personal_traces(rows: Iterable[tuple[str, str | None]]) -> dict[str, list[str]]:
    """{kind: item ids}: which items have an id or a title that looks like an e-mail address, a phone number or a URL.

    Args:
        rows: item id and title of every item.

    >>> personal_traces([("7", "call +49 30 1234567"), ("jo@example.org", None), ("15550001111", "Lamp")])
    {'phone number': ['7'], 'e-mail address': ['jo@example.org']}
    """
    found: dict[str, list[str]] = {}
    for item, title in rows:
        for kind, pattern in PERSONAL.items():
            if pattern.search(item) or (title and pattern.search(title)):
                found.setdefault(kind, []).append(item)
    return found


def membership_inference(
    model: BertForNextBehavior, sequences: Sequences, max_length: int, seed: int = 0
) -> dict[str, Any] | None:
    """How well an event that was trained on can be told from a held-out one by its loss.

    Args:
        sequences: the log in the model's token ids, with its parts.

    Returns:
        {"auc", "auc_new_items", "members", "others"}: the AUC of -log p(item | history) over training targets against
        test targets, on items of the vocabulary; the same for items new to their user (None without such); and how many
        targets there were. None if there are no test events. A log that drifts moves the figure away from 0.5 too: with
        a split by time it is an upper bound.
    """
    losses, new = [], []
    for part in (TRAIN, TEST):
        positions = target_positions(sequences, part, MEMBERSHIP_TARGETS, seed)
        named = sequences.known_items()[positions]
        scored = score_targets(model, sequences, positions[named], max_length)
        losses.append(scored.item_loss)
        new.append(scored.group != REPEAT)
    if not all(len(part) for part in losses):
        return None
    member = np.repeat([True, False], [len(part) for part in losses])
    loss, is_new = np.concatenate(losses), np.concatenate(new)
    both_kinds = len(np.unique(member[is_new])) == 2
    return {
        "auc": float(roc_auc_score(member, -loss)),
        "auc_new_items": float(roc_auc_score(member[is_new], -loss[is_new])) if both_kinds else None,
        "members": len(losses[0]),
        "others": len(losses[1]),
    }
