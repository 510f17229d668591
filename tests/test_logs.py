"""Logs as people have them: read as they are meant, or refused in one line with a remedy."""

from __future__ import annotations

import argparse
import ast
import gzip
import io
import re
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import next_behavior.data
from next_behavior.commands.tokenize import main as tokenize
from next_behavior.data.columns import FLAGS
from next_behavior.data.events import EventLog, read_events
from next_behavior.data.items import read_items
from next_behavior.data.read_options import ReadOptions, add_event_arguments
from next_behavior.data.text_streams import TextStream
from next_behavior.model.histories import as_seconds
from next_behavior.training.settings import add_arguments

NOON = 1_700_000_000  # seconds: 2023-11-14 22:13:20 UTC


def read(folder: Path, text: str, name: str = "log.csv", **options: object) -> EventLog:
    (folder / name).write_text(text, encoding="utf-8")
    return read_events(folder / name, ReadOptions(**options))  # type: ignore[arg-type]


def of_times(*times: object, **options: object) -> EventLog:
    """A log of one user, whose events have these times."""
    table = pl.DataFrame({"user_id": ["u"] * len(times), "item_id": [f"i{n}" for n in range(len(times))]})
    return read_events(table.with_columns(pl.Series("time", times)), ReadOptions(**options))  # type: ignore[arg-type]


def in_seconds(log: EventLog) -> list[float]:
    return [micros / 1e6 for micros in log.events["timestamp"].dt.epoch("us")]


def moments(log: EventLog) -> list[str]:
    return [time.strftime("%Y-%m-%d %H:%M:%S") for time in log.events["timestamp"]]


# One reader of times


def in_a_log(value: object) -> float | None:
    try:
        return of_times(value, value, max_reject_ratio=0.0).events["timestamp"].dt.epoch("us")[0] / 1e6
    except ValueError:
        return None


def in_a_history(value: object) -> float | None:
    try:
        return as_seconds(value)
    except ValueError:
        return None


DIGITS = st.text("0123456789", min_size=1, max_size=2)
BLANK = st.sampled_from(["", "", " ", "  ", "\t", "\u00a0", "\x1f", "\n"])
ZONE = st.sampled_from(["", "", "Z", "z", " UTC", " gmt", "+02:00", "-0530", "+01", " +02:00", "+1", "+99:00", " CET"])
ISO_LIKE = st.builds(
    lambda before, year, month, day, between, clock, fraction, zone, after: (
        f"{before}{year}-{month}-{day}{between}{clock}{fraction}{zone}{after}"
    ),
    BLANK,
    st.sampled_from(["2023", "2024", "1995", "24", "02024", "٢٠٢٤"]),
    st.sampled_from(["1", "05", "12", "13", "0", " 5"]),
    st.sampled_from(["1", "05", "29", "31", "32"]),
    st.sampled_from([" ", "T", "t", "  ", ""]),
    st.sampled_from(["", "8:30", "08:30", "8:30:00", "23:59:59", "24:00:00", "8:3:1", "08:30:60", "0830"]),
    st.sampled_from(["", "", ".25", ",5", ".123456789", ".1234567891", "."]),
    ZONE,
    BLANK,
)
UNIT_NUMBERS = st.builds(
    lambda seconds, scale: seconds * scale,
    st.integers(640_000_000, 1_790_000_000),
    st.sampled_from([1, 10**3, 10**6, 10**9]),
)  # fmt: skip
NUMBER_LIKE = st.one_of(
    UNIT_NUMBERS.map(str),
    UNIT_NUMBERS.map(lambda number: f" {number} "),
    st.floats(1e9, 1.7e9).map(str),
    st.floats(1e9, 1.7e9).map("{:.3e}".format),
    st.sampled_from(["+1700000000", "1_700_000_000", "1700000000.", "1e9", "1E9", "0x10", "inf", "nan", "1,700", ""]),
    st.sampled_from(["20240501", "202405", "2024", "20240501083000", "202405010830", "2024050108", "20241332"]),
    st.integers(0, 10**14).map(str),
)


