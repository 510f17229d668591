"""Goes on with a trained model on newer events (`--continue`): what it has learned stays, what is new is learned.

    past = read_past(start, tokenizer)                     # start.py: the model in the folder
    events, learned = past.with_newer(log.events)      # those of the model's own log, and what the newer one adds
    split = past.split_of_newer(events, learned, "time")

The model's folder keeps its tokenized log (`prepared/`), so an event that stands in both logs is known by its user,
time, action and item, and the new events have their history before them. A folder without it, such as one from the Hub,
knows only until when it has learned (`config.learned_until`): what is not later is history and is not learned again.

Training then sees each new event, and anew in each epoch a share of the old ones, so that what was learned is not
forgotten (rehearsal; Ratcliff 1990, "Connectionist models of recognition memory"). The memory counts the new events.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import polars as pl
import torch

from next_behavior.data.sequences import NO_TIME, PREPARED, TRAIN, VALIDATION, Sequences, unknown_items
from next_behavior.data.splits import Split, make_split, moment, recorded_split
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import ACTION_SPECIALS, FIRST_ACTION, NONE
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.start import Start, new_actions

CONTENT = ("user_id", "timestamp", "action", "item_id")


@dataclass(frozen=True)
class Past:
    """What a trained model has learned.

    Attributes:
        folder: of the model.
        until: microseconds since 1970: the newest event that it has learned.
        events: its log with the columns of `CONTENT` and `learned`, sorted by user and time; None where it is not
            there.
    """

    folder: Path
    until: int
    events: pl.DataFrame | None

    def with_newer(self, newer: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
        """The events of both logs, sorted by user and time, and which of them the model has learned, (E,) bool.

        Raises:
            ValueError: the newer log has no times, or nothing that is new.
        """
        if newer["timestamp"].null_count():
            raise ValueError(
                f"got {newer['timestamp'].null_count():,} events without a time; --continue needs the time of each: "
                "name the column with --time_column"
            )
        newer = newer.select(CONTENT)
        if self.events is None:
            merged = newer.with_columns((pl.col("timestamp").dt.epoch("us") <= self.until).alias("learned"))
        else:
            added = newer.join(self.events, on=CONTENT, how="anti", nulls_equal=True)
            merged = pl.concat([self.events, added.with_columns(pl.lit(False).alias("learned"))])
            merged = merged.sort("user_id", "timestamp", maintain_order=True)
        if merged["learned"].all():
            raise ValueError(
                f"got {len(newer):,} events that {self.folder} has all learned, the newest at {moment(self.until)}; "
                "expected newer ones in --events"
            )
        return merged.drop("learned"), merged["learned"].to_numpy()

    def report(self, events: pl.DataFrame, learned: np.ndarray) -> str:
        """For the user: what is new, and what is known."""
        times = events["timestamp"].dt.epoch("us").to_numpy()
        late = int((~learned & (times <= self.until)).sum())
        lines = f"Goes on with      {self.folder}\n"
        lines += f"  learned         {learned.sum():,} events until {moment(self.until)}\n"
        lines += f"  to learn        {(~learned).sum():,} events"
        lines += f", {late:,} of them older than that" if late else ""
        if self.events is None:
            lines += "\n  note            its own log is not there: events up to then are taken for learned"
        return lines

    def split_of_newer(self, events: pl.DataFrame, learned: np.ndarray, how: str) -> Split:
        """A split whose validation and test events are later than all that is learned."""
        times = events["timestamp"].dt.epoch("us").to_numpy()
        later = events.filter(pl.Series(~learned & (times > self.until)))
        if how == "time" and later["timestamp"].n_unique() < 3:
            raise ValueError(
                f"got {len(later):,} events after {moment(self.until)}, until when {self.folder} has learned; a split "
                "by time needs three different times among them: give more, or use --split none"
            )
        return make_split(later, how)


def read_past(start: Start, tokenizer: BehaviorTokenizer) -> Past:
    """What a trained model has learned.

    Raises:
        ValueError: its log has no order of time, or nothing says what it has learned.
    """
    assert start.behavior is not None
    folder, learned_until = Path(start.name), start.behavior.config.learned_until
    split = recorded_split(folder)
    if split is not None and split.how == "leave_one_out":
        raise ValueError(
            f"got --continue {folder}, which was trained with --split leave_one_out on later events than it was tested "
            "on; expected a model trained with --split time or none"
        )
    events = past_events(folder, tokenizer, VALIDATION if split is not None and split.how == "none" else TRAIN)
    if events is not None:
        learned = events.filter("learned")["timestamp"].dt.epoch("us").max()
        assert isinstance(learned, int)
        return Past(folder, learned, events)
    if learned_until is None:
        raise ValueError(
            f"got --continue {folder}, which has no {PREPARED}/ and no learned_until in config.json; expected a folder "
            "that this version of `train` wrote from a log with times: train it once more, or use --base_model"
        )
    return Past(folder, learned_until, None)


def past_events(folder: Path, tokenizer: BehaviorTokenizer, part: int) -> pl.DataFrame | None:
    """The events of a model's own log, where it is there, and which it has learned: those up to `part`."""
    if not (folder / PREPARED).is_dir():
        return None
    unknown = unknown_items(folder / PREPARED)
    if unknown is None:
        return None
    names = pl.Series([*tokenizer.item_vocabulary, *unknown], dtype=pl.String)
    actions = pl.Series(tokenizer.action_vocabulary, dtype=pl.String)
    log = pl.DataFrame(datasets.Dataset.load_from_disk(str(folder / PREPARED)).data.table)
    log = log.explode("input_ids", "token_type_ids", "time_gap_ids", "timestamps", "part")
    if log["timestamps"].min() == NO_TIME:
        raise ValueError(f"got --continue {folder}, trained on a log without times; expected one with times")
    item, action = pl.col("input_ids") - tokenizer.first_item_id, pl.col("token_type_ids") - FIRST_ACTION
    log = log.with_columns(pl.when(pl.col("input_ids") != NONE).then(item).alias("item"), action.alias("action_row"))
    # An action that the model does not know has lost its name: such an event cannot be learned.
    log = log.filter(pl.col("action_row") >= 0)
    return log.select(
        "user_id",
        pl.col("timestamps").cast(pl.Datetime("us", "UTC")).alias("timestamp"),
        actions.gather(log["action_row"].cast(pl.UInt32)).alias("action"),
        names.gather(log["item"].cast(pl.UInt32)).alias("item_id"),
        (pl.col("part") <= part).alias("learned"),
    )


