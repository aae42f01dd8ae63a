"""GET /overview: what the tiles show is what the receipts add up to, read once for all who look."""

from __future__ import annotations

import asyncio
import secrets
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.admin.overview import Overview
from gateway.redis_keys import RedisKeys
from gateway.rollups.rollups import Period, Retention, Rollups, Sums
from tests.gateway_process import STUDENT_ONLY, model, running_gateway
from tests.ledger.drafts import closed, guided

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from gateway.rollups.rollup import Row

ADMIN_KEY = "an-admin-key-for-tests"


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Counted(Rollups):
    """Counts the sums that are asked for."""

    asked = 0

    async def totals(self, wanted: Sequence[Period]) -> list[tuple[Period, Row]]:
        self.asked += len(wanted)
        return await super().totals(wanted)


@pytest_asyncio.fixture
async def rollups(redis_url: str) -> AsyncIterator[Counted]:
    async with Redis.from_url(redis_url) as redis:
        keys = RedisKeys(f"t{secrets.token_hex(6)}")
        yield Counted(redis, keys, Retention(minute=3600, hour=86_400, day=100 * 86_400))


async def book(rollups: Rollups, *moments: float, status: str = "ok", baseline: str = "0.003") -> None:
    """A receipt of each moment; each cost 0.001."""
    sums = Sums()
    for place, moment in enumerate(moments):
        sums.add(
            msgspec.structs.replace(
                closed(guided(), status),
                id=f"req_{place}",
                created=int(moment),
                cost_usd=Decimal("0.001"),
                baseline_usd=Decimal(baseline),
            )
        )
    assert await rollups.write(await rollups.mark(), sums.spread(), {}, [], time.time())


def month_start(now: float) -> float:
    return datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


async def test_each_receipt_counts_in_the_time_in_which_it_came_in(rollups: Counted) -> None:
    clock = Clock()
    first, midnight = month_start(clock.now), Period.of("day", clock.now).start
    moments = [clock.now, clock.now - 30, clock.now - 600, midnight, first, first - 1]
    await book(rollups, *moments)
    sums = await Overview(rollups, {}, clock).sums()
    recent = Period.of("minute", clock.now - 60).start
    assert sums["live"]["requests"] == sum(int(one) >= recent for one in moments)
    assert sums["today"]["requests"] == sum(int(one) >= midnight for one in moments)
    assert sums["month"]["requests"] == sum(int(one) >= first for one in moments) == 5
    assert Decimal(sums["month"]["cost_usd"]) == Decimal("0.005")
    assert Decimal(sums["month"]["savings_usd"]) == Decimal("0.010")
    assert sums["live"]["guided"] == sums["live"]["requests"]
    assert 60 <= sums["live"]["seconds"] < 120


async def test_savings_may_be_negative(rollups: Counted) -> None:
    clock = Clock()
    await book(rollups, clock.now, baseline="0.0004")
    sums = await Overview(rollups, {}, clock).sums()
    assert sums["today"]["savings_usd"] == "-0.0006"


async def test_nothing_yet_is_zero_and_latencies_are_unknown(rollups: Counted) -> None:
    sums = await Overview(rollups, {}, Clock()).sums()
    assert (sums["live"]["requests"], sums["month"]["cost_usd"]) == (0, "0")
    assert sums["live"]["latency_ms"]["total"]["p95"] is None
    assert sums["live"]["batches"]["mean_size"] is None


async def test_who_looks_at_the_same_time_shares_one_reading(rollups: Counted) -> None:
    overview = Overview(rollups, {}, Clock())
    both = await asyncio.gather(*(overview.sums() for _ in range(20)))
    assert all(one == both[0] for one in both)
    days = datetime.now(UTC).day
    assert rollups.asked == 2 + days


async def test_days_that_are_over_are_read_again_only_now_and_then(rollups: Counted) -> None:
    clock = Clock()
    overview = Overview(rollups, {}, clock)
    await overview.sums()
    rollups.asked = 0
    clock.now += 1
    await overview.sums()
    assert rollups.asked <= 4  # two minutes, today, and a day that has just begun


async def test_a_new_month_begins_at_nothing(rollups: Counted) -> None:
    clock = Clock()
    overview = Overview(rollups, {}, clock)
    await book(rollups, clock.now)
    assert (await overview.sums())["month"]["requests"] == 1
    clock.now = month_start(month_start(clock.now) + 40 * 86_400) + 5
    sums = await overview.sums()
    assert (sums["month"]["requests"], sums["today"]["requests"]) == (0, 0)


@pytest.fixture
def idle(redis_url: str, tmp_path: Path) -> Any:
    """A gateway whose engine is not there."""
    nowhere = model("small", "openai", "http://127.0.0.1:9/v1", continuation="trailing")
    big = model("big", "openai", "http://127.0.0.1:9/v1", continuation="trailing")
    return running_gateway(
        tmp_path,
        models=[nowhere, big],
        routes=[STUDENT_ONLY],
        redis_url=redis_url,
        redis={"prefix": f"t{secrets.token_hex(4)}"},
        admin={"key": "env:THE_ADMIN_KEY"},
        environ={"THE_ADMIN_KEY": ADMIN_KEY},
    )


def test_it_tells_of_engines_and_policies_and_only_to_who_has_the_key(idle: Any) -> None:
    with idle as gateway:
        for path in ("/overview", "/policies"):
            assert httpx.get(gateway.admin_url + path).status_code == 401
        shown = {"Authorization": f"Bearer {ADMIN_KEY}"}
        seen = httpx.get(f"{gateway.admin_url}/overview", headers=shown).json()
        assert {one["name"]: (one["breaker"], one["in_flight"]) for one in seen["engines"]} == {
            "small": ("closed", 0),
            "big": ("closed", 0),
        }
        assert (seen["policies"]["files"], seen["policies"]["stale"]) == (2, False)
        assert (seen["redis"], seen["usage"]) == ({"up": True}, {"answered": True})
        policies = httpx.get(f"{gateway.admin_url}/policies", headers=shown).json()
        assert [(one["tenant"], one["routes"][0]["model"]) for one in policies["data"]] == [
            ("acme", "chat-student"),
            ("globex", "chat-student"),
        ]
        assert ADMIN_KEY not in str(seen)
        wrong = httpx.get(f"{gateway.admin_url}/overview?x=1", headers=shown)
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x")
