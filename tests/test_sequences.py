"""Sequences and batches: a log gets the ids that the tokenizer gives, and windows in which every training event is a
target once."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_behavior.data.batches import (
    COLD,
    NO_ITEM,
    NOVEL,
    REPEAT,
    TrainingCollator,
    evaluation_batches,
    length_bucketed_batches,
    padding_share,
    target_positions,
    training_windows,
)
from next_behavior.data.sequences import TEST, Sequences, encode_events, save_dataset
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_GAP, FIRST_NEW, IGNORED, NONE, START, START_ACTION, UNK
from next_behavior.model.tokenization_behavior import BehaviorTokenizer
from next_behavior.training.vocabulary import assemble

KNOWN = ["p", "q", "r", "[PAD]"]
UNKNOWN = ["x", "y", "z", "[NEW_1]", "w"]
ACTIONS = ["view", "buy"]
EDGES = [10.0, 100.0, 1000.0]
NEW_SLOTS, WINDOW = 3, 4
CHANNELS = ("input_ids", "token_type_ids", "time_gap_ids", "attention_mask")

Log = list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def tokenizer() -> BehaviorTokenizer:
    return assemble(KNOWN, ACTIONS, EDGES, num_new_items=NEW_SLOTS, max_length=WINDOW)


def encode(users: Log, tokenizer: BehaviorTokenizer, parts: list[list[int]] | None = None) -> Sequences:
    """The users' histories as `Sequences`; `parts` defaults to all test events."""
    rows = [
        {
            "user_id": f"u{user:05d}",
            "item_id": event.get("item"),
            "action": event["action"],
            "timestamp": event.get("timestamp"),
            "part": TEST if parts is None else parts[user][place],
        }
        for user, history in enumerate(users)
        for place, event in enumerate(history)
    ]
    schema: dict[str, Any] = {
        "user_id": pl.String,
        "item_id": pl.String,
        "action": pl.String,
        "timestamp": pl.Datetime("us", "UTC"),
        "part": pl.Int8,
    }
    dataset = encode_events(
        pl.DataFrame(rows, schema=schema),
        item_vocabulary=tokenizer.item_vocabulary,
        first_item_id=tokenizer.first_item_id,
        action_vocabulary=tokenizer.action_vocabulary,
        time_edges=tokenizer.time_edges,
    )
    return Sequences.from_dataset(dataset, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)


def synthetic(lengths: np.ndarray, num_items: int, seed: int = 0) -> Sequences:
    """Users of these lengths with uniform known items, two actions, growing times; all events in training."""
    generator = np.random.default_rng(seed)
    total = int(lengths.sum())
    first = FIRST_NEW + NEW_SLOTS
    return Sequences(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=generator.integers(first, first + num_items, total).astype(np.int32),
        actions=generator.integers(FIRST_ACTION, FIRST_ACTION + 2, total).astype(np.int16),
        time_gaps=generator.integers(FIRST_GAP, FIRST_GAP + 4, total).astype(np.int16),
        timestamps=np.arange(total, dtype=np.int64),
        parts=np.zeros(total, dtype=np.int8),
        user_ids=[str(user) for user in range(len(lengths))],
        vocab_size=first + num_items,
        first_item_id=first,
    )


def item_counts(sequences: Sequences) -> np.ndarray:
    known = sequences.items[sequences.items < sequences.vocab_size]
    return np.bincount(known, minlength=sequences.vocab_size)


EPOCH = datetime(2024, 1, 1, tzinfo=timezone.utc)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """One to three users; known, unknown and no items; known and unknown actions; some events without a time."""
    event: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
        {"item": st.sampled_from([*KNOWN, *UNKNOWN, None]), "action": st.sampled_from([*ACTIONS, "wish"])}
    )
    users: Log = draw(st.lists(st.lists(event, min_size=1, max_size=9), min_size=1, max_size=3))
    for history in users:
        seconds = 0
        for entry in history:
            seconds += draw(st.sampled_from([0, 9, 10, 99, 1000, 5000]))
            if draw(st.booleans()):
                entry["timestamp"] = EPOCH + timedelta(seconds=seconds)
    return users


