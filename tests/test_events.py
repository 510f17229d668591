"""Facts about reading event logs: ids stay as written, no row disappears unseen, bad input gets a remedy."""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import tempfile
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_behavior.data.events import EventLog, read_events
from next_behavior.data.items import read_items
from next_behavior.data.log_files import read_file
from next_behavior.data.read_options import ReadOptions, add_event_arguments, options_from_arguments

NOON = 1_700_000_000  # seconds: 2023-11-14 22:13:20 UTC

# Twelve events of three users, out of order on purpose; the search names no item.
LOG = """user_id,item_id,action,timestamp
u2,b,view,1700000300
u1,007,view,1700000000
u1,007,buy,1700000200
u1,b,view,1700000100
u2,,search,1700000100
u2,b,view,1700000200
u3,a,view,1700000000
u3,a,view,1700000000
u3,c,view,1700000000
u1,007,view,1700000400
u2,c,buy,1700000400
u3,b,buy,1700000500
"""


def write(folder: Path, text: str, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def read(folder: Path, text: str, **options: object) -> EventLog:
    return read_events(write(folder, text), ReadOptions(**options))  # type: ignore[arg-type]


def tolerant(folder: Path, text: str, **options: object) -> EventLog:
    return read(folder, text, max_reject_ratio=1.0, **options)


def rules(log: EventLog) -> dict[str, list[int]]:
    return {str(r): rows for r, rows in log.rejects.group_by("rule", maintain_order=True).agg("row").iter_rows()}


def seconds(log: EventLog) -> list[int]:
    return log.events["timestamp"].dt.epoch("s").to_list()


# What comes out


def test_events_have_the_stated_columns_types_and_order(tmp_path: Path) -> None:
    events = read(tmp_path, LOG).events
    assert list(events.schema.items()) == [
        ("user_id", pl.String),
        ("item_id", pl.String),
        ("action", pl.String),
        ("timestamp", pl.Datetime("us", "UTC")),
        ("row", pl.Int64),
    ]
    assert events["row"].to_list() == [1, 3, 2, 9, 4, 5, 0, 10, 6, 7, 8, 11]
    assert events["item_id"].to_list() == ["007", "b", "007", "007", None, "b", "b", "c", "a", "a", "c", "b"]


def test_report_counts_what_is_in_the_log(tmp_path: Path) -> None:
    report = read(tmp_path, LOG).report
    assert (report.rows, report.events, report.users, report.items) == (12, 12, 3, 4)
    assert report.actions == {"view": 8, "buy": 3, "search": 1}
    assert (report.first_time, report.last_time) == ("2023-11-14T22:13:20+00:00", "2023-11-14T22:21:40+00:00")
    assert (report.ties, report.exact_duplicates, report.without_item) == (2, 1, 1)
    assert report.repeats == pytest.approx(4 / 11)  # u1: 007 twice more; u2: b once more; u3: a once more
    assert (report.median_user_events, report.longest_user_events) == (4, 4)
    assert (report.time_unit, report.removed) == ("s", [])
    assert json.loads(json.dumps(report.to_dict()))["columns"] == {
        "user_id": "user_id",
        "item_id": "item_id",
        "action": "action",
        "timestamp": "timestamp",
    }


def test_report_reads_as_aligned_text(tmp_path: Path) -> None:
    text = str(tolerant(tmp_path, LOG + ",b,view,1700000000\n").report)
    assert "1 file, 13 rows" in " ".join(text.split())  # a long path wraps the line
    assert "missing_user    1 (7.7 %) rows without a user; e.g. row 12: item_id='b'" in text
    assert "view 66.7 %, buy 25.0 %, search 8.3 %" in text
    assert max(len(line) for line in text.splitlines() if "log.csv" not in line) <= 110


@pytest.mark.parametrize(
    "kind", ["csv", "csv.gz", "tsv", "semicolon", "parquet", "folder", "polars", "pandas", "dataset"]
)
def test_every_source_gives_the_same_events(kind: str, tmp_path: Path) -> None:
    expected = read(tmp_path, LOG).events
    table = pl.read_csv(LOG.encode(), schema_overrides={"item_id": pl.String})
    source: object
    if kind == "csv":
        source = str(write(tmp_path, LOG.replace("\n", "\r\n")))
    elif kind == "csv.gz":
        source = tmp_path / "log.csv.gz"
        source.write_bytes(gzip.compress(LOG.encode()))
    elif kind == "tsv":
        source = write(tmp_path, LOG.replace(",", "\t"), "log.tsv")
    elif kind == "semicolon":
        source = write(tmp_path, "\ufeff" + LOG.replace(",", ";"))
    elif kind == "parquet":
        source = tmp_path / "log.parquet"
        table.write_parquet(source)
    elif kind == "folder":
        source = tmp_path / "log"
        source.mkdir()
        table[7:].write_parquet(source / "part-1.parquet")
        table[:7].with_columns(pl.col("timestamp").cast(pl.Float64)).write_parquet(source / "part-0.parquet")
        (source / "_SUCCESS").touch()
    else:
        frames = {"polars": table, "pandas": table.to_pandas(), "dataset": datasets.Dataset.from_polars(table)}
        source = frames[kind]
    assert read_events(source).events.equals(expected)


def test_a_dataset_is_read_in_its_own_order_and_class_numbers_become_names() -> None:
    table = {"user_id": [1, 1, 1], "item_id": [7, 8, 9], "action": [0, 1, 0]}
    features = datasets.Features(
        {
            "user_id": datasets.Value("int32"),
            "item_id": datasets.Value("int64"),
            "action": datasets.ClassLabel(names=["view", "buy"]),
        }
    )
    log = read_events(datasets.Dataset.from_dict(table, features=features).select([2, 1]))
    assert log.events.select("item_id", "action").rows() == [("9", "view"), ("8", "buy")]


def test_without_action_and_time_every_action_is_interact_and_file_order_is_the_order(tmp_path: Path) -> None:
    log = read(tmp_path, "user_id,item_id\n2,x\n1,z\n2,a\n1,b\n")
    assert log.events.rows() == [
        ("1", "z", "interact", None, 1),
        ("1", "b", "interact", None, 3),
        ("2", "x", "interact", None, 0),
        ("2", "a", "interact", None, 2),
    ]
    assert (log.report.ties, log.report.exact_duplicates, log.report.first_time) == (0, 0, None)
    assert "none, file order is the order" in str(log.report)


def test_reading_a_shuffled_copy_changes_nothing_but_rows(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {"user_id": [f"u{i % 5}" for i in range(60)], "item_id": range(60), "timestamp": range(NOON, NOON + 60)}
    )
    columns = ["user_id", "item_id", "action", "timestamp"]
    shuffled = read_events(table.sample(fraction=1, shuffle=True, seed=3)).events.select(columns)
    assert shuffled.equals(read_events(table).events.select(columns))


# Ids


IDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12) | st.sampled_from(
    [
        "007",
        "1.0",
        "1e5",
        "[PAD]",
        "a,b",
        'say "hi"',
        "line\nbreak",
        "cr\rlf\r\n",
        "🛒",
        " padded ",
        "null",
        "NaN",
        "\ufeff",
    ]
)


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.tuples(IDS, IDS), min_size=1, max_size=8), separator=st.sampled_from(",;\t"))
def test_ids_survive_csv_exactly_as_written(ids: list[tuple[str, str]], separator: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        with open(path, "w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f, delimiter=separator, quoting=csv.QUOTE_ALL)
            writer.writerows([("user_id", "item_id"), *ids, *ids])
        events = read_events(path, ReadOptions(max_reject_ratio=1.0)).events.sort("row")
    assert events.select("user_id", "item_id").rows() == ids + ids


FIELDS = st.sampled_from(["a", "007", 'q"q', "n\nl", "c,c", "", "🛒", "x" * 20])


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.lists(FIELDS, min_size=2, max_size=5), min_size=1, max_size=30), zipped=st.booleans())
def test_rows_with_a_wrong_number_of_fields_are_set_aside_and_shift_no_other(
    rows: list[list[str]], zipped: bool
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["user_id", "item_id", "price"], *rows])
    data = text.getvalue().encode()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("next_behavior.data.csv_files.BLOCK_BYTES", 200)  # many blocks
        path = Path(folder) / ("log.csv.gz" if zipped else "log.csv")
        path.write_bytes(gzip.compress(data) if zipped else data)
        read = read_file(path, ["user_id", "item_id"])
    whole = [i for i, row in enumerate(rows) if len(row) == 3]
    assert read.positions.tolist() == whole
    assert read.frame.rows() == [(rows[i][0], rows[i][1]) for i in whole]
    assert [position for position, _, _ in read.malformed] == [i for i, row in enumerate(rows) if len(row) != 3]


