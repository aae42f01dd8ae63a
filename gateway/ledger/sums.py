"""Sums of receipts by period: the minute, the hour and the day. Pure.

A receipt belongs to the period in which its request came in (`created`), whenever it was settled: so that the same
receipts, read from the archive, make the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.ledger.rollup import Dims, Row, dims, row_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.ledger.receipt import Receipt

Granularity = Literal["minute", "hour", "day"]
SECONDS: dict[Granularity, int] = {"minute": 60, "hour": 3600, "day": 86_400}
"""How long a period is. All begin with the Unix epoch, so days are UTC's."""

OTHER = "(other)"
"""The key, and the route, of what is beyond the bound of rows. It has brackets, so nothing else is called so."""


class Retention(msgspec.Struct, frozen=True):
    """How long rows are kept after their period, in seconds; and how many for one tenant and period."""

    minute: float
    hour: float
    day: float
    max_rows: int = 1_000

    def ends(self, granularity: Granularity, period: int) -> int:
        """When the rows of a period go, in Unix seconds."""
        kept_s: float = getattr(self, granularity)
        return round(period + SECONDS[granularity] + kept_s)

    def counts(self, created: float, now: float) -> bool:
        """Whether a receipt of that moment still has a row somewhere."""
        return any(self.ends(one, Period.of(one, created).start) > now for one in SECONDS)


@dataclass(frozen=True, slots=True)
class Period:
    """Some time, from `start` in Unix seconds."""

    granularity: Granularity
    start: int

    @classmethod
    def of(cls, granularity: Granularity, moment: float) -> Period:
        """The one in which a moment lies."""
        length = SECONDS[granularity]
        return cls(granularity, int(moment // length * length))


def periods(granularity: Granularity, since: float, until: float) -> Iterator[Period]:
    """All that lie in [since, until), the first and the last with their whole length."""
    one = Period.of(granularity, since)
    while one.start < until:
        yield one
        one = Period(granularity, one.start + SECONDS[granularity])


class Sums:
    """What some receipts add up to, to be added to what is there."""

    def __init__(self) -> None:
        self.rows: dict[Period, dict[Dims, Row]] = defaultdict(dict)

    def add(self, receipt: Receipt, times: int = 1) -> None:
        """Count a receipt, in its minute; `spread` takes it to the hours and days."""
        row_in(self.rows[Period.of("minute", receipt.created)], dims(receipt)).add(receipt, times)

    @classmethod
    def of_rows(cls, raw: Iterable[tuple[Period, Dims, bytes]]) -> Sums:
        """From rows as they are kept, which are not touched."""
        sums = cls()
        for period, where, row in raw:
            sums.rows[period][where] = Row.from_bytes(row)
        return sums

    def spread(self) -> Sums:
        """The same, by the hour and the day as well. Call it once, when all are counted."""
        for period, rows in list(self.rows.items()):
            for granularity in ("hour", "day"):
                wider = self.rows[Period.of(granularity, period.start)]
                for where, row in rows.items():
                    row_in(wider, where).merge(row)
        return self
