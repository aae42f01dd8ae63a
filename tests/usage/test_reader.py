"""Grouped periods are cached for repeated queries while they are valid, and no longer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from gateway.usage.database_reader import DatabaseReader
from gateway.usage.reader import FoldedPeriod, FoldedPeriods, UsageReader
from gateway.usage.span import RequestedRange, span
from gateway.usage.sums import Period, Retention
from gateway.usage.usage import UsageQuery
from tests.accounting.receipt_builders import closed, guided
from tests.usage.books import as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gateway.accounting.receipt import Receipt
    from gateway.usage.sums import StoredRow
    from tests.usage.books import UsageBook

KEPT = Retention(minute=6 * 3600, hour=14 * 86_400, day=400 * 86_400)
QUESTION = (("tenant",), ())


class Counting(DatabaseReader):
    """A reader that records the periods of its reads."""

    def __init__(self, book: UsageBook) -> None:
        super().__init__(book.threads)
        self.periods: list[Period] = []

    async def rows(
        self, work: Callable[[Iterator[StoredRow]], Any], periods: Sequence[Period], tenant: str | None = None
    ) -> Any:
        self.periods += periods
        return await super().rows(work, periods, tenant)


def receipt(created: float, tenant: str, number: int, status: str = "ok") -> Receipt:
    one = closed(guided())
    return replace(one, id=f"req_{number:024x}", created=int(created), tenant=tenant, status=status)


def query(by: tuple[str, ...] = ("tenant",), **only: str) -> UsageQuery:
    now = time.time()
    return UsageQuery(span(RequestedRange(now - 30 * 3600, now), "hour", KEPT, now), "hour", by, only)


async def test_unchanged_periods_are_not_read_again(sqlite_book: UsageBook) -> None:
    sums, now = Counting(sqlite_book), time.time()
    sqlite_book.add(receipt(now - back * 3600, f"t{back % 3}", back) for back in range(20))
    reader = UsageReader(sums, KEPT)
    first = await reader.read(query(), as_json)
    assert first["total"]["requests"] == 20
    full = {Period.of("hour", now - back * 3600) for back in range(20)}
    assert full <= set(sums.periods)
    sums.periods.clear()
    assert (await reader.read(query(), as_json))["rows"] == first["rows"]
    assert not full & set(sums.periods)
    for other in (query(("route",)), query(("tenant",), route="chat")):  # another query has another key
        sums.periods.clear()
        await reader.read(other, as_json)
        assert full <= set(sums.periods)


async def test_late_receipts_of_a_past_period_appear_at_once(book: UsageBook) -> None:
    """A receipt is added, and a real receipt replaces an abandoned one."""
    old = time.time() - 5 * 3600
    book.add([receipt(old, "acme", 1), receipt(old, "beta", 2, "abandoned")])
    reader = UsageReader(book.reader, KEPT, cache=FoldedPeriods(reuse_times=0))

    async def summary() -> dict[str, tuple[int, dict[str, int]]]:
        rows = (await reader.read(query(), as_json))["rows"]
        return {row["tenant"]: (row["requests"], row["errors"]) for row in rows}

    assert await summary() == {"acme": (1, {}), "beta": (1, {"abandoned": 1})}
    book.add([receipt(old, "acme", 3)])
    assert await summary() == {"acme": (2, {}), "beta": (1, {"abandoned": 1})}
    book.add([receipt(old, "beta", 2)])
    assert await summary() == {"acme": (2, {}), "beta": (1, {})}


def part(start: int, size: int, cpu_s: float = 0.0) -> FoldedPeriod:
    return FoldedPeriod(Period("hour", start), [(("acme",), b"x" * size)], cpu_s)


def test_the_cache_is_bounded_and_evicts_the_least_recently_used_part() -> None:
    parts = FoldedPeriods(max_bytes=3_000)
    for start in (0, 1):
        parts.put(QUESTION, b"m", part(start, 900), 0)
    assert parts.get(QUESTION, Period("hour", 0), b"m") is not None
    parts.put(QUESTION, b"m", part(2, 900), 0)
    held = [parts.get(QUESTION, Period("hour", start), b"m") is not None for start in range(3)]
    assert held == [True, False, True]
    parts.put(QUESTION, b"m", part(3, 5_000), 0)
    assert parts.get(QUESTION, Period("hour", 3), b"m") is None
    parts.put(QUESTION, b"n", part(0, 10), 0)
    assert parts.held_bytes == 1_400 + 510
    assert parts.held_bytes <= 3_000


def test_grouping_the_current_period_takes_at_most_a_fifth_of_the_time() -> None:
    """The time of grouping sets the rate. A cached value is at most two seconds old."""
    now = 100.0
    parts = FoldedPeriods(clock=lambda: now)
    for cpu_s, told_until in ((0.1, 100.4), (60.0, 102.0)):
        now = 100.0
        parts.put(QUESTION, b"m", part(0, 10, cpu_s), 100.0)
        now = told_until - 0.001
        assert parts.get(QUESTION, Period("hour", 0), b"other") is not None
        now = told_until
        assert parts.get(QUESTION, Period("hour", 0), b"other") is None
        assert parts.get(QUESTION, Period("hour", 0), b"m") is not None