def test_ids_that_look_like_accidents_are_kept_and_noted(tmp_path: Path) -> None:
    log = read(tmp_path, "user_id,item_id\n1,1.0\n1,2.0\n")
    assert log.events["item_id"].to_list() == ["1.0", "2.0"]
    assert any("ends in .0" in note for note in log.report.notes)
    assert any("item_id: 1 rows 'nan'" in note for note in read(tmp_path, "user_id,item_id\n1,a\n1,nan\n").report.notes)


def test_minimally_quoted_ids_survive_too(tmp_path: Path) -> None:
    ids = ["007", "a,b", 'say "hi"', '5" screen', "line\nbreak", "🛒", "[PAD]", " x "]
    table = pl.DataFrame({"user_id": ["u"] * len(ids), "item_id": ids})
    table.write_csv(tmp_path / "log.csv")
    assert read_events(tmp_path / "log.csv").events["item_id"].to_list() == ids


def test_a_quote_inside_an_unquoted_field_is_an_ordinary_character(tmp_path: Path) -> None:
    assert read(tmp_path, 'user_id,item_id\nu,5" nail\nu,b\n').events["item_id"].to_list() == ['5" nail', "b"]


def test_whole_floats_lose_the_point_that_pandas_gave_them(tmp_path: Path) -> None:
    table = pd.DataFrame({"user_id": [1.0, 1.0, 2.5, 2.5, np.nan], "item_id": [123.0, np.nan, -7.0, 1e15, 4.0]})
    table.to_parquet(tmp_path / "log.parquet")
    log = read_events(tmp_path / "log.parquet", ReadOptions(max_reject_ratio=0.5))
    assert log.events.select("user_id", "item_id").rows() == [
        ("1", "123"),
        ("1", None),
        ("2.5", "-7"),
        ("2.5", "1000000000000000"),
    ]
    assert rules(log) == {"missing_user": [4]}


