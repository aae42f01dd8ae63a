# ruff: noqa: S608 - statements contain only names of tables and numbers
"""Daily partitions of receipts, tags and labels in PostgreSQL. All calls block: use threads.

Each partition has one day. The default partition has the rows of days without a partition, so that no insert fails.
Such rows exist if a partition could not be created in time. SQLite has no partitions.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import accumulate, chain, repeat, takewhile
from typing import TYPE_CHECKING, NamedTuple

import structlog
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from gateway.usage.tables import DAY_S, LABELS, RECEIPTS, TAGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection, Table

log = structlog.get_logger()

PARTITIONED = (RECEIPTS, TAGS, LABELS)
AHEAD_DAYS = 7
"""Days after today that have partitions in advance."""
LOCK_WAIT_MS = 2_000
"""Limit of the wait for a lock that blocks other statements on the table."""

_OLDEST_DAYS = 4_000
"""Days before today that may have partitions. Receipts with an earlier time are in the default partition."""
_DAYS_AT_ONCE = 32  # of one transaction, which holds a lock on each new table and index
_PARTITIONS_PER_WINDOW = 16
_MOST_RETRIES = 5
_NEWEST_WINDOWS = (AHEAD_DAYS + 1, 1, 2, 4, 8)
_NO_LIMIT = 2**31  # above each day, for MAXVALUE
_LOCK_NOT_AVAILABLE = "55P03"
_UNDEFINED_TABLE = "42P01"
_BOUNDS = re.compile(r"FOR VALUES FROM \((?:'?(-?\d+)'?|MINVALUE)\) TO \((?:'?(-?\d+)'?|MAXVALUE)\)")
# The bounds of a partition that was dropped since the statement began are NULL.
_LISTED = text(
    "SELECT CASE WHEN child.relnamespace = parent.relnamespace THEN quote_ident(child.relname) "
    "ELSE format('%I.%I', nspname, child.relname) END, pg_get_expr(child.relpartbound, child.oid) FROM pg_inherits "
    "JOIN pg_class child ON child.oid = inhrelid JOIN pg_namespace ON pg_namespace.oid = child.relnamespace "
    "JOIN pg_class parent ON parent.oid = inhparent "
    "WHERE inhparent = to_regclass(:parent) AND pg_get_expr(child.relpartbound, child.oid) IS NOT NULL"
)
_KIND = text("SELECT relkind FROM pg_class WHERE oid = to_regclass(:name)")


class Partition(NamedTuple):
    """A partition with the days [first, until). Only the default partition has no `until`.

    `name` is quoted for SQL where needed, and has the schema if the partition is in another one than its table.
    `first` is None for the default partition. An operator may have created a partition of several days, or without a
    first or last day.
    """

    name: str
    first: int | None
    until: int | None

    def has(self, day: int) -> bool:
        """Return whether the partition has this day by its bounds."""
        return self.until is not None and day < self.until and (self.first is None or self.first <= day)


def is_partitioned(connection: Connection, table: Table) -> bool:
    """Return whether the table has partitions."""
    if connection.dialect.name != "postgresql":
        return False
    return connection.execute(_KIND, {"name": table.name}).scalar() in {"p", b"p"}


def partitions(connection: Connection, table: Table) -> list[Partition]:
    """Return the partitions in the order of their days, the default partition last. Without partitions: none."""
    if connection.dialect.name != "postgresql":
        return []
    found: list[Partition] = []
    for name, bounds in connection.execute(_LISTED, {"parent": table.name}):
        match = _BOUNDS.fullmatch(bounds)
        if match is None:  # DEFAULT
            found.append(Partition(name, None, None))
        else:
            first, until = match.groups()
            last = _NO_LIMIT if until is None else int(until)
            found.append(Partition(name, None if first is None else int(first), last))
    return sorted(found, key=lambda one: (one.until is None, one.until or 0))


def create_defaults(connection: Connection) -> None:
    """Create the default partition of each partitioned table that has none."""
    for table in PARTITIONED:
        if is_partitioned(connection, table) and all(one.until is not None for one in partitions(connection, table)):
            connection.exec_driver_sql(f"CREATE TABLE {default_of(table)} PARTITION OF {table.name} DEFAULT")


def default_of(table: Table) -> str:
    """Return the name of the default partition."""
    return f"{table.name}_default"


def missing_days(days: Iterable[int], today: int) -> list[int]:
    """Return the days that may have a partition, in order."""
    return sorted({day for day in days if today - _OLDEST_DAYS < day <= today + AHEAD_DAYS})


def create_partitions(connection: Connection, days: Iterable[int]) -> int:
    """Create missing partitions of all tables for these days. Return their number.

    Call it in a write transaction, so that no worker writes meanwhile. Rows of the default partition move to the new
    partitions. Attaching blocks no reader, except readers of the default partition.
    """
    created, days = 0, list(days)
    for table in PARTITIONED:
        if not is_partitioned(connection, table):
            continue
        present = partitions(connection, table)
        for day in days:
            if not any(one.has(day) for one in present):
                _create(connection, table, day)
                created += 1
    return created


def days_at_once(days: list[int]) -> Iterator[list[int]]:
    """Yield the days in lists, each for one transaction."""
    return (days[start : start + _DAYS_AT_ONCE] for start in range(0, len(days), _DAYS_AT_ONCE))


def days_in_default(connection: Connection) -> set[int]:
    """Return the days of rows in the default partitions."""
    days: set[int] = set()
    for table in PARTITIONED:
        if is_partitioned(connection, table):
            days |= {row[0] for row in connection.exec_driver_sql(f"SELECT DISTINCT day FROM {default_of(table)}")}
    return days


def expired(connection: Connection, before: int) -> tuple[list[tuple[Table, Partition]], int]:
    """Return the oldest partitions whose days are all before `before`, up to the first one that has receipts.

    Also return the number of receipts in them. Call it in a read transaction: a large partition takes long to count.
    Another worker may drop partitions meanwhile.
    """
    for _ in range(_MOST_RETRIES):
        try:
            return _expired(connection, before)
        except ProgrammingError as error:
            if not is_dropped(error):
                raise
            connection.rollback()
    return _expired(connection, before)


def _expired(connection: Connection, before: int) -> tuple[list[tuple[Table, Partition]], int]:
    found, receipts, limit = [], 0, before
    for table in PARTITIONED:  # receipts first: tags and labels follow their days
        for one in partitions(connection, table):
            if one.until is None or one.until > limit:
                break
            found.append((table, one))
            if table is RECEIPTS:
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                receipts = connection.exec_driver_sql(f"SELECT COUNT(*) FROM {one.name}").scalar_one()
                if receipts:
                    limit = one.until
                    break
    return found, receipts


def drop_expired(connection: Connection, found: Iterable[tuple[Table, Partition]]) -> bool:
    """Drop partitions. Return False if another worker has dropped any of them.

    Call it in a write transaction. The locks on the tables last for milliseconds, because only the catalog changes.
    Raises OperationalError if a reader has a table for longer (`is_locked`).
    """
    is_first = True
    for table, one in found:
        if one not in partitions(connection, table):
            is_first = False
            continue
        limit_lock_wait(connection)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} DETACH PARTITION {one.name}")
        connection.exec_driver_sql(f"DROP TABLE {one.name}")
    return is_first


def is_locked(error: BaseException) -> bool:
    """Return whether a statement failed because it waited too long for a lock."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _LOCK_NOT_AVAILABLE


