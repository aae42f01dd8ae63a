"""Sums by tag in a usage database: each receipt counts once for each of its tags."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from gateway.errors import InvalidRequest
from gateway.usage.receipt_sums import SUMS, ReceiptSum
from gateway.usage.rollup import SumRow
from gateway.usage.span import UsageSpan
from gateway.usage.sums import OTHER
from gateway.usage.tables import DAY_S
from tests.usage.databases import NOW, database, receipt

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt
    from tests.usage.books import UsageBook

DAY = UsageSpan(NOW - DAY_S, NOW + 1, [])


def tagged(*tags: str, **more: Any) -> Receipt:
    return receipt(stored_tags=tags, **more)


async def sums(book: UsageBook, *by: str, when: UsageSpan = DAY, **only: str) -> dict[tuple[str, ...], dict[str, int]]:
    found = await book.reader.receipt_sums(when, by or ("tag",), only, None)
    return {one.names: dict(zip(SUMS, one.sums, strict=True)) for one in found}


async def test_a_receipt_counts_for_each_of_its_tags(book: UsageBook) -> None:
    one, other = tagged("a", "b"), tagged("b", status="engine_failed")
    book.add([one, other, receipt()])
    book.add([one])  # delivered again
    found = await sums(book)
    rows = [SumRow.of(each) for each in (one, other)]
    assert set(found) == {("a",), ("b",)}
    assert (found["a",]["requests"], found["a",]["errors"]) == (1, 0)
    assert (found["b",]["requests"], found["b",]["errors"]) == (2, 1)
    assert found["a",]["cost_pico"] == rows[0].cost_pico > 0
    assert found["b",]["cost_pico"] == sum(row.cost_pico for row in rows)
    assert found["b",]["savings_pico"] == sum(row.savings_pico for row in rows)
    assert found["b",]["baseline_pico"] == sum(row.baseline_pico for row in rows)
    read = sum(part.read for row in rows for part in (row.teacher, row.student, row.failed))
    written = sum(part.output for row in rows for part in (row.teacher, row.student, row.failed))
    assert (found["b",]["input_tokens"], found["b",]["output_tokens"]) == (read, written)
    assert read > 0 < written


async def test_sums_are_grouped_and_filtered(book: UsageBook) -> None:
    book.add([tagged("a"), tagged("a", tenant="beta", key="k2", route="r"), tagged("b", tenant="beta", mode="student")])
    assert set(await sums(book, "tenant", "tag")) == {("acme", "a"), ("beta", "a"), ("beta", "b")}
    assert set(await sums(book, "tag", "route", tenant="beta")) == {("a", "r"), ("b", "chat")}
    assert set(await sums(book, key="k2")) == {("a",)}
    assert set(await sums(book, mode="student")) == {("b",)}
    assert set(await sums(book, "mode", tenant="beta")) == {("guided",), ("student",)}


async def test_sums_have_a_time_range(book: UsageBook) -> None:
    book.add([tagged("a", created=NOW - days * DAY_S) for days in range(4)])
    for days in range(1, 4):
        when = UsageSpan(NOW - days * DAY_S, NOW + 1, [])
        assert (await sums(book, when=when))["a",]["requests"] == days + 1
    assert await sums(book, when=UsageSpan(NOW + 1, NOW + DAY_S, [])) == {}


async def test_the_real_receipt_replaces_the_abandoned_one(book: UsageBook) -> None:
    real = tagged("a")
    book.add([msgspec.structs.replace(real, status="abandoned")])
    assert (await sums(book))["a",]["errors"] == 1
    book.add([real])
    found = (await sums(book))["a",]
    assert (found["requests"], found["errors"], found["cost_pico"]) == (1, 0, SumRow.of(real).cost_pico)


async def test_tags_are_deleted_with_their_receipts(book: UsageBook) -> None:
    book.add([tagged("a", "b", created=NOW - days * DAY_S) for days in range(4)])
    everything = UsageSpan(0, NOW + 1, [])
    database(book.engine).delete_receipts(NOW - 2 * DAY_S)
    assert {names: row["requests"] for names, row in (await sums(book, when=everything)).items()} == {
        ("a",): 3, ("b",): 3
    }  # fmt: skip


async def test_tags_beyond_the_limit_of_rows_are_one_row(book: UsageBook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant with many tags does not prevent a report of all tenants."""
    monkeypatch.setattr("gateway.usage.receipt_sum_query.MAX_ROWS", 2)
    dear, cheap = Decimal(9), Decimal("0.5")
    book.add([tagged("dear", cost_usd=dear), tagged("dear", "b", cost_usd=dear)])
    book.add([tagged("c", "d", tenant="beta", cost_usd=cheap), tagged("d", tenant="beta", status="engine_failed")])
    found = await sums(book)
    assert [*found] == [("dear",), ("b",), (OTHER,)]
    assert (found[OTHER,]["requests"], found[OTHER,]["errors"]) == (3, 1)
    assert [*await sums(book, "tenant", "tag")] == [("acme", "dear"), ("acme", "b"), (OTHER, OTHER)]
    assert [*await sums(book, tenant="beta")] == [("d",), ("c",)]


async def test_too_many_rows_to_add_up_are_an_error(book: UsageBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.usage.receipt_sum_query.MAX_TAG_ROWS", 2)
    book.add([tagged("a", "b")])
    assert len(await sums(book)) == 2
    book.add([tagged("a", tenant="beta")])
    with pytest.raises(InvalidRequest, match="add up more than 2 tags or labels"):
        await sums(book)
    assert len(await sums(book, tenant="acme")) == 2


async def test_a_repeated_tag_of_a_receipt_counts_once(book: UsageBook) -> None:
    """Another version may have stored the receipt."""
    book.add([tagged("a", "b", "a")])
    assert {names: row["requests"] for names, row in (await sums(book)).items()} == {("a",): 1, ("b",): 1}


def test_money_is_text() -> None:
    one = ReceiptSum(("acme", "a"), (2, 1, 10, 20, 1_500_000_000, 10**12, -(10**6)))
    assert one.as_json(("tenant", "tag")) == {
        "tenant": "acme", "tag": "a", "requests": 2, "errors": 1, "input_tokens": 10, "output_tokens": 20,
        "cost_usd": "0.0015", "baseline_usd": "1", "savings_usd": "-0.000001",
    }  # fmt: skip