def test_files_of_a_folder_may_hold_ids_of_different_types(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1], "item_id": [5]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user_id": ["1"], "item_id": ["x"]}).write_parquet(tmp_path / "b.parquet")
    assert read_events(tmp_path).events["item_id"].to_list() == ["5", "x"]


# Columns


@pytest.mark.parametrize(
    ("user", "item", "action", "time"),
    [
        ("visitorid", "itemid", "event", "timestamp"),
        ("User", "product_id", "behavior_type", "behavior_time"),
        ("customerId", "Article ID", "event_type", "event_time"),
        ("session_id", "sku", "interaction", "datetime"),
    ],
)
def test_common_column_names_are_recognized_and_stated(
    user: str, item: str, action: str, time: str, tmp_path: Path
) -> None:
    log = read(tmp_path, LOG.replace("user_id,item_id,action,timestamp", f"{user},{item},{action},{time}", 1))
    assert list(log.report.columns.values()) == [user, item, action, time]
    assert any(f"taken from the column {item}" in note for note in log.report.notes)


def test_given_columns_win_over_recognized_ones(tmp_path: Path) -> None:
    text = "user_id,session,item_id\n1,a,x\n2,a,y\n"
    assert read(tmp_path, text, user_column="session").events["user_id"].to_list() == ["a", "a"]


