"""Logs as people have them: read as they are meant, or refused in one line with a remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_behavior.data.events import EventLog, read_events
from next_behavior.data.read_options import ReadOptions
from next_behavior.model.histories import as_seconds

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
