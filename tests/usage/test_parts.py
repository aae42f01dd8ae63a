"""What periods came to is kept for who asks again: it is told for as long as it holds, and never longer."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.redis_keys import RedisKeys
from gateway.rollups.rollups import Period, Retention, Rollups, Sums
from gateway.usage import parts as usage_parts
from gateway.usage.parts import Part, Parts
from gateway.usage.reader import UsageReader
from gateway.usage.span import Asked, span
from gateway.usage.usage import Ask, Usage
from tests.ledger.drafts import closed, guided

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import pytest

    from gateway.ledger.receipt import Receipt
    from gateway.rollups.rollups import Page

KEPT = Retention(minute=6 * 3600, hour=14 * 86_400, day=400 * 86_400)
QUESTION = (("tenant",), ())


class Counting(Rollups):
    """Knows of which periods rows were read."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, RedisKeys(f"t{secrets.token_hex(6)}"), KEPT)
        self.read: list[Period] = []

    def pages(self, wanted: Sequence[Period], tenant: str | None = None) -> AsyncIterator[list[Page]]:
        self.read += wanted
        return super().pages(wanted, tenant)

    async def add(self, *receipts: tuple[Receipt, int]) -> None:
        sums = Sums()
        for receipt, times in receipts:
            sums.add(receipt, times)
        assert await self.write(await self.mark(), sums.spread(), {}, [], time.time()) is not None


def receipt(created: float, tenant: str, number: int, status: str = "ok") -> Receipt:
    one = closed(guided())
    return replace(one, id=f"req_{number:024x}", created=int(created), tenant=tenant, status=status)


def asked(by: tuple[str, ...] = ("tenant",), **only: str) -> Ask:
    now = time.time()
    return Ask(span(Asked(now - 30 * 3600, now), "hour", KEPT, now), "hour", by, only)


async def test_of_what_has_not_changed_no_row_is_read_again(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        rollups = Counting(redis)
        now = time.time()
        await rollups.add(*((receipt(now - back * 3600, f"t{back % 3}", back), 1) for back in range(20)))
        reader = UsageReader(rollups, KEPT)
        first = await reader.read(asked(), Usage.as_dict)
        assert first["total"]["requests"] == 20
        full = {Period.of("hour", now - back * 3600) for back in range(20)}
        assert full <= set(rollups.read)
        rollups.read.clear()
        assert (await reader.read(asked(), Usage.as_dict))["rows"] == first["rows"]
        assert not full & set(rollups.read)
        for other in (asked(("route",)), asked(("tenant",), route="chat")):  # another question is not that one
            rollups.read.clear()
            await reader.read(other, Usage.as_dict)
            assert full <= set(rollups.read)


async def test_what_comes_late_to_a_period_that_is_over_is_told_at_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more, and a true one in an abandoned one's place; and after rows were read from another generation."""
    monkeypatch.setattr(usage_parts, "_REST_TIMES", 0)
    async with Redis.from_url(redis_url) as redis:
        rollups = Counting(redis)
        old = time.time() - 5 * 3600
        abandoned = receipt(old, "beta", 2, "abandoned")
        await rollups.add((receipt(old, "acme", 1), 1), (abandoned, 1))
        reader = UsageReader(rollups, KEPT)

        async def told() -> dict[str, tuple[int, dict[str, int]]]:
            rows = (await reader.read(asked(), Usage.as_dict))["rows"]
            return {row["tenant"]: (row["requests"], row["errors"]) for row in rows}

        assert await told() == {"acme": (1, {}), "beta": (1, {"abandoned": 1})}
        await rollups.add((receipt(old, "acme", 3), 1))
        assert await told() == {"acme": (2, {}), "beta": (1, {"abandoned": 1})}
        await rollups.add((receipt(old, "beta", 2), 1), (abandoned, -1))
        assert await told() == {"acme": (2, {}), "beta": (1, {})}
        marks = await rollups.marks([Period.of("hour", old)])
        raw = await redis.get(rollups._keys.total("hour", Period.of("hour", old).start))
        assert raw is not None
        await redis.set(rollups._keys.of(1).total("hour", Period.of("hour", old).start), raw)
        await redis.hset(rollups._keys.state, "generation", "1")  # type: ignore[misc]
        assert await rollups.marks([Period.of("hour", old)]) != marks
        assert await told() == {}


def part(start: int, size: int, cpu_s: float = 0.0) -> Part:
    return Part(Period("hour", start), [(("acme",), b"x" * size)], cpu_s)


def test_what_is_kept_has_a_bound_and_what_was_not_asked_for_goes_first() -> None:
    parts = Parts(most_bytes=3_000)
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


def test_what_grows_is_folded_for_a_fifth_of_the_time_at_most() -> None:
    """By what it took; and told as it was for two seconds at the longest."""
    now = 100.0
    parts = Parts(clock=lambda: now)
    for cpu_s, told_until in ((0.1, 100.4), (60.0, 102.0)):
        now = 100.0
        parts.put(QUESTION, b"m", part(0, 10, cpu_s), 100.0)
        now = told_until - 0.001
        assert parts.get(QUESTION, Period("hour", 0), b"other") is not None
        now = told_until
        assert parts.get(QUESTION, Period("hour", 0), b"other") is None
        assert parts.get(QUESTION, Period("hour", 0), b"m") is not None
