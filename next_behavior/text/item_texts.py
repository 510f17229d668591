"""Item texts: an item table -> one text per item.

    texts = item_texts(read_items("items.csv"))        # item_id, text

Which columns are read unasked is decided here. How an item's columns become its text is in `model/item_text.py`,
because a model that was loaded from the Hub reads new items in the same way.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import polars as pl

from next_behavior.data.columns import ITEM, plain
from next_behavior.data.items import TITLES
from next_behavior.model.item_text import text_of_item

# A column is not read unasked if one of these words is in its name ...
NOT_WORDS = {
    *("id", "ids", "asin", "sku", "ean", "upc", "gtin", "isbn", "barcode", "code", "price", "prices"),
    *("url", "urls", "uri", "link", "links", "href", "image", "images", "img", "picture", "thumbnail"),
    *("date", "time", "datetime", "timestamp"),
}
# ... or if most of its values are numbers, dates, codes or links: one "word" with a digit or a slash, or no letter.
NO_WORDS = r"^\s*(?:\S*[\d/]\S*|[^\p{L}]*)\s*$"


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
    elif columns is not None:
        raise ValueError(f"got columns={columns} and template={template!r}; expected one of them: drop the other")
    else:
        chosen = template_columns(template)
        _check_columns(items, chosen, f"the template {template!r}")
    texts = [text_of_item(row, chosen, template) for row in items.select(chosen).iter_rows(named=True)]
    return items.select(ITEM, pl.Series("text", texts, dtype=pl.String))


def _check_columns(items: pl.DataFrame, asked: Sequence[str], where: str) -> None:
    unknown = [column for column in asked if column not in items.columns]
    if unknown:
        raise ValueError(
            f"{where}: got {', '.join(unknown)}; expected columns of the item table, which has "
            f"{', '.join(items.columns)}: correct the name"
        )


def template_columns(template: str) -> list[str]:
    """The columns that a template names, each once.

    Raises:
        ValueError: it names none, or has a format or a conversion.
    """
    remedy = "expected column names in braces, such as '{title} by {brand}'; write {{ for a brace"
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"got the template {template!r} ({error}); {remedy}") from None
    if any(spec or conversion for _, _, spec, conversion in pieces):
        raise ValueError(f"got a format or a conversion in the template {template!r}; {remedy}")
    columns = [field for _, field, _, _ in pieces if field is not None]
    if not columns:
        raise ValueError(f"got the template {template!r} without a column; {remedy}")
    return list(dict.fromkeys(columns))