# -- the tokenizer's ids -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:a history has the action 'wish'")
@settings(max_examples=80, deadline=None)
@given(users=logs())
def test_every_evaluation_window_is_what_the_tokenizer_makes_of_the_history(
    tokenizer: BehaviorTokenizer, users: Log
) -> None:
    sequences = encode(users, tokenizer)
    targets = 0
    for batch in evaluation_batches(sequences, TEST, WINDOW, batch_size=3):
        for row in range(len(batch)):
            user, place = int(batch.user[row]), int(batch.position[row] - sequences.offsets[batch.user[row]])
            live = tokenizer(users[user][:place])
            for name in CHANNELS:
                window = getattr(batch, name)[row][batch.attention_mask[row] == 1]
                assert window.tolist() == live[name][0], name
            targets += 1
    assert targets == sum(len(history) - 1 for history in users)


@pytest.mark.filterwarnings("ignore:a history has the action 'wish'")
@settings(max_examples=80, deadline=None)
@given(users=logs())
def test_targets_are_the_ids_the_tokenizer_would_give_them(tokenizer: BehaviorTokenizer, users: Log) -> None:
    sequences = encode(users, tokenizer)
    for batch in evaluation_batches(sequences, TEST, WINDOW, batch_size=4):
        for row in range(len(batch)):
            user, place = int(batch.user[row]), int(batch.position[row] - sequences.offsets[batch.user[row]])
            history, event = users[user][:place], users[user][place]
            item, before = event["item"], {earlier["item"] for earlier in history}
            new_items = tokenizer.new_items(history)
            if item is None:
                expected, group = NONE, NO_ITEM
            elif item in KNOWN:
                expected, group = tokenizer.encode_item(item), REPEAT if item in before else NOVEL
            else:
                expected = FIRST_NEW + new_items.index(item) if item in new_items else -1
                group = REPEAT if item in before else COLD
            assert batch.target_item[row] == expected
            assert batch.group[row] == group
            action = event["action"]
            assert batch.target_action[row] == (tokenizer.encode_action(action) if action in ACTIONS else 1)
            seen = {tokenizer.encode_item(entry) for entry in before & set(KNOWN)}
            seen |= {FIRST_NEW + slot for slot in range(len(new_items))}
            assert set(batch.seen[row].tolist()) == seen


def test_a_worked_example_of_targets(tokenizer: BehaviorTokenizer) -> None:
    items = ["x", "p", "x", "y", "p", None, "q", "x", "z", "y"]
    users = [[{"item": item, "action": "view"} for item in items]]
    targets, groups = {}, {}
    for batch in evaluation_batches(encode(users, tokenizer), TEST, max_length=4, batch_size=100):
        targets = dict(zip(batch.position.tolist(), batch.target_item.tolist(), strict=True))
        groups = dict(zip(batch.position.tolist(), batch.group.tolist(), strict=True))
    p, q = tokenizer.encode_item("p"), tokenizer.encode_item("q")
    # x at 7: its last occurrence, at 2, lies before the window 3:7. y at 9 as well.
    assert targets == {1: p, 2: FIRST_NEW, 3: -1, 4: p, 5: NONE, 6: q, 7: -1, 8: -1, 9: -1}
    assert groups == {
        1: NOVEL, 2: REPEAT, 3: COLD, 4: REPEAT, 5: NO_ITEM, 6: NOVEL, 7: REPEAT, 8: COLD, 9: REPEAT,
    }  # fmt: skip


def test_one_evaluation_row_per_event_with_a_past_whatever_the_batch_size(tokenizer: BehaviorTokenizer) -> None:
    users = [[{"item": "p", "action": "view"}] * length for length in (1, 5, 2, 9)]
    parts = [[2], [0, 0, 1, 2, 2], [2, 2], [0] * 7 + [1, 2]]
    sequences = encode(users, tokenizer, parts)
    expected = np.flatnonzero(sequences.parts == TEST)
    expected = expected[~np.isin(expected, sequences.offsets)]
    for size in (1, 2, 100):
        found = np.concatenate([batch.position for batch in evaluation_batches(sequences, TEST, WINDOW, size)])
        assert sorted(found.tolist()) == expected.tolist()


