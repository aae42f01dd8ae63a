"""GET /overview: the tiles show the sums of the receipts, read once for all operators."""

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

from gateway.admin.overview import Overview
from gateway.usage.sums import Period
from tests.accounting.receipt_builders import closed, guided
from tests.gateway_process import STUDENT_ONLY, model, running_gateway
from tests.usage.books import UsageBook

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gateway.usage.rollup import SumRow

ADMIN_KEY = "an-admin-key-for-tests"


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Counted:
    """Count the totals that are read."""

    def __init__(self, book: UsageBook) -> None:
        self._book = book
        self.read = 0

    async def totals(self, periods: Sequence[Period]) -> list[tuple[Period, SumRow]]:
        self.read += len(periods)
        return await self._book.reader.totals(periods)

    def add(self, *moments: float, status: str = "ok", baseline: str = "0.003") -> None:
        """Add a receipt for each moment; each costs 0.001."""
        self._book.add(
            msgspec.structs.replace(
                closed(guided(), status),
                id=f"req_{int(moment):08x}{place:016x}",
                created=int(moment),
                cost_usd=Decimal("0.001"),
                baseline_usd=Decimal(baseline),
            )
            for place, moment in enumerate(moments)
        )


@pytest.fixture
def sums(tmp_path: Path) -> Iterator[Counted]:
    book = UsageBook(f"sqlite:///{tmp_path}/usage.db")
    yield Counted(book)
    book.close()


def month_start(now: float) -> float:
    return datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


async def test_each_receipt_counts_in_the_period_of_its_arrival(sums: Counted) -> None:
    clock = Clock()
    first, midnight = month_start(clock.now), Period.of("day", clock.now).start
    moments = [clock.now, clock.now - 30, clock.now - 600, midnight, first, first - 1]
    sums.add(*moments)
    found = await Overview(sums, clock).sums()
    recent = Period.of("minute", clock.now - 60).start
    assert found["live"]["requests"] == sum(int(one) >= recent for one in moments)
    assert found["today"]["requests"] == sum(int(one) >= midnight for one in moments)
    assert found["month"]["requests"] == sum(int(one) >= first for one in moments) == 5
    assert Decimal(found["month"]["cost_usd"]) == Decimal("0.005")
    assert Decimal(found["month"]["savings_usd"]) == Decimal("0.010")
    assert found["live"]["guided"] == found["live"]["requests"]
    assert 60 <= found["live"]["seconds"] < 120


async def test_savings_may_be_negative(sums: Counted) -> None:
    clock = Clock()
    sums.add(clock.now, baseline="0.0004")
    found = await Overview(sums, clock).sums()
    assert found["today"]["savings_usd"] == "-0.0006"


async def test_nothing_yet_is_zero_and_latencies_are_unknown(sums: Counted) -> None:
    found = await Overview(sums, Clock()).sums()
    assert (found["live"]["requests"], found["month"]["cost_usd"]) == (0, "0")
    assert found["live"]["latency_ms"]["total"]["p95"] is None
    assert found["live"]["batches"]["mean_size"] is None


async def test_concurrent_requests_share_one_database_read(sums: Counted) -> None:
    overview = Overview(sums, Clock())
    both = await asyncio.gather(*(overview.sums() for _ in range(20)))
    assert all(one == both[0] for one in both)
    days = datetime.now(UTC).day
    assert sums.read == 2 + days


async def test_days_that_are_over_are_read_again_only_now_and_then(sums: Counted) -> None:
    clock = Clock()
    overview = Overview(sums, clock)
    await overview.sums()
    sums.read = 0
    clock.now += 1
    await overview.sums()
    assert sums.read <= 4  # two minutes, today, and a day that has just begun


async def test_a_new_month_begins_at_nothing(sums: Counted) -> None:
    clock = Clock()
    overview = Overview(sums, clock)
    sums.add(clock.now)
    assert (await overview.sums())["month"]["requests"] == 1
    clock.now = month_start(month_start(clock.now) + 40 * 86_400) + 5
    found = await overview.sums()
    assert (found["month"]["requests"], found["today"]["requests"]) == (0, 0)


@pytest.fixture
def idle(redis_url: str, tmp_path: Path) -> Any:
    """Run a gateway with an unreachable engine."""
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


@pytest.mark.long
def test_the_overview_lists_engines_and_policies_and_requires_the_key(idle: Any) -> None:
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
