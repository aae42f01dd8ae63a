"""Search the receipts in the usage database, the newest first, with the shadows of each request.

Most filters have no index. So a call reads a limited number of receipts, and returns where the next call continues.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from heapq import merge
from math import ceil
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import msgspec
from sqlalchemy import and_, case, select, tuple_

from gateway.accounting.edge import EDGE
from gateway.accounting.receipt import SHADOW_NAMES
from gateway.errors import InvalidRequest
from gateway.usage.entries import batched
from gateway.usage.packing import unpack
from gateway.usage.partitions import day_windows
from gateway.usage.search import ERROR, MAX_SCANNED, FoundReceipt, SearchPage
from gateway.usage.tables import DAY_S, OF_DEVICES, RECEIPTS, id_before, of_days, time_of
from gateway.usage.threads import with_pauses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection

    from gateway.usage.search import ReceiptSearch

SHADOW = "shadow"
_FIRST_ROWS, _MORE_ROWS = 200, 1_000
_PARENTS_AT_ONCE = 100
_MAX_SKEW_S = 60
_C = RECEIPTS.c


_Whole: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_ById: TypeAlias = tuple[_Whole, str, str]
_ByTime: TypeAlias = tuple[_Whole, _Whole, str, str]


class _Cursor(msgspec.Struct, array_like=True):
    """The last receipts that were read, by id and by time; None: nothing was read in that order."""

    by_id: _ById | None = None
    by_time: _ByTime | None = None


class _Row(NamedTuple):
    """A receipt that was read. `packed` is None if it does not match.

    Without a `position` it is no receipt: all receipts of the stream since `created` were read. So a stream without
    receipts is not read further than the other one.
    """

    created: int
    position: tuple[Any, ...]
    is_by_id: bool
    id: str
    tenant: str
    packed: bytes | None


_CURSOR_DECODER = msgspec.json.Decoder(_Cursor)


def search(connection: Connection, where: ReceiptSearch, limit: int, before: str | None) -> SearchPage:
    """Return a page of receipts, possibly fewer than `limit`. Call it in a thread.

    `before` is `following` of the page before. Raises InvalidRequest if it is another text.
    """
    cursor = _decoded(before)
    streams = [_by_time(connection, where, cursor.by_time)]
    if where.tenant is None:
        # Ids begin with their time, so the primary key orders them. Device receipts have their own index.
        streams.append(_by_id(connection, where, cursor.by_id))
    found: list[tuple[_Row, bytes]] = []
    scanned, is_end = 0, True
    for row in with_pauses(merge(*streams, key=attrgetter("created"), reverse=True)):
        if not row.position:
            continue
        if len(found) == limit or scanned == MAX_SCANNED:
            is_end = False
            break
        scanned += 1
        if row.is_by_id:
            cursor.by_id = row.position
        else:
            cursor.by_time = row.position
        if row.packed is not None and where.matches(raw := unpack(row.packed)):
            found.append((row, raw))
    shadows = shadows_of(connection, [(row.tenant, row.id) for row, _ in found])
    pages = [FoundReceipt(raw, shadows.get((row.tenant, row.id), [])) for row, raw in found]
    return SearchPage(pages, scanned, None if is_end else _encoded(cursor))


def shadows_of(connection: Connection, requests: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[bytes]]:
    """Return the receipts of shadows, as JSON, of requests with this tenant and id."""
    found: dict[tuple[str, str], list[bytes]] = {}
    for batch in batched(requests, _PARENTS_AT_ONCE):
        days = {time_s // DAY_S for _, id_ in batch if (time_s := time_of(id_)) is not None}
        names = {f"{id_}-{name}": (tenant, id_) for tenant, id_ in batch for name in SHADOW_NAMES}
        query = select(_C.id, _C.tenant, _C.receipt).where(_C.day.in_(days), _C.id.in_(names))
        rows = {(row.tenant, row.id): row.receipt for row in connection.execute(query)}
        for id_, parent in names.items():
            if (packed := rows.get((parent[0], id_))) is not None:
                found.setdefault(parent, []).append(unpack(packed))
    return found


def _terms(where: ReceiptSearch) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions on columns, without `tenant`."""
    named = ((_C.route, where.route), (_C.key, where.key), (_C.mode, where.mode))
    yield from (column == value for column, value in named if value is not None)
    if where.mode is None:
        yield _C.mode != SHADOW
    if where.status is not None:
        yield _C.status != "ok" if where.status == ERROR else _C.status == where.status
    if where.min_pico is not None:
        yield _C.cost_pico >= where.min_pico
    if where.max_pico is not None:
        yield _C.cost_pico <= where.max_pico
    yield from _times(where)


