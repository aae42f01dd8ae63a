"""Write sums of periods whose receipts the database lacks: sums of an earlier version, or of a backup.

In a closed period, the larger sums are the complete ones, and replace the smaller. An open period has receipts on both
sides. For an open period, only parts before the first receipt in the database are written, and added to longer periods.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import delete

from gateway.usage.rollup import SumRow
from gateway.usage.sql import sql_of
from gateway.usage.sums import SECONDS, Period
from gateway.usage.sums_writer import TOTAL, key_of
from gateway.usage.tables import SUMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

    from gateway.usage.rollup import SumDimensions
    from gateway.usage.sql import SumKey

PeriodSums: TypeAlias = "Mapping[SumDimensions, bytes]"
"""All encoded sums of a period, including `TOTAL`."""


def fill_sums(
    connection: Connection, sums: Mapping[Period, PeriodSums], closed: float = math.inf, first: float = math.inf
) -> int:
    """Write sums of periods that the database lacks, and return the number of these periods.

    Args:
        sums: periods of all lengths, or of one length. A call with a day includes its hours and minutes.
        closed: Unix seconds. A period that ended before this time gets no new receipts.
        first: time of the request of the first receipt in the database, in Unix seconds.

    Raises SQLAlchemyError.
    """
    sql = sql_of(connection)
    held = sql.held_sums([key_of(period, TOTAL) for period in sums])
    missing = {period for period in sums if key_of(period, TOTAL) not in held and end_of(period) <= max(closed, first)}
    larger = {
        period
        for period in sums
        if (total := held.get(key_of(period, TOTAL)))
        and end_of(period) <= closed
        and _size(sums[period][TOTAL]) > _size(total)
    }
    added: dict[SumKey, SumRow] = {}
    for period in missing | larger:
        of_period = (SUMS.c.seconds == SECONDS[period.granularity], SUMS.c.start == period.start)
        connection.execute(delete(SUMS).where(*of_period))
        sql.put_sums([(*key_of(period, dims), raw) for dims, raw in sums[period].items()])
    for period in (candidate for candidate in missing if end_of(candidate) <= first):
        for wider in _wider(period):
            if wider not in sums or wider in missing or end_of(wider) <= closed:
                break
            for dims, raw in sums[period].items():
                added.setdefault(key_of(wider, dims), SumRow()).merge(SumRow.from_bytes(raw))
    for key, raw in sql.held_sums(list(added)).items():
        added[key].merge(SumRow.from_bytes(raw))
    sql.put_sums([(*key, row.to_bytes()) for key, row in added.items()])
    return len(missing | larger)


def end_of(period: Period) -> int:
    """Return the end of a period in Unix seconds."""
    return period.start + SECONDS[period.granularity]


def _size(raw: bytes) -> tuple[int, int, int]:
    row = SumRow.from_bytes(raw)
    tokens = (row.teacher, row.student, row.failed)
    return row.requests, row.cost_pico, sum(of_role.read + of_role.output for of_role in tokens)


def _wider(period: Period) -> Iterator[Period]:
    for granularity, seconds in SECONDS.items():
        if seconds > SECONDS[period.granularity]:
            yield Period.of(granularity, period.start)
