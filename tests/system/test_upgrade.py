"""A rolling upgrade and the rollback under load: two versions share one Redis, and no request fails.

The counts are printed in one line (`pytest -rP`, or `-s`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.config.database_url import sqlalchemy_url
from gateway.redis.keys import BOARD
from gateway.usage.queries import UsageQueries
from gateway.usage.store import UsageStore
from gateway.usage.sums import periods
from tests.later_version import LAYOUT, MORE
from tests.upgrade_world import CAP, KEYS, World, world
from tests.usage.databases import FOREVER

if TYPE_CHECKING:
    from tests.gateway_process import GatewayProcess

_ROOT = Path(__file__).parents[2]
_LATER: dict[str, Any] = {"entry": ("-m", "tests.later_version"), "environ": {"PYTHONPATH": str(_ROOT)}}


@pytest.mark.timeout(600)
@pytest.mark.long
async def test_a_rolling_upgrade_and_downgrade_fail_no_request(tmp_path: Path) -> None:
    """Replace two gateways one by one by a later version, and then one of those by the old version.

    At least two are always in service. Each request has one complete answer and one receipt, which any version shows
    and writes. Both versions together respect the teacher's concurrency.
    """
    async with world(tmp_path) as here:
        old = [await here.start() for _ in range(2)]
        load = asyncio.ensure_future(here.load())  # noqa: TID251
        await here.some()
        new = []
        for one in old:
            new.append(await here.start(**_LATER))
            await here.some()
            assert sorted(await here.redis.hkeys(KEYS.teacher("big").boards)) == [b"%d" % BOARD, b"%d" % LAYOUT]
            await here.stop(one)
        await here.some()
        back = await here.start()
        await here.some()
        await here.stop(new[0])
        await here.some()
        here.done = True
        await load
        await _check(here, old=[*old, back], new=new, left=[back, new[1]])


async def _check(
    here: World, *, old: list[GatewayProcess], new: list[GatewayProcess], left: list[GatewayProcess]
) -> None:
    balancer = here.balancer
    assert balancer.failed == []
    answered = Counter(balancer.answers.values())
    by = {"old": sum(answered[one.url] for one in old), "new": sum(answered[one.url] for one in new)}
    assert min(by.values()) > 0
    print(f"{by} answered, {len(balancer.failed)} failed; teacher: {here.teacher.calls} calls, at most "
          f"{here.teacher.most} of {CAP} at once")  # fmt: skip
    assert here.teacher.most <= CAP
    # Of each version the other one's receipts are read.
    receipts = [await here.receipts(process) for process in left]
    assert receipts[0] == receipts[1]
    assert {one["id"] for one in receipts[0]} == set(balancer.answers)
    assert {(one["status"], one["mode"], one["unguided"]) for one in receipts[0]} == {("ok", "guided", None)}
    raw = {name: await here.redis.get(KEYS.receipt("acme", name)) for name in balancer.answers}
    later = {name for name, text in raw.items() if text.endswith(MORE)}
    assert later == {name for name, url in balancer.answers.items() if url in {one.url for one in new}}
    assert len(await here.redis.keys("*:receipt:*")) == len(balancer.answers)
    assert await here.redis.keys("*:intents:*") == []
    await _check_sums(here, len(balancer.answers))


async def _check_sums(here: World, requests: int) -> None:
    """Check that each request counts once, though workers of both versions wrote receipts."""
    store = UsageStore(sqlalchemy_url("sqlite", here.folder / "data"), FOREVER)
    now = time.time()
    try:
        give_up = time.monotonic() + 60
        while True:
            days = await store.read(UsageQueries.totals, list(periods("day", now - 86_400, now + 1)))
            counted, stored = sum(row.requests for row in days.values()), await store.count()
            if counted == stored == requests:
                return
            assert time.monotonic() < give_up, (counted, stored, requests)
            await asyncio.sleep(0.1)
    finally:
        await store.close()
