"""The sizes of a run: what the settings say, else what suits the numbers of events and items in the log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from next_behavior.data.sequences import TRAIN, Sequences
from next_behavior.training.settings import RunSettings
from next_behavior.training.tokenized_log import novel_share


@dataclass(frozen=True)
class Sizes:
    """Every size is decided; saved with the run."""

    tokens_per_batch: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    convolution_size: int
    dropout: float
    event_dropout: float
    num_negatives: int
    validation_targets: int
    test_targets: int


def choose_sizes(settings: RunSettings, sequences: Sequences, on_gpu: bool) -> Sizes:
    """Fills what the settings leave open."""
    num_events = int((sequences.parts == TRAIN).sum())
    num_items = sequences.vocab_size - sequences.first_item_id
    is_small = num_events < 300_000

    def chosen(value: int | None, default: int) -> int:
        return default if value is None else value

    hidden_size = chosen(settings.hidden_size, 128)
    return Sizes(
        # About 150 steps an epoch: small logs need many small steps, large ones use the hardware better. A CPU is busy
        # with 2,048 events, and learns more from more steps in its time.
        tokens_per_batch=chosen(
            settings.tokens_per_batch, int(np.clip(num_events // 150, 512, 16384 if on_gpu else 2048))
        ),
        hidden_size=hidden_size,
        num_hidden_layers=chosen(settings.num_hidden_layers, 1 if is_small else 2),
        num_attention_heads=chosen(settings.num_attention_heads, default_heads(hidden_size)),
        convolution_size=chosen(settings.convolution_size, 4),
        dropout=(0.3 if is_small else 0.1) if settings.dropout is None else settings.dropout,
        # It makes up for few events of an item. Where items repeat, the user's own events predict better.
        event_dropout=max(0.0, novel_share(sequences) - 0.8)
        if settings.event_dropout is None
        else settings.event_dropout,
        num_negatives=chosen(settings.num_negatives, 0 if num_items <= 50_000 else 4096),
        # Ranking costs targets x items; these bounds keep a validation to seconds and the final table to minutes.
        validation_targets=chosen(settings.validation_targets, int(np.clip(100_000_000 // num_items, 500, 4000))),
        test_targets=chosen(settings.test_targets, int(np.clip(400_000_000 // num_items, 2000, 25_000))),
    )


def default_heads(hidden_size: int) -> int:
    """About one head for every 64 of width; the width is divisible by it."""
    heads = max(1, hidden_size // 64)
    while hidden_size % heads:
        heads -= 1
    return heads
