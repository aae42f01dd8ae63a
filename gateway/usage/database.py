"""Write receipts and their sums to SQLite or PostgreSQL, each receipt exactly once. All calls block: use threads.

One transaction inserts the receipts that the database lacks, and adds only these to the sums. A receipt with the status
`abandoned` was settled on behalf of a process that seemed dead. The real receipt replaces it, in whichever order the
two arrive, and the sums lose its counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec.structs import asdict
from sqlalchemy import MetaData, delete, insert, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.sql import quoted_name

from gateway.accounting.receipt import Receipt
from gateway.quality.outcome import Outcome
from gateway.usage.entries import OutboxEntry
from gateway.usage.packing import pack, unpack
from gateway.usage.partition_upkeep import DayPartitions
from gateway.usage.partitions import drop_expired, expired, is_dropped, is_locked, tables_to_trim
from gateway.usage.rollup import SumDimensions, SumRow, dims_of
from gateway.usage.sql import sql_of
from gateway.usage.sums import SECONDS, Sums
from gateway.usage.sums_writer import add_sums
from gateway.usage.tables import (
    COMPARISONS,
    DAY_S,
    LABELS,
    OUTCOME_ROWS,
    RECEIPTS,
    SUMS,
    TAGS,
    UNREADABLE,
    label_rows,
    row_of,
    tag_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Connection, Table

    from gateway.quality.comparison import Comparison
    from gateway.usage.engine import UsageEngine
    from gateway.usage.sql import ReceiptKey, UsageSql
    from gateway.usage.sums import Granularity, Retention

ABANDONED = "abandoned"
ROW_ERRORS = (DataError, IntegrityError, OverflowError, ValueError)
"""Errors that a row can cause. Every other error has another cause."""
_DELETED_AT_ONCE = 1_000
_MOST_STEPS = 30
"""Limit of transactions that delete rows of one table. A dropped day may have had many rows in other tables."""
_DECODED_AT_ONCE = 100  # receipts


@dataclass(slots=True)
class WriteResult:
    """Numbers of receipts of one write: new ones, those that replaced abandoned ones, known and unreadable ones."""

    inserted: int = 0
    replaced: int = 0
    known: int = 0
    unreadable: int = 0


class _DecodedEntry(NamedTuple):
    entry: OutboxEntry
    status: str
    row: tuple[Any, ...]
    tags: tuple[tuple[Any, ...], ...]  # rows of TAGS
    labels: tuple[tuple[Any, ...], ...]  # rows of LABELS


_RejectedEntry = tuple[OutboxEntry, str]
"""An entry and the class name of its error."""


class UsageDatabase:
    """Write receipts to the database, and delete old receipts. `clock` returns Unix seconds."""

    def __init__(
        self,
        engine: UsageEngine,
        retention: Retention,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._retention = retention
        self._clock = clock
        self._partitions = DayPartitions(engine, clock)

    def add(self, entries: Iterable[OutboxEntry]) -> WriteResult:
        """Insert the receipts that the database lacks, and add them to the sums.

        Entries that cannot be decoded, or that the database rejects, are stored in the table of unreadable entries.
        Adding the same entries again is safe. Raises UsageDatabaseError if the database is unavailable.
        """
        result = WriteResult()
        decoded: dict[ReceiptKey, _DecodedEntry] = {}
        unreadable: list[_RejectedEntry] = []
        sums, finest = Sums(), self._finest()  # includes all receipts: nearly always all of them are new
        known: dict[SumDimensions, SumDimensions] = {}
        entries = iter(entries)
        while chunk := list(islice(entries, _DECODED_AT_ONCE)):
            for receipt, entry, dims, sum_row in _decode(chunk, known, unreadable):
                sums.add_row(dims, sum_row, receipt.created, finest(receipt.created))
                key = (entry.row[0], receipt.id, receipt.tenant)
                present = decoded.setdefault(key, entry)
                if present is not entry:
                    result.known += 1
                    if present.status == ABANDONED:
                        decoded[key] = entry
        in_key_order = sorted(decoded.items(), key=itemgetter(0))
        self._partitions.ensure({key[0] for key in decoded})
        self._add(in_key_order, unreadable, result, sums if not result.known else None)
        return result

    def _add(
        self,
        decoded: Sequence[tuple[ReceiptKey, _DecodedEntry]],
        unreadable: Sequence[_RejectedEntry],
        result: WriteResult,
        sums: Sums | None = None,
    ) -> None:
        """Write entries and add their numbers to `result`. `sums` of all entries: None if not computed yet."""
        try:
            with self._engine.writing() as connection:
                inserted, replaced = self._write(connection, decoded, sums)
                _store_unreadable(connection, unreadable)
        except msgspec.MsgspecError:
            raise  # sums in the database cannot be decoded: no receipt causes this
        except ROW_ERRORS as error:
            # The database rejects a row. Find it by bisection, and write the others.
            if not decoded:
                raise
            half = len(decoded) // 2
            if half:
                self._add(decoded[:half], unreadable, result)
                self._add(decoded[half:], (), result)
            else:
                self._add((), [*unreadable, (decoded[0][1].entry, type(error).__name__)], result)
            return
        result.inserted += inserted
        result.replaced += replaced
        result.known += len(decoded) - inserted - replaced
        result.unreadable += len(unreadable)

    def _write(
        self, connection: Connection, decoded: Sequence[tuple[ReceiptKey, _DecodedEntry]], sums: Sums | None
    ) -> tuple[int, int]:
        """Return the numbers of inserted and replaced receipts."""
        sql = sql_of(connection)
        replaced: list[Receipt] = []
        if not sql.insert_receipts([entry.row for _, entry in decoded]):
            new = dict(decoded)
            replaced, sums = _remove_present(sql, new), None
            decoded = [*new.items()]
            sql.put_receipts([entry.row for _, entry in decoded])
        sql.put_tags([row for _, entry in decoded for row in entry.tags])
        sql.put_labels([row for _, entry in decoded for row in entry.labels])
        if sums is None:
            sums, finest = Sums(), self._finest()
            for times, receipts in ((1, (Receipt.from_json(new.entry.raw) for _, new in decoded)), (-1, replaced)):
                for receipt in receipts:
                    sums.add(receipt, times, finest(receipt.created))
        add_sums(connection, sums.spread(), self._retention.max_rows)
        return len(decoded) - len(replaced), len(replaced)

    def _finest(self) -> Callable[[float], Granularity | None]:
        """Return a function from a receipt's `created` to the shortest period that counts the receipt."""
        return cache(partial(self._retention.finest, now=self._clock()))

    def delete_receipts(self, before: float) -> int:
        """Delete some receipts of days that ended before `before` (Unix seconds), and return their number.

        Also delete tags, labels, comparisons and outcomes of these days, in more steps. A daily partition is dropped
        as a whole, or later if readers use it. Raises UsageDatabaseError.
        """
        day = int(before // DAY_S)
        dropped = self._drop_expired(day)
        with self._engine.reading() as connection:
            names = {one: tables_to_trim(connection, one) for one in (TAGS, LABELS, RECEIPTS)}
        for table in (COMPARISONS, OUTCOME_ROWS, TAGS, LABELS):
            for name in names.get(table, [table.name]):
                for _ in range(_MOST_STEPS):
                    if self._delete(table, day, name) < _DELETED_AT_ONCE:
                        break
        return dropped + sum(self._delete(RECEIPTS, day, name) for name in names[RECEIPTS])

    def _drop_expired(self, day: int) -> int:
        """Drop partitions of days before `day`. Return the number of receipts in them."""
        with self._engine.reading() as connection:
            found, receipts = expired(connection, day)
        if not found:
            return 0
        try:
            with self._engine.writing() as connection:
                return receipts if drop_expired(connection, found) else 0
        except OperationalError as error:
            if not is_locked(error):
                raise
            return 0

    def delete_sums(self) -> int:
        """Delete some expired sums, and return their number. Raises UsageDatabaseError."""
        now, deleted = self._clock(), 0
        for granularity, seconds in SECONDS.items():
            before = now - self._retention.of(granularity) - seconds
            deleted += self._delete_rows(SUMS, SUMS.c.seconds == seconds, SUMS.c.start <= before)
        return deleted

    def _delete(self, table: Table, day: int, name: str) -> int:
        """Delete some rows of days before `day` from a table, or from its partition `name`."""
        if name == table.name:
            return self._delete_rows(table, table.c.day < day)
        table = table.to_metadata(MetaData(), name=quoted_name(name, quote=False))  # quoted already
        try:
            return self._delete_rows(table, table.c.day < day)
        except ProgrammingError as error:
            if not is_dropped(error):  # another worker has dropped the partition
                raise
            return 0

    def _delete_rows(self, table: Table, *where: Any) -> int:
        key = list(table.primary_key)
        old = select(*key).where(*where).order_by(*key).limit(_DELETED_AT_ONCE)
        with self._engine.writing() as connection:
            return connection.execute(delete(table).where(tuple_(*key).in_(old))).rowcount


def add_comparisons(connection: Connection, comparisons: Iterable[Comparison]) -> None:
    """Insert the comparisons that the database lacks, and the outcomes of variants in them. Raises SQLAlchemyError."""
    rows, outcomes = [], []
    for one in comparisons:
        fields = asdict(one)
        variant, unit = fields.pop("variant"), fields.pop("unit")
        rows.append(fields)
        if variant:
            of_request = one.id, one.created, one.tenant, one.route
            outcomes.append(Outcome(*of_request, variant, unit, source=one.compare, score=one.guided))
    _insert_missing(connection, COMPARISONS, rows)
    add_outcomes(connection, outcomes)


def add_outcomes(connection: Connection, outcomes: Iterable[Outcome]) -> None:
    """Insert the outcomes that the database lacks. Raises SQLAlchemyError."""
    _insert_missing(connection, OUTCOME_ROWS, [asdict(one) for one in outcomes])


def _insert_missing(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows whose primary key the table lacks, each in the day of its `created`."""
    if rows:
        build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        dated = [{**row, "day": row["created"] // DAY_S} for row in rows]
        connection.execute(build(table).on_conflict_do_nothing(), dated)


def _decode(
    entries: Sequence[OutboxEntry], known: dict[SumDimensions, SumDimensions], unreadable: list[_RejectedEntry]
) -> Iterable[tuple[Receipt, _DecodedEntry, SumDimensions, SumRow]]:
    """Decode, count and pack receipts. Each step processes all receipts, so that its code stays in the CPU cache.

    Equal dimensions of earlier receipts (`known`) share their strings. `unreadable` receives undecodable entries.
    """
    try:
        receipts = [Receipt.from_json(entry.raw) for entry in entries]
        dims = [known.setdefault(of_receipt, of_receipt) for of_receipt in map(dims_of, receipts)]
        sum_rows = [*map(SumRow.of, receipts)]
        packed = [pack(entry.raw) for entry in entries]
        rows = map(row_of, receipts, packed, dims, sum_rows)
        tags, labels = map(tag_rows, receipts, dims, sum_rows), map(label_rows, receipts, dims, sum_rows)
        decoded = [*map(_DecodedEntry, entries, (receipt.status for receipt in receipts), rows, tags, labels)]
    except (msgspec.MsgspecError, ArithmeticError, UnicodeError) as error:
        if len(entries) > 1:
            return [one for entry in entries for one in _decode([entry], known, unreadable)]
        unreadable.append((entries[0], type(error).__name__))
        return []
    return zip(receipts, decoded, dims, sum_rows, strict=True)


def _remove_present(sql: UsageSql, decoded: dict[ReceiptKey, _DecodedEntry]) -> list[Receipt]:
    """Remove receipts from `decoded` that the database has. Return the abandoned receipts to replace."""
    replaced: list[Receipt] = []
    for key, status, packed in sql.held_receipts(list(decoded)):
        if status != ABANDONED or decoded[key].status == ABANDONED:
            del decoded[key]
        else:
            replaced.append(Receipt.from_json(unpack(packed or b"")))
    return replaced


def _store_unreadable(connection: Connection, unreadable: Sequence[_RejectedEntry]) -> None:
    """Store entries unchanged in the table of unreadable entries; replace equal ones."""
    for entry, error in unreadable:
        key = (UNREADABLE.c.tenant == entry.tenant, UNREADABLE.c.entry == entry.id)
        connection.execute(delete(UNREADABLE).where(*key))
        values = {"tenant": entry.tenant, "entry": entry.id, "error": error, "receipt": entry.raw}
        connection.execute(insert(UNREADABLE).values(values))
