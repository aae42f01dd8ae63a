"""Gateways, usage workers and Redis are killed under load, or are away: each answered request has one receipt in SQL.

The counts stand in one line of output per test (`pytest -rP`, or `-s`).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.asyncio import Redis

from gateway.ledger.receipt import Receipt
from gateway.local.redis import EmbeddedRedis
from gateway.redis_keys import RedisKeys
from gateway.usage.engine import UsageDatabaseError
from gateway.usage.rollup import Row
from gateway.usage.store import UsageStore
from gateway.usage.sums import periods
from gateway.usage.sums_reader import totals
from gateway.usage_address import address_of
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, model
from tests.usage.databases import FOREVER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

LEASE_S = 2.0
_SEED = random.SystemRandom().randrange(10**6)


class World:
    """Gateways over one Redis and one usage database, and what callers got."""

    def __init__(self, folder: Path, server: EmbeddedRedis, redis: Redis, engine: str, usage: dict[str, Any]) -> None:
        self.folder, self.server, self.redis = folder, server, redis
        self.keys = RedisKeys(f"a{os.urandom(4).hex()}")
        self.engine = engine
        self.settings = usage
        self.gateways: list[GatewayProcess] = []
        self.answered: list[str] = []
        self.lost = 0
        self.done = asyncio.Event()
        self.store = UsageStore(address_of("sqlite", folder / "data"), FOREVER)

    async def add(self) -> GatewayProcess:
        process = GatewayProcess(
            self.folder / f"gateway-{len(self.gateways)}",
            redis_url=self.server.url,
            redis={"prefix": self.keys.prefix, "lease": f"{LEASE_S:g}s"},
            usage={"run": "host", **self.settings},
            data=str(self.folder / "data"),
            models=[model("small", "openai", f"{self.engine}/v1", continuation="trailing", echo=False)],
            routes=[STUDENT_ONLY | {"baseline": "small"}],
        )
        self.gateways.append(process)
        await asyncio.to_thread(process.start)
        return process

    async def ask(self, process: GatewayProcess, client: httpx.AsyncClient) -> None:
        body = {"model": "chat-student", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}
        try:
            answer = await client.post(f"{process.url}/v1/chat/completions", json=body)
        except httpx.TransportError:
            self.lost += 1
            await asyncio.sleep(0.05)
            return
        assert answer.status_code == 200, answer.text
        self.answered.append(answer.headers["x-request-id"])

    async def load(self) -> None:
        """Ask the gateways in turn, until it is enough."""
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
            turn = 0
            while not self.done.is_set():
                turn += 1
                await self.ask(self.gateways[turn % len(self.gateways)], client)

    @asynccontextmanager
    async def under_load(self, callers: int = 3) -> AsyncIterator[None]:
        self.done.clear()
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(self.load())
            try:
                yield
            finally:
                self.done.set()

    async def stored(self) -> list[Receipt]:
        return [Receipt.from_json(raw) async for some in self.store.receipts() for raw in some]

    async def in_redis(self) -> set[str]:
        names = await self.redis.keys(f"*{self.keys.prefix}:tenant:*:receipt:*")
        return {name.decode().rpartition(":")[2] for name in names}

    async def accounted(self, limit_s: float = 40.0, **said: Any) -> None:
        """Assert that each answered request has one receipt, the same in SQL, in Redis and in the sums."""

        async def whole() -> bool:
            if await self.redis.keys(f"*{self.keys.prefix}:tenant:*:intents:*"):
                return False
            ids = {one.id for one in await self.stored()}
            return ids == await self.in_redis() and ids >= set(self.answered)

        await until(whole, limit_s)
        found = await self.stored()
        ids = Counter(one.id for one in found)
        assert set(ids.values()) == {1}
        assert len(self.answered) == len(set(self.answered))
        total = await self.total()

        async def added_up() -> bool:
            nonlocal total
            total = await self.total()
            return total.requests == len(found)

        await until(added_up, 15)
        abandoned = sum(one.status == "abandoned" for one in found)
        print(
            f"answered {len(self.answered)}, lost {self.lost}, stored {len(found)} ({abandoned} abandoned), "
            f"twice {sum(count - 1 for count in ids.values())}, missing {len(set(self.answered) - set(ids))}, "
            f"added up {total.requests}" + "".join(f", {name} {value}" for name, value in said.items())
        )

    async def total(self) -> Row:
        seconds, _ = await self.redis.time()
        total = Row()
        for row in (await self.store.read(totals, list(periods("day", seconds - 86_400, seconds + 1)))).values():
            total.merge(row)
        return total

    def figure(self, process: GatewayProcess, name: str) -> float:
        text = httpx.get(f"{process.admin_url}/metrics").text
        return sum(
            float(line.rpartition(" ")[2]) for line in text.splitlines() if line.split(" ")[0].split("{")[0] == name
        )

    def append_only(self) -> list[Path]:
        """The files that Redis writes to."""
        return list(self.server.socket_path.parent.glob("appendonlydir/*.incr.aof"))

    def worker(self) -> subprocess.Popen[bytes]:
        config = self.folder / "gateway-0" / "config.yaml"
        command = [sys.executable, "-m", "gateway", "usage-worker", "--config", config]
        with (self.folder / "worker.log").open("ab") as file:
            return subprocess.Popen(command, stderr=file, stdin=subprocess.DEVNULL)


async def until(true: Callable[[], Any], limit_s: float) -> None:
    give_up = asyncio.get_running_loop().time() + limit_s
    while True:
        try:
            if await true():
                return
        except UsageDatabaseError:
            pass  # it is not there yet
        assert asyncio.get_running_loop().time() < give_up, f"not within {limit_s:g} s"
        await asyncio.sleep(0.1)


@asynccontextmanager
async def a_world(folder: Path, append_fsync: Any = None, **usage: Any) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        engine = stack.enter_context(FakeEngine(says("An answer.")).running())
        server = await stack.enter_async_context(EmbeddedRedis(append_fsync=append_fsync))
        redis = await stack.enter_async_context(Redis.from_url(server.url))
        world = World(folder, server, redis, engine.url, usage)
        try:
            yield world
        finally:
            for process in world.gateways:
                if process.url:
                    await asyncio.to_thread(process.close)
            await world.store.close()


async def kill_redis(world: World) -> None:
    pid = (await world.redis.info("server"))["process_id"]
    os.kill(pid, signal.SIGKILL)
    await world.server.stop()


@pytest.mark.timeout(180)
@pytest.mark.long
async def test_what_a_process_spooled_before_it_died_is_told_by_the_next(tmp_path: Path) -> None:
    """Redis goes, requests are answered, the process is killed, Redis comes back, another process starts."""
    async with a_world(tmp_path, "always") as world:
        first = await world.add()
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
            for _ in range(5):
                await world.ask(first, client)
            await world.server.stop()
            for _ in range(40):
                await world.ask(first, client)

            async def spooled() -> bool:
                return await asyncio.to_thread(world.figure, first, "gkt_spool_receipts") >= 40

            await until(spooled, 20)
            first.process.kill()
            first.process.wait()
            await world.server.start()
            second = await world.add()
            await world.accounted(spooled=len(list((tmp_path / "data" / "spool").glob("*/*"))))
            assert second.wait_for_log("spool_of_the_dead_told")["receipts"] >= 40
            assert list((tmp_path / "data" / "spool").glob("*/*")) == []

            # A receipt that Redis no longer has is read from the database, for its tenant.
            one = world.answered[0]
            await world.redis.delete(world.keys.receipt("acme", one))
            found = await client.get(f"{second.url}/v1/receipts/{one}")
            assert (found.status_code, found.json()["id"]) == (200, one)
            other = {"Authorization": f"Bearer {OTHER_KEY}"}
            assert (await client.get(f"{second.url}/v1/receipts/{one}", headers=other)).status_code == 404
            state = (await client.get(f"{second.admin_url}/readyz")).json()["usage"]
            assert (state["up"], state["error"]) == (True, None)
            assert second.terminate() == 0


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_killed_gateways_and_workers_lose_and_double_nothing(tmp_path: Path) -> None:
    """kill -9 at random moments, three times each, under load; a command of its own writes the database."""
    chance = random.Random(_SEED)
    async with a_world(tmp_path, run="command") as world:
        for _ in range(2):
            await world.add()
        worker = world.worker()
        try:
            async with world.under_load():
                for _ in range(3):
                    await asyncio.sleep(chance.uniform(0.5, 3))
                    worker.kill()
                    worker.wait()
                    worker = world.worker()
                    await asyncio.sleep(chance.uniform(0.5, 3))
                    victim = chance.choice(world.gateways)
                    victim.process.kill()
                    await asyncio.to_thread(victim.process.wait)
                    victim.close()
                    await asyncio.to_thread(victim.start)
            await world.accounted(60, seed=_SEED, killed="3 gateways, 3 workers")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("append_fsync", "forgets_s"),
    [("always", 0.0), ("everysec", 0.0), ("everysec", 1.5)],
    ids=["always", "everysec", "power"],
)
async def test_a_killed_redis_loses_and_doubles_nothing_while_the_gateways_live(
    tmp_path: Path, append_fsync: str, forgets_s: float
) -> None:
    """kill -9 at random moments, four times, under load: two gateways, each with a usage worker.

    What a killed process wrote stays with the kernel. So once the end of its file is cut off, as after a power cut.
    """
    chance = random.Random(_SEED)
    async with a_world(tmp_path, append_fsync) as world:
        for _ in range(2):
            await world.add()
        cut = 0
        async with world.under_load():
            for _ in range(4):
                await asyncio.sleep(chance.uniform(1, 4))
                held = {path: path.stat().st_size for path in world.append_only()}
                await asyncio.sleep(forgets_s)
                await kill_redis(world)
                for path, size in held.items() if forgets_s else ():
                    cut += path.stat().st_size - size
                    os.truncate(path, size)
                await asyncio.sleep(chance.uniform(0, 2))
                await world.server.start()
            await asyncio.sleep(2)
        retold = sum(world.figure(process, "gkt_receipts_retold_total") for process in world.gateways)
        assert (cut > 0) == (forgets_s > 0)
        assert retold > 0
        await world.accounted(
            60, seed=_SEED, appendfsync=append_fsync, killed="Redis, 4 times", cut_bytes=cut, retold=int(retold)
        )
