"""Insert answer comparisons into the usage database, each once, and add them up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict
from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite

from gateway.quality.book import ComparisonScope
from gateway.quality.comparison import QualityTally
from gateway.usage.tables import COMPARISONS, DAY_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

    from gateway.quality.comparison import Comparison


def add_comparisons(connection: Connection, comparisons: Iterable[Comparison]) -> None:
    """Insert the comparisons that the database lacks. Raises SQLAlchemyError."""
    rows = [asdict(one) | {"day": one.created // DAY_S} for one in comparisons]
    if rows:
        build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(build(COMPARISONS).on_conflict_do_nothing(), rows)


def tallies(connection: Connection, since: int) -> dict[ComparisonScope, QualityTally]:
    """Return the sums by scope, starting with the day `since` (days since the Unix epoch)."""
    c = COMPARISONS.c
    scope: list[Any] = [c[name] for name in ComparisonScope._fields]
    difference = c.guided - c.student
    sums = [func.sum(value) for value in (c.guided, c.student, difference, difference * difference)]
    query = select(*scope, func.count(), *sums).where(c.day >= since).group_by(*scope)
    return {ComparisonScope(*row[:4]): QualityTally(*map(int, row[4:])) for row in connection.execute(query)}
