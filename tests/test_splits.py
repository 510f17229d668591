"""Splits: nothing after a cut trains, every event has one side, and what a split says can be written down."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_behavior.data.batches import target_positions
from next_behavior.data.sequences import TEST, TRAIN, VALIDATION, Sequences, encode_events
from next_behavior.data.splits import Split, assign_parts, make_split

DAY = 86_400_000_000


def log(rows: Sequence[tuple[str, int | None]]) -> pl.DataFrame:
    """Events of (user, microseconds), in the order of `read_events`."""
    frame = pl.DataFrame(rows, schema={"user_id": pl.String, "time": pl.Int64}, orient="row").with_row_index("row")
    return frame.select(
        "user_id",
        pl.lit("x").alias("item_id"),
        pl.lit("interact").alias("action"),
        pl.col("time").cast(pl.Datetime("us", "UTC")).alias("timestamp"),
        pl.col("row").cast(pl.Int64),
    ).sort("user_id", "timestamp", "row")


def parts_of(events: pl.DataFrame, split: Split) -> list[int]:
    return assign_parts(events, split)["part"].to_list()


def sequences_of(events: pl.DataFrame) -> Sequences:
    dataset = encode_events(
        events, item_vocabulary=["x"], first_item_id=6, action_vocabulary=["interact"], time_edges=[1.0]
    )
    return Sequences.from_dataset(dataset, vocab_size=7, first_item_id=6)


LOGS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 30)), min_size=2, max_size=40).filter(
    lambda rows: len({time for _, time in rows}) > 1
)


def test_ten_events_are_cut_eight_one_one() -> None:
    events = log([("a", time * DAY) for time in range(10)])
    split = make_split(events, "time")
    assert (split.validation_cut, split.test_cut) == (7 * DAY, 8 * DAY)
    assert parts_of(events, split) == [TRAIN] * 8 + [VALIDATION, TEST]


@pytest.mark.filterwarnings("ignore:too few distinct times")
@settings(deadline=None)
@given(LOGS)
def test_every_training_event_is_earlier_than_every_validation_and_test_event(rows: list[tuple[str, int]]) -> None:
    events = log(rows)
    parted = assign_parts(events, make_split(events, "time"))
    times, parts = parted["timestamp"].dt.epoch("us").to_numpy(), parted["part"].to_numpy()
    train, validation, test = (times[parts == part] for part in (TRAIN, VALIDATION, TEST))
    assert len(train)
    assert len(test)
    assert train.max() < test.min()
    if len(validation):
        assert train.max() < validation.min()
        assert validation.max() < test.min()


@pytest.mark.filterwarnings("ignore:too few distinct times")
@settings(deadline=None)
@given(LOGS)
def test_events_at_the_same_time_lie_on_the_same_side(rows: list[tuple[str, int]]) -> None:
    events = log(rows)
    parts = assign_parts(events, make_split(events, "time"))
    assert parts.group_by("timestamp").agg(pl.col("part").n_unique())["part"].max() == 1


@pytest.mark.filterwarnings("ignore:too few distinct times")
@settings(deadline=None)
@given(LOGS)
def test_the_targets_are_the_later_events_with_an_earlier_one_of_their_user(rows: list[tuple[str, int]]) -> None:
    events = log(rows)
    split = make_split(events, "time")
    parted = assign_parts(events, split)
    targets = set(target_positions(sequences_of(parted), TEST).tolist())
    users, times = parted["user_id"].to_list(), parted["timestamp"].dt.epoch("us").to_list()
    assert split.test_cut is not None
    expected = {
        row for row in range(len(users)) if times[row] > split.test_cut and row > 0 and users[row - 1] == users[row]
    }
    assert targets == expected


def test_a_tie_at_the_cut_trains_as_a_whole() -> None:
    events = log([("a", 0), ("a", 1)] + [("b", 2)] * 7 + [("c", 3), ("c", 4), ("c", 5)])
    split = make_split(events, "time", validation_quantile=0.5, test_quantile=0.84)
    assert split.validation_cut == 2
    assert parts_of(events, split) == [TRAIN] * 9 + [VALIDATION, TEST, TEST]


def test_a_log_that_ends_in_a_tie_still_has_a_test_part() -> None:
    events = log([("a", 0), ("a", 1), ("a", 2), ("a", 2), ("a", 2), ("a", 2)])
    assert parts_of(events, make_split(events, "time")) == [TRAIN, VALIDATION, TEST, TEST, TEST, TEST]


def test_two_distinct_times_leave_no_validation_events_and_say_so() -> None:
    events = log([("a", 0), ("a", 0), ("a", 5)])
    with pytest.warns(UserWarning, match="too few distinct times"):
        split = make_split(events, "time")
    assert parts_of(events, split) == [TRAIN, TRAIN, TEST]


def test_leave_one_out_holds_out_the_last_two_events_of_each_user() -> None:
    events = log([("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 9), ("b", 9), ("b", 9)])
    with pytest.warns(UserWarning, match="leaks the future"):
        split = make_split(events, "leave_one_out")
    assert parts_of(events, split) == [TRAIN, TRAIN, VALIDATION, TEST, TRAIN, VALIDATION, TEST]


def test_users_under_three_events_only_train_in_leave_one_out() -> None:
    events = log([("a", 0), ("b", 1), ("b", 2), ("c", 3), ("c", 4), ("c", 5)])
    assert parts_of(events, Split("leave_one_out")) == [TRAIN, TRAIN, TRAIN, TRAIN, VALIDATION, TEST]


def test_leave_one_out_needs_no_times() -> None:
    events = log([("a", None), ("a", None), ("a", None)])
    assert parts_of(events, Split("leave_one_out")) == [TRAIN, VALIDATION, TEST]


def test_none_trains_on_every_event_without_a_warning() -> None:
    events = log([("a", 0), ("a", 1), ("a", 2)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = make_split(events, "none")
    assert parts_of(events, split) == [TRAIN] * 3


@pytest.mark.parametrize("rows", [[("a", None), ("a", None)], [("a", 0), ("a", None)]])
def test_a_log_without_times_cannot_be_split_by_time(rows: list[tuple[str, int | None]]) -> None:
    with pytest.raises(ValueError, match="--split leave_one_out or --split none"):
        make_split(log(rows), "time")
    with pytest.raises(ValueError, match="leave_one_out"):
        assign_parts(log(rows), Split("time", 0, 1))


def test_a_log_at_one_single_time_cannot_be_split_by_time() -> None:
    with pytest.raises(ValueError, match="one single time"):
        make_split(log([("a", 3), ("a", 3)]), "time")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "random"}, "random"),
        ({"how": "time"}, "make_split"),
        ({"how": "time", "validation_cut": 5, "test_cut": 4}, r"\(5, 4\)"),
        ({"how": "none", "test_cut": 4}, "only time has cuts"),
        ({"how": "none", "validation_quantile": 0.95}, "0.95"),
        ({"how": "none", "test_quantile": 1.0}, "1.0"),
    ],
)
def test_an_impossible_split_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Split(**arguments)  # type: ignore[arg-type]


def test_a_split_survives_json_and_cuts_another_log_at_the_same_times() -> None:
    events = log([("a", time * DAY) for time in range(20)])
    split = make_split(events, "time")
    restored = Split.from_dict(json.loads(json.dumps(split.to_dict())))
    assert restored == split
    assert split.validation_cut is not None
    other = log([("z", split.validation_cut), ("z", split.validation_cut + 1)])
    assert parts_of(other, restored) == [TRAIN, VALIDATION]


def test_a_split_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="another version"):
        Split.from_dict({**Split("none").to_dict(), "fold": 3})


def test_parts_keep_rows_and_order() -> None:
    events = log([("b", 1), ("a", 2), ("a", 1), ("b", 0)])
    parted = assign_parts(events, make_split(events, "time"))
    assert parted.drop("part").equals(events)
    assert parted.schema["part"] == pl.Int8
    assert np.isin(parted["part"].to_numpy(), [TRAIN, VALIDATION, TEST]).all()
