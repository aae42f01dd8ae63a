"""Sums of receipts by period: the minute, the hour and the day. Pure.

A receipt belongs to the period in which its request came in (`created`), whenever it was settled: so that the same
receipts, read from the archive, make the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from gateway.usage.rollup import SumDimensions, SumRow, dims, total

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.accounting.receipt import Receipt

Granularity = Literal["minute", "hour", "day"]
SECONDS: dict[Granularity, int] = {"minute": 60, "hour": 3600, "day": 86_400}
"""How long a period is. All begin with the Unix epoch, so days are UTC's."""

OTHER = "(other)"
"""The key, and the route, of what is beyond the bound of rows. It has brackets, so nothing else is called so."""

ALL_TENANTS = ""
"""The tenant of the totals: the sums over all tenants. No tenant has this name."""


class Retention(msgspec.Struct, frozen=True):
    """How long rows are kept after their period, in seconds; and how many for one tenant and period."""

    minute: float
    hour: float
    day: float
    max_rows: int = 1_000

    def of(self, granularity: Granularity) -> float:
        """For how long, in seconds."""
        kept_s: float = getattr(self, granularity)
        return kept_s

    def ends(self, granularity: Granularity, period: int) -> int:
        """When the rows of a period go, in Unix seconds."""
        return round(period + SECONDS[granularity] + self.of(granularity))

    def finest(self, created: float, now: float) -> Granularity | None:
        """By what a receipt of that moment is still counted, at the finest; None: it is no longer."""
        for one in SECONDS:
            if self.ends(one, Period.of(one, created).start) > now:
                return one
        return None


class Period(NamedTuple):
    """Some time, from `start` in Unix seconds."""

    granularity: Granularity
    start: int

    @classmethod
    def of(cls, granularity: Granularity, moment: float) -> Period:
        """The one in which a moment lies."""
        length = SECONDS[granularity]
        return cls(granularity, int(moment // length * length))


_period_of = lru_cache(maxsize=4_096)(Period.of)


class StoredRow(NamedTuple):
    """The sums of one period and these dimensions; `row` is an encoded `SumRow`."""

    period: Period
    where: SumDimensions
    row: bytes


def periods(granularity: Granularity, since: float, until: float) -> Iterator[Period]:
    """All that lie in [since, until), the first and the last with their whole length."""
    one = Period.of(granularity, since)
    while one.start < until:
        yield one
        one = Period(granularity, one.start + SECONDS[granularity])


class Sums:
    """What some receipts add up to, to be added to what is there.

    Attributes:
        rows: by period; after `spread` by the hour and the day as well.
        totals: after `spread`, of each period all its rows together.
    """

    def __init__(self) -> None:
        self.rows: dict[Period, dict[SumDimensions, SumRow]] = defaultdict(dict)
        self.totals: dict[Period, SumRow] = {}

    def add(self, receipt: Receipt, times: int = 1, finest: Granularity | None = "minute") -> None:
        """Count a receipt in its minute, or in what else is the finest that counts; `spread` takes it to the others.

        Args:
            finest: None: no period counts it.
        """
        self.add_row(dims(receipt), SumRow.of(receipt, times), receipt.created, finest)

    def add_row(self, where: SumDimensions, row: SumRow, created: float, finest: Granularity | None) -> None:
        """Count a receipt, as `add` does, by its dimensions and its row. The row belongs to the sums afterwards."""
        if finest is None:
            return
        rows = self.rows[_period_of(finest, created)]
        if (held := rows.get(where)) is None:
            rows[where] = row
        else:
            held.merge(row)

    def spread(self) -> Sums:
        """Count minutes in their hours, and hours in their days. Call it once, when all receipts are counted."""
        self.totals = {period: total([*rows.values()]) for period, rows in self.rows.items()}
        for finer, wider in pairwise(SECONDS):
            parts: dict[Period, list[Period]] = defaultdict(list)
            for period in self.rows:
                if period.granularity == finer:
                    parts[Period.of(wider, period.start)].append(period)
            for above, below in parts.items():
                some = [above, *below] if above in self.rows else below
                self.rows[above] = _added_up([self.rows[one] for one in some])
                self.totals[above] = total([self.totals[one] for one in some])
        return self


def _added_up(parts: Sequence[dict[SumDimensions, SumRow]]) -> dict[SumDimensions, SumRow]:
    """Return the sums of these rows. Most have one row alone, which is its own sum."""
    rows: dict[SumDimensions, list[SumRow]] = defaultdict(list)
    for part in parts:
        for where, row in part.items():
            rows[where].append(row)
    return {where: total(some) for where, some in rows.items()}