def test_max_targets_draws_whole_users_and_the_same_ones_by_seed() -> None:
    sequences = synthetic(np.full(200, 6), 20)
    every = target_positions(sequences, 0)
    some = target_positions(sequences, 0, max_targets=100, seed=1)
    assert len(every) == 200 * 5
    assert len(some) == 100
    users = np.searchsorted(sequences.offsets, some, side="right") - 1
    assert set(np.bincount(users, minlength=200).tolist()) == {0, 5}
    assert np.array_equal(some, target_positions(sequences, 0, max_targets=100, seed=1))
    assert not np.array_equal(some, target_positions(sequences, 0, max_targets=100, seed=2))


def test_a_saved_dataset_is_memory_mapped_and_reads_the_same(tokenizer: BehaviorTokenizer, tmp_path: Path) -> None:
    users: Log = [[{"item": item, "action": "view"} for item in "pxq"], [{"item": None, "action": "buy"}]]
    rows = [{"user_id": str(user), "item_id": event["item"], "action": event["action"], "timestamp": None}
            for user, history in enumerate(users) for event in history]  # fmt: skip
    events = pl.DataFrame(rows).with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))
    made = encode_events(
        events, item_vocabulary=KNOWN, first_item_id=tokenizer.first_item_id, action_vocabulary=ACTIONS, time_edges=[]
    )
    for _ in range(2):  # the second time replaces the first
        saved = save_dataset(made, tmp_path / "prepared")
    files = [entry["filename"] for entry in saved.cache_files]
    assert len(files) == 1
    assert Path(files[0]).parent == tmp_path / "prepared"
    assert not made.cache_files
    assert [entry.name for entry in tmp_path.iterdir()] == ["prepared"]
    assert saved.to_list() == made.to_list()
    assert saved["user_id"][:] == ["0", "1"]
    assert saved[0]["input_ids"] == [7, len(tokenizer), 8]
    assert saved[0]["timestamps"] == [-1, -1, -1]
    sequences = Sequences.from_dataset(saved, vocab_size=len(tokenizer), first_item_id=tokenizer.first_item_id)
    assert not sequences.items.flags.writeable, "a copy instead of a view of the file"
    assert sequences.user_of_event().tolist() == [0, 0, 0, 1]


# -- training windows --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    max_length=st.integers(1, 12),
    training_share=st.floats(0, 1),
)
def test_every_training_event_after_the_first_is_a_target_exactly_once(
    lengths: list[int], max_length: int, training_share: float
) -> None:
    sequences = synthetic(np.array(lengths), 5)
    for begin, end in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True):
        sequences.parts[begin + int(training_share * (end - begin)) : end] = 1
    windows = training_windows(sequences, max_length)
    collate = TrainingCollator(sequences, windows, item_counts(sequences), hide_share=0.0, start_share=0.0)
    scored = np.zeros(len(sequences.items), dtype=int)
    for index in range(len(windows)):
        batch = collate(np.array([index]), np.random.default_rng(0))
        labels = batch["labels"][0]
        # With one event alone the window holds [START] and the target is the first event.
        first_target = windows.start[index] + (batch["input_ids"][0, 0] != START)
        places = first_target + np.flatnonzero(labels != IGNORED)
        assert np.array_equal(labels[labels != IGNORED], sequences.items[places])
        assert np.array_equal(batch["action_labels"][0] != IGNORED, labels != IGNORED)
        assert batch["attention_mask"].sum() <= max_length
        np.add.at(scored, places, 1)
    expected = (sequences.parts == 0).astype(int)
    for begin, end in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True):
        if (sequences.parts[begin:end] == 0).sum() > 1:
            expected[begin] = 0
    assert np.array_equal(scored, expected)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4), max_length=st.integers(2, 12))
