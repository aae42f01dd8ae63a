"""Write receipts and their sums to SQLite or PostgreSQL, each receipt exactly once. All calls block: use threads.

One transaction inserts the receipts that are not there yet and adds those, and only those, to the sums. So an entry
that is delivered twice counts once, and a transaction that fails leaves nothing.

A receipt with the status `abandoned` was settled for a process that was taken for dead. The true receipt replaces it,
whichever comes first, and the sums lose what the abandoned one had added.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import and_, func, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from gateway.ledger.receipt import Receipt
from gateway.rollups.rollup import Dims, Row, merge_in
from gateway.rollups.sums import OTHER, SECONDS, Period, Sums
from gateway.usage.packing import unpack
from gateway.usage.tables import RECEIPTS, SUM_KEY, SUMS, UNREADABLE, row_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection, Engine

ABANDONED = "abandoned"
_ALL = ""
"""The tenant of the sums over all tenants."""
_TOTAL = Dims(_ALL, "", "", "", "", "")
_WRITE_LOCK = 0x676B745F64620002  # the key of PostgreSQL's advisory lock: one writer at a time
_KEYS_PER_QUERY = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a tenant's outbox; `raw` is the receipt as JSON."""

    tenant: str
    id: str
    raw: bytes


@dataclass(slots=True)
class Added:
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


@dataclass(slots=True)
class _Batch:
    """Decoded entries.

    Attributes:
        receipts: by day and id. Of several with one id the one that is not abandoned.
        rows: the rows of the same receipts.
    """

    receipts: dict[tuple[int, str], Receipt] = field(default_factory=dict)
    rows: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    unreadable: list[tuple[Entry, str]] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        try:
            receipt = Receipt.from_json(entry.raw)
            row = row_of(receipt, entry.raw)
        except (msgspec.MsgspecError, ArithmeticError, UnicodeError) as error:
            self.unreadable.append((entry, type(error).__name__))
            return
        key = (row["day"], receipt.id)
        held = self.receipts.get(key)
        if held is None or (held.status == ABANDONED and receipt.status != ABANDONED):
            self.receipts[key], self.rows[key] = receipt, row


class UsageDatabase:
    """Add receipts to the database.

    Args:
        engine: with the tables (migrations).
        max_rows: sums of one tenant and period that are kept apart by key and route; others count together.
    """

    def __init__(self, engine: Engine, max_rows: int = 1_000) -> None:
        self._engine = engine
        self._max_rows = max_rows

    def add(self, entries: Iterable[Entry]) -> Added:
        """Add receipts that are not there yet, and count them in the sums.

        Raises SQLAlchemyError; then nothing was added.
        """
        batch = _Batch()
        count = 0
        for count, entry in enumerate(entries, 1):  # noqa: B007
            batch.add(entry)
        added = Added(unreadable=len(batch.unreadable))
        with self._engine.execution_options(writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_WRITE_LOCK)))
            sums = Sums()
            new = dict(batch.rows)
            for key, held in _held(connection, list(batch.rows)).items():
                row = new.pop(key)
                receipt = batch.receipts[key]
                if held.status == ABANDONED and receipt.status != ABANDONED:
                    sums.add(Receipt.from_json(unpack(held.receipt)), -1)
                    sums.add(receipt)
                    connection.execute(
                        update(RECEIPTS).where(RECEIPTS.c.day == key[0], RECEIPTS.c.id == key[1]).values(row)
                    )
                    added.replaced += 1
            if new:
                connection.execute(insert(RECEIPTS), list(new.values()))
                for key in new:
                    sums.add(batch.receipts[key])
            added.inserted = len(new)
            added.known = count - added.inserted - added.replaced - added.unreadable
            self._add_sums(connection, sums.spread())
            _put_aside(connection, batch.unreadable)
        return added

    def _add_sums(self, connection: Connection, sums: Sums) -> None:
        rows: dict[tuple[Any, ...], Row] = {}
        for period, by_dims in sums.rows.items():
            for where, row in by_dims.items():
                rows[_key(period, where)] = row
            rows[_key(period, _TOTAL)] = sums.totals[period]
        if not rows:
            return
        held = _held_sums(connection, list(rows))
        self._fold(connection, rows, held)
        for key, raw in held.items():
            if key in rows:
                row = Row.from_bytes(raw)
                row.merge(rows[key])
                rows[key] = row
        build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        statement = build(SUMS)
        connection.execute(
            statement.on_conflict_do_update(index_elements=list(SUM_KEY), set_={"row": statement.excluded.row}),
            [{**dict(zip(SUM_KEY, key, strict=True)), "row": row.to_bytes()} for key, row in rows.items()],
        )

    def _fold(
        self, connection: Connection, rows: dict[tuple[Any, ...], Row], held: dict[tuple[Any, ...], bytes]
    ) -> None:
        """Count new sums beyond `max_rows` of a tenant and period with those of other keys and routes."""
        new: dict[tuple[Any, ...], list[tuple[Any, ...]]] = defaultdict(list)
        for key in rows:
            if key not in held and key[2] != _ALL and key[3] != OTHER:
                new[key[:3]].append(key)
        others: list[tuple[Any, ...]] = []
        for place, count in _counts(connection, list(new)).items():
            for key in new[place][max(0, self._max_rows - count) :]:
                other = (*key[:3], OTHER, OTHER, *key[5:])
                merge_in(rows, other, rows.pop(key))
                others.append(other)
        held.update(_held_sums(connection, [key for key in dict.fromkeys(others) if key not in held]))


