"""What a time column holds, counted piece by piece, and how all of it is to be read.

    survey = TimeSurvey.of(ParsedTimes.of(first_rows, asked), asked) + TimeSurvey.of(...)
    reading = survey.decide(asked)

One unit holds for the whole column, and so do the bounds of what is possible. Sums are enough to choose them, so a log
is surveyed without being held in memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from next_behavior.data.times import DAY, MOMENTS, NUMBERS, SPREADSHEET_EPOCH, AskedTimes, ParsedTimes, TimeReading
from next_behavior.model.times import COMPACT_FORMATS, COMPACT_PATTERN, TOO_LARGE, UNITS

UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
EARLIEST_LIKELY = 631_152_000  # 1990-01-01, seconds since 1970: no log of user behavior on the web is older
EARLIEST_DATE = -2_208_988_800  # 1900-01-01: the bound for logs whose dates are mostly before 1990
SAMPLE, MOSTLY = 1000, 0.9  # numbers that are looked at, and the share of them that must look like dates
# Numbers by their size, ascending: below -1e17, ..., around 0, ..., from 1e17 on; and the unit of each class.
SIZES = (*(-end for end in reversed(TOO_LARGE.values())), *TOO_LARGE.values())
UNITS_OF_SIZES = ("ns", "us", "ms", "s", "ms", "us", "ns")


def parse_times(
    raw: pl.Series, column: str, unit: str | None, latest: datetime, time_format: str | None = None
) -> tuple[pl.Series, pl.Series, TimeReading]:
    """Times as the file has them, (N,) numbers, text, Date or Datetime -> microseconds UTC; `AskedTimes` has the rest.

    Returns:
        times (N,) Datetime("us", "UTC"), null where a rule fails; rules (N,) String, the rule's name or null;
        how they were read.

    Raises:
        ValueError: the column holds more than one unit, numbers that may be dates, or no times at all by its type.
    """
    asked = AskedTimes(column, unit, latest, time_format)
    parsed = ParsedTimes.of(raw, asked)
    reading = TimeSurvey.of(parsed, asked).decide(asked)
    return *reading.apply(parsed), reading


@dataclass
class TimeSurvey:
    """Counts of a column or of some of its rows; `+` adds those of later rows.

    Attributes:
        rows, missing: all rows, and those without a value.
        is_numeric, is_dated: whether the column's type is a number, a date.
        not_whole, not_number: rows that are no whole number, no finite number (empty ones included).
        moments, zoneless: rows that are moments, and those of them without a zone.
        early_moments: moments before 1990.
        early, likely: for each unit, numbers before 1990, and from there to the latest possible time.
        sizes: numbers in each class of `SIZES`.
        sampled, compact, spreadsheet: numbers looked at, and those that look like 20240130, like days of a spreadsheet.
        examples: of what the messages name: "moment", "number", a unit, "compact", "spreadsheet".
        notes: for the report.
    """

    rows: int = 0
    missing: int = 0
    is_numeric: bool = False
    is_dated: bool = False
    not_whole: int = 0
    not_number: int = 0
    moments: int = 0
    zoneless: int = 0
    early_moments: int = 0
    early: Counter[str] = field(default_factory=Counter)
    likely: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    sampled: int = 0
    compact: int = 0
    spreadsheet: int = 0
    examples: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, parsed: ParsedTimes, asked: AskedTimes) -> TimeSurvey:
        raw, moments, numbers = parsed.raw, parsed.moments, parsed.numbers
        survey = cls(
            rows=len(raw),
            missing=raw.null_count(),
            is_numeric=raw.dtype.is_numeric(),
            is_dated=raw.dtype.is_temporal(),
            not_number=len(raw) if numbers is None else numbers.null_count(),
            zoneless=parsed.zoneless,
            notes=parsed.notes,
        )
        if moments is not None:
            survey.moments = len(moments) - moments.null_count()
            survey.early_moments = int((moments < EARLIEST_LIKELY * UNITS["us"]).sum())
            if survey.moments:
                survey.examples["moment"] = str(raw.filter(moments.is_not_null())[0])
        if numbers is not None:
            survey.not_whole = len(numbers) if numbers.dtype.is_float() else numbers.null_count()
            survey._count_numbers(numbers, raw, asked)
        return survey

    def _count_numbers(self, numbers: pl.Series, raw: pl.Series, asked: AskedTimes) -> None:
        if numbers.null_count() == len(numbers):
            return
        self.examples["number"] = str(raw.filter(numbers.is_not_null())[0])
        for unit in UNITS if asked.unit is None else [asked.unit] if asked.unit in UNITS else []:
            low, high = EARLIEST_LIKELY * UNITS[unit], int(asked.latest.timestamp() * UNITS[unit])
            self.early[unit] = int((numbers < low).sum())
            if asked.unit is not None:
                continue
            likely = numbers.is_between(low, high)
            self.likely[unit] = int(likely.sum())
            if self.likely[unit]:
                self.examples[unit] = str(numbers.filter(likely)[0])
        if asked.unit is None:
            if not any(self.likely.values()):
                below = [int((numbers < size).sum()) for size in SIZES]
                counts = np.diff([0, *below, len(numbers) - numbers.null_count()])
                self.sizes = Counter({place: int(count) for place, count in enumerate(counts)})
            self._look_for_dates(numbers, asked.latest)

    def _look_for_dates(self, numbers: pl.Series, latest: datetime) -> None:
        known = numbers.drop_nulls()
        sample = known.gather_every(max(1, len(known) // SAMPLE))
        is_whole = sample == sample.floor() if sample.dtype.is_float() else pl.repeat(True, len(sample), eager=True)
        digits = sample.cast(pl.Int64, strict=False).cast(pl.String).filter(is_whole)
        dates = digits.filter(digits.str.contains(COMPACT_PATTERN))
        last = latest.timestamp() / DAY + SPREADSHEET_EPOCH
        days = sample.filter(sample.is_between(EARLIEST_LIKELY / DAY + SPREADSHEET_EPOCH, last))
        self.sampled, self.compact, self.spreadsheet = len(sample), len(dates), len(days)
        for name, found in (("compact", dates), ("spreadsheet", days)):
            if len(found):
                self.examples[name] = str(found[0])

    def __add__(self, later: TimeSurvey) -> TimeSurvey:
        return TimeSurvey(
            rows=self.rows + later.rows,
            missing=self.missing + later.missing,
            is_numeric=self.is_numeric or later.is_numeric,
            is_dated=self.is_dated or later.is_dated,
            not_whole=self.not_whole + later.not_whole,
            not_number=self.not_number + later.not_number,
            moments=self.moments + later.moments,
            zoneless=self.zoneless + later.zoneless,
            early_moments=self.early_moments + later.early_moments,
            early=self.early + later.early,
            likely=self.likely + later.likely,
            sizes=self.sizes + later.sizes,
            sampled=self.sampled + later.sampled,
            compact=self.compact + later.compact,
            spreadsheet=self.spreadsheet + later.spreadsheet,
            examples=later.examples | self.examples,
            notes=tuple(dict.fromkeys([*self.notes, *later.notes])),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TimeSurvey:
        sizes = Counter({int(place): count for place, count in values["sizes"].items()})
        counters = {"early": Counter(values["early"]), "likely": Counter(values["likely"]), "sizes": sizes}
        return cls(**{**values, **counters, "notes": tuple(values["notes"])})

    def decide(self, asked: AskedTimes) -> TimeReading:
        """How the column is to be read.

        Raises:
            ValueError: it holds more than one unit, or numbers that may be dates.
        """
        if asked.format is not None or self.is_dated:
            return self._moments("format" if asked.format is not None else "datetime", asked, [*self.notes])
        if not self.is_numeric:
            likely = sum(self.likely.values())
            if self.moments and likely:
                raise ValueError(
                    f"got mixed units in the time column {asked.column!r}: {self.moments:,} rows of ISO text (e.g. "
                    f"{self.examples['moment']!r}) and {likely:,} of numbers (e.g. {self.examples['number']!r}); "
                    "expected one: convert the column, or name the right one with --time_unit (iso, s, ms, us) and the "
                    "other rows are rejected"
                )
            if asked.unit == "iso" or (self.moments and asked.unit != "days"):
                notes = ["unit of time: ISO text"]
                if self.zoneless:
                    notes.append(
                        f"{asked.column}: {self.zoneless:,} of {self.moments:,} times have no zone: read as UTC"
                    )
                return self._moments("iso", asked, notes)
        if asked.unit is None:
            self._refuse_dates(asked.column)
        if asked.unit == "days":
            return self._moments("days", asked, ["unit of time: days of a spreadsheet (0 is 1899-12-30), as given"])
        unit, note = self._number_unit(asked)
        known = self.rows - self.not_number
        whole = self.not_whole in (self.missing, self.not_number)
        return self._reading(NUMBERS, unit, UNITS[unit], self.early[unit], known, asked, [note], whole)

    def _moments(self, unit: str, asked: AskedTimes, notes: list[str]) -> TimeReading:
        return self._reading(MOMENTS, unit, UNITS["us"], self.early_moments, self.moments, asked, notes)

    @staticmethod
    def _reading(
        kind: str,
        unit: str,
        scale: int,
        early: int,
        known: int,
        asked: AskedTimes,
        notes: list[str],
        whole: bool = True,
    ) -> TimeReading:
        """Most times before 1990 mean a relative clock, on which no time is too early but < 0."""
        low = EARLIEST_LIKELY
        if 2 * early > known:
            low = EARLIEST_DATE if kind == MOMENTS else 0
            notes.append("most times are before 1990: taken as they are (order and gaps count, dates may mean nothing)")
        high = int(asked.latest.timestamp() * scale)
        return TimeReading(asked, kind, unit, scale, whole, low * scale, high, tuple(notes))

    def _refuse_dates(self, column: str) -> None:
        """ValueError if the numbers look like dates: 20240130, 202401 ..., or the days of a spreadsheet."""
        if self.sampled and self.compact >= MOSTLY * self.sampled:
            example = self.examples["compact"]
            raise ValueError(
                f"got numbers in the time column {column!r} that look like dates (e.g. {example}); expected seconds "
                f"since 1970 or ISO text: read them as dates with --time_format {COMPACT_FORMATS[len(example)]}, or, "
                "if they are numbers, name their unit with --time_unit s"
            )
        if self.sampled and self.spreadsheet >= MOSTLY * self.sampled:
            raise ValueError(
                f"got numbers in the time column {column!r} that look like the days of a spreadsheet (e.g. "
                f"{self.examples['spreadsheet']}); expected seconds since 1970 or ISO text: read them as days with "
                "--time_unit days, or, if they are seconds, with --time_unit s"
            )

    def _number_unit(self, asked: AskedTimes) -> tuple[str, str]:
        """The unit of the numbers, and a note on it."""
        if asked.unit is not None:
            return asked.unit, f"unit of time: {UNIT_NAMES[asked.unit]} since 1970, as given"
        likely = [unit for unit in UNITS if self.likely[unit]]
        if len(likely) > 1:
            examples = " and ".join(
                f"{self.likely[unit]:,} rows in {UNIT_NAMES[unit]} (e.g. {self.examples[unit]})" for unit in likely
            )
            raise ValueError(
                f"got mixed units in the time column {asked.column!r}: {examples}; expected one unit: convert the "
                f"column, or name the right one with --time_unit ({', '.join(likely)}) and the other rows are rejected"
            )
        if likely:
            name = UNIT_NAMES[likely[0]]
            return likely[0], f"unit of time: {name} since 1970, inferred from the size of the numbers"
        unit = self._median_unit()
        return unit, f"unit of time: {UNIT_NAMES[unit]}, a guess from the size of the numbers: --time_unit says it"

    def _median_unit(self) -> str:
        """The unit of the median of the numbers."""
        middle, before = sum(self.sizes.values()) / 2, 0
        for place, unit in enumerate(UNITS_OF_SIZES):
            before += self.sizes[place]
            if before and before >= middle:
                return unit
        return "s"