def test_every_target_of_a_cut_user_has_at_least_half_a_window_of_context(lengths: list[int], max_length: int) -> None:
    sequences = synthetic(np.array(lengths), 5)
    windows = training_windows(sequences, max_length)
    for start, stop, first, begins in zip(
        windows.start, windows.stop, windows.first_target, windows.from_beginning, strict=True
    ):
        assert stop - start - 1 <= max_length
        assert begins == bool(np.isin(start, sequences.offsets))
        if not begins:
            assert first - start >= max_length // 2


def test_the_first_event_is_a_target_after_the_start_position() -> None:
    sequences = synthetic(np.array([5, 1, 5]), 30)
    windows = training_windows(sequences, max_length=5)
    collate = TrainingCollator(sequences, windows, item_counts(sequences), hide_share=0.0, start_share=1.0)
    batch = collate(np.arange(3), np.random.default_rng(0))
    for row, (begin, end) in enumerate(zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)):
        real = batch["attention_mask"][row] == 1
        assert batch["input_ids"][row][real].tolist() == [START, *sequences.items[begin : end - 1].tolist()]
        assert batch["token_type_ids"][row][real][0] == START_ACTION
        assert batch["labels"][row][real].tolist() == sequences.items[begin:end].tolist()
    without = TrainingCollator(sequences, windows, item_counts(sequences), hide_share=0.0, start_share=0.0)
    # A user of one event can only be learned from through [START].
    assert (without(np.arange(3), np.random.default_rng(0))["input_ids"] == START).sum(axis=1).tolist() == [0, 1, 0]


def test_only_the_chosen_users_are_cut_into_windows() -> None:
    sequences = synthetic(np.array([5, 9, 4, 7]), 8)
    windows = training_windows(sequences, 3, users=np.array([3, 1]))
    owners = np.searchsorted(sequences.offsets, windows.start, side="right") - 1
    assert set(owners.tolist()) == {1, 3}


def test_hidden_items_keep_their_name_at_first_and_point_back_later() -> None:
    sequences = synthetic(np.full(60, 14), 6)
    windows = training_windows(sequences, max_length=20)
    counts = np.ones_like(item_counts(sequences))
    collate = TrainingCollator(sequences, windows, counts, hide_share=0.4, start_share=0.0)
    names, pointers, untouched = 0, 0, 0
    for index in range(len(windows)):
        batch = collate(np.array([index]), np.random.default_rng(index))
        truth = sequences.items[windows.start[index] : windows.stop[index]].tolist()
        shown, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        token_of = dict(zip(truth[:-1], shown, strict=True))
        # Every occurrence of an item is hidden behind the same token, or none is.
        assert shown == [token_of[item] for item in truth[:-1]]
        hidden = [token for token in dict.fromkeys(shown) if FIRST_NEW <= token < sequences.first_item_id]
        assert hidden == list(range(FIRST_NEW, FIRST_NEW + len(hidden)))
        for place in range(1, len(truth)):
            item, label, token = truth[place], labels[place - 1], token_of.get(truth[place], truth[place])
            if token == UNK:  # more hidden items than slots: never pointed at
                assert label in (item, IGNORED)
            elif item in truth[:place]:
                assert label == token
                pointers += token != item
            else:
                assert label == item
                names += token != item
        untouched += shown == truth[:-1]
    assert names > 20
    assert pointers > 50
    assert 1 <= untouched < 20, "few windows are left as they are"


def test_rare_items_are_hidden_more_often_than_frequent_ones() -> None:
    sequences = synthetic(np.full(400, 10), 2)
    counts = np.array([0] * sequences.first_item_id + [1, 100])
    windows = training_windows(sequences, max_length=20)
    batch = TrainingCollator(sequences, windows, counts, hide_share=0.05)(np.arange(400), np.random.default_rng(3))
    truth = [(sequences.items == sequences.first_item_id + which).sum() for which in range(2)]
    shown = [(batch["input_ids"] == sequences.first_item_id + which).sum() for which in range(2)]
    rare, frequent = (1 - seen / there for seen, there in zip(shown, truth, strict=True))
    assert rare > 3 * frequent