def _key(period: Period, where: Dims) -> tuple[Any, ...]:
    return (SECONDS[period.granularity], period.start, *where)


def _held(connection: Connection, keys: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Any]:
    """Return the rows that are there, by day and id."""
    found = {}
    for some in _batched(keys, _KEYS_PER_QUERY):
        wanted = select(RECEIPTS.c.day, RECEIPTS.c.id, RECEIPTS.c.status, RECEIPTS.c.receipt)
        by_day: dict[int, list[str]] = defaultdict(list)
        for day, id_ in some:
            by_day[day].append(id_)
        for day, ids in by_day.items():
            for row in connection.execute(wanted.where(RECEIPTS.c.day == day, RECEIPTS.c.id.in_(ids))):
                found[row.day, row.id] = row
    return found


def _held_sums(connection: Connection, keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], bytes]:
    """Return the sums that are there, by their keys, as MessagePack."""
    by_period: dict[tuple[int, int], set[str]] = defaultdict(set)
    for key in keys:
        by_period[key[:2]].add(key[2])
    wanted_keys, found = set(keys), {}
    for (seconds, start), tenants in by_period.items():
        for some in _batched(sorted(tenants), _KEYS_PER_QUERY):
            wanted = select(SUMS).where(SUMS.c.seconds == seconds, SUMS.c.start == start, SUMS.c.tenant.in_(some))
            for row in connection.execute(wanted):
                if (key := tuple(row[:-1])) in wanted_keys:
                    found[key] = row.row
    return found


def _counts(connection: Connection, places: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], int]:
    """Return the number of sums by key and route of each period and tenant, without those of all others."""
    found: dict[tuple[Any, ...], int] = dict.fromkeys(places, 0)
    place = (SUMS.c.seconds, SUMS.c.start, SUMS.c.tenant)
    for some in _batched(places, _KEYS_PER_QUERY):
        wanted = select(*place, func.count()).where(and_(tuple_(*place).in_(some), SUMS.c.key != OTHER))
        for *where, count in connection.execute(wanted.group_by(*place)):
            found[tuple(where)] = count
    return found


def _put_aside(connection: Connection, unreadable: Sequence[tuple[Entry, str]]) -> None:
    build = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for entry, error in unreadable:
        values = {"tenant": entry.tenant, "entry": entry.id, "error": error, "receipt": entry.raw}
        connection.execute(build(UNREADABLE).values(values).on_conflict_do_nothing())


def _batched(items: Sequence[Any], most: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, most)):
        yield some
