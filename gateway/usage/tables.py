"""The tables of receipts, their sums, comparisons, outcomes and the uptime of engines.

Migrations (gateway/usage/migrations) create and change the tables. Money is in whole picodollars (1e-12 USD), so sums
are exact in every database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text, text

from gateway.accounting.edge import EDGE
from gateway.usage.counters import pico

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from gateway.accounting.receipt import Receipt
    from gateway.usage.rollup import SumDimensions, SumRow

DAY_S = 86_400
_ID_PREFIX = "req_"
_TIME_DIGITS = 8
# An id without a time has arbitrary digits there, which rarely are this close to the receipt's own time.
_MAX_SKEW_S = DAY_S

OF_DEVICES = text(f"mode = '{EDGE}'")
"""Condition of the index of device receipts. It is literal, so that queries can use the index."""

_BY_DAY = "RANGE (day)"
"""Partitions of PostgreSQL (partitions.py)."""

METADATA = MetaData()

RECEIPTS = Table(
    "usage_receipts",
    METADATA,
    Column("day", Integer, primary_key=True, autoincrement=False),  # days since the Unix epoch
    Column("id", Text, primary_key=True),
    Column("created", BigInteger, nullable=False),  # Unix seconds
    Column("tenant", Text, primary_key=True),  # part of the key, because devices choose a part of their ids
    Column("key", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("teacher", Text, nullable=False),  # empty: none
    Column("student", Text, nullable=False),
    Column("cost_pico", BigInteger, nullable=False),
    Column("baseline_pico", BigInteger, nullable=False),
    Column("savings_pico", BigInteger, nullable=False),
    Column("receipt", LargeBinary, nullable=False),  # packing.py
    Index("usage_receipts_by_tenant", "tenant", "created"),
    # Ids of device receipts contain no time, so the primary key does not order them.
    Index("usage_receipts_of_devices", "created", sqlite_where=OF_DEVICES, postgresql_where=OF_DEVICES),
    sqlite_with_rowid=False,
    postgresql_partition_by=_BY_DAY,
)
"""One row per receipt."""

SUMS = Table(
    "usage_sums",
    METADATA,
    Column("seconds", Integer, primary_key=True, autoincrement=False),  # length of the period: 60, 3600 or 86400
    Column("start", BigInteger, primary_key=True, autoincrement=False),  # Unix seconds
    Column("tenant", Text, primary_key=True),  # empty: all tenants together
    Column("key", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("mode", Text, primary_key=True),
    Column("teacher", Text, primary_key=True),
    Column("student", Text, primary_key=True),
    Column("row", LargeBinary, nullable=False),  # SumRow (rollup.py) as MessagePack
    sqlite_with_rowid=False,
)
"""The sums of the receipts of one period, tenant, key, route, mode, teacher and student."""

COMPARISONS = Table(
    "usage_comparisons",
    METADATA,
    Column("day", Integer, primary_key=True, autoincrement=False),  # days since the Unix epoch
    Column("id", Text, primary_key=True),
    Column("created", BigInteger, nullable=False),  # Unix seconds
    Column("tenant", Text, nullable=False),
    Column("compare", Text, nullable=False),
    Column("length", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("guided", Integer, nullable=False),  # agreement with the teacher's answer, see quality/comparison.py
    Column("student", Integer, nullable=False),
    sqlite_with_rowid=False,
)
"""One row per comparison of a guided answer with the answers of both engines alone (gateway/quality)."""

OUTCOME_ROWS = Table(
    "usage_outcomes",
    METADATA,
    Column("day", Integer, primary_key=True, autoincrement=False),  # days since the Unix epoch
    Column("id", Text, primary_key=True),  # of the request
    Column("created", BigInteger, nullable=False),  # Unix seconds
    Column("tenant", Text, primary_key=True),
    Column("route", Text, nullable=False),
    Column("variant", Text, nullable=False),  # empty: none
    Column("unit", Text, nullable=False),  # hash of the conversation or caller that keeps the variant
    Column("source", Text, primary_key=True),  # feedback, or the kind of comparison
    Column("score", Integer, nullable=False),  # see quality/outcome.py
    Index("usage_outcomes_by_route", "tenant", "route", "day"),
    sqlite_with_rowid=False,
)
"""Outcomes of requests: a row for each request and source."""


def _sum_columns() -> list[Column[Any]]:
    """Return the columns of a receipt's sums, in the order of `_sums_of`."""
    return [
        Column("created", BigInteger, nullable=False),  # Unix seconds
        Column("key", Text, nullable=False),
        Column("route", Text, nullable=False),
        Column("mode", Text, nullable=False),
        Column("requests", Integer, nullable=False),  # 0 for a shadow and for a device's report on guidance
        Column("errors", Integer, nullable=False),
        Column("input_tokens", BigInteger, nullable=False),  # of all calls
        Column("output_tokens", BigInteger, nullable=False),
        Column("cost_pico", BigInteger, nullable=False),
        Column("baseline_pico", BigInteger, nullable=False),
        Column("savings_pico", BigInteger, nullable=False),
    ]