def is_dropped(error: BaseException) -> bool:
    """Return whether a statement failed because its table does not exist."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == _UNDEFINED_TABLE


def tables_to_trim(connection: Connection, table: Table) -> list[str]:
    """Return the names of tables whose expired rows must be deleted: those with more than one day."""
    if not is_partitioned(connection, table):
        return [table.name]
    found = partitions(connection, table)
    return [one.name for one in found if one.first is None or one.until is None or one.until > one.first + 1]


def limit_lock_wait(connection: Connection) -> None:
    """Limit the wait for locks in this transaction, because readers wait behind a waiting change of a table."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")


def day_windows(
    connection: Connection, first: int | None, last: int | None, *, newest_first: bool = False
) -> Iterator[tuple[int | None, int | None]]:
    """Yield ranges of days that together have all days of [first, last]. A bound of None is open.

    A statement on all partitions would lock hundreds of tables and indexes; one on a window locks a few. Each statement
    of this connection runs in its own transaction, unless one has begun, so that the locks do not add up. Without
    partitions there is one window.
    """
    keep_few_locks(connection)
    starts = [one.first for one in partitions(connection, RECEIPTS) if one.first is not None]
    # A search of the newest receipts mostly ends in the first windows, so these are small.
    sizes = chain(_NEWEST_WINDOWS if newest_first else (), repeat(_PARTITIONS_PER_WINDOW))
    ends = takewhile(lambda end: end < len(starts), accumulate(sizes))
    edges = [starts[-end] for end in ends][::-1]
    windows = list(zip([None, *edges], [*(edge - 1 for edge in edges), None], strict=True))
    for low, high in windows[::-1] if newest_first else windows:
        if (high is None or first is None or high >= first) and (low is None or last is None or low <= last):
            yield _max(low, first), _min(high, last)


def keep_few_locks(connection: Connection) -> None:
    """Release the locks of each statement at its end, unless a transaction has begun."""
    if connection.dialect.name == "postgresql" and not connection.in_transaction():
        connection.execution_options(isolation_level="AUTOCOMMIT")


def _max(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def _min(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def _create(connection: Connection, table: Table, day: int) -> None:
    name, default = partition_name(table, day), default_of(table)
    limit_lock_wait(connection)
    run = connection.exec_driver_sql
    run(f"CREATE TABLE {name} (LIKE {table.name} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)")
    if run(f"SELECT 1 FROM {default} WHERE day = {day} LIMIT 1").first() is not None:
        moved = run(f"INSERT INTO {name} SELECT * FROM {default} WHERE day = {day}").rowcount
        run(f"DELETE FROM {default} WHERE day = {day}")
        log.info("usage_rows_moved", partition=name, count=moved)
    run(f"ALTER TABLE {table.name} ATTACH PARTITION {name} FOR VALUES FROM ({day}) TO ({day + 1})")


def partition_name(table: Table, day: int) -> str:
    """Return the name of a day's partition, like usage_receipts_2026_11_30."""
    return f"{table.name}_{datetime.fromtimestamp(day * DAY_S, UTC):%Y_%m_%d}"
