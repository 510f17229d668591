"""The next behaviors of every user of a log, as a folder of Parquet files.

A run writes a file for each so many users, whole or not at all, and a record of what it is. Run again after an
interruption, it goes on behind the files that are there. Answers are written as they come: what a run holds in memory
does not grow with their number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from next_behavior.data.batches import number_new_items
from next_behavior.data.files import only_writer, whole_file
from next_behavior.data.sequences import Sequences, encode_events
from next_behavior.model.special_ids import FIRST_ACTION, FIRST_NEW, NO_GAP, PAD
from next_behavior.serving.batch_scoring import BatchScorer, Wanted
from next_behavior.serving.predictor import Predictor

# Readers of Parquet folders pass over names with an underscore.
RECORD = "_score.json"
USERS_IN_FILE = 20_000


@dataclass(frozen=True)
class Options:
    """What every user is asked, in the user's own names; as the pipeline's options."""

    top_k: int = 10
    of: str = "pair"
    action: str | None = None
    exclude_seen: bool = False
    allowed_items: list[str] | None = None


@dataclass(frozen=True)
class Log:
    """Events in token ids, and what the user calls items and codes: names (V + unknown items,), None for specials."""

    sequences: Sequences
    names: np.ndarray


@dataclass(frozen=True)
class Windows:
    """The newest events of some users, in token ids.

    Attributes:
        users: (B,) their rows in the sequences.
        items, actions, time_gaps, mask: (B, T) int64, padded on the left; codes: (B, T), items with unknown ones apart.
        seen: (rows, ids) of known items before the windows, (n,) each.
    """

    users: np.ndarray
    items: np.ndarray
    codes: np.ndarray
    actions: np.ndarray
    time_gaps: np.ndarray
    mask: np.ndarray
    seen: tuple[np.ndarray, np.ndarray]


def score_log(
    predictor: Predictor,
    events: pl.DataFrame,
    output: Path,
    options: Options,
    progress: Callable[[Iterable[int], int, str], Iterable[int]],
    users_in_file: int = USERS_IN_FILE,
) -> int:
    """Scores every user of a cleaned log.

    Args:
        events: `EventLog.events`.
        output: the folder, new or of the same run.
        progress: wraps steps, their number and what they are (`tqdm`).

    Returns:
        How many files were there already.

    Raises:
        ValueError: the folder is of another run, or an option is senseless.
    """
    log = log_of(predictor, events)
    sequences = log.sequences
    wanted = wanted_of(predictor, options)
    record = {
        "revision": predictor.info.revision,
        "options": asdict(options),
        "log": sequences.digest(),
        "users": sequences.num_users,
        "users_in_file": users_in_file,
    }
    with only_writer(output):
        check_record(output / RECORD, record)
        begins = range(0, sequences.num_users, users_in_file)
        paths = [output / f"part-{number:05d}.parquet" for number in range(len(begins))]
        missing = [number for number, path in enumerate(paths) if not path.is_file()]
        if missing:
            lists = range(predictor.constants.vocab_size)
            scorer = BatchScorer(predictor, lambda items: progress(items, len(lists), "reading the memory"))
            batches = [
                (number, users)
                for number in missing
                for users in users_by_length(sequences, begins[number], users_in_file, scorer.rows_at_once(wanted))
            ]
            done: list[pl.DataFrame] = []
            for step in progress(range(len(batches)), len(batches), "scoring"):
                number, users = batches[step]
                done.append(scored(scorer, log, windows_of(sequences, users, predictor), wanted))
                if step + 1 == len(batches) or batches[step + 1][0] != number:
                    with whole_file(paths[number]) as unfinished:
                        in_order_of_users(done).write_parquet(unfinished)
                    done = []
    return len(paths) - len(missing)


def score_users(scorer: BatchScorer, events: pl.DataFrame, options: Options) -> pl.DataFrame:
    """The rows of `score_log`, of whole users that are in memory."""
    log, wanted = log_of(scorer.predictor, events), wanted_of(scorer.predictor, options)
    batches = users_by_length(log.sequences, 0, log.sequences.num_users, scorer.rows_at_once(wanted))
    answers = [scored(scorer, log, windows_of(log.sequences, users, scorer.predictor), wanted) for users in batches]
    return in_order_of_users(answers)


def in_order_of_users(answers: list[pl.DataFrame]) -> pl.DataFrame:
    """Tables of `scored` as one, without the column that orders them."""
    return pl.concat(answers).sort("user_row", maintain_order=True).drop("user_row")


def wanted_of(predictor: Predictor, options: Options) -> Wanted:
    """The question in ids.

    Raises:
        ValueError: an option is senseless.
    """
    asked = predictor.ask([], **asdict(options))
    return Wanted(asked.top_k, asked.of, asked.action, options.exclude_seen, asked.allowed)


def check_record(path: Path, record: dict[str, Any]) -> None:
    """Writes what the run is, or sees that it is the one that is there."""
    if not path.is_file():
        if any(path.parent.glob("*.parquet")):
            raise ValueError(f"got --output {path.parent}, which holds other Parquet files; expected a new folder.")
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps(record, indent=1))
        return
    before = json.loads(path.read_text())
    differs = sorted(name for name in record if before.get(name) != record[name])
    if differs:
        raise ValueError(
            f"got --output {path.parent}, which holds the answers of another run ({', '.join(differs)} differ); "
            "expected a new folder, or the same model, log and options to go on with it."
        )


def log_of(predictor: Predictor, events: pl.DataFrame) -> Log:
    """The events in token ids, and the names behind them."""
    constants, items = predictor.constants, predictor.item_vocabulary()
    dataset = encode_events(
        events,
        item_vocabulary=items,
        first_item_id=predictor.first_item_id,
        action_vocabulary=constants.actions,
        time_edges=constants.time_edges,
    )
    sequences = Sequences.from_dataset(dataset, vocab_size=constants.vocab_size, first_item_id=predictor.first_item_id)
    named = events.select(pl.col("item_id").drop_nulls().unique())
    unknown = named.join(pl.DataFrame({"item_id": pl.Series(items, dtype=pl.String)}), on="item_id", how="anti")
    names = [*[None] * predictor.first_item_id, *items, *unknown["item_id"].sort().to_list()]
    return Log(sequences, np.array(names, object))


def users_by_length(sequences: Sequences, begin: int, count: int, at_once: int) -> Iterator[np.ndarray]:
    """Users begin ... begin + count in batches of similar lengths."""
    users = np.arange(begin, min(begin + count, sequences.num_users))
    lengths = np.diff(sequences.offsets)[users]
    ordered = users[np.argsort(lengths, kind="stable")]
    for start in range(0, len(ordered), at_once):
        yield ordered[start : start + at_once]


def windows_of(sequences: Sequences, users: np.ndarray, predictor: Predictor) -> Windows:
    """What is read of users: their newest events."""
    longest = predictor.constants.max_events
    begins, ends = sequences.offsets[users], sequences.offsets[users + 1]
    starts = np.maximum(begins, ends - longest)
    width = max(1, int((ends - starts).max()))
    place = ends[:, None] - width + np.arange(width)  # (B, T)
    mask = place >= starts[:, None]
    place = np.where(mask, place, 0)
    codes = np.where(mask, sequences.items[place], PAD).astype(np.int64)
    items = codes.copy()
    actions = np.where(mask, sequences.actions[place], PAD).astype(np.int64)
    time_gaps = np.where(mask, sequences.time_gaps[place], PAD).astype(np.int64)
    if not predictor.constants.has_time:
        time_gaps[mask] = NO_GAP
    for row in np.flatnonzero((items >= sequences.vocab_size).any(axis=1)):
        items[row] = number_new_items(items[row], items[row] >= sequences.vocab_size, sequences.num_new_items)
    long = np.flatnonzero(starts > begins)
    rows, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for row in long:
        older = sequences.items[begins[row] : starts[row]]
        known = np.unique(older[(older >= sequences.first_item_id) & (older < sequences.vocab_size)])
        rows.append(np.full(len(known), row))
        ids.append(known.astype(np.int64))
    seen = (np.concatenate(rows), np.concatenate(ids))
    return Windows(users, items, codes, actions, time_gaps, mask.astype(np.int64), seen)


def scored(scorer: BatchScorer, log: Log, windows: Windows, wanted: Wanted) -> pl.DataFrame:
    """The answers as user_row, user_id, rank, action, item_id and probability."""
    found = scorer.best(windows.items, windows.actions, windows.time_gaps, windows.mask, wanted, windows.seen)
    users, codes = windows.users[found.rows], found.items.copy()
    for place in np.flatnonzero((codes >= FIRST_NEW) & (codes < log.sequences.first_item_id)).tolist():
        row = found.rows[place]
        codes[place] = windows.codes[row, np.argmax(windows.items[row] == codes[place])]
    first_of_row = np.searchsorted(found.rows, found.rows)
    actions = np.array([None, *scorer.constants.actions], object)
    columns = {
        "user_row": users,
        "user_id": [log.sequences.user_ids[user] for user in users.tolist()],
        "rank": (np.arange(len(found.rows)) - first_of_row + 1).astype(np.int32),
        "action": actions[np.maximum(0, found.actions - FIRST_ACTION + 1)].tolist(),
        "item_id": log.names[codes].tolist(),
        "probability": found.probabilities,
    }
    return pl.DataFrame(columns, schema_overrides={"action": pl.String, "item_id": pl.String})
