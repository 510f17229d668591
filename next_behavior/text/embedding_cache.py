"""Embeddings on disk: a text is read once, whatever run asks for it.

embeddings = cached_embeddings(texts["text"].to_list(), encoder)      # (N, D) float16
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from next_behavior.data.files import whole_file
from next_behavior.text.encoders import TextEncoder

# Texts per file of the cache: what an interrupted run loses at most.
SHARD = 8192
# Where time is limited: texts that are read first, and the share of the time left that the next ones may take.
FIRST_TEXTS, NEXT_SHARE = 128, 0.25


def default_cache() -> Path:
    """Where embeddings are kept: below HF_HOME, which is ~/.cache/huggingface unless set (or XDG_CACHE_HOME is)."""
    return Path(HF_HOME) / "bert-next-behavior" / "text"


def cached_embeddings(
    texts: Sequence[str | None],
    encoder: TextEncoder,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    until: float = math.inf,
) -> np.ndarray:
    """Embeddings of texts, of which only those are computed that the cache lacks, in their order.

    The cache has one folder per `encoder.identity` and in it files of at most SHARD texts, each named by the hash of
    what it holds and written whole or not at all: an interrupted run goes on where it was, several processes may share
    the folder, and a file that is not what its name says is deleted with a warning and its texts are embedded again.

    Args:
        texts: N texts, repeated ones are embedded once; None is no text.
        cache_dir: None takes `default_cache()`.
        progress: show a progress bar.
        until: when to stop, by `time.monotonic`; the first texts are always read.

    Returns:
        (N, D) float16, rows of length one; all zeros where there is no text, or none was read.
    """
    folder = Path(cache_dir or default_cache()) / encoder.identity
    embeddings = np.zeros((len(texts), encoder.dimensions), dtype=np.float16)
    named = np.array([row for row, text in enumerate(texts) if text is not None], dtype=np.int64)
    if not len(named):
        return embeddings
    hashes = b"".join(_hash(str(texts[row]).encode()) for row in named)
    keys, first, inverse = np.unique(np.frombuffer(hashes, dtype="S16"), return_index=True, return_inverse=True)
    rows = named[first]  # the row of each distinct text's first appearance
    known = np.zeros(len(keys), dtype=bool)
    for path in sorted(folder.glob("*.safetensors")):
        place, found = _read_shard(path, keys, encoder.dimensions)
        embeddings[rows[place]] = found
        known[place] = True
    order = np.argsort(rows[~known])
    missing, missing_keys = rows[~known][order], keys[~known][order]
    with tqdm(total=len(missing), desc="embedding texts", unit="text", disable=not progress or not len(missing)) as bar:
        start, size, begin = 0, SHARD if until == math.inf else FIRST_TEXTS, time.monotonic()
        while start < len(missing) and (start == 0 or time.monotonic() < until):
            part = missing[start : start + size]
            embeddings[part] = encoder.embed([str(texts[row]) for row in part], bar)
            _write_shard(folder, missing_keys[start : start + size], embeddings[part])
            start += len(part)
            if until < math.inf:
                now = time.monotonic()
                affordable = NEXT_SHARE * (until - now) * start / max(1e-9, now - begin)
                size = int(np.clip(affordable, FIRST_TEXTS, SHARD))
    again = rows[inverse] != named
    embeddings[named[again]] = embeddings[rows[inverse[again]]]
    return embeddings


def _hash(*parts: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _write_shard(folder: Path, keys: np.ndarray, embeddings: np.ndarray) -> None:
    bytes_of_keys = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 16)
    with whole_file(folder / f"{_hash(bytes_of_keys, embeddings).hex()}.safetensors") as unfinished:
        save_file({"texts": bytes_of_keys, "embeddings": embeddings}, unfinished)


def _read_shard(path: Path, keys: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the sorted `keys` the file holds (n,) int64, and their embeddings (n, D); none of a damaged file."""
    none = np.empty(0, dtype=np.int64), np.empty((0, dimensions), dtype=np.float16)
    try:
        with safe_open(path, framework="numpy") as file:
            held = file.get_tensor("texts")
            place = np.searchsorted(keys, held.view("S16").ravel()).clip(max=len(keys) - 1)
            hit = keys[place] == held.view("S16").ravel()
            if not hit.any():
                return none
            embeddings = file.get_tensor("embeddings")
    except FileNotFoundError:  # another process found it damaged
        return none
    except SafetensorError as error:
        damage = str(error)
    else:
        if _hash(held, embeddings).hex() == path.stem:
            return place[hit], embeddings[hit]
        damage = "its content has changed"
    warnings.warn(f"{path}: {damage}; the file is deleted and its texts are embedded again", stacklevel=3)
    path.unlink(missing_ok=True)
    return none
