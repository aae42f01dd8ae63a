# ruff: noqa: S608 - statements contain only names of tables and numbers
"""Create partitions in advance, and convert tables of an earlier version to partitioned tables. All calls block.

A conversion keeps all rows in place: the table becomes the partition of its days and of the next ones. It has three
steps, each of which may be interrupted and repeated:

1. A check constraint limits the days of the table. Existing rows are not read, so the lock is short.
2. PostgreSQL validates the constraint. Reads and writes continue.
3. The table is renamed and attached to a new partitioned table of its name. The constraint makes a scan unnecessary, so
   the lock is short.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text

from gateway.errors import StartupError
from gateway.usage.partitions import (
    AHEAD_DAYS,
    PARTITIONED,
    create_defaults,
    create_partitions,
    days_at_once,
    days_in_default,
    is_partitioned,
    limit_lock_wait,
    missing_days,
)
from gateway.usage.tables import DAY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection, Table

    from gateway.usage.engine import UsageEngine

log = structlog.get_logger()

_LEAD_DAYS = 7
"""Days after today that the partition of a converted table has. An interrupted conversion must go on before."""
_CHECK = re.compile(r"usage_days_before_(\d+)")
_CHECKS = text("SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(:name) AND contype = 'c'")
_INDEXES = text("SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = to_regclass(:name)")
_GRANTS = text(
    "SELECT format('GRANT %s ON %I TO %s%s', privilege_type, CAST(:table AS text), "
    "CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, "
    "CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) "
    "FROM pg_class, aclexplode(relacl) WHERE oid = to_regclass(:name) AND grantee <> relowner"
)
# A view or publication refers to the table itself, not to its name. It would have only the rows before the conversion.
_DEPENDENTS = text(
    "SELECT DISTINCT 'view ' || ev_class::regclass::text FROM pg_depend JOIN pg_rewrite ON pg_rewrite.oid = objid "
    "WHERE classid = 'pg_rewrite'::regclass AND refobjid = to_regclass(:name) "
    "UNION SELECT 'publication ' || pubname FROM pg_publication_rel JOIN pg_publication p ON p.oid = prpubid "
    "WHERE prrelid = to_regclass(:name)"
)


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
    """Convert plain tables, create the partitions of the next days, and empty the default partitions.

    Several workers may call it at once. Raises UsageDatabaseError and StartupError.
    """
    if engine.is_sqlite:
        return
    today = int(clock() // DAY_S)
    prevented: StartupError | None = None
    for table in PARTITIONED:
        try:
            _convert(engine, table, today)
        except StartupError as error:  # the other tables do not wait for an operator
            prevented = error
    with engine.reading() as connection:
        days = {*range(today, today + AHEAD_DAYS + 1), *days_in_default(connection)}
    for some in days_at_once(missing_days(days, today)):
        with engine.writing() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # many rows may move
            create_partitions(connection, some)
    if prevented is not None:
        raise prevented


def _convert(engine: UsageEngine, table: Table, today: int) -> None:
    """Make a plain table a partition of a new partitioned table of the same name."""
    with engine.writing() as connection:
        if is_partitioned(connection, table):
            return
        began = time.monotonic()
        dependents = sorted(connection.scalars(_DEPENDENTS, {"name": table.name}))
        if dependents:
            drop_limits(connection, table)  # constraints of an interrupted attempt would reject later days
        else:
            check, until = _limit_days(connection, table, today)
    if dependents:
        raise StartupError(
            f"{table.name} cannot be partitioned while these depend on it: {', '.join(dependents)}. Drop them, and "
            "create them again after the worker has logged usage_table_partitioned."
        )
    with engine.open().begin() as connection:
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # it reads the whole table
        limit_lock_wait(connection)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} VALIDATE CONSTRAINT {check}")
    with engine.writing() as connection:
        if is_partitioned(connection, table):  # by another worker
            return
        _attach(connection, table, check, until)
    log.info("usage_table_partitioned", table=table.name, seconds=round(time.monotonic() - began, 1))


def limited_days(connection: Connection, table: Table) -> list[int]:
    """Return the first days that constraints of interrupted conversions reject."""
    if connection.dialect.name != "postgresql" or is_partitioned(connection, table):
        return []
    checks = connection.scalars(_CHECKS, {"name": table.name}).all()
    return [int(match[1]) for name in checks if (match := _CHECK.fullmatch(name)) is not None]


def drop_limits(connection: Connection, table: Table) -> int:
    """Drop the constraints of interrupted conversions. Return their number. Call it in a write transaction."""
    days = limited_days(connection, table)
    for day in days:
        limit_lock_wait(connection)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} DROP CONSTRAINT {_check_name(day)}")
    return len(days)


def _check_name(day: int) -> str:
    return f"usage_days_before_{day}"


def _limit_days(connection: Connection, table: Table, today: int) -> tuple[str, int]:
    """Add the constraint unless an earlier attempt has added it. Return its name and the first day after its days."""
    limit_lock_wait(connection)
    for day in limited_days(connection, table):
        if day > today + 1:
            return _check_name(day), day
        connection.exec_driver_sql(f"ALTER TABLE {table.name} DROP CONSTRAINT {_check_name(day)}")
    newest = connection.exec_driver_sql(f"SELECT MAX(day) FROM {table.name}").scalar()
    until = max(today, today if newest is None else newest) + 1 + _LEAD_DAYS
    name = _check_name(until)
    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD CONSTRAINT {name} CHECK (day < {until}) NOT VALID")
    return name, until


def _attach(connection: Connection, table: Table, check: str, until: int) -> None:
    limit_lock_wait(connection)
    run, old = connection.exec_driver_sql, f"{table.name}_earlier"
    run(f"ALTER TABLE {table.name} RENAME TO {old}")
    for index in connection.scalars(_INDEXES, {"name": old}).all():
        run(f"ALTER INDEX {index} RENAME TO {index.rpartition('.')[2]}_earlier")
    table.create(connection)
    create_defaults(connection)
    run(f"ALTER TABLE {table.name} ATTACH PARTITION {old} FOR VALUES FROM (MINVALUE) TO ({until})")
    run(f"ALTER TABLE {old} DROP CONSTRAINT {check}")
    for grant in connection.scalars(_GRANTS, {"table": table.name, "name": old}).all():
        run(grant)


def _class_of(error: BaseException) -> str:
    return type(getattr(error, "orig", None) or error).__name__
