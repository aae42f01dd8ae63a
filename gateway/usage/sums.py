"""Sums of receipts by period: the minute, the hour and the day. Pure.

A receipt belongs to the period in which its request came in (`created`), whenever it was settled: so that the same
receipts, read from the archive, make the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from gateway.usage.rollup import Dims, Row, dims, merge_in, row_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.ledger.receipt import Receipt

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


class StoredRow(NamedTuple):
    """The sums of one period and these dimensions; `row` is an encoded `Row`."""

    period: Period
    where: Dims
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
        self.rows: dict[Period, dict[Dims, Row]] = defaultdict(dict)
        self.totals: dict[Period, Row] = {}

    def add(self, receipt: Receipt, times: int = 1, finest: Granularity | None = "minute") -> None:
        """Count a receipt in its minute, or in what else is the finest that counts; `spread` takes it to the others.

        Args:
            finest: None: no period counts it.
        """
        if finest is None:
            return
        row_in(self.rows[Period.of(finest, receipt.created)], dims(receipt)).add(receipt, times)

    @classmethod
    def of_rows(cls, raw: Iterable[tuple[Period, Dims, bytes]]) -> Sums:
        """From rows as they are kept, before they are spread; they are not touched."""
        sums = cls()
        for period, where, row in raw:
            sums.rows[period][where] = Row.from_bytes(row)
        return sums

    def spread(self) -> Sums:
        """The same, by the hour and the day as well. Call it once, when all are counted."""
        for _ in self.spreading():
            pass
        return self

    def spreading(self) -> Iterator[None]:
        """Do the same in steps of some microseconds."""
        shared: set[int] = set()
        # The days first: what the minutes bring to the hours is brought to the days by the minutes.
        for period, rows in sorted(self.rows.items(), key=lambda one: -SECONDS[one[0].granularity]):
            wider = [Period.of(name, period.start) for name in SECONDS if SECONDS[name] > SECONDS[period.granularity]]
            held = [self.rows[one] for one in wider]
            total = Row()
            for where, row in rows.items():
                total.merge(row)
                for by_dims in held:
                    _share_in(by_dims, shared, where, row)
                yield
            for one in (period, *wider):
                merge_in(self.totals, one, total)


def _share_in(rows: dict[Dims, Row], shared: set[int], where: Dims, row: Row) -> None:
    """Count a row of a shorter period. Where it is the only one, both periods have the same row: copies cost most.

    Args:
        shared: ids of rows that several periods have. None of them changes.
    """
    held = rows.get(where)
    if held is None:
        rows[where] = row
        shared.add(id(row))
    else:
        if id(held) in shared:
            held = rows[where] = held.copy()
        held.merge(row)
