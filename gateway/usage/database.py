"""Write receipts and their sums to SQLite or PostgreSQL, each receipt exactly once. All calls block: use threads.

One transaction inserts the receipts that are not there yet and adds those, and only those, to the sums. So an entry
that is delivered twice counts once, and a transaction that fails leaves nothing.

A receipt with the status `abandoned` was settled for a process that was taken for dead. The true receipt replaces it,
whichever comes first, and the sums lose what the abandoned one had added.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import delete, insert, select, tuple_
from sqlalchemy.exc import DataError, IntegrityError

from gateway.accounting.receipt import Receipt
from gateway.usage.entries import OutboxEntry
from gateway.usage.packing import pack, unpack
from gateway.usage.rollup import SumDimensions, SumRow, dims
from gateway.usage.sql import sql_of
from gateway.usage.sums import SECONDS, Sums
from gateway.usage.sums_writer import add_sums
from gateway.usage.tables import COMPARISONS, DAY_S, RECEIPTS, SUMS, UNREADABLE, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Connection, Table

    from gateway.usage.engine import UsageEngine
    from gateway.usage.sql import ReceiptKey, UsageSql
    from gateway.usage.sums import Granularity, Retention

ABANDONED = "abandoned"
ROW_ERRORS = (DataError, IntegrityError, OverflowError, ValueError)
"""Errors that a row causes. No row causes other errors."""
_DELETED_AT_ONCE = 1_000
_AT_ONCE = 100  # receipts of one call of `_read`


@dataclass(slots=True)
class WriteResult:
    """The result of one write: numbers of receipts.

    Attributes:
        inserted: new receipts.
        replaced: receipts that took the place of abandoned ones.
        known: receipts that were there already.
        unreadable: entries that went to the table of unreadable ones.
    """

    inserted: int = 0
    replaced: int = 0
    known: int = 0
    unreadable: int = 0


class _Item(NamedTuple):
    """An entry, the status of its receipt and its row."""

    entry: OutboxEntry
    status: str
    row: tuple[Any, ...]


_Refused = tuple[OutboxEntry, str]
"""An entry and the name of the error."""


class UsageDatabase:
    """Add receipts to the database, and delete old ones.

    Args:
        retention: receipts count in the sums of a period for as long as those are kept.
        clock: Unix seconds.
    """

    def __init__(self, engine: UsageEngine, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._retention = retention
        self._clock = clock

    def add(self, entries: Iterable[OutboxEntry]) -> WriteResult:
        """Add receipts that are not there yet, and count them in the sums.

        Entries that cannot be decoded, and those that the database refuses, go to the table of unreadable ones. Raises
        UsageDatabaseError where the database is unavailable. Adding the same entries again is safe.
        """
        added = WriteResult()
        items: dict[ReceiptKey, _Item] = {}
        unreadable: list[_Refused] = []
        sums, finest = Sums(), self._finest()  # of all receipts: nearly always all are new
        known: dict[SumDimensions, SumDimensions] = {}
        entries = iter(entries)
        while some := list(islice(entries, _AT_ONCE)):
            for receipt, item, where, counted in _read(some, known, unreadable):
                sums.add_row(where, counted, receipt.created, finest(receipt.created))
                key = (item.row[0], receipt.id, receipt.tenant)
                held = items.setdefault(key, item)
                if held is not item:
                    added.known += 1
                    if held.status == ABANDONED:
                        items[key] = item
        in_order = sorted(items.items(), key=itemgetter(0))  # of the primary key
        self._add(in_order, unreadable, added, sums if not added.known else None)
        return added

    def _add(
        self,
        items: Sequence[tuple[ReceiptKey, _Item]],
        unreadable: Sequence[_Refused],
        added: WriteResult,
        sums: Sums | None = None,
    ) -> None:
        """Write items.

        Args:
            sums: of all items; None: not made yet.
        """
        try:
            with self._engine.writing() as connection:
                inserted, replaced = self._write(connection, items, sums)
                _put_aside(connection, unreadable)
        except msgspec.MsgspecError:
            raise  # of sums that cannot be decoded: no receipt causes it
        except ROW_ERRORS as error:
            # The database refuses a row. It must not keep the others out.
            if not items:
                raise
            half = len(items) // 2
            if half:
                self._add(items[:half], unreadable, added)
                self._add(items[half:], (), added)
            else:
                self._add((), [*unreadable, (items[0][1].entry, type(error).__name__)], added)
            return
        added.inserted += inserted
        added.replaced += replaced
        added.known += len(items) - inserted - replaced
        added.unreadable += len(unreadable)

    def _write(
        self, connection: Connection, items: Sequence[tuple[ReceiptKey, _Item]], sums: Sums | None
    ) -> tuple[int, int]:
        """Return the numbers of receipts that were inserted and replaced."""
        sql = sql_of(connection)
        replaced: list[Receipt] = []
        if not sql.insert_receipts([item.row for _, item in items]):
            new = dict(items)
            replaced, sums = _without_held(sql, new), None
            items = [*new.items()]
            sql.put_receipts([item.row for _, item in items])
        if sums is None:
            sums, finest = Sums(), self._finest()
            for times, some in ((1, (Receipt.from_json(one.entry.raw) for _, one in items)), (-1, replaced)):
                for receipt in some:
                    sums.add(receipt, times, finest(receipt.created))
        add_sums(connection, sums.spread(), self._retention.max_rows)
        return len(items) - len(replaced), len(replaced)

    def _finest(self) -> Callable[[float], Granularity | None]:
        """Return the function that tells the shortest period that counts a receipt, by its `created`."""
        return cache(partial(self._retention.finest, now=self._clock()))

    def delete_receipts(self, before: float) -> int:
        """Delete some receipts of days that ended before a moment in Unix seconds, and return their number.

        Comparisons of these days go with them. A day has fewer comparisons than receipts. Raises UsageDatabaseError.
        """
        day = int(before // DAY_S)
        self._delete(COMPARISONS, COMPARISONS.c.day < day)
        return self._delete(RECEIPTS, RECEIPTS.c.day < day)

    def delete_sums(self) -> int:
        """Delete some sums whose time is over, and return their number. Raises UsageDatabaseError."""
        now, deleted = self._clock(), 0
        for granularity, seconds in SECONDS.items():
            before = now - self._retention.of(granularity) - seconds
            deleted += self._delete(SUMS, SUMS.c.seconds == seconds, SUMS.c.start <= before)
        return deleted

    def _delete(self, table: Table, *where: Any) -> int:
        key = list(table.primary_key)
        old = select(*key).where(*where).order_by(*key).limit(_DELETED_AT_ONCE)
        with self._engine.writing() as connection:
            return connection.execute(delete(table).where(tuple_(*key).in_(old))).rowcount


def _read(
    entries: Sequence[OutboxEntry], known: dict[SumDimensions, SumDimensions], unreadable: list[_Refused]
) -> Iterable[tuple[Receipt, _Item, SumDimensions, SumRow]]:
    """Decode, count and pack receipts. Each step takes all receipts, so that the processor's cache keeps its code.

    Args:
        known: the dimensions of earlier receipts. Equal ones share their texts.
        unreadable: gets the entries that cannot be decoded.
    """
    try:
        receipts = [Receipt.from_json(entry.raw) for entry in entries]
        places = [known.setdefault(where, where) for where in map(dims, receipts)]
        counted = [*map(SumRow.of, receipts)]
        packed = [pack(entry.raw) for entry in entries]
        rows = map(row_of, receipts, packed, places, counted)
        items = [*map(_Item, entries, (receipt.status for receipt in receipts), rows)]
    except (msgspec.MsgspecError, ArithmeticError, UnicodeError) as error:
        if len(entries) > 1:
            return [one for entry in entries for one in _read([entry], known, unreadable)]
        unreadable.append((entries[0], type(error).__name__))
        return []
    return zip(receipts, items, places, counted, strict=True)


def _without_held(sql: UsageSql, items: dict[ReceiptKey, _Item]) -> list[Receipt]:
    """Remove the receipts that are there from `items`. Return the abandoned ones that others replace."""
    replaced: list[Receipt] = []
    for key, status, packed in sql.held_receipts(list(items)):
        if status != ABANDONED or items[key].status == ABANDONED:
            del items[key]
        else:
            replaced.append(Receipt.from_json(unpack(packed or b"")))
    return replaced


def _put_aside(connection: Connection, unreadable: Sequence[_Refused]) -> None:
    """Keep entries as they came; those that are there stay."""
    for entry, error in unreadable:
        place = (UNREADABLE.c.tenant == entry.tenant, UNREADABLE.c.entry == entry.id)
        connection.execute(delete(UNREADABLE).where(*place))
        values = {"tenant": entry.tenant, "entry": entry.id, "error": error, "receipt": entry.raw}
        connection.execute(insert(UNREADABLE).values(values))