def _times(where: ReceiptSearch) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions on the time, in whole seconds: PostgreSQL finds no fraction in an index of whole numbers."""
    if where.since is not None:
        yield _C.created >= ceil(where.since)
    if where.until is not None:
        yield _C.created < ceil(where.until)


def _by_id(connection: Connection, where: ReceiptSearch, after: _ById | None) -> Iterator[_Row]:
    order = (_C.day, _C.id, _C.tenant)
    bounds: list[ColumnElement[bool]] = []
    first, last = None, None
    if after is not None:
        bounds.append(tuple_(*order) < tuple_(*after))
        last = after[0]
    elif where.until is not None:
        until = where.until + _MAX_SKEW_S
        last = int(until // DAY_S)
        bounds.append(tuple_(_C.day, _C.id) < tuple_(last, id_before(until)))
    if where.since is not None:
        since = max(0.0, where.since - _MAX_SKEW_S)
        first = int(since // DAY_S)
        bounds.append(tuple_(_C.day, _C.id) >= tuple_(first, id_before(since)))
    windows = day_windows(connection, first, last, newest_first=True)
    parts = ((window[0], [*bounds, *of_days(*window)]) for window in windows)
    return _rows(connection, order, parts, [*_terms(where), _C.mode != EDGE], is_by_id=True)


def _by_time(connection: Connection, where: ReceiptSearch, after: _ByTime | None) -> Iterator[_Row]:
    """Yield the receipts of the tenant, or of all devices."""
    order = (_C.created, _C.day, _C.id, _C.tenant)
    bounds: list[Any] = [OF_DEVICES if where.tenant is None else _C.tenant == where.tenant, *_times(where)]
    first = None if where.since is None else int(where.since // DAY_S)
    last = None if where.until is None else int(where.until // DAY_S)
    if after is not None:
        bounds += [_C.created <= after[0], tuple_(*order) < tuple_(*after)]
        last = after[0] // DAY_S
    # SQLite has no partitions. With conditions on `day` it might not choose the index of `created`.
    in_days = (first, last) if connection.dialect.name == "postgresql" else (None, None)
    windows = day_windows(connection, *in_days, newest_first=True)
    parts = ((window[0], [*bounds, *_created_in(*window)]) for window in windows)
    return _rows(connection, order, parts, [*_terms(where)], is_by_id=False)


def _created_in(first: int | None, last: int | None) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions of the days of `created`. `day`, which selects partitions, may differ by one."""
    if first is not None:
        yield _C.created >= first * DAY_S
        yield _C.day >= first - 1
    if last is not None:
        yield _C.created < (last + 1) * DAY_S
        yield _C.day <= last + 1


def _rows(
    connection: Connection,
    order: Sequence[Any],
    parts: Iterable[tuple[int | None, Sequence[Any]]],
    terms: Sequence[Any],
    *,
    is_by_id: bool,
) -> Iterator[_Row]:
    """Yield at most one receipt more than a call reads. Receipts that do not match have no `packed`.

    `parts` are the first days and conditions of ranges that follow each other in this order.
    """
    packed = case((and_(*terms), _C.receipt), else_=None).label("packed")
    query = select(_C.created, _C.day, _C.id, _C.tenant, packed).order_by(*(column.desc() for column in order))
    remaining, at_once = MAX_SCANNED + 1, _FIRST_ROWS
    for first_day, bounds in parts:
        after: list[Any] = []
        while remaining:
            limit, at_once = min(at_once, remaining), _MORE_ROWS
            rows = [*connection.execute(query.where(*bounds, *after).limit(limit))]
            position: tuple[Any, ...] = ()
            for row in rows:
                key = (row.day, row.id, row.tenant)
                position = key if is_by_id else (row.created, *key)
                yield _Row(row.created, position, is_by_id, row.id, row.tenant, row.packed)
            remaining -= len(rows)
            if len(rows) < limit:
                break
            after = [order[0] <= position[0], tuple_(*order) < tuple_(*position)]
        if not remaining:
            return
        if first_day is not None:
            yield _Row(first_day * DAY_S, (), is_by_id, "", "", None)


def _encoded(cursor: _Cursor) -> str:
    return urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def _decoded(text: str | None) -> _Cursor:
    if text is None:
        return _Cursor()
    try:
        return _CURSOR_DECODER.decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, msgspec.MsgspecError):
        raise InvalidRequest("'before': expected the value of `next` of the last reply.", param="before") from None
