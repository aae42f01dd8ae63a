"""A rolling upgrade from the last version with an archive and sums in Redis, the rollback, and the upgrade again.

The old code comes from this repository's history. Gateways of both versions share one Redis under load. Old ones add up
and archive, usage workers write to the database, and both read the same outboxes.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from gateway.config.database_url import sqlalchemy_url
from gateway.usage.queries import UsageQueries
from gateway.usage.store import UsageStore
from gateway.usage.sums import periods
from tests.gateway_process import COMMAND
from tests.postgres import new_database, running_postgres
from tests.previous_code import extract_previous
from tests.upgrade_world import CAP, KEYS, World, world
from tests.usage.databases import FOREVER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_GIVE_UP_S = 60


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return extract_previous(tmp_path_factory.mktemp("previous"))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URLs of the old version's archive and the new version's usage database."""
    if request.param == "sqlite":
        yield "sqlite"
    else:
        with running_postgres() as server:
            yield new_database(server)


@pytest.mark.timeout(900)
@pytest.mark.long
async def test_receipts_of_both_versions_count_once_forth_and_back(
    tmp_path: Path, previous: Mapping[str, str], url: str
) -> None:
    """Replace two old gateways one by one, roll one of them back, and replace it again.

    No request fails. Then `usage-db migrate` finds no difference, and the database has each answer once.
    """
    old: dict[str, Any] = {"entry": COMMAND, "environ": previous, "usage": None, "archive": {"url": url}}
    new: dict[str, Any] = {"usage": {"run": "host", "url": url}}
    async with world(tmp_path) as here:
        first = [await here.start(**old) for _ in range(2)]
        load = asyncio.ensure_future(here.load())  # noqa: TID251
        await here.some()
        upgraded = []
        for one in first:
            upgraded.append(await here.start(**new))
            await here.some()
            await here.stop(one)
        await here.some()
        back = await here.start(**old)
        await here.some()
        await here.stop(upgraded[0])
        await here.some()
        last = await here.start(**new)
        await here.some()
        await here.stop(back)
        await here.some()
        await _end(here, load)
        receipts = [await here.receipts(process) for process in (upgraded[1], last)]
        assert receipts[0] == receipts[1]
        assert {one["status"] for one in receipts[0]} == {"ok"}
        await _migrate(here, last.config)
        ids = await _written(here, url, len(here.balancer.answers))
        assert Counter(ids) == Counter(here.balancer.answers.keys())
        await _check_sums(here, url)
        written = await here.redis.hgetall(KEYS.ledger().written)
        print(f"{len(ids)} answers; receipts that workers wrote: {written}")


async def _end(here: World, load: asyncio.Future[None]) -> None:
    """Stop the load. Check that no request failed and that each gateway served some."""
    here.done = True
    await load
    assert here.balancer.failed == []
    answered = Counter(here.balancer.answers.values())
    assert all(answered[one.url] for one in here.gateways)
    assert here.teacher.most <= CAP
    give_up = time.monotonic() + _GIVE_UP_S
    while await here.redis.keys("*:intents:*"):  # receipts are settled after their answers
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)
    errors = [line for process in here.gateways for line in process.log if line.get("level") == "error"]
    # An old gateway reports entries that workers trimmed before its sums, while no other old gateway ran.
    assert {line["event"] for line in errors} <= {"receipts_unkept"}


async def _migrate(here: World, config: Path) -> None:
    command = [sys.executable, "-m", "gateway", "usage-db", "migrate", "--config", str(config)]
    give_up = time.monotonic() + _GIVE_UP_S
    while True:  # until the leases of the last old process have ended
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        assert "previous version still runs" in done.stderr or "Try again" in done.stderr, done
        assert time.monotonic() < give_up, done
        await asyncio.sleep(1)
    print(done.stdout)
    assert "DIFFERS" not in done.stdout
    assert {*await here.redis.keys("*total:*"), *await here.redis.keys("*rows:*")} == set()


async def _written(here: World, url: str, enough: int) -> list[str]:
    """Return the ids of the receipts in the database, when the expected number is there."""
    store = UsageStore(sqlalchemy_url(url, here.folder / "data"), FOREVER)
    give_up = time.monotonic() + _GIVE_UP_S
    try:
        while await store.count() < enough and time.monotonic() < give_up:
            await asyncio.sleep(0.1)
        return [msgspec.json.decode(raw)["id"] async for some in store.receipts() for raw in some]
    finally:
        await store.close()


async def _check_sums(here: World, url: str) -> None:
    """Check that the sums by minute, hour and day count each answer once."""
    store = UsageStore(sqlalchemy_url(url, here.folder / "data"), FOREVER)
    now = time.time()
    try:
        for granularity in ("minute", "hour", "day"):
            sums = await store.read(UsageQueries.totals, list(periods(granularity, now - 7200, now + 1)))
            assert sum(row.requests for row in sums.values()) == len(here.balancer.answers)
    finally:
        await store.close()
