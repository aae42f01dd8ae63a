"""Comparisons of answers in a usage database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.quality.book import DAY_S, ComparisonScope
from gateway.quality.comparison import SCALE, Comparison, QualityTally
from gateway.quality.trend import AgreementSums, RouteScope
from gateway.usage.database import add_comparisons
from tests.usage.databases import database

if TYPE_CHECKING:
    from tests.usage.books import UsageBook

NOON = 20_000 * DAY_S + DAY_S // 2
ROW = ComparisonScope("acme", "words", "64", "org/chat:v1")


def comparison(
    number: int, guided: float, student: float, created: int = NOON, row: ComparisonScope = ROW
) -> Comparison:
    return Comparison(
        id=f"req_{number:024x}",
        created=created,
        **row._asdict(),
        guided=round(guided * SCALE),
        student=round(student * SCALE),
    )


def add(book: UsageBook, *comparisons: Comparison) -> None:
    with book.engine.writing() as connection:
        add_comparisons(connection, comparisons)


async def test_each_comparison_counts_once(book: UsageBook) -> None:
    """The sums equal those of `QualityTally`, independent of repeated deliveries."""
    day = NOON // DAY_S
    assert await book.reader.comparisons(day) == {}
    other = ROW._replace(length="16")
    made = [comparison(number, number / 40, 0.25) for number in range(40)]
    add(book, *made, comparison(40, 1, 0, row=other))
    add(book, *made[:20])
    add(book)
    assert await book.reader.comparisons(day) == {
        ROW: sum((QualityTally.of(number / 40, 0.25) for number in range(40)), QualityTally()),
        other: QualityTally.of(1, 0),
    }


async def test_days_are_those_of_utc(book: UsageBook) -> None:
    day = NOON // DAY_S + 1
    midnight = NOON + DAY_S // 2
    add(book, comparison(1, 1, 1, midnight - 1), comparison(2, 0, 1, midnight))
    assert (await book.reader.comparisons(day))[ROW] == QualityTally.of(0, 1)
    assert (await book.reader.comparisons(day - 1))[ROW] == QualityTally.of(0, 1) + QualityTally.of(1, 1)


async def test_agreements_are_those_of_a_time_and_a_route(book: UsageBook) -> None:
    """They include the start, and exclude the end. The sums of squares exceed 32 bits."""
    code, globex = ROW._replace(route="code"), ROW._replace(tenant="globex")
    add(
        book,
        *(comparison(number, 1, 0) for number in range(300)),
        comparison(300, 0.5, 0, NOON + 5, ROW._replace(length="16")),
        comparison(301, 0.25, 0, NOON + 10),
        comparison(302, 0.5, 0, NOON - 1),
        comparison(303, 0.5, 0, row=code),
        comparison(304, 0.5, 0, NOON + 9, row=globex),
    )
    half = AgreementSums(1, SCALE // 2, SCALE**2 // 4)
    chat = AgreementSums(301, 300 * SCALE + SCALE // 2, 300 * SCALE**2 + SCALE**2 // 4)
    everything = {
        RouteScope("acme", ROW.route, "words"): chat,
        RouteScope("acme", "code", "words"): half,
        RouteScope("globex", ROW.route, "words"): half,
    }
    of_tenant = {scope: sums for scope, sums in everything.items() if scope.tenant == "acme"}
    of_route = {scope: sums for scope, sums in everything.items() if scope.route == ROW.route}
    for tenant, route, expected in (
        (None, None, everything),
        ("acme", None, of_tenant),
        (None, ROW.route, of_route),
        ("globex", "code", {}),
    ):
        assert await book.reader.agreements(NOON, NOON + 10, tenant, route) == expected


async def test_comparisons_are_kept_as_long_as_receipts(book: UsageBook) -> None:
    add(book, *(comparison(days, 1, 1, NOON - days * DAY_S) for days in range(4)))
    database(book.engine).delete_receipts(NOON - 2 * DAY_S)
    assert (await book.reader.comparisons(0))[ROW] == sum((QualityTally.of(1, 1) for _ in range(3)), QualityTally())


def test_an_entry_is_read_back_unchanged() -> None:
    one = comparison(1, 0.5, 0.25)
    assert Comparison.from_json(one.to_json()) == one
    for wrong in (b"", b"{}", one.to_json().replace(b"5000", b"10001"), one.to_json().replace(b"5000", b"-1")):
        with pytest.raises(msgspec.MsgspecError):
            Comparison.from_json(wrong)
