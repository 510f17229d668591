"""Item text in training (`--items`): read and embed it, give it to a new model, weigh the links between similar texts.

    text = embed_items(items, tokenizer, encoder, columns, template, size, phases, until)
    fill_text(model, text)
    fit_text_links(model, log)

A trained model keeps the text encoder that it was trained with (`own_encoder`).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from next_behavior.data.batches import evaluation_batches, target_positions
from next_behavior.data.sequences import VALIDATION
from next_behavior.data.shown import shown
from next_behavior.evaluation.metrics import ndcg_at_k, pessimistic_ranks
from next_behavior.model.associative_memory import MAX_CHUNK_ELEMENTS
from next_behavior.model.encoder import last_index
from next_behavior.model.item_text import DEFAULT_ENCODER, PROBE_TEXT, split_mark
from next_behavior.model.mixture import seen_items
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.text.embedding_cache import cached_embeddings
from next_behavior.text.encoders import TextEncoder, default_encoder, load_encoder
from next_behavior.text.item_texts import item_texts, template_columns, text_columns
from next_behavior.text.reduction import Reduction, fit_reduction, reduce_embeddings
from next_behavior.training.calibration import take_best
from next_behavior.training.phases import Phases
from next_behavior.training.tokenized_log import TokenizedLog

NO_ENCODER = "none"
# Items whose text vectors are worked on at a time.
TEXT_ROWS = 65_536
# How much links between similar texts may add to the memory, what they add where nothing can be validated, and the
# validation targets that decide.
TEXT_LINKS = (0.0, 0.035, 0.07, 0.14, 0.28)
DEFAULT_LINKS = 0.14
LINK_TARGETS, FEWEST_LINK_TARGETS = 3000, 300


@dataclass(frozen=True)
class EmbeddedText:
    """The texts of the vocabulary's items as the model takes them."""

    encoder: str  # the name that `add_items` will load
    columns: list[str]
    template: str | None
    embeddings: np.ndarray  # (vocab_size, E) float16; zeros where there is no text, or none was read
    reduction: Reduction
    probe: np.ndarray  # (E,), by which the model recognizes the encoder
    unread: int = 0  # items whose text there was no time for


def check_items(path: str, items: pl.DataFrame, tokenizer: BehaviorTokenizer) -> None:
    """ValueError if the item table in `path` is about other items than the log."""
    known = tokenizer.item_vocabulary
    if known and not items["item_id"].is_in(known).any():
        raise ValueError(
            f"got --items {path} with ids such as {', '.join(map(shown, items['item_id'].head(3)))}, of which "
            f"the log names none; it names {', '.join(map(shown, known[:3]))}: write ids in both alike, or "
            "leave --items out"
        )


def embed_items(
    items: pl.DataFrame,
    tokenizer: BehaviorTokenizer,
    encoder: str | None,
    columns: list[str] | None,
    template: str | None,
    size: int,
    phases: Phases,
    until: float,
) -> EmbeddedText | None:
    """Embeds the texts of the vocabulary's items, or takes them from the cache; None if there is nothing to read.

    Args:
        items: as `read_items` gives them.
        encoder: its name; None takes the default one, "none" reads nothing.
        columns, template: what is read, see `item_texts`; None and None take all columns that hold text.
        size: principal components that are kept.
        until: when reading stops, by `time.monotonic`; the items with most events come first.
    """
    if encoder == NO_ENCODER:
        return None
    if columns is None and template is None:
        columns = text_columns(items)
        if not columns:
            return None
    texts = item_texts(items, columns, template).unique("item_id", keep="first")
    known = pl.DataFrame({"item_id": tokenizer.item_vocabulary}).join(
        texts, on="item_id", how="left", maintain_order="left"
    )
    if known["text"].n_unique() < 3:
        return None
    name = absolute_name(encoder or DEFAULT_ENCODER)
    with phases(f"Reading item text: {known['text'].drop_nulls().n_unique():,} texts with {name}"):
        loaded = load_encoder(encoder or default_encoder())
        embeddings = cached_embeddings(known["text"].to_list(), loaded, until=until)
    if columns is None:
        columns = template_columns(template or "")
    return EmbeddedText(
        encoder=name,
        columns=columns,
        template=template,
        unread=known["text"].count() - int(np.count_nonzero(embeddings.any(axis=1))),
        embeddings=np.pad(embeddings, ((tokenizer.first_item_id, 0), (0, 0))),
        probe=loaded.embed([PROBE_TEXT])[0],
        reduction=fit_reduction(embeddings, size),
    )


def absolute_name(encoder: str) -> str:
    """The encoder's name; if it is a folder, one that is found from another working directory, too."""
    mark, place = split_mark(encoder)
    return f"{mark}{Path(place).resolve()}" if Path(place).is_dir() else encoder


