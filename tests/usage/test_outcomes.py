"""Outcomes in a usage database: each counts once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.quality.book import DAY_S
from gateway.quality.comparison import SCALE, Comparison
from gateway.quality.outcome import Outcome, OutcomeSums
from gateway.usage.database import add_comparisons, add_outcomes
from tests.usage.databases import database

if TYPE_CHECKING:
    from tests.usage.books import UsageBook

NOON = 20_000 * DAY_S + DAY_S // 2
DAY = NOON // DAY_S


def outcome(number: int, score: float, variant: str = "long", unit: str = "u", created: int = NOON) -> Outcome:
    of_request = f"req_{number:024x}", created, "acme", "chat"
    return Outcome(*of_request, variant, unit, "feedback", round(score * SCALE))


def add(book: UsageBook, *outcomes: Outcome) -> None:
    with book.engine.writing() as connection:
        add_outcomes(connection, outcomes)


async def sums(
    book: UsageBook, tenant: str = "acme", since: int = DAY, until: int = DAY
) -> dict[tuple[str, str], OutcomeSums]:
    return await book.reader.outcomes(tenant, "chat", since, until)


async def test_each_outcome_counts_once_and_in_its_unit(book: UsageBook) -> None:
    assert await sums(book) == {}
    made = [outcome(1, 1), outcome(2, 0.5), outcome(3, 0, unit="v"), outcome(4, 1, variant="")]
    add(book, *made)
    add(book, *made, outcome(1, 0))  # delivered again; a second score does not replace the first
    assert await sums(book) == {
        ("long", "feedback"): OutcomeSums(2, 3, 15_000, 4 + 1, 2 * 15_000.0, 15_000.0**2),
    }
    assert await sums(book, tenant="globex") == {}


async def test_outcomes_are_found_by_day_and_kept_as_long_as_receipts(book: UsageBook) -> None:
    add(book, *(outcome(days, 1, created=NOON - days * DAY_S) for days in range(4)))
    assert (await sums(book, since=DAY - 1))["long", "feedback"].outcomes == 2
    assert (await sums(book, since=0, until=DAY - 2))["long", "feedback"].outcomes == 2
    database(book.engine).delete_receipts(NOON - 2 * DAY_S)
    assert (await sums(book, since=0))["long", "feedback"].outcomes == 3


async def test_a_day_with_many_outcomes_leaves_none_behind(book: UsageBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.usage.database._DELETED_AT_ONCE", 2)
    add(book, *(outcome(number, 1, created=NOON - 3 * DAY_S) for number in range(7)), outcome(8, 1))
    database(book.engine).delete_receipts(NOON - 2 * DAY_S)
    assert (await sums(book, since=0))["long", "feedback"].outcomes == 1


async def test_a_comparison_of_a_variant_is_an_outcome_as_well(book: UsageBook) -> None:
    of_request = NOON, "acme", "judge", "64", "chat", 9_000, 4_000
    with book.engine.writing() as connection:
        made = [Comparison("req_1", *of_request, variant="long", unit="u"), Comparison("req_2", *of_request)]
        add_comparisons(connection, made)
        add_comparisons(connection, made)
    found = await sums(book)
    assert found == {("long", "judge"): OutcomeSums(1, 1, 9_000, 1.0, 9_000.0, 9_000.0**2)}
    assert sum(tally.samples for tally in (await book.reader.comparisons(DAY)).values()) == 2


def test_an_entry_is_read_back_unchanged() -> None:
    one = outcome(1, 0.5)
    assert Outcome.from_json(one.to_json()) == one
    for wrong in (b"", b"{}", one.to_json().replace(b"5000", b"10001"), one.to_json().replace(b"5000", b"-1")):
        with pytest.raises(msgspec.MsgspecError):
            Outcome.from_json(wrong)
