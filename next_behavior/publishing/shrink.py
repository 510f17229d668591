"""A model over fewer items and fewer counted pairs: every table, the tokenizer and the log are rewritten.

    published = shrink(trained, keep_items, keep_pairs)

The answers stay the same except for what is gone. The probability of a removed item goes to the other items, and in a
history it is an item that the vocabulary does not know.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from next_behavior.data.sequences import Sequences
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.pair_tables import LOW
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.publishing.publication import ItemFact, Publication
from next_behavior.training.vocabulary import assemble

# The tables with one row per item, and the memory's. `check_tables` refuses a model that has others.
ITEM_TABLES = ("bert.embeddings.embed_tokens.weight", "lm_head.weight")
TEXT_TABLE = "bert.embeddings.item_text.vectors"  # of a model that reads item text
MEMORY_TABLES = tuple(f"associate_path.{name}" for name in ("pair_keys", "pair_counts", "item_counts", "recent_counts"))
BORROWED_TABLES = ("associate_path.borrow_ids", "associate_path.borrow_weights")


def shrink(trained: Publication, keep_items: np.ndarray, keep_pairs: np.ndarray) -> Publication:
    """The same over fewer items and fewer counted pairs.

    Args:
        keep_items: (V,) bool; special tokens are always kept.
        keep_pairs: (P,) bool, for the memory's pairs in their order; pairs of removed items go too.

    Raises:
        ValueError: no item is left, or the model holds a table per item that this code does not know.
    """
    first = trained.model.config.first_item_id
    keep = keep_items.copy()
    keep[:first] = True
    if not keep[first:].any():
        raise ValueError(
            f"none of {len(keep) - first:,} items is left; expected some to publish: lower --min_item_users."
        )
    check_tables(trained.model)
    tokenizer, facts = shrink_tokenizer(trained.tokenizer, trained.item_facts, keep[first:])
    model = shrink_model(trained.model, keep, torch.from_numpy(keep_pairs))
    model.config.vocabulary_digest = tokenizer.vocabulary_digest
    return Publication(model, tokenizer, facts, shrink_sequences(trained.sequences, keep))


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


def shrink_model(model: BertForNextBehavior, keep: np.ndarray, keep_pairs: torch.Tensor) -> BertForNextBehavior:
    """The model with the rows and the memory of the items that `keep` (V,) bool says."""
    config: BehaviorConfig = copy.deepcopy(model.config)
    state = model.state_dict()
    kept = torch.from_numpy(np.flatnonzero(keep))
    new_id = torch.from_numpy(np.where(keep, np.cumsum(keep) - 1, -1))
    keys, counts, *of_items = (state[name] for name in MEMORY_TABLES)
    before, after = new_id[keys >> 32], new_id[keys & LOW]
    pairs = keep_pairs & (before >= 0) & (after >= 0)
    # New ids are in the order of the old ones, so the keys stay ascending.
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
    return smaller.eval()


def shrink_tokenizer(
    tokenizer: BehaviorTokenizer, item_facts: list[ItemFact], keep: np.ndarray
) -> tuple[BehaviorTokenizer, list[ItemFact]]:
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
