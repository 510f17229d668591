"""Builds a `BehaviorTokenizer` from a cleaned event log.

    tokenizer = build_tokenizer(log.events, items)      # from Python
    python -m tokenizer_build EVENTS --output DIR       # from a shell

Items and actions are numbered by their frequency in the log, ties by name: the same log always gives the same ids. The
time since the event before falls into buckets, whose edges are round numbers of seconds, minutes, hours and days.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from next_behavior.data.sequences import time_gaps
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.model.vocabulary import item_key, special_keys

MINUTE, HOUR, DAY = 60, 3600, 86400
# Edges of the time buckets, in seconds: log-spaced within rounding, 31 edges make 32 buckets.
TIME_LADDER = (
    *(1, 2, 3, 5, 10, 20, 30),
    *(MINUTE * minutes for minutes in (1, 2, 3, 5, 10, 20, 30)),
    *(HOUR * hours for hours in (1, 2, 3, 6, 12)),
    *(DAY * days for days in (1, 2, 3, 5, 7, 14, 21, 30, 60, 90, 180, 365)),
)  # fmt: skip

NUM_TIME_BUCKETS = 32
EVENT_COLUMNS = ("user_id", "item_id", "action", "timestamp")


def build_tokenizer(
    train_events: pl.DataFrame,
    items: pl.DataFrame | None = None,
    *,
    min_item_count: int = 1,
    num_new_items: int = 64,
    max_length: int = 200,
    num_time_buckets: int = NUM_TIME_BUCKETS,
) -> BehaviorTokenizer:
    """The tokenizer of a log.

    Args:
        train_events: the events to learn from, sorted by user and time, with the columns user_id (String), item_id
            (String, null where the event names no item), action (String) and timestamp (Datetime; all null if the log
            has no time).
        items: item_id and title (String, null allowed), for display; other columns are ignored.
        min_item_count: items with fewer events stay out of the vocabulary.
        num_new_items: slots that keep the unknown items of one history apart.
        max_length: events of the longest window.
        num_time_buckets: at most this many buckets of the time since the event before.

    Raises:
        ValueError: a column is missing, there are no events, or no item has `min_item_count` of them.
    """
    check_arguments(train_events, items, min_item_count, num_new_items, max_length, num_time_buckets)
    counted = most_frequent_first(train_events, "item_id").filter(pl.col("count") >= min_item_count)
    if counted.is_empty() and train_events["item_id"].null_count() < train_events.height:
        raise empty_vocabulary(min_item_count)
    actions = most_frequent_first(train_events, "action")["action"].to_list()
    edges = time_edges(time_gaps(train_events), num_time_buckets)
    vocabulary = counted["item_id"].to_list()
    tokenizer = assemble(vocabulary, actions, edges, num_new_items=num_new_items, max_length=max_length)
    describe_items(tokenizer, counted["count"].to_list(), items)
    return tokenizer


def describe_items(tokenizer: BehaviorTokenizer, counts: list[int], items: pl.DataFrame | None) -> None:
    """Tells the tokenizer the events of each item, in token order, and the titles that `items` has."""
    vocabulary = tokenizer.item_vocabulary
    titles: list[str | None] = [None] * len(vocabulary)
    if items is not None:
        first = items.select("item_id", "title").unique("item_id", keep="first", maintain_order=True)
        names = pl.DataFrame({"item_id": pl.Series(vocabulary, dtype=pl.String)})
        titles = names.join(first, on="item_id", how="left", maintain_order="left")["title"].to_list()
    tokenizer.describe_items(counts, titles)


def empty_vocabulary(min_item_count: int) -> ValueError:
    return ValueError(f"no item has min_item_count={min_item_count} events, so the vocabulary is empty: lower it.")


def check_arguments(
    train_events: pl.DataFrame,
    items: pl.DataFrame | None,
    min_item_count: int,
    num_new_items: int,
    max_length: int,
    num_time_buckets: int,
) -> None:
    """ValueError for arguments that no tokenizer can be built from."""
    for frame, name, columns in ((train_events, "train_events", EVENT_COLUMNS), (items, "items", ("item_id", "title"))):
        missing = [column for column in columns if frame is not None and column not in frame.columns]
        if frame is not None and missing:
            raise ValueError(f"{name} has the columns {', '.join(frame.columns)}, but {', '.join(missing)} is missing.")
    if train_events.is_empty():
        raise ValueError("train_events has no rows, expected at least one event.")
    for value, name, least in (
        (min_item_count, "min_item_count", 1),
        (num_new_items, "num_new_items", 0),
        (max_length, "max_length", 1),
        (num_time_buckets, "num_time_buckets", 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}.")


def most_frequent_first(events: pl.DataFrame, column: str) -> pl.DataFrame:
    """The values of a column with their `count`, most frequent first, ties in order of the text; nulls left out."""
    return (
        events.lazy()
        .filter(pl.col(column).is_not_null())
        .group_by(column)
        .agg(pl.len().alias("count"))
        .sort("count", column, descending=[True, False])
        .collect()
    )


def time_edges(gaps: np.ndarray, num_time_buckets: int) -> list[float]:
    """Ascending bucket edges in seconds for positive gaps (N,); none if there are no gaps.

    The edges are those steps of `TIME_LADDER` that separate gaps of this log, from its shortest gap to its longest: a
    log that holds only dates needs no minutes. At most `num_time_buckets - 1` of them are kept, evenly spread.
    """
    if len(gaps) == 0:
        return []
    shortest, longest = gaps.min(), gaps.max()
    below = [edge for edge in TIME_LADDER if edge <= shortest]
    edges = [*below[-1:], *(edge for edge in TIME_LADDER if shortest < edge <= longest)]
    kept = min(num_time_buckets - 1, len(edges))
    return [float(edges[index]) for index in np.linspace(0, len(edges) - 1, kept).round().astype(int)]


def assemble(
    item_vocabulary: list[str],
    action_vocabulary: list[str],
    edges: list[float],
    *,
    num_new_items: int,
    max_length: int,
) -> BehaviorTokenizer:
    """A tokenizer from its vocabularies, in id order, without counts and titles."""
    keys = special_keys(num_new_items)
    specials = {key: index for index, key in enumerate(keys)}
    tokenizer = BehaviorTokenizer(
        tokenizer_object=Tokenizer(WordLevel(specials, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=max_length,
        num_new_items=num_new_items,
        action_vocabulary=action_vocabulary,
        time_edges=edges,
        has_time=bool(edges),
    )
    # The items come after the constructor, which would deepcopy them all.
    items = {item_key(item): index for index, item in enumerate(item_vocabulary, start=len(keys))}
    tokenizer.backend_tokenizer.model = WordLevel(specials | items, unk_token="[UNK]")
    return tokenizer
