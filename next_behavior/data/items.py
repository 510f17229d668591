"""Item tables: what is known about the items, as text.

    items = read_items("items.csv")          # item_id, title, and the other text columns

Numbers and columns of ids tell a reader nothing and are left out.
"""

from __future__ import annotations

import os
import warnings

import polars as pl

from next_behavior.data.columns import ITEM, choose_column, plain
from next_behavior.data.log_files import Layout, columns_of, find_files, read_file
from next_behavior.data.read_options import column_names
from next_behavior.data.tables import from_table, id_text

# Title-like columns, best first.
TITLES = [
    "title",
    "name",
    "item_name",
    "item_title",
    "product_name",
    "product_title",
    "article_name",
    "movie_title",
    "headline",
    "prod_name",
    "product_type",
    "label",
    "description",
]
ID_FLAG = "--items_id_column"
ID_LIKE = {"asin", "parentasin", "sku", "ean", "upc", "gtin", "isbn", "barcode", "url", "link", "image", "imageurl"}


def read_items(
    source: object, id_column: str | None = None, *, format: str | None = None, columns: str | None = None
) -> pl.DataFrame:
    """What is known about the items, as text.

    Args:
        source: as in `read_events`.
        id_column: its id column; None finds item_id or a recognized name.
        format, columns: of the files, as in `ReadOptions`: "csv", "tsv", "parquet" or "jsonl", whatever they are
            called, and the names of the columns of files without a header, "item_id,title".

    Returns:
        item_id String (unique, never null), title String (the best title-like column, null where there is none), then
        the other text columns under their own names; lists of text are joined by ", ". Numbers and id-like columns
        (asin, sku, ..._id, urls) are left out.

    Raises:
        FileNotFoundError, ValueError: as in `read_events`.
    """
    frame, key = _table(source, id_column, Layout(format, column_names(columns)))
    ids = id_text(frame[key], ITEM, []).alias(ITEM)
    texts = _text_columns(frame, key)
    title = title_column(texts)
    titles = texts[title].alias("title") if title else pl.Series("title", [None] * frame.height, dtype=pl.String)
    items = pl.DataFrame([ids, titles]).hstack(texts.drop([title] if title else []).get_columns())
    items = items.filter(pl.col(ITEM).is_not_null() & (pl.col(ITEM) != ""))
    if items.is_empty():
        raise ValueError(
            f"got no item in the column {key!r}; expected one row per item: name its id column with {ID_FLAG}"
        )
    unique = items.unique(ITEM, keep="first", maintain_order=True)
    if unique.height < items.height:
        warnings.warn(f"items: {items.height - unique.height:,} later rows of ids seen before left out", stacklevel=2)
    return unique


def _table(source: object, id_column: str | None, layout: Layout) -> tuple[pl.DataFrame, str]:
    """All columns of an item table, and the name of the one with the ids."""
    if not isinstance(source, (str, os.PathLike)):
        columns = from_table(source, None)[0].columns
        key = str(choose_column(ITEM, columns, id_column, needed=True, notes=[], flag=ID_FLAG))
        return from_table(source, columns)[0], key
    try:
        files = find_files(source, layout.format).paths
        columns = columns_of(files[0], layout)
        key = str(choose_column(ITEM, columns, id_column, needed=True, notes=[], flag=ID_FLAG))
        parts = [read_file(file, columns, layout) for file in files]
    except ValueError as error:  # which names the flags of the events
        raise ValueError(
            str(error).replace("--format", "--items_format").replace("--columns", "--items_columns")
        ) from error
    malformed = [row for part in parts for row in part.malformed]
    if malformed:
        row, reason, text = malformed[0]
        warnings.warn(
            f"{source}: {len(malformed):,} rows left out, e.g. row {row:,} ({reason}): {text!r:.80}", stacklevel=3
        )
    return pl.concat([part.frame for part in parts], how="vertical_relaxed"), key


def _text_columns(frame: pl.DataFrame, key: str) -> pl.DataFrame:
    """The columns that tell a reader something, as text; null where there is none."""
    return frame.select(
        (pl.col(c).list.join(", ", ignore_nulls=True) if isinstance(kind, pl.List) else pl.col(c).cast(pl.String))
        .replace("", None)
        for c, kind in frame.schema.items()
        if c != key and not plain(c).endswith("id") and plain(c) not in ID_LIKE
        and (kind in (pl.String, pl.Categorical, pl.Enum) or kind == pl.List(pl.String))
    )  # fmt: skip


def title_column(texts: pl.DataFrame) -> str | None:
    """The best of the title-like columns, else the one that tells items apart best, None without columns."""
    title = next((c for alias in TITLES for c in texts.columns if plain(c) == plain(alias)), None)
    if title is None and texts.width:
        title = max(texts.columns, key=lambda c: texts[c].n_unique())
    return title