@settings(max_examples=400, deadline=None)
@given(value=ISO_LIKE | NUMBER_LIKE | UNIT_NUMBERS | st.floats(1e9, 1.7e9) | st.text(max_size=12))
def test_what_a_log_accepts_means_the_same_moment_in_a_history(value: object) -> None:
    logged, told = in_a_log(value), in_a_history(value)
    if logged is not None:
        assert told == pytest.approx(logged, abs=2e-6)
    elif isinstance(value, str) and told is not None:
        assert not 640_000_000 <= told <= 1_790_000_000  # only what is too early or too late for a log


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-5-1 8:30:00", 1_714_552_200),
        ("2024-05-01 08:30 UTC", 1_714_552_200),
        ("1714552200", 1_714_552_200),
        ("1714552200000", 1_714_552_200),
        (1_714_552_200_000_000, 1_714_552_200),
        (np.int64(1_714_552_200_000), 1_714_552_200),
        ("20240501", None),
        ("202405010830", None),
        ("2024-W18-3", None),
        ("2024-05-0108:30:00", None),
        ("2024-05-01 08:30:60", None),
    ],
)
def test_a_text_or_number_is_one_moment_everywhere_or_none(value: object, expected: float | None) -> None:
    assert (in_a_log(value), in_a_history(value)) == (expected, expected)


def test_a_text_means_the_same_whatever_stands_in_the_other_rows() -> None:
    for other in ("2024-05-02", "2024-05-02T08:30:00Z", "2024-05-02 08:30:00"):
        assert moments(of_times("2024-5-1 8:30:00", other))[0] == "2024-05-01 08:30:00"


# Times that look like numbers, and formats


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("20240130", "--time_format %Y%m%d"),
        ("202401", "--time_format %Y%m"),
        ("2024", "--time_format %Y"),
        ("202401301530", "--time_format %Y%m%d%H%M"),
        ("20240130153059", "--time_format %Y%m%d%H%M%S"),
        ("45321.5", "--time_unit days"),
        ("45321", "--time_unit days"),
    ],
)
@pytest.mark.parametrize("typed", [False, True])
def test_numbers_that_may_be_dates_are_refused_until_an_option_says_so(text: str, option: str, typed: bool) -> None:
    value = (float(text) if "." in text else int(text)) if typed else text
    with pytest.raises(ValueError, match=f"look like (dates|the days of a spreadsheet).*{option}"):
        of_times(value, value)
    flag, given_value = option.removeprefix("--").split()
    assert moments(of_times(value, value, **{flag: given_value}))[0].startswith("2024-01-")
    if len(text) < 10:
        assert in_seconds(of_times(value, value, time_unit="s")) == [float(text)] * 2


def test_a_relative_clock_that_passes_such_numbers_is_none_of_them() -> None:
    assert of_times(0, 45_321, 90_000, 202_401, 20_240_130).events.height == 5


@pytest.mark.parametrize(
    ("written", "time_format", "expected"),
    [
        ("11/12/2019 2:14:46 PM", "%m/%d/%Y %I:%M:%S %p", "2019-11-12 14:14:46"),
        ("11/12/2019 12:14:46 am", "%m/%d/%Y %I:%M:%S %p", "2019-11-12 00:14:46"),
        ("01.05.2024", "%d.%m.%Y", "2024-05-01 00:00:00"),
        ("1.5.2024 7:05", "%d.%m.%Y %H:%M", "2024-05-01 07:05:00"),
        ("10/Oct/2023:13:55:36 -0700", "%d/%b/%Y:%H:%M:%S %z", "2023-10-10 20:55:36"),
        ("Nov 2023", "%b %Y", "2023-11-01 00:00:00"),
        ("2023-11-14 22.13.20.250", "%Y-%m-%d %H.%M.%S.%f", "2023-11-14 22:13:20"),
    ],
)
def test_times_are_read_in_a_given_format(written: str, time_format: str, expected: str, tmp_path: Path) -> None:
    text = f"user_id,item_id,timestamp\n1,a,{written}\n1,b,{written}\n"
    assert moments(read(tmp_path, text, time_format=time_format)) == [expected, expected]