def test_a_missing_column_is_answered_with_the_closest_and_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'item_idd'.*\['user_id', 'item_id'.*--item_column item_id"):
        read(tmp_path, LOG, item_column="item_idd")
    with pytest.raises(ValueError, match=r"\['who', 'item_id'\].*user_id.*--user_column who"):
        read(tmp_path, "who,item_id\n1,2\n1,3\n")
    with pytest.raises(ValueError, match="lack a header"):
        read(tmp_path, "1,5,view\n1,6,view\n")


def test_one_column_cannot_play_two_parts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'user_id' for both user_id and item_id"):
        read(tmp_path, LOG, user_column="user_id", item_column="user_id")
    with pytest.raises(ValueError, match="2 columns named 'item_id'"):
        read(tmp_path, "user_id,item_id,item_id\n1,2,3\n")


# Times


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_the_unit_of_numbers_is_inferred_reported_and_may_be_given(unit: str, scale: int) -> None:
    table = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [NOON * scale, (NOON + 5) * scale]})
    for options in (ReadOptions(), ReadOptions(time_unit=unit)):
        log = read_events(table, options)
        assert seconds(log) == [NOON, NOON + 5]
        assert log.report.time_unit == unit
        assert any("unit of time" in note for note in log.report.notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2023-11-14T22:13:20Z", NOON),
        ("2023-11-14 22:13:20 UTC", NOON),
        ("2023-11-14T22:13:20+00:00", NOON),
        ("2023-11-15T00:13:20+02:00", NOON),
        ("2023-11-14 16:43:20-0530", NOON),
        ("2023-11-14T22:13:20.250Z", NOON),
        ("2023-11-14T22:13Z", NOON - 20),
        ("2023-11-14", NOON - 22 * 3600 - 13 * 60 - 20),
        ("1700000000", NOON),
        ("1700000000.25", NOON),
        ("1.7e9", NOON),
    ],
)
def test_time_text_becomes_utc(text: str, expected: int, tmp_path: Path) -> None:
    assert seconds(read(tmp_path, f"user_id,item_id,time\n1,a,{text}\n1,b,{text}\n")) == [expected, expected]


@given(st.datetimes(datetime(1995, 1, 1), datetime(2024, 1, 1)), st.integers(-14 * 60, 14 * 60))
@settings(max_examples=100, deadline=None)
def test_iso_text_of_any_zone_is_read_to_the_microsecond(moment: datetime, minutes: int) -> None:
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    events = read_events(
        pl.DataFrame({"user_id": ["u"] * 2, "item_id": ["a", "b"], "time": [zoned.isoformat()] * 2})
    ).events
    assert events["timestamp"].to_list() == [zoned, zoned]


def test_text_without_zone_is_utc_and_the_report_says_so(tmp_path: Path) -> None:
    log = read(tmp_path, "user_id,item_id,time\n1,a,2023-11-14 22:13:20\n1,b,2023-11-14T22:13:20Z\n")
    assert seconds(log) == [NOON, NOON]
    assert any("1 of 2 times have no zone: read as UTC" in note for note in log.report.notes)


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_parquet_datetimes_become_microseconds_utc(zone: str | None, unit: str, tmp_path: Path) -> None:
    times = pl.Series([NOON * 10**6] * 2).cast(pl.Datetime("us", zone)).dt.cast_time_unit(unit)
    pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": times}).write_parquet(tmp_path / "log.parquet")
    log = read_events(tmp_path / "log.parquet")
    assert seconds(log) == [NOON, NOON]
    assert any("read as UTC" in note for note in log.report.notes) == (zone is None)


def test_dates_are_midnight_utc() -> None:
    table = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "date": [date(2024, 1, 1), date(2024, 1, 2)]})
    assert read_events(table).events["timestamp"].dt.hour().to_list() == [0, 0]


def test_mixed_units_are_an_error_that_names_them(tmp_path: Path) -> None:
    lines = [f"1,{i},{NOON + i}" for i in range(99)] + [f"1,99,{NOON}000"]
    text = "user_id,item_id,timestamp\n" + "\n".join(lines) + "\n"
    with pytest.raises(ValueError, match=r"mixed units.*99 rows in seconds.*1 rows in milliseconds.*--time_unit"):
        read(tmp_path, text)
    assert rules(read(tmp_path, text, time_unit="s")) == {"future_time": [99]}
    with pytest.raises(ValueError, match=r"mixed units.*ISO text.*numbers"):
        read(tmp_path, "user_id,item_id,timestamp\n1,a,2023-11-14\n1,b,1700000000\n")


