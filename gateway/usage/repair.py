"""Write unreadable entries again, after the reason for which they were rejected is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
from sqlalchemy import delete, select, tuple_

from gateway.quality.comparison import OUTBOX, Comparison
from gateway.quality.outcome import Outcome
from gateway.redis.keys import OUTCOMES
from gateway.usage.database import ROW_ERRORS, add_comparisons, add_outcomes
from gateway.usage.entries import OutboxEntry
from gateway.usage.tables import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from gateway.usage.queries import UsageQueries
    from gateway.usage.store import UsageStore

COMMAND = "gkt-gateway usage repair"
_ENTRIES_AT_ONCE = 500
_KEY = (UNREADABLE.c.tenant, UNREADABLE.c.entry)
_OTHER_KINDS: dict[str, tuple[Callable[[bytes], Comparison | Outcome], Callable[..., None]]] = {
    OUTBOX: (Comparison.from_json, add_comparisons),
    OUTCOMES: (Outcome.from_json, add_outcomes),
}
"""Functions that decode and write entries that are no receipts, by outbox."""


class Repair(NamedTuple):
    """The result of a repair: written entries, and entries that stay unreadable."""

    written: int
    unreadable: int


async def repair(store: UsageStore) -> Repair:
    """Write unreadable entries again. Raises the errors of UsageStore.

    An entry that is still unreadable stays. A repeated call is safe: the database stores each receipt once.
    """
    written = unreadable = 0
    after: tuple[str, str] | None = None
    while entries := await store.read(_entries, after):
        last = entries[-1]
        others = [entry for entry in entries if entry.tenant in _OTHER_KINDS]
        readable = sum([await _write_other(store, entry) for entry in others])
        if receipts := [entry for entry in entries if entry.tenant not in _OTHER_KINDS]:
            readable += await _write(store, receipts)
        written, unreadable = written + readable, unreadable + len(entries) - readable
        after = last.tenant, last.id
    return Repair(written, unreadable)


def _entries(queries: UsageQueries, after: tuple[str, str] | None) -> list[OutboxEntry]:
    query = select(*_KEY, UNREADABLE.c.receipt).order_by(*_KEY).limit(_ENTRIES_AT_ONCE)
    if after is not None:
        query = query.where(tuple_(*_KEY) > tuple_(*after))
    return [OutboxEntry(*row) for row in queries.connection.execute(query)]


async def _write_other(store: UsageStore, entry: OutboxEntry) -> bool:
    """Write a comparison or an outcome, and delete it from the unreadable entries. Return whether it was written."""
    decode, add = _OTHER_KINDS[entry.tenant]
    try:
        await store.change(add, [decode(entry.raw)])
    except (msgspec.MsgspecError, *ROW_ERRORS):
        return False
    await store.change(_delete, [entry])
    return True


async def _write(store: UsageStore, entries: Sequence[OutboxEntry]) -> int:
    """Write entries again, and delete the written ones from the unreadable entries. Return the number written."""
    if (await store.write(entries)).unreadable == 0:
        await store.change(_delete, entries)
        return len(entries)
    if len(entries) == 1:
        return 0
    half = len(entries) // 2
    return await _write(store, entries[:half]) + await _write(store, entries[half:])


def _delete(connection: Connection, entries: Sequence[OutboxEntry]) -> None:
    connection.execute(delete(UNREADABLE).where(tuple_(*_KEY).in_([(one.tenant, one.id) for one in entries])))
