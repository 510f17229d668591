"""What many tests begin with: a log, its sequences, a text encoder and a model, each as small as it can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from next_behavior.data.sequences import Sequences
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer

WORDS = ["red", "blue", "green", "lip", "balm", "shoe", "lace", "nail", "polish", "comb"]

Event = tuple[int, int, int]  # item, action, part


def write_events(path: Path, rows: Sequence[tuple[str, str | None, str, int]]) -> Path:
    """A CSV file of events: user, item, action, seconds since 1970."""
    pl.DataFrame(rows, schema=["user_id", "item_id", "action", "timestamp"], orient="row").write_csv(path)
    return path


def sequences_of(
    users: Sequence[Sequence[Event]], vocab_size: int, first_item_id: int, times: Sequence[int] | None = None
) -> Sequences:
    """The events of each user in order; `times` in microseconds, of all events, or unknown."""
    events = [event for user in users for event in user]
    return Sequences(
        offsets=np.cumsum([0, *(len(user) for user in users)]).astype(np.int64),
        items=np.array([item for item, _, _ in events], dtype=np.int32),
        actions=np.array([action for _, action, _ in events], dtype=np.int16),
        time_gaps=np.ones(len(events), dtype=np.int16),
        timestamps=np.array([-1] * len(events) if times is None else times, dtype=np.int64),
        parts=np.array([part for _, _, part in events], dtype=np.int8),
        user_ids=[str(user) for user in range(len(users))],
        vocab_size=vocab_size,
        first_item_id=first_item_id,
    )


def save_bert(folder: Path, **changes: Any) -> str:
    """A BERT with random weights beside a tokenizer that knows `WORDS`: it reads item texts, and encoders start from
    it."""
    vocabulary = {word: row for row, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    sizes = {"hidden_size": 20, "num_attention_heads": 5, "num_hidden_layers": 2, "intermediate_size": 28}
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=len(vocabulary), initializer_range=0.3, **sizes | changes)).save_pretrained(folder)
    return str(folder)


def tiny_model(tokenizer: BehaviorTokenizer, **changes: Any) -> BertForNextBehavior:
    """A model with random weights for the tokenizer's ids, items and actions."""
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "num_new_items": tokenizer.num_new_items, "num_actions": tokenizer.num_actions,
        "num_time_gaps": tokenizer.num_time_gaps, "max_position_embeddings": tokenizer.model_max_length,
        "hidden_size": 20, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24,
    }  # fmt: skip
    torch.manual_seed(3)
    return BertForNextBehavior(BehaviorConfig(**sizes | changes)).eval()


def load(folder: Path) -> tuple[Any, Any]:
    """The model of a folder, ready to answer, and its tokenizer."""
    return BertForNextBehavior.from_pretrained(folder).eval(), BehaviorTokenizer.from_pretrained(folder)
