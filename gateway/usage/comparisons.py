"""Comparisons of answers in the usage database: insert them once each, and add them up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict
from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite

from gateway.quality.book import Compared
from gateway.quality.tally import Tally
from gateway.usage.tables import COMPARISONS, DAY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection

    from gateway.quality.comparison import Comparison
    from gateway.usage.threads import QueryThreads


class ComparisonReader:
    """Args:
    clock: Unix seconds.
    """

    def __init__(self, threads: QueryThreads, clock: Callable[[], float] = time.time) -> None:
        self._threads = threads
        self._clock = clock

    async def look(self, days: int) -> dict[Compared, Tally]:
        """Return the sums of the last days of UTC, including today. Raises UsageUnavailable."""
        return await self._threads.query(_tallies, int(self._clock()) // DAY_S - days + 1)


def add_comparisons(connection: Connection, comparisons: Iterable[Comparison]) -> None:
    """Insert comparisons that are not there yet. Raises SQLAlchemyError."""
    rows = [asdict(one) | {"day": one.created // DAY_S} for one in comparisons]
    if rows:
        build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(build(COMPARISONS).on_conflict_do_nothing(), rows)


def _tallies(connection: Connection, since: int) -> dict[Compared, Tally]:
    c = COMPARISONS.c
    where: list[Any] = [c[name] for name in Compared._fields]
    difference = c.guided - c.student
    sums = [func.sum(one) for one in (c.guided, c.student, difference, difference * difference)]
    wanted = select(*where, func.count(), *sums).where(c.day >= since).group_by(*where)
    return {Compared(*row[:4]): Tally(*map(int, row[4:])) for row in connection.execute(wanted)}
