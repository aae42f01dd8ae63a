"""Gateways, usage workers, Redis and the database are killed or unavailable under load.

In each test, answered requests, receipts in SQL and requests in the sums are equal in number: none is lost
and none is counted twice. Each test prints the counts in one line (`pytest -rP`, or `-s`).
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.config.database_url import USAGE_FILE
from tests.gateway_process import KEY, OTHER_KEY
from tests.postgres import new_database, running_postgres
from tests.prometheus_world import prometheus
from tests.usage.crash_world import open_world, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.postgres import Postgres
    from tests.usage.crash_world import World

_SEED = random.SystemRandom().randrange(10**6)
_LIMIT_S = 600
MOST = 1_000
"""The smallest `receipts.max_buffered`."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    return "sqlite" if request.param == "sqlite" else new_database(request.getfixturevalue("postgres"))


@pytest.mark.timeout(_LIMIT_S)
async def test_a_killed_gateway_and_workers_that_die_in_a_transaction(tmp_path: Path) -> None:
    """The short test; the others kill more often, and at random moments."""
    async with open_world(tmp_path, run="command") as world:
        gateway = await world.add_gateway()
        async with world.under_load():
            await world.answer(30)
            for place in ("in_transaction", "before_acknowledgement"):
                assert await asyncio.to_thread(world.add_worker(dies=place).wait, 90) < 0
                await world.answer(10)
            await world.kill_gateway(gateway)
            await world.answer(20)
            world.add_worker(dies="nowhere")
            await world.answer(20)
        await world.accounted(killed="1 gateway, 2 workers")
        await world.end_workers()


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
async def test_killed_gateways_and_their_workers(tmp_path: Path) -> None:
    """kill -9 at random moments, three times each, under load: two gateways, each with a usage worker."""
    dice = random.Random(_SEED)
    async with open_world(tmp_path) as world:
        for _ in range(2):
            await world.add_gateway()
        async with world.under_load():
            for _ in range(3):
                await asyncio.sleep(dice.uniform(0.5, 3))
                victim = dice.choice(world.gateways)
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(await world.child_of(victim), signal.SIGKILL)
                await asyncio.sleep(dice.uniform(0.5, 3))
                await world.kill_gateway(dice.choice(world.gateways))
        await world.accounted(seed=_SEED, killed="3 gateways, 3 workers")


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
@pytest.mark.parametrize(
    ("append_fsync", "power_cut"),
    [("always", False), ("everysec", False), ("everysec", True), (None, False)],
    ids=["always", "everysec", "power_cut", "memory"],
)
async def test_a_killed_redis_while_the_gateways_live(
    tmp_path: Path, append_fsync: str | None, power_cut: bool
) -> None:
    """kill -9 at random moments, four times, under load: two gateways, each with a usage worker.

    Without a file Redis forgets everything. The gateways settle again what it took in the last three seconds. Older
    receipts are lost if no worker wrote them, so this waits for a moment in which the workers keep up.
    """
    dice = random.Random(_SEED)
    async with open_world(tmp_path, append_fsync) as world:
        for _ in range(2):
            await world.child_of(await world.add_gateway())
        cut = 0

        async def keeps_up() -> bool:
            return await world.lag_s() < 2

        async with world.under_load():
            for _ in range(4):
                await world.answer(20)
                after_s = dice.uniform(1, 4)
                if power_cut:
                    cut += await world.cut_power(after_s)
                else:
                    await asyncio.sleep(after_s)
                    if append_fsync is None:
                        await until(keeps_up, 60)
                    await world.kill_redis()
                await asyncio.sleep(dice.uniform(0, 2))
                await world.server.start()
            await world.answer(20)
        told_again = world.figure("gkt_receipts_resent_total")
        await world.accounted(seed=_SEED, killed="Redis, 4 times", cut_bytes=cut, told_again=int(told_again))
        assert (cut > 0) == power_cut
        assert told_again > 0


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
@pytest.mark.parametrize("place", ["in_transaction", "before_acknowledgement"])
async def test_workers_that_die_in_each_transaction(tmp_path: Path, url: str, place: str) -> None:
    """Four workers die, one after the other, under load; the fifth one lives."""
    async with open_world(tmp_path, url=url, run="command") as world:
        await world.add_gateway()
        async with world.under_load():
            for _ in range(4):
                await world.answer(20)
                assert await asyncio.to_thread(world.add_worker(dies=place).wait, 90) < 0
            world.add_worker(dies="nowhere")
            await world.answer(20)
        await world.accounted(killed=f"4 workers {place}")
        await world.end_workers()


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
async def test_two_workers_of_which_one_is_killed(tmp_path: Path, url: str) -> None:
    """A worker is killed four times at random moments, under load. The other claims its entries after a minute."""
    dice = random.Random(_SEED)
    async with open_world(tmp_path, url=url, run="command") as world:
        await world.add_gateway()
        running = [world.add_worker() for _ in range(2)]
        async with world.under_load():
            for turn in range(4):
                await asyncio.sleep(dice.uniform(2, 6))
                running[turn % 2].kill()
                running[turn % 2].wait()
                running[turn % 2] = world.add_worker()
        await world.accounted(seed=_SEED, killed="4 workers")
        await world.end_workers()


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
async def test_a_postgres_that_stops_under_load(tmp_path: Path) -> None:
    with running_postgres() as server:
        async with open_world(tmp_path, url=server.url) as world:
            await world.child_of(await world.add_gateway())
            async with world.under_load():
                await world.answer(50)
                for _ in range(2):
                    await asyncio.to_thread(server.stop)
                    await _wait_until_down(world)
                    await world.answer(50)
                    await asyncio.to_thread(server.start)
                    await _wait_until_up(world)
                await world.answer(20)
            await world.accounted(stopped="PostgreSQL, twice")


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
async def test_a_sqlite_file_that_another_process_locks_under_load(tmp_path: Path) -> None:
    """The file is locked for longer than the workers wait (30 s). Neither of the two workers exits."""
    async with open_world(tmp_path) as world:
        for _ in range(2):
            await world.child_of(await world.add_gateway())
        async with world.under_load():
            await world.answer(50)
            await _wait_until_up(world)
            with _locked(tmp_path / "data" / USAGE_FILE):
                await _wait_until_down(world)
                await world.answer(20)
            await _wait_until_up(world)
            await world.answer(20)
        await world.accounted(locked="SQLite")
        events = {line["event"] for process in world.gateways for line in process.log}
        assert "usage_worker_ended" not in events


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
async def test_a_full_disk_under_load(tmp_path: Path) -> None:
    """The worker cannot write to any file, and later it can."""
    async with open_world(tmp_path) as world:
        child = await world.child_of(await world.add_gateway())
        async with world.under_load():
            await world.answer(50)
            await _wait_until_up(world)
            resource.prlimit(child, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            await _wait_until_down(world)
            await world.answer(50)
            resource.prlimit(child, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await _wait_until_up(world)
            await world.answer(20)
        await world.accounted(full="the disk")


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
async def test_no_receipt_is_lost_within_the_bound_and_losses_are_counted(tmp_path: Path) -> None:
    """No worker runs, and twice as many receipts arrive as outboxes may hold. Then a worker starts."""
    async with open_world(tmp_path, run="command", receipts={"max_buffered": MOST}) as world:
        for _ in range(2):
            await world.add_gateway()
        async with world.under_load(2, OTHER_KEY):
            await world.answer(100)
        async with world.under_load(12):
            await world.answer(600)

        async def all_buffered() -> bool:
            return await world.buffered() == len(world.answered)

        await until(all_buffered, 60)
        await asyncio.sleep(6)  # each gateway looks every five seconds
        assert (await all_buffered(), _lost(world)) == (True, 0)
        async with world.under_load(12):
            await world.answer(1_400)

        async def within() -> bool:
            return await world.buffered() <= MOST and _lost(world) > 0

        await until(within, 60)
        assert await world.redis.xlen(world.keys.outbox("globex")) >= 100, "a tenant with few receipts loses none"
        world.add_worker()
        await world.accounted(lost=lambda: _lost(world), kept=MOST, lost_receipts=_lost(world))
        await world.end_workers()


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
async def test_alerts_fire_without_a_worker(tmp_path: Path) -> None:
    """A real Prometheus loads the shipped rules. GktUsageWorkerDown is pending for two minutes."""
    async with open_world(tmp_path, run="command", receipts={"max_buffered": MOST}) as world:
        gateway = await world.add_gateway()

        def alerts() -> dict[str, str]:
            found = [one["metric"] for one in monitor.query("ALERTS")]
            return {one["alertname"]: one["alertstate"] for one in found}

        async def alerted() -> bool:
            found = await asyncio.to_thread(alerts)
            return found.get("GktReceiptsLost") == "firing" and "GktUsageWorkerDown" in found

        with prometheus(tmp_path, gateway.admin_url) as monitor:
            async with world.under_load(12):
                await world.answer(MOST + 300)
                await until(alerted, 60, lambda: str(alerts()))
        world.add_worker()
        await world.accounted(lost=lambda: _lost(world))
        await world.end_workers()


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
async def test_the_spool_of_a_dead_gateway(tmp_path: Path) -> None:
    """Redis stops, requests are answered, the gateway is killed, Redis starts, another gateway starts."""
    async with open_world(tmp_path, "always") as world:
        first = await world.add_gateway()
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
            for _ in range(5):
                await world.ask(first, client)
            await world.server.stop()
            for _ in range(40):
                await world.ask(first, client)

            async def spooled() -> bool:
                return await asyncio.to_thread(world.figure, "gkt_spool_receipts") >= 40

            await until(spooled, 60)
            first.process.kill()
            await asyncio.to_thread(first.close)
            world.gateways.remove(first)
            await world.server.start()
            second = await world.add_gateway()
            await world.accounted(spooled=len(list((tmp_path / "data" / "spool").glob("*/*"))))
            assert second.wait_for_log("orphaned_spool_sent")["receipts"] >= 40
            assert list((tmp_path / "data" / "spool").glob("*/*")) == []

            # A receipt that Redis no longer has is read from the database, for its tenant.
            one = world.answered[0]
            await world.redis.delete(world.keys.receipt("acme", one))
            found = await client.get(f"{second.url}/v1/receipts/{one}")
            assert (found.status_code, found.json()["id"]) == (200, one)
            other = {"Authorization": f"Bearer {OTHER_KEY}"}
            assert (await client.get(f"{second.url}/v1/receipts/{one}", headers=other)).status_code == 404
            await _wait_until_up(world)


async def _usage(world: World) -> list[dict[str, Any]]:
    """Return each gateway's report on the usage workers."""
    async with httpx.AsyncClient(timeout=60) as client:
        replies = [await client.get(f"{one.admin_url}/readyz") for one in world.gateways]
    return [reply.json()["usage"] for reply in replies]


async def _wait_until_up(world: World) -> None:
    async def up() -> bool:
        return all(one["up"] is True and one["error"] is None for one in await _usage(world))

    await until(up, 120)


async def _wait_until_down(world: World) -> None:
    async def down() -> bool:
        return all(one["error"] is not None for one in await _usage(world))

    await until(down, 120)


def _lost(world: World) -> int:
    return int(world.figure("gkt_receipts_lost_total"))


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    lock = sqlite3.connect(file, timeout=60, isolation_level=None)
    try:
        lock.execute("BEGIN IMMEDIATE")
        yield
    finally:
        lock.close()
