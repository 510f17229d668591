"""A log prepared in pieces: the files are what training makes of the log in memory, however it was divided."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_behavior.commands import prepare as command
from next_behavior.data import csv_files, json_lines, log_files, prepared_folder
from next_behavior.data.events import EventLog, read_events
from next_behavior.data.prepared_folder import REJECTS, REPORT, SEQUENCES, TOKENIZER, PreparedFolder, ShardWriter
from next_behavior.data.read_options import ReadOptions
from next_behavior.data.sequences import encode_events, save_unknown, tokenize_log
from next_behavior.data.splits import assign_parts, make_split
from next_behavior.data.time_survey import TimeSurvey
from next_behavior.data.times import AskedTimes, ParsedTimes
from next_behavior.preparation import one_machine, ordered_times
from next_behavior.preparation.ordered_times import CountedTimes, histogram_of, latest_before
from next_behavior.preparation.prepare import PrepareSettings, prepare
from next_behavior.preparation.spark_source import start_session
from next_behavior.training.prepared_log import default_length, hold_out_last_events
from next_behavior.training.vocabulary import build_tokenizer

USERS = ["7", "007", "ann", "Ann", "émile", "e\u0301mile", 'q"uote', "a,b", "🛒", "-1", *(f"u{n}" for n in range(30))]
START = 1_700_000_000
ACTIONS = ["view", "view", "view", "cart", "buy"]


def made_up_rows(seed: int = 0, events: int = 600) -> list[dict[str, str]]:
    """Rows with ties, copies, events without an item, times and users that are missing or no times at all."""
    draw = random.Random(seed)
    rows = []
    for _ in range(events):
        time = str(START + draw.randrange(300) * 600)
        rows.append(
            {
                "user_id": draw.choice(USERS) if draw.random() < 0.99 else "",
                "item_id": f"i{int(draw.paretovariate(0.8)) % 60}" if draw.random() < 0.9 else "",
                "action": draw.choice(ACTIONS) if draw.random() < 0.995 else "",
                "timestamp": time if draw.random() < 0.98 else draw.choice(["", "soon", "-5", "99999999999999"]),
                "place": str(draw.randrange(12)),
            }
        )
    return rows + rows[:20]


def write_csv(rows: list[dict[str, str]], folder: Path) -> Path:
    path = folder / "log.csv"
    pl.DataFrame(rows).write_csv(path, quote_style="always")
    lines = path.read_text(encoding="utf-8").splitlines()
    for place in range(40, len(lines), 90):
        lines.insert(place, '"torn","row"')
    path.write_text("\n".join([*lines, "no fields"]) + "\n", encoding="utf-8")
    return path


def write_parquet(rows: list[dict[str, str]], folder: Path) -> Path:
    """Two files, whose times are whole numbers in one and have fractions in the other."""
    frame = pl.DataFrame(rows).with_columns(pl.col("timestamp").cast(pl.Float64, strict=False))
    (folder / "log").mkdir()
    frame.tail(300).with_columns(pl.col("timestamp") + 0.25).write_parquet(folder / "log" / "b.parquet")
    whole = frame.head(frame.height - 300).with_columns(pl.col("timestamp").cast(pl.Int64))
    whole.write_parquet(folder / "log" / "a.parquet", row_group_size=100)
    return folder / "log"


def write_json_lines(rows: list[dict[str, str]], folder: Path) -> Path:
    """ISO times, and lines that are no objects."""
    path = folder / "log.jsonl"
    lines = []
    for row in rows:
        time = row["timestamp"]
        iso = datetime.fromtimestamp(int(time), timezone.utc).isoformat() if time.startswith("17") else time
        lines.append(json.dumps({**row, "timestamp": iso}))
    path.write_text("\n".join([*lines[:100], "[1, 2]", *lines[100:], "{"]) + "\n", encoding="utf-8")
    return path


WRITERS = {"csv": write_csv, "parquet": write_parquet, "json lines": write_json_lines}
RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "within users": {"duplicates": "drop", "max_user_events": 20, "order_column": "place"},
    "minimum counts": {"min_item_events": 5, "min_user_events": 9},
}


@pytest.fixture(autouse=True)
def _in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_machine, "PIECE_ROWS", 150)
    monkeypatch.setattr(one_machine, "REJECT_ROWS", 200)
    monkeypatch.setattr(log_files, "BLOCK_ROWS", 70)
    monkeypatch.setattr(json_lines, "BLOCK_LINES", 60)
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(prepared_folder, "SHARD_EVENTS", 250)


def reading(**rules: Any) -> ReadOptions:
    return ReadOptions(max_reject_ratio=0.2, latest_time="2030-01-01", **rules)


def quiet(text: str) -> None:
    pass


def in_memory(log: EventLog, split: str, folder: Path) -> pl.DataFrame:
    """What training makes of a log: the tokenizer and the unknown items in `folder`, and the token ids."""
    events = assign_parts(log.events, make_split(log.events, split))
    if split == "none":
        events = hold_out_last_events(events, 0)
    known = events if split == "none" else events.filter(pl.col("part") == 0)
    length = default_length(known)
    tokenizer = build_tokenizer(known, num_new_items=max(64, length), max_length=length)
    tokenizer.save_pretrained(folder)
    save_unknown(events, tokenizer.item_vocabulary, folder)
    return pl.DataFrame(tokenize_log(events, tokenizer).data.table)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:leave_one_out leaks")
@pytest.mark.parametrize(
    ("kind", "rules", "split"),
    [
        ("csv", "none", "time"),
        ("csv", "within users", "leave_one_out"),
        ("csv", "minimum counts", "none"),
        ("parquet", "minimum counts", "time"),
        ("json lines", "within users", "none"),
    ],
)
def test_a_prepared_log_is_what_training_makes_of_the_log(kind: str, rules: str, split: str, tmp_path: Path) -> None:
    path, options = WRITERS[kind](made_up_rows(), tmp_path), reading(**RULES[rules])
    log = read_events(path, options)
    token_ids = in_memory(log, split, tmp_path / "expected")
    whole = prepare(path, tmp_path / "one", PrepareSettings(split=split, partitions=1), options, say=quiet)
    parts = prepare(path, tmp_path / "many", PrepareSettings(split=split, partitions=6), options, say=quiet)
    assert files_of(whole.path) == files_of(parts.path)
    assert pl.DataFrame(parts.dataset().data.table).equals(token_ids)
    assert len(list((parts.path / SEQUENCES).glob("*.arrow"))) == -(-parts.events // 250) or split != "none"
    expected = files_of(tmp_path / "expected")
    assert expected.pop("unknown_items.parquet") == (parts.path / SEQUENCES / "unknown_items.parquet").read_bytes()
    assert files_of(parts.path / TOKENIZER) == expected
    assert pl.read_parquet(parts.path / REJECTS).equals(log.rejects)
    assert json.loads((parts.path / REPORT).read_text()) == json.loads(json.dumps(log.report.to_dict(), default=str))
    assert parts.split == make_split(log.events, split)


def test_the_order_of_users_in_the_log_changes_nothing(tmp_path: Path) -> None:
    rows = [row for row in made_up_rows() if all(row[name] for name in ("user_id", "action"))]
    rows = [row for row in rows if row["timestamp"].startswith("17")]
    again = sorted(rows, key=lambda row: (len(row["user_id"]), row["user_id"]))
    folders = []
    for name, order in (("a", rows), ("b", again)):
        (tmp_path / name).mkdir()
        path = write_csv(order, tmp_path / name)
        folders.append(prepare(path, tmp_path / name / "out", PrepareSettings(partitions=4), reading(), say=quiet).path)
    for part in (SEQUENCES, TOKENIZER):
        assert files_of(folders[0] / part) == files_of(folders[1] / part)


def test_without_late_events_of_the_drawn_users_their_last_ones_are_held_out(tmp_path: Path) -> None:
    # One user does everything late, and is not drawn.
    rows = [(f"u{user}", f"i{place}", START + place) for user in range(9) for place in range(20)]
    rows += [("z", f"i{place}", START + 1000 + place) for place in range(20)]
    path = tmp_path / "log.parquet"
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(path)
    log = read_events(path)
    token_ids = in_memory(log, "none", tmp_path / "expected")
    held_out = token_ids.explode("part").filter(pl.col("part") == 1)
    assert "z" not in held_out["user_id"]
    assert len(held_out) > 0
    prepared = prepare(path, tmp_path / "out", PrepareSettings(split="none", partitions=3), say=quiet)
    assert pl.DataFrame(prepared.dataset().data.table).equals(token_ids)


def test_an_interrupted_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(made_up_rows(events=300), tmp_path)
    options = reading(min_item_events=3, min_user_events=4)
    settings = PrepareSettings(partitions=3)
    expected = files_of(prepare(path, tmp_path / "expected", settings, options, say=quiet).path)
    begun: dict[str, int] = {}

    def failing_at(name: str, place: int) -> Callable[..., object]:
        original = getattr(one_machine, name)

        def step(*arguments: object) -> object:
            begun[name] = begun.get(name, 0) + 1
            if begun[name] == place:
                raise KeyboardInterrupt
            return original(*arguments)

        return step

    steps = {"clean_partition": 2, "drop_rare": 5, "count_partition": 1, "encode_partition": 3}
    for name, place in steps.items():
        monkeypatch.setattr(one_machine, name, failing_at(name, place))
    for _ in steps:
        with pytest.raises(KeyboardInterrupt):
            prepare(path, tmp_path / "out", settings, options, say=quiet)
        assert not (tmp_path / "out").exists()
    assert files_of(prepare(path, tmp_path / "out", settings, options, say=quiet).path) == expected
    # No finished piece is made again.
    assert begun["drop_rare"] % 3 == 1
    assert {name: begun[name] for name in steps if name != "drop_rare"} == dict.fromkeys({*steps} - {"drop_rare"}, 4)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["expected", "log.csv", "out"]


def test_another_log_is_not_mixed_with_an_interrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(made_up_rows(seed=1), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(one_machine, "count_partition", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(path, tmp_path / "out", PrepareSettings(partitions=2), reading(), say=quiet)
    write_csv(made_up_rows(seed=2), tmp_path)
    prepared = prepare(path, tmp_path / "out", PrepareSettings(partitions=2), reading(), say=quiet)
    assert prepared.events == len(read_events(path, reading()).events)


def test_too_many_unusable_rows_stop_a_preparation_and_are_written(tmp_path: Path) -> None:
    path = write_csv(made_up_rows(), tmp_path)
    options = ReadOptions(max_reject_ratio=0.03, latest_time="2030-01-01")
    with pytest.raises(ValueError, match="that cannot be used") as one:
        read_events(path, options, rejects_path=tmp_path / "rejects.parquet")
    with pytest.raises(ValueError, match="that cannot be used") as other:
        prepare(path, tmp_path / "out", PrepareSettings(), options, say=quiet)
    assert str(other.value).replace("out/", "") == str(one.value)
    assert pl.read_parquet(tmp_path / "out" / REJECTS).equals(pl.read_parquet(tmp_path / "rejects.parquet"))
    with pytest.raises(ValueError, match="next-behavior prepare wrote to the end"):
        PreparedFolder.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("user_id,item_id\n", "a header and no rows"),
        ("user_id,item_id\nu,a\nv,b\n", "at most one per user"),
        ("user_id,item_id\nu,\nu,\n", "an empty item column"),
        ("user_id,item_id\nNA,a\nNA,b\n", "got 'NA' in the user column"),
        ("user_id,item_id,timestamp\nu,a,1700000000\nu,b,1700000000\n", "at one single time"),
        ("user_id,item_id,timestamp\nu,a,1700000000\nu,b,1700000000000\n", "mixed units"),
        ("user_id,item_id,timestamp\nu,a,20240130\nu,b,20240131\n", "look like dates"),
    ],
)
def test_a_log_that_training_refuses_is_refused_alike(rows: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(rows)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "log.csv", tmp_path / "out", say=quiet)


def test_the_command_says_how_to_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(made_up_rows(), tmp_path)
    command.main(["--events", str(path), "--output", str(tmp_path / "out"), "--max_reject_ratio", "0.2"])
    printed = capsys.readouterr().out
    assert f"next-behavior train --prepared {tmp_path / 'out'}" in printed
    prepared = PreparedFolder.open(tmp_path / "out")
    assert f"{prepared.events:,} events of" in printed
    # The moment of the preparation is not kept, so that another one writes the same files.
    assert prepared.options == ReadOptions(max_reject_ratio=0.2)


# -- the parts ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    bins=st.sampled_from([2, 7, 1 << 10]),
)
def test_places_of_times_are_those_of_the_sorted_times(times: list[int], cuts: list[int], bins: int) -> None:
    pieces = np.split(np.array(times), sorted(cut for cut in cuts if cut < len(times)))
    ordered = np.sort(times)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered_times, "BINS", bins)
        counted = CountedTimes(
            len(times),
            int(ordered[0]),
            int(ordered[-1]),
            lambda low, width, count: histogram_of(pieces, low, width, count),
            lambda time: latest_before(pieces, time),
        )
        places = {0, len(times) // 2, len(times) - 1}
        assert [counted.at(place) for place in places] == [ordered[place] for place in places]
        if ordered[0] < ordered[-1]:
            assert counted.before(int(ordered[-1])) == ordered[ordered < ordered[-1]][-1]


TIMES = st.one_of(
    st.none(), st.just(""), st.integers(0, 3 * 10**9).map(str), st.floats(0, 10**9).map(str), st.just("2024-05-17"),
    st.just("2024-05-17 08:30:00+02:00"), st.just("soon"), st.integers(10**12, 2 * 10**12).map(str),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(TIMES, min_size=1, max_size=30), cut=st.integers(0, 30), unit=st.sampled_from([None, "s", "iso"])
)
def test_times_surveyed_in_pieces_are_read_as_at_once(values: list[str | None], cut: int, unit: str | None) -> None:
    asked = AskedTimes("time", unit, datetime(2030, 1, 1, tzinfo=timezone.utc))
    column = pl.Series(values, dtype=pl.String)
    pieces = [piece for piece in (column[:cut], column[cut:]) if len(piece)]

    def outcome(parts: list[pl.Series]) -> object:
        survey = sum((TimeSurvey.of(ParsedTimes.of(part, asked), asked) for part in parts), TimeSurvey())
        try:
            decided = survey.decide(asked)
        except ValueError as error:
            return str(error)
        times, rules = (pl.concat(columns) for columns in zip(*(decided.read(part) for part in parts), strict=True))
        return decided, times.to_list(), rules.to_list()

    assert outcome(pieces) == outcome([column])


def test_a_user_with_more_events_than_a_shard_has_one_alone(tmp_path: Path) -> None:
    lengths = {"a": 3, "b": 400, "c": 2, "d": 248, "e": 1}
    frame = pl.DataFrame({"user_id": [user for user, length in lengths.items() for _ in range(length)]})
    frame = frame.with_columns(pl.lit("x").alias("item_id"), pl.lit("view").alias("action"))
    frame = frame.with_columns(pl.lit(None, pl.Datetime("us", "UTC")).alias("timestamp"))
    users = encode_events(frame, item_vocabulary=["x"], first_item_id=70, action_vocabulary=["view"], time_edges=[])
    writer = ShardWriter(tmp_path)
    for place in range(5):
        writer.add(users.data.table.slice(place, 1))
    writer.close()
    shards = [pl.DataFrame(pl.read_ipc_stream(path))["user_id"].to_list() for path in sorted(tmp_path.glob("*.arrow"))]
    assert shards == [["a"], ["b"], ["c", "d"], ["e"]]


def test_a_missing_pyspark_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[spark\]'"):
        start_session(None)
