"""What an engine does for a preparation: hold the log in partitions, and call the functions of `partition.py` on each.

`prepare.py` decides with the sums that it gets back. `one_machine.py` and `spark.py` are the engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl
import pyarrow as pa

from next_behavior.data.cleaning import RULES
from next_behavior.data.log_statistics import LogStatistics
from next_behavior.data.markers import add_counts
from next_behavior.data.report import Removed, removed_by
from next_behavior.data.sequences import Coding
from next_behavior.data.splits import OrderedTimes
from next_behavior.preparation.partition import PartitionCounts, Parts
from next_behavior.preparation.survey import Survey


@dataclass
class ReadRows:
    """What is counted when rows are read; `+` adds those of later rows.

    Attributes:
        events, without_item: usable rows, and those that name no item.
        markers: rows with texts such as NA, by role.
        unusable: rows that each rule removed; first: the first of them.
        notes: for the report.
    """

    events: int = 0
    without_item: int = 0
    markers: dict[str, dict[str, int]] = field(default_factory=dict)
    unusable: Counter[str] = field(default_factory=Counter)
    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __add__(self, later: ReadRows) -> ReadRows:
        return ReadRows(
            events=self.events + later.events,
            without_item=self.without_item + later.without_item,
            markers=add_counts(self.markers, later.markers) if later.markers else self.markers,
            unusable=self.unusable + later.unusable,
            first=later.first | self.first,
            notes=list(dict.fromkeys([*self.notes, *later.notes])),
        )

    def count_rejects(self, rejects: pl.DataFrame) -> None:
        """Counts rows of `as_rejects`."""
        for rule, many in rejects["rule"].value_counts().iter_rows():
            self.unusable[rule] += many
            if rule not in self.first:
                self.first[rule] = rejects.filter(pl.col("rule") == rule).row(0, named=True)

    def removed(self, files: list[str]) -> list[Removed]:
        """One entry per rule, in the order of `RULES`."""
        return [removed_by(rule, self.unusable[rule], self.first[rule], files) for rule in RULES if rule in self.first]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ReadRows:
        return cls(**{**values, "unusable": Counter(values["unusable"])})


class Engine(Protocol):
    """The steps of a preparation, in this order.

    Attributes:
        survey: what the first pass over the log found.
    """

    survey: Survey

    def read(self) -> ReadRows:
        """Reads the rows and divides the usable ones into partitions, ascending ranges of user ids."""
        ...

    def clean(self) -> list[LogStatistics]:
        """Orders each partition and applies the rules that were asked for."""
        ...

    def rejects(self) -> Iterator[pl.DataFrame]:
        """All removed rows as `as_rejects` gives them, in order, in pieces that do not depend on the partitions."""
        ...

    def unusable(self) -> Iterator[pl.DataFrame]:
        """Those of them that are no events."""
        ...

    def times(self, statistics: LogStatistics) -> OrderedTimes:
        """Of all events."""
        ...

    def count(self, parts: list[Parts]) -> PartitionCounts:
        """Sums over all partitions."""
        ...

    def encode(self, parts: list[Parts], coding: Coding) -> Iterator[pa.Table]:
        """The rows of `encode_users`, in the order of the users."""
        ...
