"""A search reads a limited number of receipts, and its pages together have each matching receipt once."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from sqlalchemy import event

from gateway.accounting.edge import EDGE
from gateway.accounting.receipt import SHADOW_NAMES, Receipt
from gateway.errors import InvalidRequest
from gateway.usage import receipt_search
from gateway.usage.search import ANY, ERROR, ReceiptSearch
from tests.accounting.receipt_builders import closed, guided

if TYPE_CHECKING:
    from tests.usage.books import UsageBook

NOW = time.time()


def receipt(ago_s: float, number: int, **more: Any) -> Receipt:
    created = int(NOW - ago_s)
    fields = {"id": f"req_{created:08x}{number:016x}", "created": created, "cost_usd": Decimal("0.001"), **more}
    return replace(closed(guided()), **fields)


async def found(book: UsageBook, limit: int = 500, **where: Any) -> list[str]:
    """Return the ids on all pages."""
    ids, before = [], None
    while True:
        page = await book.reader.search(ReceiptSearch(**where), limit, before)
        assert len(page.found) <= limit
        assert page.scanned <= receipt_search.MAX_SCANNED
        ids += [Receipt.from_json(one.receipt).id for one in page.found]
        if page.following is None:
            return ids
        before = page.following


async def test_pages_have_each_receipt_once_the_newest_first(book: UsageBook) -> None:
    """Receipts of devices, whose ids have no time, are in order."""
    requests = [receipt(5000 * number, number, tenant=f"t{number % 3}") for number in range(40)]
    devices = [
        receipt(7000 * number, 0, id=f"edge_{number:032x}", mode=EDGE, tenant=f"t{number % 2}") for number in range(20)
    ]
    book.add([*devices, *requests])
    for tenant in (None, "t1"):
        every = [one for one in (*requests, *devices) if tenant in {None, one.tenant}]
        for limit in (1, 7, 500):
            ids = await found(book, limit, tenant=tenant)
            assert sorted(ids) == sorted(one.id for one in every)
            created = {one.id: one.created for one in every}
            times = [created[id_] for id_ in ids]
            assert times == sorted(times, reverse=True)


async def test_filters_select(book: UsageBook) -> None:
    plain, dear, failed = receipt(10, 1), receipt(20, 2, cost_usd=Decimal("0.5")), receipt(30, 3, status="overloaded")
    late = receipt(40, 4, mode="student", unguided="teacher_late", key="other", route="code")
    old, other = receipt(3 * 86_400, 5), receipt(50, 6, tenant="globex", unguided="tools", mode="student")
    book.add([plain, dear, failed, late, old, other])
    cases: list[tuple[dict[str, Any], list[Receipt]]] = [
        ({}, [plain, dear, failed, late, other, old]),
        ({"status": ERROR}, [failed]),
        ({"status": "ok", "tenant": "acme"}, [plain, dear, late, old]),
        ({"unguided": ANY}, [late, other]),
        ({"unguided": "tools"}, [other]),
        ({"min_pico": 10**10}, [dear]),
        ({"max_pico": 10**9, "tenant": "globex"}, [other]),
        ({"key": "other"}, [late]),
        ({"route": "code", "mode": "student"}, [late]),
        ({"since": NOW - 86_400, "tenant": "acme"}, [plain, dear, failed, late]),
        ({"since": NOW - 86_400}, [plain, dear, failed, late, other]),
        ({"until": NOW - 86_400}, [old]),
        ({"until": NOW - 35}, [late, other, old]),
        ({"since": NOW - 45, "until": NOW - 15, "tenant": "acme"}, [dear, failed, late]),
        ({"tenant": "nobody"}, []),
    ]
    for where, expected in cases:
        assert await found(book, **where) == [one.id for one in expected], where


async def test_shadows_are_below_their_request_only(book: UsageBook) -> None:
    request, alone = receipt(10, 1), receipt(20, 2)
    shadows = [
        replace(request, id=f"{request.id}-{name}", mode="shadow", shadow_of=request.id) for name in SHADOW_NAMES
    ]
    book.add([*shadows[::-1], request, alone])
    page = await book.reader.search(ReceiptSearch(), 10)
    assert [[Receipt.from_json(raw).id for raw in one.shadows] for one in page.found] == [
        [one.id for one in shadows],
        [],
    ]
    one = await book.reader.receipt(request.id)
    assert one == page.found[0]
    assert one == await book.reader.receipt(request.id, "acme")
    assert await book.reader.receipt(request.id, "globex") is None
    assert await found(book, mode="shadow", tenant="acme") == sorted([one.id for one in shadows], reverse=True)
    by_id = await book.reader.receipt(shadows[0].id)
    assert by_id is not None
    assert Receipt.from_json(by_id.receipt).shadow_of == request.id


async def test_a_call_reads_a_limited_number_of_receipts(book: UsageBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt_search, "MAX_SCANNED", 7)
    rare = receipt(1000, 99, status="overloaded")
    book.add([*(receipt(number, number) for number in range(20)), rare])
    page = await book.reader.search(ReceiptSearch(status=ERROR), 5)
    assert (page.found, page.scanned) == ([], 7)
    assert page.following is not None
    assert await found(book, status=ERROR) == [rare.id]
    assert await found(book, status=ERROR, tenant="acme") == [rare.id]


async def test_a_query_compares_times_as_whole_seconds(book: UsageBook) -> None:
    """PostgreSQL does not search an index of whole numbers for a fraction."""
    first, second = receipt(20, 1), receipt(10, 2)
    book.add([first, second])
    seen: list[Any] = []

    def see(*call: Any) -> None:
        seen.extend(call[3].values() if isinstance(call[3], dict) else call[3])

    event.listen(book.engine.open(), "before_cursor_execute", see)
    for tenant in (None, "acme"):
        where = {"since": first.created + 0.5, "until": second.created + 0.5, "tenant": tenant}
        assert await found(book, 1, **where) == [second.id]
    assert second.created + 1 in seen
    assert [value for value in seen if isinstance(value, float)] == []


@pytest.mark.parametrize("before", ["x", "e30", "W1siYSIsMSwyXSxudWxsXQ", "\N{SNOWMAN}"])
async def test_another_text_is_no_start_of_a_page(sqlite_book: UsageBook, before: str) -> None:
    with pytest.raises(InvalidRequest, match="'before'"):
        await sqlite_book.reader.search(ReceiptSearch(), 5, before)