def test_an_unknown_way_to_write_times_stops_with_the_option_that_reads_it(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\n1,a,11/12/2019 2:14:46 PM\n1,b,11/13/2019 9:00:01 AM\n"
    with pytest.raises(ValueError, match=r"unparsable_time.*--time_format"):
        read(tmp_path, text)
    with pytest.raises(ValueError, match="unparsable_time"):
        read(tmp_path, text, time_format="%d.%m.%Y")
    with pytest.raises(ValueError, match="expected a format as in strptime"):
        read(tmp_path, text, time_format="%Y %H")
    with pytest.raises(ValueError, match="expected a format with a year"):
        ReadOptions(time_format="%H:%M")
    with pytest.raises(ValueError, match="expected one of them"):
        ReadOptions(time_format="%Y", time_unit="s")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"time_unit": "ms"}, "leave out --time_unit ms"),
        ({"time_column": "timestamp,frame"}, "--time_column timestamp --order_column frame"),
    ],
)
def test_a_time_that_an_option_made_unreadable_stops_with_what_to_change(
    options: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    text = "user_id,item_id,timestamp,frame\n1,a,2024-05-01,75605682\n1,b,2024-05-02,500\n"
    with pytest.raises(ValueError, match=f"unparsable_time.*{remedy}"):
        read(tmp_path, text, **options)


def test_date_and_time_may_stand_in_two_columns(tmp_path: Path) -> None:
    text = "user_id,item_id,day,clock\n1,a,2024-05-01,08:30:00\n1,b,2024-05-01,9:05\n"
    log = read(tmp_path, text, time_column="day,clock")
    assert moments(log) == ["2024-05-01 08:30:00", "2024-05-01 09:05:00"]
    assert log.report.columns["timestamp"] == "day,clock"
    german = text.replace("2024-05-01", "1.5.2024").replace(":00\n", "\n")
    assert moments(read(tmp_path, german, time_column="day, clock", time_format="%d.%m.%Y %H:%M")) == moments(log)
    pl.read_csv(text.replace("9:05", "09:05:00").encode(), try_parse_dates=True).write_parquet(tmp_path / "log.parquet")
    assert moments(read_events(tmp_path / "log.parquet", ReadOptions(time_column="day,clock"))) == moments(log)
    with pytest.raises(ValueError, match=r"'clok'.*--time_column clock"):
        read(tmp_path, text, time_column="day,clok")
    half = read(tmp_path, text + "1,c,2024-05-01,\n1,d,,10:00\n", time_column="day,clock", max_reject_ratio=1.0)
    assert half.rejects["rule"].to_list() == ["missing_time", "missing_time"]


def test_an_order_column_decides_between_events_of_one_moment(tmp_path: Path) -> None:
    text = "user_id,item_id,date,frame\n1,a,2024-05-02,5\n1,b,2024-05-01,100\n1,c,2024-05-01,20\n1,d,2024-05-01,3\n"
    assert read(tmp_path, text).events["item_id"].to_list() == ["b", "c", "d", "a"]
    log = read(tmp_path, text, order_column="frame")
    assert log.events["item_id"].to_list() == ["d", "c", "b", "a"]
    assert log.events.columns == ["user_id", "item_id", "action", "timestamp", "row"]
    assert "frame decides" in str(log.report)
    without = read(tmp_path, text.replace("date", "price"), order_column="frame")
    assert without.events["item_id"].to_list() == ["d", "a", "c", "b"]
    with pytest.raises(ValueError, match=r"'fram'.*--order_column frame"):
        read(tmp_path, text, order_column="fram")


# Texts for an empty field


@pytest.mark.parametrize("marker", ["NA", "\\N", "(null)", "#N/A", "?", "n/a", "NULL", "None"])
def test_markers_of_empty_fields_are_counted_and_noted_by_column(marker: str, tmp_path: Path) -> None:
    rows = "".join(f"u{n % 4},i{n},view\n" for n in range(40))
    log = read(tmp_path, f"user_id,item_id,action\n{rows}u1,{marker},{marker}\nu1,{marker},view\n{marker},i1,view\n")
    notes = "\n".join(log.report.notes)
    assert f"user_id: 1 rows '{marker}'" in notes
    assert f"item_id: 2 rows '{marker}'" in notes
    assert f"action: 1 rows '{marker}'" in notes
    assert log.events.height == 43  # kept as written
    empty = read_events(tmp_path / "log.csv", ReadOptions(missing_values=marker))
    assert empty.events.height == 41
    assert empty.report.without_item == 1
    assert empty.rejects["rule"].to_list() == ["missing_action", "missing_user"]


@pytest.mark.parametrize("marker", ["NA", "\\N", "(null)", "-1", "guest", ""])
def test_a_marker_that_holds_many_events_stops_with_a_hint_at_another_user_column(marker: str, tmp_path: Path) -> None:
    rows = "".join(f"{n // 2};{'7' if n % 3 else marker};i{n}\n" for n in range(30))
    with pytest.raises(ValueError, match=r"10 of 30 rows \(33.3 %\)(.|\n)*--user_column session_id"):
        read(tmp_path, f"session_id;user_id;item_id\n{rows}")
    assert read_events(tmp_path / "log.csv", ReadOptions(user_column="session_id")).report.users == 15
    assert read_events(tmp_path / "log.csv", ReadOptions(max_reject_ratio=0.4)).report.users == 2 - (not marker)


# Files of any name and form

RATINGS = [("1", "1193", "5", "978300760"), ("1", "661", "3", "978302109"), ("2", "1193", "4", "978298413")]
NAMES = "user_id,item_id,rating,timestamp"


@pytest.mark.parametrize("separator", ["::", "\t", ",", "|", ";", " "])
@pytest.mark.parametrize("name", ["ratings.dat", "u.data", "RATINGS", "ratings.csv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_without_a_header_are_read_with_given_names(separator: str, name: str, end: str, tmp_path: Path) -> None:
    text = end.join(separator.join(row) for row in RATINGS)
    (tmp_path / name).write_bytes(text.encode())
    log = read_events(tmp_path / name, ReadOptions(columns=NAMES, format="csv"))
    assert log.events.sort("row").select("user_id", "item_id").rows() == [row[:2] for row in RATINGS]
    assert log.report.unread == ["rating"]
    (tmp_path / name).write_bytes(f"{NAMES.replace(',', separator)}{end}{text}".encode())
    assert read_events(tmp_path / name, ReadOptions(columns=NAMES, format="csv")).events.height == 3


def test_the_first_row_of_a_file_without_a_header_has_number_0(tmp_path: Path) -> None:
    log = read(tmp_path, "1,a\n1,b,c\n1,d\n\n2\n", columns="user_id,item_id", max_reject_ratio=1.0)
    assert log.events["row"].to_list() == [0, 2]
    assert log.rejects["row"].to_list() == [1, 3]


def test_given_names_must_fit_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 names in --columns.*3 fields"):
        read(tmp_path, "1,a,view\n1,b,view\n", columns="user_id,item_id")
    with pytest.raises(ValueError, match=r"lack a header.*--columns"):
        read(tmp_path, "1,5,view\n1,6,view\n")
    with pytest.raises(ValueError, match="all different"):
        ReadOptions(columns="user_id,user_id")
    with pytest.raises(ValueError, match=r"ratings\.dat.*--format csv"):
        read(tmp_path, "1::2\n", name="ratings.dat")
    with pytest.raises(ValueError, match="got format='xlsx'"):
        ReadOptions(format="xlsx")


def test_double_colons_are_one_separator_wherever_a_block_ends(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for size in range(20, 60):
            patch.setattr("next_behavior.data.csv_files.BLOCK_BYTES", size)
            log = read(tmp_path, "u::i\n" * 50 + "u::a:b\n", name="log.dat", columns="user_id,item_id", format="csv")
            assert log.events["item_id"].to_list() == ["i"] * 50 + ["a:b"]


@pytest.mark.parametrize("name", ["ml.inter", "ml.tsv"])
def test_typed_headers_are_read_without_their_types(name: str, tmp_path: Path) -> None:
    text = "user_id:token\titem_id:token\ttags:token_seq\ttimestamp:float\n1\t10\ta b\t881250949\n1\t11\tc\t881250950\n"
    log = read(tmp_path, text, name=name, format="tsv", user_column="user_id")
    assert in_seconds(log) == [881250949, 881250950]
    assert log.report.unread == ["tags"]


def test_blanks_after_the_separators_are_no_part_of_names_and_values(tmp_path: Path) -> None:
    log = read(tmp_path, "user_id, item_id, action\nu, a, view\nu, b, buy\n", item_column="item_id")
    assert log.events.select("item_id", "action").rows() == [("a", "view"), ("b", "buy")]


@pytest.mark.parametrize("field", [r'"5\" pipe, steel"', r'"a \"b\" c"', r'"5\" pipe \"x\", steel"'])
def test_quotes_behind_a_backslash_are_refused_with_a_remedy(field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 3.*to be doubled"):
        read(tmp_path, f"user_id,item_id\nu,a\nu,{field}\nu,b\n")


def test_a_backslash_at_the_end_of_a_field_is_a_backslash(tmp_path: Path) -> None:
    log = read(tmp_path, 'user_id,item_id\nu,"C:\\"\nu,5\\" nail\nu,"b"\n')
    assert log.events["item_id"].to_list() == ["C:\\", '5\\" nail', "b"]


def test_json_lines_are_read_with_numbers_as_written(tmp_path: Path) -> None:
    lines = [
        '{"user_id": 7, "item_id": "007", "timestamp": 1700000000.50, "tags": ["x"]}',
        '{"item_id": 1e5, "user_id": 7, "timestamp": 1700000001}',
        "",
        '{"user_id": 7, "item_id": null, "timestamp": 1700000002}',
        '{"user_id": 7, "item_id": ["a"], "timestamp": 1700000003}',
        '{"user_id": 7, "item_id": "\\ud800", "timestamp": 1700000003}',
        '{"user_id": 7, "item_id"',
        "[" * 100_000,
    ]
    log = read(tmp_path, "\n".join(lines), name="log.jsonl", max_reject_ratio=1.0)
    assert log.events.select("user_id", "item_id").rows() == [("7", "007"), ("7", "1e5"), ("7", None)]
    assert in_seconds(log) == [1700000000.5, 1700000001, 1700000002]
    assert log.rejects["row"].to_list() == [3, 4, 5, 6]
    assert log.report.unread == ["tags"]
    (tmp_path / "log.txt").write_text("\n".join(lines[:2]))
    assert read_events(tmp_path / "log.txt", ReadOptions(format="jsonl")).events.height == 2
    with pytest.raises(ValueError, match=r"one JSON list.*JSON Lines"):
        read(tmp_path, '[{"user_id": 1, "item_id": 2}]', name="log.jsonl")


def test_several_files_and_patterns_are_one_log(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        (tmp_path / f"day{day}.csv").write_text(
            f"user_id;item_id\nu;{day}\n" if day == 2 else f"user_id,item_id\nu,{day}\n"
        )
    (tmp_path / "other.csv").write_text("user_id,item_id\nu,x\n")
    for source in (
        str(tmp_path / "day*.csv"),
        ",".join(str(tmp_path / f"day{day}.csv") for day in (1, 2, 3)),
        [tmp_path / f"day{day}.csv" for day in (1, 2, 3)],
    ):
        log = read_events(source)
        assert log.events["item_id"].to_list() == ["1", "2", "3"]
        assert log.report.files == ["day1.csv", "day2.csv", "day3.csv"]
    assert read_events(tmp_path).events["item_id"].to_list() == ["1", "2", "3", "x"]
    with pytest.raises(FileNotFoundError, match=r"day9.*does not exist"):
        read_events(f"{tmp_path / 'day1.csv'},{tmp_path / 'day9.csv'}")
    with pytest.raises(FileNotFoundError, match=r"week\*"):
        read_events(tmp_path / "week*.csv")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_the_folders_of_a_partition_are_a_column(kind: str, tmp_path: Path) -> None:
    for day, action in (("2024-05-01", "view"), ("2024-05-02", "add%20to%20cart"), ("2024-05-03", "view")):
        folder = tmp_path / f"date={day}" / f"action={action}"
        folder.mkdir(parents=True)
        table = pl.DataFrame({"user_id": ["u"], "item_id": ["x"]})
        table.write_parquet(folder / "0.parquet") if kind == "parquet" else table.write_csv(folder / "0.csv")
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / f"0.{kind}").write_text("no log")
    for source in (tmp_path, f"{tmp_path}/date=*/*/*.{kind}"):
        log = read_events(source)
        assert log.events["action"].to_list() == ["view", "add to cart", "view"]
        assert moments(log)[1] == "2024-05-02 00:00:00"
        assert any("action: from the names of the folders" in note for note in log.report.notes)


# What was not read


def test_the_report_lists_what_was_not_read_and_what_it_may_be(tmp_path: Path) -> None:
    report = read(tmp_path, "user_id,item_id,price,visitday,usertype\n1,a,2,2024-05-01,x\n1,b,3,2024-05-02,y\n").report
    assert report.unread == ["price", "visitday", "usertype"]
    text = " ".join(str(report).split())
    assert (
        "not read visitday (looks like a time: --time_column visitday), usertype (looks like an action: "
        "--action_column usertype), price" in text
    )
    whole = read(tmp_path, "user_id,item_id,action,timestamp\n1,a,view,1700000000\n1,b,view,1700000001\n").report
    assert "not read" not in str(whole)


# Any bytes at all


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl"])
def test_the_mark_of_a_file_says_its_encoding(encoding: str, name: str, tmp_path: Path) -> None:
    marks = {"utf-16-le": "\ufeff", "utf-16-be": "\ufeff"}
    text = "user_id,item_id\nü1,🛒\nü1,b\n"
    if name.endswith("jsonl"):
        text = '{"user_id": "ü1", "item_id": "🛒"}\n{"user_id": "ü1", "item_id": "b"}\n'
    data = (marks.get(encoding, "") + text).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for block in (64, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("next_behavior.data.csv_files.BLOCK_BYTES", block)
            assert read_events(tmp_path / name).events["item_id"].to_list() == ["🛒", "b"]


HEADER = b"user_id,item_id,action,timestamp\n"
MARKS = [b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xff\xfe\x00\x00", b"\x1f\x8b\x08", b"PAR1", b"PK\x03\x04"]
LINES = [HEADER, b"u1,a,view,1700000000\n", b'{"user_id": 1, "item_id": 2}\n', b'{"user_id"', b"user_id:token"]
SIGNS = [
    b'"',
    b",",
    b"\n",
    b"\r",
    b"::",
    b"\t",
    b"\x00",
    b"\xe9",
    b"[",
    b"\\N",
    b"\xd8\x00",
    b" ",
    b"\x1f",
    b"a" * 70_000,
]
PIECES = st.sampled_from(MARKS + LINES + SIGNS)
BYTES = st.lists(PIECES | st.binary(max_size=6), max_size=12).map(b"".join)
PARQUET = io.BytesIO()
pl.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", "z"], "timestamp": [1, 2, 3]}).write_parquet(PARQUET)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with some of its bytes changed, cut out or cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        if len(data) < 2:
            break
    return bytes(data)


def ends_in_events_or_one_line(data: bytes, name: str, **options: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        refusal = None
        try:
            events = read_events(path, ReadOptions(**options)).events  # type: ignore[arg-type]
        except ValueError as error:
            refusal = error
    if refusal is None:
        assert events.height > 1
    else:
        assert type(refusal) is ValueError, repr(refusal)
        assert name in str(refusal)
        assert "expected" in str(refusal)
        assert len(str(refusal)) < 3000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=400, deadline=None)
@given(
    data=BYTES | BYTES.map(lambda data: HEADER + data) | damaged(HEADER + b'u1,"a",view,1700000000\n' * 3),
    name=st.sampled_from(["log.csv", "log.csv.gz", "log.tsv", "log.jsonl", "log.dat"]),
    zipped=st.booleans(),
    names=st.sampled_from([None, None, "user_id,item_id,action,timestamp"]),
    ratio=st.sampled_from([0.05, 1.0]),
)
def test_every_text_file_ends_in_events_or_in_a_line_that_names_it(
    data: bytes, name: str, zipped: bool, names: str | None, ratio: float
) -> None:
    options: dict[str, object] = {"max_reject_ratio": ratio, "format": "csv" if name == "log.dat" else None}
    if not name.endswith("jsonl"):
        options["columns"] = names
    ends_in_events_or_one_line(gzip.compress(data) if zipped else data, name, **options)


@settings(max_examples=200, deadline=None)
@given(data=damaged(PARQUET.getvalue()) | damaged(gzip.compress(HEADER + b"u1,a,view,1700000000\n" * 3)) | BYTES)
def test_every_parquet_file_ends_in_events_or_in_a_line_that_names_it(data: bytes) -> None:
    ends_in_events_or_one_line(data, "log.parquet")
    ends_in_events_or_one_line(data, "log.csv.gz")


@pytest.mark.parametrize(
    "data", [b"a" * 70_000, HEADER + b"u" * 100_000, HEADER + b"u,a,view,1" + b"0" * 90_000 + b"\n" * 2]
)
def test_names_and_ids_without_end_are_cut_in_messages(data: bytes) -> None:
    ends_in_events_or_one_line(data, "log.csv")


def test_a_stream_whose_file_could_not_be_opened_is_closed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(HEADER)
    stream = TextStream.__new__(TextStream)
    with pytest.raises(ValueError, match="not gzip data"):
        stream.__init__(tmp_path / "log.csv.gz")  # type: ignore[misc]
    stream.close()
    assert stream.closed


# Flags


def test_every_flag_that_a_message_names_exists() -> None:
    parser = argparse.ArgumentParser()
    add_event_arguments(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    known.add("--num_processes")  # of accelerate launch
    assert {f"--{flag}" for flag in FLAGS.values()} | {f"--{entry.name}" for entry in fields(ReadOptions)} <= known
    settings = argparse.ArgumentParser()
    add_arguments(settings)
    known |= {flag for action in settings._actions for flag in action.option_strings}
    named = set()
    for path in Path(next_behavior.data.__path__[0]).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
                known |= {str(flag.value) for flag in node.args if isinstance(flag, ast.Constant)}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                named |= set(re.findall(r'(?<![\w"-])--[a-z][a-z_0-9-]*', node.value))
    assert {"--columns", "--format", "--time_format", "--missing_values"} <= named
    assert named - known == set()


def test_an_item_table_without_a_header_and_of_any_name_is_read_by_flags_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_text("1::Toy Story (1995)::Animation\n2::Jumanji (1995)::Adventure\n")
    rows = [("1", "Toy Story (1995)", "Animation"), ("2", "Jumanji (1995)", "Adventure")]
    file = tmp_path / "movies.dat"
    assert read_items(file, format="csv", columns="item_id,title,genre").rows() == rows
    assert read_items(file, "movie", format="csv", columns="movie,title,genre").rows() == rows
    for asked, flag in (({}, "--items_format csv"), ({"format": "csv"}, "--items_columns")):
        with pytest.raises(ValueError, match=flag) as error:
            read_items(file, **asked)
        assert not {"--format", "--columns"} & set(re.findall(r"--\w+", str(error.value)))
    (tmp_path / "ratings.csv").write_text("user_id,item_id\n1,1\n1,2\n1,1\n")
    flags = ["--items", str(file), "--items_format", "csv", "--items_columns", "item_id,title,genre"]
    tokenize([str(tmp_path / "ratings.csv"), "--output", str(tmp_path / "tokenizer"), *flags])
    assert "Toy Story (1995)" in (tmp_path / "tokenizer" / "vocabulary.tsv").read_text()