def text_report(text: EmbeddedText | None, encoder: str | None, num_items: int) -> str:
    """A line for the user: which item text is read, of a vocabulary of `num_items`."""
    if text is not None:
        read = ", ".join(text.columns) if text.template is None else text.template
        with_text = np.count_nonzero(text.embeddings.any(axis=1))
        report = f"Item text         {with_text:,} of {num_items:,} items have a text, read from {read}"
        if text.unread:
            report += (
                f"; for those of {text.unread:,} more, the rarest, --max_minutes leaves no time: they are known by "
                "their ids. What was read is kept for the next run; --text_encoder model2vec:NAME reads faster"
            )
        return report
    if encoder == NO_ENCODER:
        return "Item text         not read (--text_encoder none); titles are shown in answers"
    return (
        "Item text         none: no column of the item table holds text, or fewer than three items of the log have "
        "different texts; items are known by their ids, titles are shown in answers"
    )


def own_encoder(model: BertForNextBehavior, name: str) -> TextEncoder:
    """The text encoder `name`; a ValueError unless it is the one that the model was trained with."""
    encoder, item_text = load_encoder(name, model.config.text_max_tokens), model.bert.embeddings.item_text
    assert item_text is not None
    item_text.check(torch.from_numpy(encoder.embed([PROBE_TEXT])[0]), name)
    return encoder


def fill_text(model: BertForNextBehavior, text: EmbeddedText) -> None:
    """Writes the item text into a new model: its vectors, and links between items with similar ones."""
    item_text = model.bert.embeddings.item_text
    assert item_text is not None
    item_text.mean.copy_(torch.from_numpy(text.reduction.mean))
    item_text.components.copy_(torch.from_numpy(text.reduction.components))
    item_text.probe.copy_(torch.from_numpy(text.probe))
    reduced = reduce_embeddings(text.embeddings, text.reduction)
    item_text.unit.copy_(torch.from_numpy(np.abs(reduced).max(axis=0).astype(np.float32) / 127))
    for begin in range(0, len(text.embeddings), TEXT_ROWS):
        rows = torch.arange(begin, min(begin + TEXT_ROWS, len(text.embeddings)))
        item_text.write(rows, torch.from_numpy(text.embeddings[begin : begin + TEXT_ROWS].astype(np.float32)))
    progress = partial(tqdm, desc="linking similar texts", unit=" chunks", delay=2)
    model.associate_path.borrow(item_text, trained=False, progress=progress)


@torch.no_grad()
def fit_text_links(model: BertForNextBehavior, log: TokenizedLog, until: float = math.inf) -> str | None:
    """Chooses how much links between items with similar texts add to the memory: what ranks the next item best on
    validation events, by the memory alone.

    Args:
        until: when it has to be chosen, by `time.monotonic`: on fewer events, or on none.

    Returns:
        A line for the user; None if there is no validation event to choose on.
    """
    memory, sequences = model.associate_path, log.sequences
    positions = target_positions(sequences, VALIDATION, LINK_TARGETS, seed=0)
    positions = positions[sequences.items[positions] >= sequences.first_item_id]
    model.config.memory_text = DEFAULT_LINKS
    if not len(positions):
        return None
    rows = max(1, min(256, MAX_CHUNK_ELEMENTS // sequences.vocab_size))
    batches = list(evaluation_batches(sequences, VALIDATION, log.max_length, rows, positions=positions))

    def ndcg() -> float:
        memory.changed()
        gains = []
        for batch in chosen:
            ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
            recent = memory.recent_items(ids, mask, last_index(mask)[:, None])[:, 0]
            scores = memory.score(recent, seen_items(ids, model.config.vocab_size))
            gains.append(ndcg_at_k(pessimistic_ranks(scores, batch.target_item), 10))
        return float(np.concatenate(gains).mean())

    chosen = batches
    if until < math.inf:
        chosen, begin = batches[:1], time.monotonic()
        ndcg()
        each = time.monotonic() - begin  # with the lists of neighbors, which every weight makes anew
        affordable = int((until - time.monotonic()) / (len(TEXT_LINKS) * max(1e-9, each)))
        chosen = batches[:: math.ceil(len(batches) / affordable)] if affordable > 0 else []
        if affordable < len(batches) and rows * len(chosen) < FEWEST_LINK_TARGETS:
            memory.changed()
            return f"Links between items with similar texts: no time to choose; {DEFAULT_LINKS:g} is taken."
    reached = take_best(model.config, "memory_text", TEXT_LINKS, ndcg)
    memory.changed()
    return (
        "Links between items with similar texts: NDCG@10 of the memory alone is "
        + ", ".join(f"{value:.4f} with weight {weight:g}" for weight, value in reached.items())
        + f"; {model.config.memory_text:g} is taken."
    )