def test_an_unknown_training_item_is_named_only_when_it_repeats(tokenizer: BehaviorTokenizer) -> None:
    users = [[{"item": item, "action": "view"} for item in ["p", "x", "x", "y", "x", None, "q"]]]
    sequences = encode(users, tokenizer, [[0] * 7])
    collate = TrainingCollator(
        sequences, training_windows(sequences, 10), item_counts(sequences), hide_share=0.0, start_share=0.0
    )
    batch = collate(np.array([0]), np.random.default_rng(0))
    p, q = tokenizer.encode_item("p"), tokenizer.encode_item("q")
    assert batch["input_ids"].tolist() == [[p, 4, 4, 5, 4, NONE]]
    assert batch["labels"].tolist() == [[IGNORED, 4, IGNORED, 4, NONE, q]]
    assert (batch["action_labels"] == tokenizer.encode_action("view")).all()
    assert (batch["time_labels"] == IGNORED).all()


def test_an_unknown_action_is_no_target_and_its_item_still_is(tokenizer: BehaviorTokenizer) -> None:
    users = [[{"item": item, "action": action} for item, action in zip("pqr", ("view", "wish", "buy"), strict=True)]]
    sequences = encode(users, tokenizer, [[0] * 3])
    collate = TrainingCollator(
        sequences, training_windows(sequences, 10), item_counts(sequences), hide_share=0.0, start_share=0.0
    )
    batch = collate(np.array([0]), np.random.default_rng(0))
    assert batch["action_labels"].tolist() == [[IGNORED, tokenizer.encode_action("buy")]]
    assert batch["labels"].tolist() == [[tokenizer.encode_item("q"), tokenizer.encode_item("r")]]


# -- batches -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200).map(np.array),
    tokens=st.integers(1, 300),
    seed=st.integers(0, 5),
)
def test_batches_hold_every_window_once_and_stay_within_the_budget(lengths: np.ndarray, tokens: int, seed: int) -> None:
    batches = length_bucketed_batches(lengths, tokens, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= tokens


def test_padding_stays_under_a_tenth_on_lengths_like_those_of_beauty() -> None:
    # Beauty: at least 5 events a user, 8.9 in the mean, a long tail.
    generator = np.random.default_rng(0)
    lengths = np.minimum(3 + generator.geometric(1 / 5.9, 22_000), 50) - 1
    batches = length_bucketed_batches(lengths, 1024, np.random.default_rng(1))
    assert padding_share(lengths, batches) < 0.1
    in_order = [np.arange(begin, begin + 128) for begin in range(0, 21_888, 128)]
    assert padding_share(lengths, in_order) > 0.5


def test_padding_share_of_a_worked_example() -> None:
    assert padding_share(np.array([2, 4, 3]), [np.array([0, 1]), np.array([2])]) == pytest.approx(2 / 11)


def test_the_same_seed_gives_the_same_batches_and_another_seed_others() -> None:
    sequences = synthetic(np.random.default_rng(0).integers(1, 30, 60), 10)
    windows = training_windows(sequences, 8)
    collate = TrainingCollator(sequences, windows, item_counts(sequences))

    def epoch(seed: int) -> list[dict[str, np.ndarray]]:
        order = length_bucketed_batches(collate.lengths(), 64, np.random.default_rng(seed))
        return [collate(batch, np.random.default_rng((seed, place))) for place, batch in enumerate(order)]

    first, again, other = epoch(1), epoch(1), epoch(2)
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(
        one["input_ids"].shape != two["input_ids"].shape or not np.array_equal(one["input_ids"], two["input_ids"])
        for one, two in zip(first, other, strict=False)
    )


def test_rows_are_padded_on_the_left_with_ignored_labels() -> None:
    sequences = synthetic(np.array([2, 6]), 10)
    collate = TrainingCollator(sequences, training_windows(sequences, 8), item_counts(sequences), start_share=0.0)
    batch = collate(np.array([0, 1]), np.random.default_rng(0))
    assert batch["attention_mask"].tolist() == [[0, 0, 0, 0, 1], [1] * 5]
    for name, filling in (("input_ids", 0), ("token_type_ids", 0), ("time_gap_ids", 0), ("labels", IGNORED)):
        assert (batch[name][0, :4] == filling).all()
        assert batch[name][0, 4] != filling
