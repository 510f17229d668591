"""Item rows from sequences: what stands together points the same way, whatever else the log holds."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_behavior.data.sequences import TEST, TRAIN, Sequences
from next_behavior.model.special_ids import NONE
from next_behavior.text.item2vec import item2vec_rows

ROOT = Path(__file__).resolve().parent.parent
FIRST, SIZE = 6, 14  # two [NEW_j] slots, eight items

needs_gensim = pytest.mark.skipif(importlib.util.find_spec("gensim") is None, reason="needs the extra `item2vec`")


def log_of(histories: list[list[int]], parts: list[list[int]] | None = None) -> Sequences:
    """A log whose only content is items and, unless all train, parts."""
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    part = np.array([p for user in parts for p in user] if parts else [TRAIN] * len(items), dtype=np.int8)
    return Sequences(
        offsets=np.cumsum([0, *(len(history) for history in histories)]),
        items=items,
        actions=np.full(len(items), 3, dtype=np.int16),
        time_gaps=np.ones(len(items), dtype=np.int16),
        timestamps=np.full(len(items), -1, dtype=np.int64),
        parts=part,
        user_ids=[str(user) for user in range(len(histories))],
        vocab_size=SIZE,
        first_item_id=FIRST,
    )


def two_groups(users: int = 60) -> list[list[int]]:
    """Half the users meet the items 6 to 9 only, the others 10 to 13."""
    rng = np.random.default_rng(0)
    return [rng.permutation([6, 7, 8, 9] if user % 2 else [10, 11, 12, 13]).tolist() for user in range(users)]


@needs_gensim
def test_items_of_the_same_histories_point_the_same_way() -> None:
    rows = item2vec_rows(log_of(two_groups()), 8, epochs=50)[FIRST:]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = unit @ unit.T
    within = np.concatenate([cosine[:4, :4][~np.eye(4, dtype=bool)], cosine[4:, 4:][~np.eye(4, dtype=bool)]])
    assert within.min() > cosine[:4, 4:].max()


@needs_gensim
def test_rows_have_the_item_tables_initial_spread() -> None:
    rows = item2vec_rows(log_of(two_groups()), 8)
    assert rows.shape == (SIZE, 8)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[FIRST:].std(), 0.02, rtol=1e-3)
    assert 0.01 < rows[:FIRST].std() < 0.03
    np.testing.assert_allclose(item2vec_rows(log_of(two_groups()), 8, std=0.1)[FIRST:].std(), 0.1, rtol=1e-3)


@needs_gensim
def test_one_seed_gives_one_answer_in_every_process_and_another_seed_another() -> None:
    rows = item2vec_rows(log_of(two_groups(8)), 4, seed=3)
    assert not np.allclose(rows, item2vec_rows(log_of(two_groups(8)), 4, seed=4))
    code = (
        "from tests.test_item2vec import *\n"
        "print(item2vec_rows(log_of(two_groups(8)), 4, seed=3).astype(float).ravel().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    values = [float(value) for value in done.stdout.strip().strip("[]").split(",")]
    np.testing.assert_array_equal(np.array(values, dtype=np.float32).reshape(rows.shape), rows)


@needs_gensim
def test_only_known_items_of_training_events_count_and_a_run_counts_once() -> None:
    plain = log_of([[6, 7, 8], [9, 10]])
    noisy = log_of(
        [[6, 6, NONE, 7, SIZE + 3, 7, 8, 11], [9, 9, 10, 10, 12]],
        [[TRAIN] * 7 + [TEST], [TRAIN] * 4 + [TEST]],
    )
    np.testing.assert_array_equal(item2vec_rows(plain, 4), item2vec_rows(noisy, 4))


@needs_gensim
@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(FIRST, SIZE + 2) | st.just(NONE), max_size=6), max_size=6))
def test_any_log_gives_finite_rows_or_says_that_it_has_no_neighbours(histories: list[list[int]]) -> None:
    known = [[item for item in history if item != NONE and item < SIZE] for history in histories]
    if all(len(set(history)) < 2 for history in known):
        with pytest.raises(ValueError, match="expected histories to learn from"):
            item2vec_rows(log_of(histories), 4, epochs=1)
    else:
        rows = item2vec_rows(log_of(histories), 4, epochs=1)
        assert rows.shape == (SIZE, 4)
        assert np.isfinite(rows).all()


def test_without_gensim_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"bert-for-next-behavior\[item2vec\]"):
        item2vec_rows(log_of([[6, 7]]), 4)
