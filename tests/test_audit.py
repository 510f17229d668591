"""The audit before an evaluation: each kind of leak is planted in a small log and stops it; a clean one passes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import reset_accelerate
from tiny import Event, sequences_of, write_events

from next_behavior.commands.train import main as train
from next_behavior.data.sequences import TEST, TRAIN, VALIDATION, Sequences
from next_behavior.data.splits import Split
from next_behavior.evaluation.audit import audit_log, audit_model, parts_of
from next_behavior.evaluation.audit_counts import TrainingRecord, training_record
from next_behavior.evaluation.evaluator import evaluate_model
from next_behavior.evaluation.leaks import Leak
from next_behavior.evaluation.tables import format_table
from next_behavior.model.configuration_behavior import BehaviorConfig
from next_behavior.model.modeling_behavior import BertForNextBehavior
from next_behavior.model.special_ids import FIRST_NEW
from next_behavior.training.memory import fill_memory

FIRST_ITEM, VOCAB = 6, 12
A, B, C, D, E, F = range(FIRST_ITEM, VOCAB)
ITEMS = list("abcdef")
VIEW, BUY = 3, 4
ACTIONS = ["view", "buy"]
SECOND = 1_000_000
log = partial(sequences_of, vocab_size=VOCAB, first_item_id=FIRST_ITEM)

USERS: list[list[Event]] = [
    [(A, VIEW, TRAIN), (B, VIEW, TRAIN), (C, BUY, VALIDATION), (D, VIEW, TEST), (A, VIEW, TEST)],
    [(B, VIEW, TRAIN), (D, BUY, TRAIN), (B, VIEW, VALIDATION), (E, VIEW, TEST)],
    [(C, VIEW, TRAIN), (E, VIEW, TRAIN), (A, VIEW, VALIDATION), (B, BUY, TEST)],
]
TIMES = [SECOND * second for second in (1, 2, 11, 21, 22, 3, 4, 12, 23, 5, 6, 13, 24)]
BY_TIME, LEAVE_ONE_OUT = Split("time", 10 * SECOND, 20 * SECOND), Split("leave_one_out")
CLEAN = log(USERS, times=TIMES)


def record(counts: Sequence[int | None] = (1, 2, 1, 1, 1, 0), **changes: Any) -> TrainingRecord:
    """What training on `CLEAN` leaves; the item f was added later."""
    fields: dict[str, Any] = {"split": BY_TIME, "items": ITEMS, "counts": list(counts), "events": 13}
    return TrainingRecord(**fields | changes)


def trained_model(sequences: Sequences = CLEAN, part: int = TRAIN) -> BertForNextBehavior:
    """An untrained model whose memory has counted the events up to a part."""
    torch.manual_seed(0)
    config = BehaviorConfig(
        vocab_size=VOCAB, num_new_items=FIRST_ITEM - FIRST_NEW, num_actions=5, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=24, max_position_embeddings=40, memory_distance=8,
    )  # fmt: skip
    model = BertForNextBehavior(config).eval()
    for one in range(part + 1):
        fill_memory(model, sequences, one)
    return model


def audited(
    sequences: Sequences = CLEAN,
    split: Split | None = BY_TIME,
    model: BertForNextBehavior | None = None,
    trained: TrainingRecord | None = None,
) -> dict[str, list[str]]:
    audit = audit_model(model, sequences, TEST, split, record() if trained is None else trained, ACTIONS)
    return audit.to_dict()


def with_parts(changes: dict[int, int]) -> Sequences:
    parts = CLEAN.parts.copy()
    parts[list(changes)] = list(changes.values())
    return replace(CLEAN, parts=parts)


def test_a_clean_run_passes_and_says_what_was_looked_at() -> None:
    audit = audited(model=trained_model())
    assert audit["undecided"] == ["1 items have no counted event: they were added after the training"]
    text = "; ".join(audit["checked"])
    for what in (
        *("no row is in two parts", "trained with this split", "vocabulary.tsv counts the training events"),
        *("the memory counts no tested event", "all test events are later than 1970-01-01 00:00:20"),
    ):
        assert what in text


def test_the_result_and_the_tables_say_that_the_audit_passed() -> None:
    result = evaluate_model(
        trained_model(), CLEAN, TEST, 10, split=BY_TIME, actions=ACTIONS, record=record(), progress=False
    )
    assert set(result["audit"]) == {"checked", "undecided"}
    [line] = [line for line in format_table(result).splitlines() if line.startswith("Leak audit")]
    assert line.startswith("Leak audit passed: every user")
    assert "Not decidable: 1 items have no counted event" in line
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_leak_stops_the_evaluation() -> None:
    with pytest.raises(Leak, match="memory counts 4 tested events"):
        evaluate_model(trained_model(part=TEST), CLEAN, TEST, 10, split=BY_TIME, actions=ACTIONS, progress=False)


# The split


@pytest.mark.parametrize("time", [20 * SECOND, 19 * SECOND])
def test_a_test_event_at_or_before_the_cut_is_named(time: int) -> None:
    times = CLEAN.timestamps.copy()
    times[8] = time
    with pytest.raises(Leak, match=r"1 test events at or before the cut 1970-01-01 00:00:20 UTC \(user '1', item 'e', "
                                   r"action 'view'.*let assign_parts split"):  # fmt: skip
        audited(replace(CLEAN, timestamps=times))


def test_a_training_event_after_the_cut_is_named() -> None:
    with pytest.raises(Leak, match=r"1 training events after their cut .*user '1', item 'b'"):
        audited(with_parts({7: TRAIN}))


def test_a_training_event_after_a_tested_one_of_its_user_is_named() -> None:
    with pytest.raises(Leak, match="1 events that train, or validate, after a tested event of their user"):
        audited(with_parts({4: TRAIN}), split=None)


def test_an_event_at_the_very_time_of_the_cut_is_before_it_and_counted() -> None:
    times = CLEAN.timestamps.copy()
    times[[2, 7]] = 20 * SECOND
    assert "(2 events at the very time of the test cut count as before it)" in str(
        audited(replace(CLEAN, timestamps=times))
    )


def duplicated(unit: int) -> Sequences:
    """Leave-one-out where the last event of one user is the same row as the one before."""
    users = [[(A, VIEW, TRAIN), (B, VIEW, VALIDATION), (B, VIEW, TEST)], [(C, VIEW, TRAIN)] * 2]
    return log(users, times=[unit * time for time in (1, 2, 2, 3, 3)])


def test_a_row_among_the_tested_and_the_earlier_ones_is_named_with_a_remedy() -> None:
    with pytest.raises(Leak, match=r"1 tested rows .*user '0', item 'b', action 'view', 1970-01-01 00:00:02 UTC.*"
                                   "--duplicates drop"):  # fmt: skip
        audit_log(duplicated(SECOND), TEST, LEAVE_ONE_OUT, ITEMS, ACTIONS)


def test_the_same_row_twice_on_one_day_may_be_two_events() -> None:
    audit = audit_log(duplicated(86_400 * SECOND), TEST, LEAVE_ONE_OUT, ITEMS, ACTIONS)
    assert "too coarse to say" in str(audit.undecided)
    audit = audit_log(log([[(A, VIEW, TRAIN), (A, VIEW, TEST)]]), TEST, LEAVE_ONE_OUT)
    assert audit.undecided == ["events without a time: whether a row is in two parts"]


def test_leave_one_out_says_what_it_cannot_take_out() -> None:
    late = log([[(A, VIEW, TRAIN), (B, VIEW, TEST)], [(C, VIEW, TRAIN)]], times=[1, 2, 3])
    assert "100 % of the tested events are earlier than some training event" in str(
        audit_log(late, TEST, LEAVE_ONE_OUT).undecided
    )


@pytest.mark.filterwarnings("ignore:leave_one_out leaks the future")
def test_a_training_whose_evaluation_would_stop_does_not_begin(tmp_path: Path) -> None:
    rows = [
        (f"u{user}", f"i{step}", "view", 1_700_000_000 + 60 * step + user) for user in range(3) for step in range(4)
    ]
    events = write_events(tmp_path / "events.csv", [*rows, rows[3]])
    reset_accelerate()
    with pytest.raises(Leak, match="--duplicates drop"):
        train(["--events", str(events), "--output_dir", str(tmp_path / "out"), "--split", "leave_one_out"])
    assert not (tmp_path / "out" / "config.json").exists()


# What the model knows


def test_a_model_trained_with_another_split_knows_tested_events() -> None:
    with pytest.raises(Leak, match=r"1 tested events that the model knows: it was trained on 0 of them and fitted on 1 "
                                   r"\(user '0', item 'd'.*leave --split out"):  # fmt: skip
        audited(trained=record(split=LEAVE_ONE_OUT))
    later = Split("time", 1 * SECOND, 2 * SECOND)
    assert "no tested event was trained on" in str(audited(trained=record(split=later), model=None))


def test_parts_of_a_split_are_those_of_the_log() -> None:
    assert parts_of(CLEAN, BY_TIME).tolist() == CLEAN.parts.tolist()
    assert parts_of(CLEAN, LEAVE_ONE_OUT).tolist() == [0, 0, 0, 1, 2, 0, 0, 1, 2, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        ((2, 2, 1, 1, 1, 0), None),  # a validation event of a
        (
            (3, 2, 1, 1, 1, 0),
            r"counts 1 tested events of 1 items \(item 'a': counted 3 times, 2 before the test, 1 in it",
        ),
        ((1, 2, 1, 2, 2, 0), r"counts 2 tested events of 2 items \(item 'd'.*; item 'e'"),
    ],
)
def test_a_vocabulary_that_counts_tested_events_is_named(counts: tuple[int, ...], what: str | None) -> None:
    if what is None:
        assert "vocabulary.tsv counts no tested event" in audited(trained=record(counts))["checked"]
        return
    with pytest.raises(Leak, match=what):
        audited(trained=record(counts))


def test_a_vocabulary_item_of_tested_events_alone_is_named() -> None:
    users = [*USERS[:2], [*USERS[2], (F, VIEW, TEST)]]
    with pytest.raises(Leak, match="item 'f': counted 1 times, 0 before the test, 1 in it"):
        audited(log(users, times=[*TIMES, 25 * SECOND]), trained=record((1, 2, 1, 1, 1, 1)))


def test_a_model_of_the_whole_log_is_refused() -> None:
    whole = np.bincount(CLEAN.items, minlength=VOCAB)[FIRST_ITEM:].tolist()
    with pytest.raises(Leak, match="train with this --split, or test it on later events"):
        audited(trained=record(whole, split=Split("none")))
    before = np.bincount(CLEAN.items[CLEAN.parts < TEST], minlength=VOCAB)[FIRST_ITEM:].tolist()
    assert "only counts show" in str(audited(trained=record(before, split=Split("none")))["undecided"])


def test_an_action_of_tested_events_alone_is_named() -> None:
    users = [[(item, VIEW if part < TEST else action, part) for item, action, part in user] for user in USERS]
    with pytest.raises(Leak, match=r"actions in the vocabulary that only tested events have .*action 'buy'"):
        audited(log(users, times=TIMES))


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": (3, 2, 1, 1, 1, 9)},  # of f the log holds no event
        {"counts": (3, 2, 1, 1, 1, 0), "events": 14},  # one event is gone
    ],
)
def test_counts_of_another_log_decide_nothing_and_are_warned_of(changes: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="Evaluate on the log that it was trained on"):
        audit = audited(trained=record(**changes))
    assert "vocabulary.tsv counts more events" in str(audit["undecided"])
    assert "vocabulary.tsv counts" not in str(audit["checked"])


def test_a_model_that_goes_on_from_another_may_count_more() -> None:
    audit = audited(trained=record((3, 2, 1, 1, 1, 0), continues=True), model=trained_model(part=TEST))
    assert "the model goes on from another one" in str(audit["undecided"])


def test_a_log_that_has_grown_before_the_cut_is_noticed() -> None:
    audit = audited(trained=record((1, 1, 1, 1, 1, 0)))
    assert "counts fewer training events of 1 items than this log holds: has the log changed since" in str(audit)


def test_a_memory_that_was_updated_with_tested_events_is_refused() -> None:
    model = trained_model()
    model.update_memory(torch.tensor([[B, D, B, E]]), pairs="last")
    assert "the memory counts no tested event" not in str(audited(model=trained_model(part=VALIDATION))["undecided"])
    with pytest.raises(
        Leak, match=r"whose memory counts 1 tested events of 1 items .*item 'e': counted 2 times, 1 before"
    ):
        audited(model=model)


def test_a_pair_that_only_tested_events_explain_is_named() -> None:
    model = trained_model()
    memory = model.associate_path
    memory.pair_keys = torch.cat([memory.pair_keys, torch.tensor([(D << 32) + E])]).sort().values
    memory.pair_counts = torch.ones_like(memory.pair_keys)
    with pytest.raises(Leak, match=r"1 pairs of items that only tested events explain .item 'd' before item 'e'"):
        audited(model=model)


def test_recent_popularity_of_an_item_of_tested_events_alone_is_named() -> None:
    users = [*USERS[:2], [*USERS[2], (F, VIEW, TEST)]]
    sequences, model = log(users, times=[*TIMES, 25 * SECOND]), trained_model()
    memory = model.associate_path
    memory.recent_counts = torch.zeros(VOCAB, dtype=torch.long)
    memory.recent_counts[F] = 7
    with pytest.raises(Leak, match=r"recent popularity counts items that only tested events name .item 'f'"):
        audited(sequences, model=model)


def test_a_message_names_three_rows_and_how_many_more() -> None:
    times = CLEAN.timestamps.copy()
    times[CLEAN.parts == TEST] = 15 * SECOND
    with pytest.raises(Leak, match=r"got 4 test events .*; and 1 more\)"):
        audited(replace(CLEAN, timestamps=times))


def test_the_record_of_a_training_is_read_from_its_folder(tmp_path: Path) -> None:
    assert training_record(tmp_path) == TrainingRecord()
    (tmp_path / "split.json").write_text(json.dumps(BY_TIME.to_dict()))
    (tmp_path / "vocabulary.tsv").write_text('id\titem\tcount\ttitle\n6\ta"\t3\tx\n7\tb\\tc\t\t\n')
    (tmp_path / "cleaning_report.json").write_text(json.dumps({"events": 13}))
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"base_model": None, "continue_from": "out/old"}}))
    assert training_record(tmp_path) == TrainingRecord(BY_TIME, ['a"', "b\tc"], [3, None], 13, continues=True)