def test_a_relative_clock_is_taken_as_it_is() -> None:
    log = read_events(pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": [0, 86_400, 90_000]}))
    assert seconds(log) == [0, 86_400, 90_000]
    assert any("before 1990" in note for note in log.report.notes)


# Rules and rejects


def test_every_unusable_row_is_rejected_with_file_row_rule_and_values(tmp_path: Path) -> None:
    bad = [
        "u1,a,view",  # 12: three fields
        "u1,a,view,1700000000,extra",  # 13: five
        ",a,view,1700000000",
        "u1,a,,1700000000",
        "u1,a,view,",
        "u1,a,view,yesterday",
        "u1,a,view,0",
        "u1,a,view,-5",
        "u1,a,view,4102444800",
        "u1,a,view,99999999999999999999",
    ]
    log = tolerant(tmp_path, LOG + "\n".join(bad) + "\nu1,a,view,1700000001\n")
    assert rules(log) == {
        "malformed_row": [12, 13],
        "missing_user": [14],
        "missing_action": [15],
        "missing_time": [16],
        "unparsable_time": [17],
        "impossible_time": [18, 19],
        "future_time": [20, 21],
    }
    assert log.events["row"].max() == 22
    assert log.events.height + log.rejects.height == log.report.rows == 23
    unparsable = log.rejects.filter(pl.col("rule") == "unparsable_time").row(0, named=True)
    assert unparsable["file"] == "log.csv"
    assert [unparsable[c] for c in ("user_id", "item_id", "action", "timestamp")] == ["u1", "a", "view", "yesterday"]
    malformed = log.rejects.row(0, named=True)
    assert (malformed["reason"], malformed["text"]) == ("3 fields, expected 4", "u1,a,view")


def test_rejected_rows_of_a_folder_name_their_file_and_their_row_in_it(tmp_path: Path) -> None:
    for name, users in (("a", ["u", "u", None]), ("b", [None, "u"])):
        pl.DataFrame({"user_id": users, "item_id": ["x"] * len(users)}).write_parquet(tmp_path / f"{name}.parquet")
    log = read_events(tmp_path, ReadOptions(max_reject_ratio=0.5))
    assert log.rejects.select("file", "row").rows() == [("a.parquet", 2), ("b.parquet", 0)]
    assert log.events["row"].to_list() == [0, 1, 4]
    assert "e.g. row 2 of a.parquet" in str(log.report)


def test_events_at_one_time_are_reported_with_the_option_that_orders_them(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,frame\n1,a,2024-05-01,2\n1,b,2024-05-01,1\n"
    assert "file order decides, or --order_column" in " ".join(str(read(tmp_path, text).report).split())
    assert "--order_column" not in str(read(tmp_path, text, order_column="frame").report)


def test_above_the_ratio_reading_stops_with_reasons_and_still_writes_the_rejects(tmp_path: Path) -> None:
    text, rejects = LOG + ",b,view,1700000000\n", tmp_path / "new" / "rejects.parquet"
    with pytest.raises(
        ValueError, match=r"1 of 13 rows \(7.7 %\)(.|\n)*missing_user(.|\n)*rejects.parquet(.|\n)*--max_reject_ratio"
    ):
        read_events(write(tmp_path, text), ReadOptions(), rejects_path=rejects)
    assert pl.read_parquet(rejects)["rule"].to_list() == ["missing_user"]
    assert read(tmp_path, text, max_reject_ratio=0.08).events.height == 12


def test_rejects_are_written_whole_and_leave_nothing_else_behind(tmp_path: Path) -> None:
    log = tolerant(tmp_path, LOG + ",b,view,1700000000\n")
    log.write_rejects(tmp_path / "out" / "rejects.parquet")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["rejects.parquet"]
    assert pl.read_parquet(tmp_path / "out" / "rejects.parquet").equals(log.rejects)


def test_duplicates_are_counted_by_default_and_dropped_on_request(tmp_path: Path) -> None:
    log = read(tmp_path, LOG, duplicates="drop", max_reject_ratio=0.0)
    assert rules(log) == {"exact_duplicate": [7]}
    assert log.report.exact_duplicates == 0
    assert log.events.equals(read(tmp_path, LOG).events.filter(pl.col("row") != 7))


def test_without_times_a_copy_is_a_repeat_and_stays(tmp_path: Path) -> None:
    log = read(tmp_path, "user_id,item_id\n1,a\n1,a\n", duplicates="drop")
    assert log.events.height == 2
    assert any("no effect" in note for note in log.report.notes)


def test_the_cap_keeps_the_newest_events_of_a_user(tmp_path: Path) -> None:
    log = read(tmp_path, LOG, max_user_events=2)
    assert log.events["row"].to_list() == [2, 9, 0, 10, 8, 11]
    assert set(rules(log)) == {"user_over_cap"}


def test_minimum_counts_hold_together_and_spare_events_without_item(tmp_path: Path) -> None:
    text = "user_id,item_id\n" + "1,a\n1,b\n1,\n2,a\n2,b\n2,c\n3,c\n3,d\n3,e\n"
    log = read(tmp_path, text, min_user_events=2, min_item_events=2)
    # d and e are rare, so user 3 is left with c alone and goes, so c is rare as well
    assert log.events.select("user_id", "item_id").rows() == [
        ("1", "a"),
        ("1", "b"),
        ("1", None),
        ("2", "a"),
        ("2", "b"),
    ]
    assert rules(log) == {"rare_item": [7, 8, 5], "rare_user": [6]}


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.sampled_from("uvw "), st.sampled_from("abc ")), min_size=1, max_size=30),
    users=st.integers(1, 4),
    items=st.integers(1, 4),
    cap=st.none() | st.integers(2, 5),
)
def test_no_row_disappears_and_every_minimum_holds(
    pairs: list[tuple[str, str]], users: int, items: int, cap: int | None
) -> None:
    table = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row").with_columns(pl.all().str.strip_chars())
    options = ReadOptions(min_user_events=users, min_item_events=items, max_user_events=cap, max_reject_ratio=1.0)
    try:
        log = read_events(table, options)
    except ValueError:
        return
    assert sorted(log.events["row"].to_list() + log.rejects["row"].to_list()) == list(range(len(pairs)))
    assert log.events.group_by("user_id").len()["len"].min() >= users  # type: ignore[operator]
    named = log.events.drop_nulls("item_id").group_by("item_id").len()["len"]
    assert named.is_empty() or named.min() >= items  # type: ignore[operator]
    assert cap is None or log.report.longest_user_events <= cap