def learned_until(sequences: Sequences, split: Split) -> int | None:
    """Microseconds since 1970: the newest event that a model has learned; None where that bounds nothing."""
    if split.how == "leave_one_out" or not len(sequences.timestamps) or sequences.timestamps.min() == NO_TIME:
        return None
    known = sequences.parts <= (VALIDATION if split.how == "none" else TRAIN)
    return int(sequences.timestamps[known].max())


# ----------------------------------------------------------------------------------------------------------------------
# What grows
# ----------------------------------------------------------------------------------------------------------------------


def with_new_actions(start: Start, tokenizer: BehaviorTokenizer, events: pl.DataFrame) -> Start:
    """The start whose model and tokenizer know the actions of `events`. The rows of a new one begin as the mean of
    those that are there, its probability as that of the rarest."""
    model, actions = start.behavior, new_actions(tokenizer, events)
    assert model is not None
    if not actions:
        return start
    tokenizer.add_actions(actions)
    config = copy.deepcopy(model.config)
    config.num_actions = config.type_vocab_size = tokenizer.num_actions
    config.label2id = {name: index for index, name in enumerate([*ACTION_SPECIALS, *tokenizer.action_vocabulary])}
    config.id2label = {index: name for name, index in config.label2id.items()}
    if any(config.action_weights):
        config.action_weights = [*config.action_weights, *[0.0] * len(actions)]
    if config.action_bias:
        square = torch.Size([config.num_actions, config.num_actions])
        config.action_bias = with_rows(torch.tensor(config.action_bias), square).tolist()
    config.vocabulary_digest = tokenizer.vocabulary_digest
    grown = BertForNextBehavior(config)
    before = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in grown.named_parameters():
            weight.copy_(with_rows(before[name], weight.shape))
        lowest = model.action_head.bias[FIRST_ACTION:].min()
        grown.action_head.bias[model.config.num_actions :] = lowest
    grown.associate_path.load_tables(model.associate_path)
    text, old_text = grown.bert.embeddings.item_text, model.bert.embeddings.item_text
    if text is not None and old_text is not None:
        for name, table in old_text.named_buffers(recurse=False):
            setattr(text, name, table.clone())
    return replace(start, behavior=grown.eval())


def with_rows(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A table of actions with more rows, or columns, each the mean of those of the actions there are."""
    for dimension, size in enumerate(shape):
        missing = size - table.shape[dimension]
        if missing:
            actions = table.narrow(dimension, FIRST_ACTION, table.shape[dimension] - FIRST_ACTION)
            mean = actions.mean(dim=dimension, keepdim=True)
            more = [missing if place == dimension else -1 for place in range(table.ndim)]
            table = torch.cat([table, mean.expand(more)], dim=dimension)
    return table


def count_items(tokenizer: BehaviorTokenizer, events: pl.DataFrame) -> None:
    """Adds the events of each item to the counts that people read."""
    counts = dict(events["item_id"].drop_nulls().value_counts().iter_rows())
    ids = range(tokenizer.first_item_id, len(tokenizer))
    pairs = zip(tokenizer.item_vocabulary, ids, strict=True)
    total = [(tokenizer.count_of(index) or 0) + counts.get(item, 0) for item, index in pairs]
    tokenizer.describe_items(total, [tokenizer.title_of(index) for index in ids])
