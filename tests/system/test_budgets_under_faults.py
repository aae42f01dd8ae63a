"""Budgets of real gateway processes under load, by the engine's own count, while Redis or processes fail."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import signal
import socket
import time
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from gateway.accounting.local_limits import KNOWN_AFTER_S
from gateway.local.redis import EmbeddedRedis
from load_tests.hostile_bodies import MAX_BYTES, list_body, text_body
from tests.fakes import FakeEngine, reply
from tests.gateway_process import KEY, OTHER_KEY, GatewayProcess, model, redis_prefix
from tests.redis_faults import paused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

TOKENS = 402
EACH_USD = TOKENS * Decimal("0.0000001")
ROUTE = {"model": "chat", "mode": "student", "student": "small", "retries": {"num_retries": 0}}
BODY = {"model": "chat", "messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 2}
CALLERS = 24


class Load:
    """Callers that ask without a pause, and an engine that counts what it did.

    Args:
        max_usd: the budget of each tenant.
        keys: of the tenants that call, by name.
    """

    def __init__(
        self,
        folder: Path,
        redis_url: str,
        max_usd: str,
        keys: dict[str, str] | None = None,
        *,
        prefix: str | None = None,
    ) -> None:
        self.budget_usd = Decimal(max_usd)
        self.engine = FakeEngine(self._answer)
        self.urls: list[str] = []
        self._keys = keys or {"acme": KEY}
        self._folder, self._redis_url = folder, redis_url
        self._prefix = prefix or redis_prefix(folder)
        self._stopped = False

    async def _answer(self, _: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.01)
        usage = {"prompt_tokens": TOKENS - 2, "completion_tokens": 2, "total_tokens": TOKENS}
        return web.json_response(reply(" Yes.") | {"usage": usage})

    @property
    def tenants(self) -> list[str]:
        return list(self._keys)

    @property
    def spent_usd(self) -> Decimal:
        """Return the cost by the engine's count, of answers that were read and of answers that were not."""
        return sum((self.spent_by(tenant) for tenant in self._keys), Decimal(0))

    def spent_by(self, tenant: str) -> Decimal:
        return sum(body.get("user") == tenant for body in self.engine.requests) * EACH_USD

    def has_spent_most(self, tenant: str) -> bool:
        return self.spent_by(tenant) > self.budget_usd * Decimal("0.9")

    def process(self, name: str, port: int = 0, entry: tuple[str, ...] = ("-m", "gateway")) -> GatewayProcess:
        return GatewayProcess(
            self._folder / name,
            redis_url=self._redis_url,
            redis={"prefix": self._prefix},  # the gateways share budgets
            entry=entry,
            server={"port": port},
            models=[model("small", "openai", f"{self.engine.url}/v1", continuation="none")],
            routes=[ROUTE],
            tenants={
                tenant: {"budget": {"max_budget": float(self.budget_usd), "budget_duration": "1d"}}
                for tenant in self._keys
            },
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
            callers = asyncio.gather(*(self._call(session, number) for number in range(CALLERS)))
            try:
                yield
            finally:
                self._stopped = True
                await callers

    async def _call(self, session: aiohttp.ClientSession, number: int) -> None:
        tenant, key = list(self._keys.items())[number // len(self.urls) % len(self._keys)]
        headers = {"Authorization": f"Bearer {key}"}
        while not self._stopped:
            with suppress(aiohttp.ClientError, TimeoutError):
                url = f"{self.urls[number % len(self.urls)]}/v1/chat/completions"
                async with session.post(url, json=BODY | {"user": tenant}, headers=headers) as answer:
                    await answer.read()
            await asyncio.sleep(0.01)


@asynccontextmanager
async def fleet(
    folder: Path,
    processes: int,
    max_usd: str,
    entry: tuple[str, ...] = ("-m", "gateway"),
    keys: dict[str, str] | None = None,
) -> AsyncIterator[tuple[Load, list[GatewayProcess], str]]:
    """Run this number of gateways before one engine, on a Redis of their own."""
    async with EmbeddedRedis() as redis:
        load = Load(folder, redis.url, max_usd, keys)
        with ExitStack() as stack:
            stack.enter_context(load.engine.running())
            started = [load.process(f"p{number}", entry=entry) for number in range(processes)]
            for process in started:
                stack.callback(process.close)
            await asyncio.gather(*(asyncio.to_thread(process.start) for process in started))
            for process in started:
                await ready(process.url)
            load.urls = [process.url for process in started]
            yield load, started, redis.url


async def ready(url: str) -> None:
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        while (await client.get(f"{url}/readyz")).status_code != 200:
            await asyncio.sleep(0.05)


def counted(process: GatewayProcess, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(httpx.get(f"{process.admin_url}/metrics").text)
    return sum(
        one.value
        for family in families
        for one in family.samples
        if one.name == name and all(one.labels[key] == value for key, value in labels.items())
    )


async def until(true: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + 60
    while not await asyncio.to_thread(true):
        assert time.monotonic() < give_up, f"not within 60 s: {what}"
        await asyncio.sleep(0.1)


async def test_a_blocked_redis_under_load_does_not_exceed_the_budget(tmp_path: Path) -> None:
    """Each process spends its share, rejects requests beyond it, and reports all costs to Redis afterwards."""
    async with fleet(tmp_path, 3, "0.01") as (load, processes, redis_url), AsyncExitStack() as stack:
        await asyncio.sleep(KNOWN_AFTER_S + 1)
        await stack.enter_async_context(load.running())
        await until(lambda: load.spent_usd > load.budget_usd / 20, "the load has begun")
        async with paused(redis_url):
            before_usd = load.spent_usd
            await until(lambda: all(counted(one, "gkt_local_admissions_total", outcome="budget") for one in processes),
                        "every part is used up")  # fmt: skip
            assert all(counted(one, "gkt_local_admissions_total", outcome="admitted") for one in processes)
            # Half of what was left; requests under way at the pause come on top.
            left_usd = load.budget_usd - before_usd
            assert load.spent_usd - before_usd <= left_usd / 2 + 2 * CALLERS * EACH_USD
        for process in processes:
            await asyncio.to_thread(process.wait_for_log, "redis", 30, up=True)
        await until(lambda: load.has_spent_most("acme"), "most of it is spent")
        await until(lambda: any(counted(one, "gkt_limited_total", limit="budget") for one in processes), "it is spent")
        await asyncio.sleep(1)
        assert load.spent_usd <= load.budget_usd
        assert sum(counted(one, "gkt_uncounted_total") for one in processes) == 0


async def test_a_killed_redis_under_load_does_not_exceed_the_budget(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, "0.01") as (load, processes, redis_url), load.running():
        await until(lambda: load.spent_usd > load.budget_usd / 20, "the load has begun")
        await kill(redis_url)
        await until(lambda: all(counted(one, "gkt_local_admissions_total", outcome="budget") for one in processes),
                    "every part is used up")  # fmt: skip
        await asyncio.sleep(1)
        assert load.spent_usd <= load.budget_usd


async def test_restarts_under_load_do_not_exceed_a_tiny_budget(tmp_path: Path) -> None:
    """Callers send requests before the port is open."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with EmbeddedRedis() as redis:
        load = Load(tmp_path, redis.url, "0.0005")
        load.urls = [f"http://127.0.0.1:{port}"]
        with load.engine.running():
            async with load.running():
                for number in range(3):
                    process = load.process(f"p{number}", port)
                    try:
                        await asyncio.to_thread(process.start)
                        await ready(process.url)
                        await until(lambda: counted(process, "gkt_limited_total", limit="budget") > 0, "it is spent")  # noqa: B023
                        assert counted(process, "gkt_uncounted_total") == 0
                        assert not [line for line in process.log if line["event"] == "redis"]
                    finally:
                        await asyncio.to_thread(process.close)
        assert 0 < load.spent_usd <= load.budget_usd


@pytest.mark.parametrize("entry", [("-m", "gateway"), ("-m", "tests.held_gateway")])
async def test_a_process_that_cannot_read_a_reply_in_time_takes_that_for_no_failure_of_redis(
    tmp_path: Path, entry: tuple[str, ...]
) -> None:
    """The process is stopped, or its event loop blocked, for longer than the Redis timeout, several times.

    Every request counts.
    """
    async with fleet(tmp_path, 1, "0.01", entry) as (load, (process,), _), load.running():
        for _ in range(6):
            await asyncio.sleep(0.3)
            process.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.5)
            process.process.send_signal(signal.SIGCONT)
        await until(lambda: counted(process, "gkt_limited_total", limit="budget") > 0, "it is spent")
        await asyncio.sleep(0.5)
        assert load.spent_usd <= load.budget_usd
        assert not [line for line in process.log if line["event"] in {"redis", "fleet_left"}]
        for name in ("gkt_uncounted_total", "gkt_local_admissions_total", "gkt_intents_missed_total"):
            assert counted(process, name) == 0, name


LEAST = {"model": b'"chat"', "messages": b'[{"role":"user","content":"Why?"}]'}
HOSTILE = {
    "lists": list_body(LEAST, "x", b"[]", MAX_BYTES),
    "lists, gzip": gzip.compress(list_body(LEAST, "x", b"[]", MAX_BYTES)),
    "not JSON": list_body(LEAST, "x", b"[]", MAX_BYTES)[:-1],
    "longer than the budget": text_body(LEAST, "content", b"word ", MAX_BYTES),
}


async def test_hostile_bodies_do_not_exceed_any_budget(tmp_path: Path) -> None:
    """Tenant acme sends hostile bodies. Both tenants send paid requests until their budgets are spent."""
    keys = {"acme": KEY, "globex": OTHER_KEY}
    async with fleet(tmp_path, 2, "0.004", keys=keys) as (load, processes, _):
        statuses: dict[str, set[int]] = {name: set() for name in HOSTILE}
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
            floods = [
                asyncio.ensure_future(flood(session, url, name, statuses[name]))  # noqa: TID251
                for url in load.urls
                for name in HOSTILE
            ]
            try:
                async with load.running():
                    await until(lambda: all(map(load.has_spent_most, keys)), "the budgets are spent")
                await until(lambda: all(statuses.values()), "each body is answered")
            finally:
                for one in floods:
                    one.cancel()
                ended = await asyncio.gather(*floods, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended
        for name, seen in statuses.items():
            assert seen <= ({429, 503} if name == "longer than the budget" else {400, 503}), name
        for tenant, key in keys.items():
            spent = await settled_usd(load.urls[0], key)
            assert load.has_spent_most(tenant)
            assert load.spent_by(tenant) <= spent <= load.budget_usd
        assert load.spent_usd == len(load.engine.requests) * EACH_USD, "no hostile body reached the engine"
        assert sum(counted(one, "gkt_uncounted_total") for one in processes) == 0


async def flood(session: aiohttp.ClientSession, url: str, name: str, statuses: set[int]) -> None:
    headers = {"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if "gzip" in name else {})
    while True:
        # The gateway may answer before it has read the whole body.
        with suppress(aiohttp.ClientError):
            body = io.BytesIO(HOSTILE[name])
            async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as answer:
                statuses.add(answer.status)


async def settled_usd(url: str, key: str) -> Decimal:
    """Return the spent amount when nothing is reserved."""
    async with asyncio.timeout(60), httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as client:
        while True:
            answer = await client.get(f"{url}/v1/limits")
            budget = answer.json()["tenant"]["budget"] if answer.status_code == 200 else {"reserved_usd": 1}
            if not Decimal(budget["reserved_usd"]):
                return Decimal(budget["spent_usd"])
            await asyncio.sleep(0.05)


async def kill(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        pid = (await redis.info("server"))["process_id"]
    os.kill(pid, signal.SIGKILL)
