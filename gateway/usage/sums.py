"""Sums of receipts by minute, hour and day. Pure.

A receipt belongs to the period of its request (`created`), independent of when it was settled. So the same receipts
always give the same sums.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from gateway.usage.rollup import SumDimensions, SumRow, dims_of, total

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.accounting.receipt import Receipt

Granularity = Literal["minute", "hour", "day"]
SECONDS: dict[Granularity, int] = {"minute": 60, "hour": 3600, "day": 86_400}
"""Length of a period. Periods are aligned to the Unix epoch, so days are UTC days."""

OTHER = "(other)"
"""The key and the route of sums beyond `max_rows`. No key or route can have parentheses in its name."""

ALL_TENANTS = ""
"""The tenant of totals: sums over all tenants. No tenant has this name."""


class Retention(msgspec.Struct, frozen=True):
    """Retention of sums in seconds from the end of a period. One tenant and period has at most `max_rows` sums."""

    minute: float
    hour: float
    day: float
    max_rows: int = 1_000

    def of(self, granularity: Granularity) -> float:
        """Return the retention of a granularity in seconds."""
        return float(getattr(self, granularity))

    def expires(self, granularity: Granularity, start: int) -> int:
        """Return when the sums of a period expire, in Unix seconds."""
        return round(start + SECONDS[granularity] + self.of(granularity))

    def finest(self, created: float, now: float) -> Granularity | None:
        """Return the finest granularity that still counts a receipt of that time, or None."""
        return next((name for name in SECONDS if self.expires(name, Period.of(name, created).start) > now), None)


class Period(NamedTuple):
    """A period from `start` in Unix seconds."""

    granularity: Granularity
    start: int

    @classmethod
    def of(cls, granularity: Granularity, moment: float) -> Period:
        """Return the period that contains a time in Unix seconds."""
        length = SECONDS[granularity]
        return cls(granularity, int(moment // length * length))


_period_of = lru_cache(maxsize=4_096)(Period.of)


class StoredRow(NamedTuple):
    """The sum of one period and these dimensions. `row` is an encoded `SumRow`."""

    period: Period
    dims: SumDimensions
    row: bytes


def periods(granularity: Granularity, since: float, until: float) -> Iterator[Period]:
    """Yield the periods that overlap [since, until), in Unix seconds."""
    period = Period.of(granularity, since)
    while period.start < until:
        yield period
        period = Period(granularity, period.start + SECONDS[granularity])


class Sums:
    """Sums of some receipts, to be added to those in the database. `spread` completes hours and days.

    `rows` has sums by period and dimensions, and `totals`, after `spread`, sums over all tenants by period.
    """

    def __init__(self) -> None:
        self.rows: dict[Period, dict[SumDimensions, SumRow]] = defaultdict(dict)
        self.totals: dict[Period, SumRow] = {}

    def add(self, receipt: Receipt, times: int = 1, finest: Granularity | None = "minute") -> None:
        """Add a receipt `times` times (see `SumRow.of`) to its period of the finest granularity; None: do not count it.

        `spread` adds it to longer periods.
        """
        self.add_row(dims_of(receipt), SumRow.of(receipt, times), receipt.created, finest)

    def add_row(self, dims: SumDimensions, row: SumRow, created: float, finest: Granularity | None) -> None:
        """Add a receipt, like `add`, given its dimensions and its row. The caller must not use the row afterwards."""
        if finest is None:
            return
        present = self.rows[_period_of(finest, created)].setdefault(dims, row)
        if present is not row:
            present.merge(row)

    def spread(self) -> Sums:
        """Add minutes to hours, and hours to days. Call it once, after all receipts are added."""
        self.totals = {period: total([*rows.values()]) for period, rows in self.rows.items()}
        for finer, wider in pairwise(SECONDS):
            parts: dict[Period, list[Period]] = defaultdict(list)
            for period in self.rows:
                if period.granularity == finer:
                    parts[Period.of(wider, period.start)].append(period)
            for whole, contained in parts.items():
                summands = [whole, *contained] if whole in self.rows else contained
                self.rows[whole] = _added_up([self.rows[period] for period in summands])
                self.totals[whole] = total([self.totals[period] for period in summands])
        return self


def _added_up(parts: Sequence[dict[SumDimensions, SumRow]]) -> dict[SumDimensions, SumRow]:
    """Return the sums of these rows by dimensions. Most sums have a single row, which is not copied."""
    rows: dict[SumDimensions, list[SumRow]] = defaultdict(list)
    for part in parts:
        for dims, row in part.items():
            rows[dims].append(row)
    return {dims: total(summands) for dims, summands in rows.items()}