TAGS = Table(
    "usage_tags",
    METADATA,
    Column("day", Integer, primary_key=True, autoincrement=False),  # days since the Unix epoch
    Column("id", Text, primary_key=True),  # of the receipt
    Column("tenant", Text, primary_key=True),
    Column("tag", Text, primary_key=True),
    *_sum_columns(),
    Index("usage_tags_by_tenant", "tenant", "created"),
    sqlite_with_rowid=False,
    postgresql_partition_by=_BY_DAY,
)
"""Tags of receipts, one row for each tag."""

LABELS = Table(
    "usage_labels",
    METADATA,
    Column("day", Integer, primary_key=True, autoincrement=False),  # days since the Unix epoch
    Column("id", Text, primary_key=True),  # of the receipt
    Column("tenant", Text, primary_key=True),
    Column("label", Text, primary_key=True),
    Column("value", Text, nullable=False),
    *_sum_columns(),
    Index("usage_labels_by_label", "tenant", "label", "created"),
    sqlite_with_rowid=False,
    postgresql_partition_by=_BY_DAY,
)
"""Labels of receipts, one row for each label."""

UPTIME = Table(
    "usage_uptime",
    METADATA,
    Column("day", Integer, primary_key=True, autoincrement=False),  # days since the Unix epoch
    Column("engine", Text, primary_key=True),
    Column("hourly_pico", BigInteger, nullable=False),  # price of an hour
    Column("minutes_up", Integer, nullable=False),
    Column("minutes_seen", Integer, nullable=False),
    Column("last_up", BigInteger, nullable=False),  # the last counted minutes since the Unix epoch; 0: none
    Column("last_seen", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Minutes of a day in which an engine that is paid by the hour was up, and in which a process probed it."""

UNREADABLE = Table(
    "usage_unreadable",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("entry", Text, primary_key=True),
    Column("error", Text, nullable=False),
    Column("receipt", LargeBinary, nullable=False),
)
"""Outbox entries that cannot be read or written, unchanged."""


SUM_KEY = tuple(column.name for column in SUMS.primary_key)


def time_of(receipt_id: str) -> int | None:
    """Return the time in a request id in Unix seconds, or None. An id of another kind may return any number."""
    if not receipt_id.startswith(_ID_PREFIX):
        return None
    try:
        return int(receipt_id[len(_ID_PREFIX) :][:_TIME_DIGITS], 16)
    except ValueError:
        return None


def day_of(receipt: Receipt) -> int:
    """Return the `day` of a receipt, in days since the Unix epoch. It depends only on id and `created`.

    Ids of devices contain no time: then `created` is used.
    """
    time_s = time_of(receipt.id)
    if time_s is None or abs(time_s - receipt.created) > _MAX_SKEW_S:
        time_s = receipt.created
    return time_s // DAY_S


def id_before(time_s: float) -> str:
    """Return an upper bound of the ids with a time before `time_s` (Unix seconds)."""
    return f"{_ID_PREFIX}{int(time_s):0{_TIME_DIGITS}x}"


def of_days(first: int | None, last: int | None) -> list[ColumnElement[bool]]:
    """Return SQL conditions on the days of receipts, the start of the primary key. None is an open bound."""
    terms = ((first, RECEIPTS.c.day.__ge__), (last, RECEIPTS.c.day.__le__))
    return [condition(day) for day, condition in terms if day is not None]


def row_of(receipt: Receipt, packed: bytes, dims: SumDimensions, sum_row: SumRow) -> tuple[Any, ...]:
    """Return the row of a receipt in the order of the columns, given its packed JSON, dimensions and counters."""
    money = sum_row.cost_pico, sum_row.baseline_pico, pico(receipt.savings_usd)
    return (day_of(receipt), receipt.id, receipt.created, *dims[:4], receipt.status, *dims[4:], *money, packed)


def tag_rows(receipt: Receipt, dims: SumDimensions, row: SumRow) -> tuple[tuple[Any, ...], ...]:
    """Return the rows of a receipt's tags in the order of the columns, given its dimensions and counters."""
    if not receipt.tags:
        return ()
    day, rest = day_of(receipt), _sums_of(receipt, dims, row)
    return tuple((day, receipt.id, dims.tenant, tag, *rest) for tag in dict.fromkeys(receipt.tags))


def label_rows(receipt: Receipt, dims: SumDimensions, row: SumRow) -> tuple[tuple[Any, ...], ...]:
    """Return the rows of a receipt's labels in the order of the columns, given its dimensions and counters."""
    if not receipt.labels:
        return ()
    day, rest = day_of(receipt), _sums_of(receipt, dims, row)
    return tuple((day, receipt.id, dims.tenant, name, value, *rest) for name, value in receipt.labels.items())


def _sums_of(receipt: Receipt, dims: SumDimensions, row: SumRow) -> tuple[Any, ...]:
    roles = (row.teacher, row.student, row.failed)
    tokens = sum(role.read for role in roles), sum(role.output for role in roles)
    sums = row.caller_requests, sum(row.errors.values()), *tokens, row.cost_pico, row.baseline_pico, row.savings_pico
    return receipt.created, dims.key, dims.route, dims.mode, *sums
