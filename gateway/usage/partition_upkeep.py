"""Create partitions in advance. All calls block."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from gateway.usage.partitions import (
    AHEAD_DAYS,
    create_partitions,
    days_at_once,
    days_in_default,
    missing_days,
)
from gateway.usage.tables import DAY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.usage.engine import UsageEngine

log = structlog.get_logger()


class DayPartitions:
    """Create the partitions of days before their rows are written.

    A failure is logged once a day and does no harm: the default partition has the rows until `keep_partitions` moves
    them.
    """

    def __init__(self, engine: UsageEngine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine, clock
        self._known: set[int] = set()

    def ensure(self, days: Iterable[int]) -> None:
        """Create missing partitions of these days."""
        if self._engine.is_sqlite or not (new := set(days) - self._known):
            return
        self._known |= new  # also after a failure
        try:
            for some in days_at_once(missing_days(new, int(self._clock() // DAY_S))):
                with self._engine.writing() as connection:
                    create_partitions(connection, some)
        except Exception as error:  # noqa: BLE001 - logged; a failing database fails the write itself
            log.warning("usage_partitions_failed", error=_class_of(error), days=len(new))


def keep_partitions(engine: UsageEngine, clock: Callable[[], float] = time.time) -> None:
    """Create the partitions of the next days, and empty the default partitions.

    Several workers may call it at once. Raises UsageDatabaseError.
    """
    if engine.is_sqlite:
        return
    today = int(clock() // DAY_S)
    with engine.reading() as connection:
        days = {*range(today, today + AHEAD_DAYS + 1), *days_in_default(connection)}
    for some in days_at_once(missing_days(days, today)):
        with engine.writing() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # many rows may move
            create_partitions(connection, some)


def _class_of(error: BaseException) -> str:
    return type(getattr(error, "orig", None) or error).__name__
