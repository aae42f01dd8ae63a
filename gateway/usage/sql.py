# ruff: noqa: S608 - statements contain only constant names of tables and columns
"""Bulk statements for receipts and sums in SQLite and PostgreSQL.

They bypass SQLAlchemy's statement layer, which takes more time per row than the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from gateway.usage.tables import LABELS, RECEIPTS, SUM_KEY, SUMS, TAGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

SumKey: TypeAlias = tuple[int, int, str, str, str, str, str, str]
"""The primary key of a sum."""

ReceiptKey: TypeAlias = tuple[int, str, str]
"""The primary key of a receipt: day, id and tenant."""

TenantPeriod: TypeAlias = tuple[int, int, str]
"""Length and start of a period, and a tenant."""

_RECEIPT_COLUMNS = tuple(RECEIPTS.columns)
_RECEIPT_KEY_COLUMNS = tuple(RECEIPTS.primary_key)
_RECEIPT_KEY = tuple(column.name for column in _RECEIPT_KEY_COLUMNS)
_SUM_COLUMNS = tuple(SUMS.columns)
_TAG_COLUMNS = tuple(TAGS.columns)
_LABEL_COLUMNS = tuple(LABELS.columns)
_HELD = "SELECT status, CASE WHEN status = 'abandoned' THEN receipt END"
_COUNT = "SELECT COUNT(*) FROM (SELECT 1 FROM usage_sums WHERE {} LIMIT {}) AS held"
_ARRAY_TYPES = {"INTEGER": "int", "BIGINT": "bigint", "TEXT": "text", "BLOB": "bytea"}


class UsageSql:
    """Statements of one transaction, for SQLite. Every method raises DBAPIError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._run = connection.exec_driver_sql

    def insert_receipts(self, rows: Sequence[tuple[Any, ...]]) -> bool:
        """Insert receipts and return True. If any of them exists, insert none and return False."""
        self._run("SAVEPOINT receipts")
        all_new = self._insert("usage_receipts", _RECEIPT_COLUMNS, rows, "ON CONFLICT DO NOTHING") == len(rows)
        if not all_new:
            self._run("ROLLBACK TO receipts")
        self._run("RELEASE receipts")
        return all_new

    def put_receipts(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert or replace receipts."""
        self._insert("usage_receipts", _RECEIPT_COLUMNS, rows, _or_update(_RECEIPT_COLUMNS))

    def put_sums(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert or replace sums."""
        self._insert("usage_sums", _SUM_COLUMNS, rows, _or_update(_SUM_COLUMNS))

    def put_tags(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert or replace rows of receipts' tags."""
        if rows:
            self._insert("usage_tags", _TAG_COLUMNS, rows, _or_update(_TAG_COLUMNS))

    def put_labels(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert or replace rows of receipts' labels."""
        if rows:
            self._insert("usage_labels", _LABEL_COLUMNS, rows, _or_update(_LABEL_COLUMNS))

    def held_receipts(self, keys: Sequence[ReceiptKey]) -> list[tuple[ReceiptKey, str, bytes | None]]:
        """Return key and status of the receipts that exist, and the packed receipt if it is abandoned."""
        execute, statement = self._cursor().execute, f"{_HELD} FROM usage_receipts WHERE {_equal(_RECEIPT_KEY)}"
        rows = ((key, execute(statement, key).fetchone()) for key in keys)
        return [(key, *row) for key, row in rows if row is not None]

    def held_sums(self, keys: Sequence[SumKey]) -> dict[SumKey, bytes]:
        """Return the sums that exist."""
        execute, statement = self._cursor().execute, f'SELECT "row" FROM usage_sums WHERE {_equal(SUM_KEY)}'
        rows = ((key, execute(statement, key).fetchone()) for key in keys)
        return {key: row[0] for key, row in rows if row is not None}

    def count_sums(self, periods: Sequence[TenantPeriod], without: str, limit: int) -> dict[TenantPeriod, int]:
        """Count the sums of each period and tenant up to `limit`, without those of the key `without`."""
        statement = _COUNT.format(f'{_equal(SUM_KEY[:3])} AND "key" <> ?', "?")
        execute = self._cursor().execute
        return {period: execute(statement, (*period, without, limit)).fetchone()[0] for period in periods}

    def delete_sums(self, keys: Sequence[SumKey]) -> None:
        """Delete sums."""
        self._cursor().executemany(f"DELETE FROM usage_sums WHERE {_equal(SUM_KEY)}", keys)

    def _insert(self, table: str, columns: Sequence[Any], rows: Sequence[tuple[Any, ...]], on_conflict: str) -> int:
        """Insert rows and return the number of inserted or updated rows."""
        values, cursor = ", ".join("?" * len(columns)), self._cursor()
        cursor.executemany(f"INSERT INTO {table} VALUES ({values}) {on_conflict}", rows)
        return int(cursor.rowcount)

    def _cursor(self) -> Any:
        return self._connection.connection.cursor()


class _PostgresSql(UsageSql):
    """Statements for PostgreSQL. All rows of a call are array parameters of one statement."""

    def held_receipts(self, keys: Sequence[ReceiptKey]) -> list[tuple[ReceiptKey, str, bytes | None]]:
        names = _names(_RECEIPT_KEY)
        # The condition on days selects partitions before the statement runs; the join would lock all of them.
        of_days = 'WHERE usage_receipts."day" = ANY(%b::int[])'
        statement = (
            f"{_HELD}, {names} FROM usage_receipts JOIN {_arrays(_RECEIPT_KEY_COLUMNS)} USING ({names}) {of_days}"
        )
        days = list({day for day, _, _ in keys})
        rows = self._run(statement, (*_columns(keys), days))
        return [(tuple(key), status, packed) for status, packed, *key in rows]

    def held_sums(self, keys: Sequence[SumKey]) -> dict[SumKey, bytes]:
        if not keys:
            return {}
        names = _names(SUM_KEY)
        statement = f'SELECT {names}, "row" FROM usage_sums JOIN {_arrays(_SUM_COLUMNS[:-1])} USING ({names})'
        return {row[:-1]: row[-1] for row in map(tuple, self._run(statement, _columns(keys)))}

    def count_sums(self, periods: Sequence[TenantPeriod], without: str, limit: int) -> dict[TenantPeriod, int]:
        if not periods:
            return {}
        where = " AND ".join(f'usage_sums."{name}" = given."{name}"' for name in SUM_KEY[:3])
        count = _COUNT.format(f'{where} AND "key" <> %s', "%s")
        statement = f"SELECT {_names(SUM_KEY[:3])}, ({count}) FROM {_arrays(_SUM_COLUMNS[:3])}"
        rows = self._run(statement, (without, limit, *_columns(periods)))
        return {(seconds, start, tenant): count for seconds, start, tenant, count in rows}

    def delete_sums(self, keys: Sequence[SumKey]) -> None:
        if keys:
            names = _names(SUM_KEY)
            given = f"SELECT {names} FROM {_arrays(_SUM_COLUMNS[:-1])}"
            self._run(f"DELETE FROM usage_sums WHERE ({names}) IN ({given})", _columns(keys))

    def _insert(self, table: str, columns: Sequence[Any], rows: Sequence[tuple[Any, ...]], on_conflict: str) -> int:
        if not rows:
            return 0
        names = _names(column.name for column in columns)
        statement = f"INSERT INTO {table} ({names}) SELECT {names} FROM {_arrays(columns)} {on_conflict}"
        return self._run(statement, _columns(rows)).rowcount


def _or_update(columns: Sequence[Any]) -> str:
    keys = _names(column.name for column in columns if column.primary_key)
    updates = ", ".join(f'"{column.name}" = excluded."{column.name}"' for column in columns if not column.primary_key)
    return f"ON CONFLICT ({keys}) DO UPDATE SET {updates}"


def _arrays(columns: Sequence[Any]) -> str:
    """Return a table expression of array parameters, one for each column."""
    arrays = ", ".join(f"%b::{_ARRAY_TYPES[str(column.type)]}[]" for column in columns)
    return f"unnest({arrays}) AS given({_names(column.name for column in columns)})"


def _columns(rows: Sequence[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    return tuple(map(list, zip(*rows, strict=True)))


def _names(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _equal(names: Iterable[str]) -> str:
    return " AND ".join(f'"{name}" = ?' for name in names)


def sql_of(connection: Connection) -> UsageSql:
    """Return the statements for the database of this connection."""
    return (_PostgresSql if connection.dialect.name == "postgresql" else UsageSql)(connection)
