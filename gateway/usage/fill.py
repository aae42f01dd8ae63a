"""Write sums of periods that no receipts in the database can give: from an earlier version, or from a backup.

Of a period that is over, the larger sums are the complete ones: they replace the smaller. A period that goes on has
receipts on both sides. There, parts from before the first receipt in the database are written, and added to the whole.
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
"""All sums of a period, encoded, with `TOTAL`."""


def fill_sums(
    connection: Connection, sums: Mapping[Period, PeriodSums], closed: float = math.inf, first: float = math.inf
) -> int:
    """Write the sums of periods that the database lacks, and return the number of these periods.

    Args:
        sums: of all lengths, or of one. A day comes with its hours and minutes, in the same call.
        closed: Unix seconds. A period that ended before is over: no new receipts come.
        first: when the request of the first receipt in the database came, in Unix seconds.

    Raises SQLAlchemyError.
    """
    sql = sql_of(connection)
    held = sql.held_sums([key_of(one, TOTAL) for one in sums])
    missing = {one for one in sums if key_of(one, TOTAL) not in held and ends(one) <= max(closed, first)}
    larger = {
        one
        for one in sums
        if (there := held.get(key_of(one, TOTAL))) and ends(one) <= closed and _size(sums[one][TOTAL]) > _size(there)
    }
    added: dict[SumKey, SumRow] = {}
    for period in missing | larger:
        place = (SUMS.c.seconds == SECONDS[period.granularity], SUMS.c.start == period.start)
        connection.execute(delete(SUMS).where(*place))
        sql.put_sums([(*key_of(period, dims), raw) for dims, raw in sums[period].items()])
    for period in (one for one in missing if ends(one) <= first):
        for wider in _wider(period):
            if wider not in sums or wider in missing or ends(wider) <= closed:
                break
            for dims, raw in sums[period].items():
                added.setdefault(key_of(wider, dims), SumRow()).merge(SumRow.from_bytes(raw))
    for key, raw in sql.held_sums(list(added)).items():
        added[key].merge(SumRow.from_bytes(raw))
    sql.put_sums([(*key, row.to_bytes()) for key, row in added.items()])
    return len(missing | larger)


def ends(period: Period) -> int:
    """Return the end of a period in Unix seconds."""
    return period.start + SECONDS[period.granularity]


def _size(raw: bytes) -> tuple[int, int, int]:
    row = SumRow.from_bytes(raw)
    tokens = (row.teacher, row.student, row.failed)
    return row.requests, row.cost_pico, sum(one.read + one.output for one in tokens)


def _wider(period: Period) -> Iterator[Period]:
    for granularity, seconds in SECONDS.items():
        if seconds > SECONDS[period.granularity]:
            yield Period.of(granularity, period.start)