def test_a_single_user_with_one_event_stays(tmp_path: Path) -> None:
    assert "u9" in read(tmp_path, LOG + "u9,a,view,1700000000\n").events["user_id"].to_list()


def test_suspicious_users_are_named_with_a_reason() -> None:
    ordinary = [(f"u{i}", i % 7, NOON + 1000 * i + j) for i in range(200) for j in range(2)]
    robot = [("robot", i % 7, NOON + i) for i in range(100)]
    nobody = [("null", 1, NOON), ("null", 2, NOON + 9)]
    log = read_events(pl.DataFrame(ordinary + robot + nobody, schema=["user_id", "item_id", "time"], orient="row"))
    reasons = log.report.suspicious_users
    assert [user for user, _ in reasons] == ["robot", "null", "robot"]
    assert "50 times the median" in reasons[0][1]
    assert "placeholder" in reasons[1][1]
    assert "within 60 s" in reasons[2][1]
    assert log.rejects.is_empty()


# Bad input


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Arrow also tells stderr
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"", "empty file.*expected a header"),
        ("log.csv", b"user_id,item_id\n", "header and no rows"),
        ("log.csv", b"user_id,item_id", "header and no rows"),
        ("log.csv", b"\n\n", "first line is empty"),
        ("log.csv", b"user_id,item_id\n1,caf\xe9\n1,b\n", r"invalid UTF-8.*row 0, column 'item_id'.*iconv"),
        ("log.csv", b"user_id,item_id\n1,a\n1,b,caf\xe9\n", "invalid UTF-8.*iconv"),
        ("log.csv", "user_id,item_id\n1,a\n1,b\n".encode("utf-16-le"), "UTF-16 without a mark"),
        ("log.csv", b"caf\xe9,item_id\n1,a\n", "invalid UTF-8.*header"),
        (
            "log.csv",
            b'user_id,item_id\n1,a\n1,"b\n1,c\n1,d\n',
            "never closes|not closed in the row that starts at line 3",
        ),
        ("log.csv", b"user_id,item_id\n1,\n1,\n", "empty item column 'item_id'.*--item_column"),
        ("log.csv", b"user_id,item_id\n1,a\n2,a\n3,b\n", "at most one per user.*--user_column"),
        ("log.csv", b"user_id,item_id\n1,a,b\n2,a,c\n", r"2 of 2 rows \(100.0 %\)"),
        ("log.csv.gz", b"user_id,item_id\n1,a\n", "not gzip"),
        ("log.csv.gz", gzip.compress(b"user_id,item_id\n" + bytes(range(65, 91)) * 900, mtime=0)[:-40], "cut short"),
        ("log.parquet", b"PAR1 and then nothing", "not a whole Parquet file.*cut short"),
        ("log.parquet", b"", "empty file"),
        ("log.xlsx", b"x", r"log.xlsx; expected a file ending in .csv"),
    ],
)
def test_bad_files_are_refused_with_a_remedy(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read_events(tmp_path / name)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": range(10_000), "item_id": range(10_000)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"log.parquet .*cut short"):
        read_events(path)


def test_a_path_that_does_not_exist_is_answered_with_the_closest(tmp_path: Path) -> None:
    write(tmp_path, LOG, "events.csv")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*events\.csv"):
        read_events(tmp_path / "event.csv")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_events(tmp_path / "no" / "such" / "log.csv")


def test_folders_must_hold_parquet_files_with_the_same_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"without a \.parquet file"):
        read_events(tmp_path)
    pl.DataFrame({"user_id": [1], "item_id": [5]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user_id": [1], "product": [5]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet without the column 'item_id'"):
        read_events(tmp_path)


def test_things_that_are_no_log_are_refused() -> None:
    table = {"user_id": ["1", "1"], "item_id": ["a", "b"]}
    split = datasets.DatasetDict({"train": datasets.Dataset.from_dict(table)})
    with pytest.raises(ValueError, match=r"DatasetDict.*source\['train'\]"):
        read_events(split)
    with pytest.raises(ValueError, match=r"List.*user_id column"):
        read_events(pl.DataFrame({"user_id": [["1"]], "item_id": [["a"]]}))
    with pytest.raises(ValueError, match="Boolean in the time column"):
        read_events(pl.DataFrame({**table, "time": [True, False]}))


@pytest.mark.parametrize(
    "options",
    [
        {"time_unit": "min"},
        {"duplicates": "merge"},
        {"min_user_events": 0},
        {"max_user_events": 1},
        {"max_reject_ratio": 5},
        {"latest_time": "soon"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"got {next(iter(options))}=.*expected"):
        ReadOptions(**options)  # type: ignore[arg-type]


def test_latest_time_lets_a_simulated_log_run_ahead() -> None:
    table = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [NOON, 4_102_444_800]})
    assert read_events(table, ReadOptions(latest_time="2100-01-01")).events.height == 2
    with pytest.raises(ValueError, match="--latest_time"):
        read_events(table)


# Command line and items


def test_the_command_line_gives_the_default_options_and_every_field() -> None:
    parser = argparse.ArgumentParser()
    add_event_arguments(parser)
    assert options_from_arguments(parser.parse_args([])) == ReadOptions()
    flags = (
        "--user_column u --time_unit ms --duplicates drop --min_item_events 3 --max_user_events 9 "
        "--max_reject_ratio 0.5"
    )
    assert options_from_arguments(parser.parse_args(flags.split())) == ReadOptions(
        user_column="u",
        time_unit="ms",
        duplicates="drop",
        min_item_events=3,
        max_user_events=9,
        max_reject_ratio=0.5,
    )


def test_items_have_ids_titles_and_text_columns() -> None:
    items = pl.DataFrame(
        {
            "product_id": [1, 2],
            "asin": ["B01", "B02"],
            "brand": ["OPI", ""],
            "title": ["Red, glossy", None],
            "tags": [["a", "b"], []],
            "price": [1.5, 2.0],
        }
    )
    assert read_items(items).rows(named=True) == [
        {"item_id": "1", "title": "Red, glossy", "brand": "OPI", "tags": "a, b"},
        {"item_id": "2", "title": None, "brand": None, "tags": None},
    ]


def test_items_without_a_title_like_column_are_named_by_the_most_telling_text(tmp_path: Path) -> None:
    text = "sku,group,words\n007,x,one\n8,x,two\n"
    assert read_items(write(tmp_path, text, "items.csv")).rows() == [("007", "one", "x"), ("8", "two", "x")]
    assert read_items(pl.DataFrame({"item_id": [1]})).rows() == [("1", None)]


def test_the_first_row_of_an_item_counts_and_the_others_are_told() -> None:
    table = pl.DataFrame({"item_id": ["1", "1", None], "title": ["first", "second", "none"]})
    with pytest.warns(UserWarning, match="1 later rows"):
        assert read_items(table).rows() == [("1", "first")]
    with pytest.raises(ValueError, match="--items_id_column"):
        read_items(table, id_column="nothing")
