"""Gateways and usage workers over one Redis and one usage database, with callers that count their answers."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from redis.asyncio import Redis

from gateway.accounting.receipt import Receipt
from gateway.config.database_url import sqlalchemy_url
from gateway.local.redis import EmbeddedRedis
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from gateway.usage.engine import UsageDatabaseError
from gateway.usage.feed import GROUP
from gateway.usage.rollup import SumRow
from gateway.usage.store import UsageStore
from gateway.usage.tables import DAY_S, SUMS
from gateway.usage.verify import differences
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, UNREACHED, GatewayProcess, model
from tests.prometheus_world import samples_of
from tests.usage.databases import FOREVER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

LEASE_S = 2.0
_NO_ANSWER = {408, 502, 503, 504}
_SAMPLE_S = 0.05
_EVERYSEC_S = 2.0
"""Seconds of writes that Redis may lose with appendfsync everysec."""


class World:
    """Attributes:
    answered: ids of the requests that were answered.
    broken: number of requests without an answer: their process or connection was gone, or this process, which is the
        engine too, got no CPU for seconds. `refused` counts them by status.
    """

    def __init__(
        self,
        folder: Path,
        server: EmbeddedRedis | None,
        url: str,
        redis: Redis,
        engine: str,
        prefix: str,
        **sections: Any,
    ) -> None:
        self.folder, self._server, self.url, self.redis = folder, server, url, redis
        self.keys = RedisKeys(prefix)
        self.refused: Counter[str] = Counter()
        self.tenants: dict[str, dict[str, Any]] = dict(UNREACHED)
        self._engine = engine
        self._sections = sections
        self.gateways: list[GatewayProcess] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.answered: list[str] = []
        self.broken = 0
        self._enough = asyncio.Event()
        self.store = UsageStore(sqlalchemy_url(sections["usage"].get("url", "sqlite"), folder / "data"), FOREVER)

    @property
    def server(self) -> EmbeddedRedis:
        assert self._server is not None, "this world has another Redis"
        return self._server

    async def add_gateway(self) -> GatewayProcess:
        process = GatewayProcess(
            self.folder / f"gateway-{len(self.gateways)}",
            redis_url=self.url,
            redis={"prefix": self.keys.prefix, "lease": f"{LEASE_S:g}s"},
            data=str(self.folder / "data"),
            models=[model("small", "openai", f"{self._engine}/v1", continuation="trailing", echo=False)],
            routes=[STUDENT_ONLY | {"baseline": "small"}],
            tenants=self.tenants,
            **self._sections,
        )
        self.gateways.append(process)
        await asyncio.to_thread(process.start)
        return process

    async def kill_gateway(self, process: GatewayProcess) -> None:
        """Send SIGKILL, and start the gateway again."""
        process.process.kill()
        await asyncio.to_thread(process.close)
        await asyncio.to_thread(process.start)

    async def child_of(self, process: GatewayProcess) -> int:
        """Wait until the usage worker of a gateway runs, and return its process id."""
        pids: list[int] = []

        async def runs() -> bool:
            pids[:] = [line["pid"] for line in process.log if line["event"] == "usage_worker"]
            return len(pids) > sum(line["event"] == "usage_worker_ended" for line in process.log)

        await until(runs, 90)
        return pids[-1]

    def add_worker(self, *, dies: str = "") -> subprocess.Popen[bytes]:
        """Start a worker in a separate process. `dies`: see dying_worker.py."""
        config = str(self.folder / "gateway-0" / "config.yaml")
        command = ["gateway", "usage", "worker", "--config", config]
        if dies:
            command = ["tests.usage.dying_worker", config, dies]
        with (self.folder / "worker.log").open("ab") as file:
            process = subprocess.Popen([sys.executable, "-m", *command], stderr=file, stdin=subprocess.DEVNULL)
        self.workers.append(process)
        return process

    async def end_workers(self) -> None:
        """Send SIGTERM. Each worker writes waiting receipts, and exits with 0, or ends by SIGTERM during its start."""

        async def started() -> bool:
            lines = [json.loads(line) for line in (self.folder / "worker.log").read_text().splitlines()]
            pids = {line["pid"] for line in lines if line["event"] == "usage_worker"}
            return all(one.pid in pids for one in self.workers if one.poll() is None)

        await until(started, 90)
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(worker.wait, 20) == 0

    async def ask(self, process: GatewayProcess, client: httpx.AsyncClient) -> None:
        body = {"model": "chat-student", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}
        answer: httpx.Response | None
        try:
            answer = await client.post(f"{process.url}/v1/chat/completions", json=body)
        except httpx.TransportError:
            answer = None
        if answer is None or answer.status_code in _NO_ANSWER:
            self.broken += 1
            self.refused[str(answer.status_code) if answer is not None else "no reply"] += 1
            await asyncio.sleep(0.05)
        else:
            assert answer.status_code == 200, answer.text
            self.answered.append(answer.headers["x-request-id"])

    async def answer(self, count: int, limit_s: float = 90.0) -> None:
        """Wait until `count` more requests are answered. Call it under load."""
        goal = len(self.answered) + count

        async def enough() -> bool:
            return len(self.answered) >= goal

        await until(enough, limit_s)

    @asynccontextmanager
    async def under_load(self, callers: int = 3, key: str = KEY) -> AsyncIterator[None]:
        """Send requests to the gateways in turn inside the block."""
        self._enough.clear()
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(self._load(key))
            try:
                yield
            finally:
                self._enough.set()

    async def _load(self, key: str) -> None:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            turn = 0
            while not self._enough.is_set():
                turn += 1
                await self.ask(self.gateways[turn % len(self.gateways)], client)

    async def lag_s(self) -> float:
        """Return the age of the oldest entry that no worker has acknowledged."""
        seconds, _ = await self.redis.time()
        oldest = [await self._oldest(name) for name in await self._outboxes()]
        return max((seconds - int(one.partition("-")[0]) / 1000 for one in oldest if one), default=0.0)

    async def _outboxes(self) -> list[bytes]:
        return await self._keys("outbox")

    async def _keys(self, name: str) -> list[bytes]:
        """Return the keys of all tenants with this name."""
        return [raw async for raw in self.redis.scan_iter(f"*{self.keys.prefix}:tenant:*:{name}", 1000)]

    async def _oldest(self, outbox: bytes) -> str:
        """Return the oldest unacknowledged entry, or '' without one."""
        delivered = "0-0"
        for group in await self.redis.xinfo_groups(outbox):
            if group["name"] == GROUP.encode():
                delivered = group["last-delivered-id"].decode()
                if group["pending"]:
                    pending = await self.redis.xpending(outbox, GROUP)
                    return str(pending["min"].decode()) if pending["pending"] else ""
        entries = await self.redis.xrange(outbox, f"({delivered}", count=1)
        return entries[0][0].decode() if entries else ""

    async def buffered(self) -> int:
        """Return the number of entries in all outboxes."""
        return sum([await self.redis.xlen(name) for name in await self._outboxes()])

    async def settled(self) -> bool:
        """Return whether Redis has no request in flight, and every entry is acknowledged."""
        if await self._keys("intents:*"):
            return False
        return not any([await self._oldest(name) for name in await self._outboxes()])

    async def accounted(self, limit_s: float = 180.0, lost: Callable[[], int] = int, **facts_of_test: Any) -> None:
        """Assert that answered requests, receipts in SQL and requests in the sums are equal, except for lost ones.

        Args:
            lost: returns how many receipts were lost, once nothing waits.
        """
        found: list[Receipt] = []

        async def whole() -> bool:
            nonlocal found
            if not await self.settled():
                return False
            found = [Receipt.from_json(raw) async for batch in self.store.receipts() for raw in batch]
            return len(set(self.answered) - {one.id for one in found}) <= lost()

        await until(whole, limit_s, self._logs)
        ids = Counter(one.id for one in found)
        missing = set(self.answered) - set(ids)
        requests = await asyncio.to_thread(self._check_sums)
        facts = {
            "answered": len(self.answered),
            "broken": self.broken,
            "in SQL": len(found),
            "abandoned": sum(one.status == "abandoned" for one in found),
            "missing": len(missing),
            "twice": len(found) - len(ids),
            "in the sums": requests,
        }
        print(", ".join(f"{name} {value}" for name, value in {**facts, **facts_of_test}.items()))
        assert len(found) == len(ids) == requests
        assert len(missing) == lost()
        assert len(self.answered) == len(set(self.answered))
        # A request without an answer may have a receipt. No other request has one.
        assert len(ids) <= len(self.answered) - len(missing) + self.broken
        assert lost() or await self._in_redis() <= set(ids)

    async def _in_redis(self) -> set[str]:
        return {name.decode().rpartition(":")[2] for name in await self._keys("receipt:*")}

    def _check_sums(self) -> int:
        today = int(time.time()) // DAY_S
        with self.store.engine.reading() as connection:
            assert [one for day in (today - 1, today) for one in differences(connection, day)] == []
            return _counted(connection)

    def _logs(self) -> str:
        worker = self.folder / "worker.log"
        logs = [worker.read_text()] if worker.exists() else []
        return "\n".join([*logs, *(process.raw_log for process in self.gateways)])

    def figure(self, name: str) -> float:
        """Return a metric, summed over the gateways."""
        texts = [httpx.get(f"{process.admin_url}/metrics").text for process in self.gateways]
        return sum(value for text in texts for _, value in samples_of(text, name))

    async def kill_redis(self) -> None:
        pid = (await self.redis.info("server"))["process_id"]
        os.kill(pid, signal.SIGKILL)
        await self.server.stop()

    async def cut_power(self, after_s: float) -> int:
        """Kill Redis, and truncate its writes of the last two seconds. Return the number of bytes.

        The kernel keeps what a killed process wrote, but not after a power cut. Two seconds are what Redis may lose:
        sizes are sampled, since this process may get no CPU for longer.
        """
        pid = (await self.redis.info("server"))["process_id"]
        samples: list[tuple[float, dict[Path, int]]] = []
        end = time.monotonic() + after_s + _EVERYSEC_S
        while time.monotonic() < end:
            samples.append((time.monotonic(), {path: path.stat().st_size for path in self._append_only()}))
            await asyncio.sleep(_SAMPLE_S)
        samples.append((time.monotonic(), {path: path.stat().st_size for path in self._append_only()}))
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        await self.server.stop()
        sizes = next((sizes for at, sizes in samples if at >= killed - _EVERYSEC_S), {})
        cut = 0
        for path, size in sizes.items():
            cut += path.stat().st_size - size
            os.truncate(path, size)
        return cut

    def _append_only(self) -> Iterator[Path]:
        """Return the files that Redis writes to."""
        return self.server.socket_path.parent.glob("appendonlydir/*.incr.aof")

    async def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        for process in self.gateways:
            if hasattr(process, "process"):
                await asyncio.to_thread(process.close)
        await self.store.close()


@asynccontextmanager
async def open_world(
    folder: Path,
    append_fsync: Any = None,
    *,
    url: str = "sqlite",
    run: str = "host",
    redis_url: str | None = None,
    prefix: str | None = None,
    **sections: Any,
) -> AsyncIterator[World]:
    """Start an engine, and a Redis unless `redis_url` names one.

    Args:
        url, run: of the section `usage`.
        sections: more of config.yaml.
    """
    async with AsyncExitStack() as stack:
        engine = stack.enter_context(FakeEngine(says("An answer.")).running())
        server = None
        if redis_url is None:
            server = await stack.enter_async_context(EmbeddedRedis(append_fsync=append_fsync))
            redis = await stack.enter_async_context(Redis.from_url(server.url, socket_timeout=60))
        else:
            client = RedisClient(redis_url, timeout_s=60, metrics=Metrics())
            stack.push_async_callback(client.close)
            redis = client.commands
        world = World(
            folder,
            server,
            server.url if server is not None else str(redis_url),
            redis,
            engine.url,
            prefix or f"a{secrets.token_hex(4)}",
            usage={"url": url, "run": run},
            **sections,
        )
        stack.push_async_callback(world.close)
        yield world


async def until(true: Callable[[], Awaitable[Any]], limit_s: float, why: Callable[[], str] = str) -> None:
    deadline = asyncio.get_running_loop().time() + limit_s
    while True:
        try:
            if await true():
                return
        except UsageDatabaseError:
            pass  # the database does not exist yet
        assert asyncio.get_running_loop().time() < deadline, f"not within {limit_s:g} s: {why()}"
        await asyncio.sleep(0.1)


def _counted(connection: Connection) -> int:
    rows = connection.execute(SUMS.select().where(SUMS.c.seconds == DAY_S, SUMS.c.tenant == "")).all()
    return sum(SumRow.from_bytes(row.row).requests for row in rows)
