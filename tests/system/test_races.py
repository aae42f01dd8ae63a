"""A thousand concurrent callers over three processes, of which two are killed, exceed no limit and no budget."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from redis.asyncio import Redis

from gateway.pricing import dollars
from gateway.redis.keys import RedisKeys
from tests.fakes import FakeEngine, reply
from tests.gateway_process import GatewayProcess, model, sha256

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CALLERS = 1000
PROCESSES = 3
LEASE_S = 2
DEAR = 40
LIMITS = {
    "by-requests": {"limits": {"rpm_limit": 137}},
    "by-tokens": {"limits": {"tpm_limit": 9_000}},
    "at-a-time": {"limits": {"max_parallel_requests": 30}},
    "by-money": {"budget": {"max_budget": 0.01, "budget_duration": "1d"}},
}
ROUTE = {
    "model": "chat",
    "mode": "student",
    "student": "small",
    "default_max_tokens": 50,
    "retries": {"num_retries": 0},
}


class Fleet:
    """Three processes before one student that waits for a signal. A dead process gets no more calls."""

    def __init__(self, folder: Path, redis: Redis, redis_url: str) -> None:
        self.redis = redis
        self.keys = RedisKeys("races")
        self.go = asyncio.Event()
        self.student = FakeEngine(self._answer)
        self._folder, self._redis_url = folder, redis_url
        self.living: list[GatewayProcess] = []
        self.session: aiohttp.ClientSession

    async def _answer(self, _: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        while not self.go.is_set():
            await asyncio.sleep(0.02)
        # A prompt that cost as much as it could: else a budget lasts for thousands of answers.
        read = 400 if body["max_tokens"] == DEAR else 10
        usage = {"prompt_tokens": read, "completion_tokens": 2, "total_tokens": read + 2}
        return web.json_response(reply(" Yes.") | {"usage": usage})

    def process(self, name: str) -> GatewayProcess:
        tenants = {
            tenant: {"keys": [{"id": "only", "sha256": sha256(f"gk-{tenant}")}]} | limits
            for tenant, limits in LIMITS.items()
        }
        return GatewayProcess(
            self._folder / name,
            redis_url=self._redis_url,
            redis={"prefix": "races", "lease": f"{LEASE_S}s", "timeout": "500ms"},
            models=[model("small", "openai", f"{self.student.url}/v1", continuation="none")],
            routes=[ROUTE],
            tenants=tenants,
        )

    async def call(self, tenant: str, number: int) -> str:
        """Return the outcome: ok, an error code, or the death of the process."""
        process = self.living[number % len(self.living)]
        try:
            async with self.session.post(
                f"{process.url}/v1/chat/completions",
                json={"model": "chat", "messages": [{"role": "user", "content": "Well?"}]}
                | ({"max_tokens": DEAR} if tenant == "by-money" else {}),
                headers={"Authorization": f"Bearer gk-{tenant}"},
            ) as reply:
                body = await reply.json()
                return "ok" if reply.status == 200 else body["error"]["code"]
        except (aiohttp.ClientError, OSError):
            return "process died"

    def crowd(self, tenant: str, callers: int = CALLERS) -> list[asyncio.Task[str]]:
        return [asyncio.ensure_future(self.call(tenant, number)) for number in range(callers)]  # noqa: TID251

    async def admitted(self, crowd: list[asyncio.Task[str]], refused: int) -> Counter[str]:
        """Return the admitted requests once this number was rejected, while all others wait for the student."""
        await until(lambda: sum(one.done() for one in crowd) >= refused)
        await asyncio.sleep(0.3)
        return Counter(one.result() for one in crowd if one.done())

    async def kill(self, tenant: str) -> None:
        """Kill the process with most of the tenant's requests."""
        held = [(await self.redis.hlen(self.keys.intents(tenant, _owner(one))), one) for one in self.living]
        _, victim = max(held, key=lambda one: one[0])
        self.living.remove(victim)
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()

    async def reserved_for_one(self, tenant: str) -> tuple[Decimal, int]:
        """Return the USD and tokens that each request reserves; all requests are equal."""
        names = [name async for name in self.redis.scan_iter(f"*races:tenant:{tenant}*intents:*", count=1000)]
        kept = (await self.redis.hvals(names[0]))[0]
        _, pico, tokens = kept.partition(b"\n")[0].decode().split("|")
        return dollars(pico), int(tokens)

    async def held(self, tenant: str, part: int, name: str) -> int:
        return int(await self.redis.hget(self.keys.scope(tenant, "tenant")[part], name) or 0)

    async def receipts(self, tenant: str) -> list[dict[str, Any]]:
        names = [name async for name in self.redis.scan_iter(f"*races:tenant:{tenant}*receipt:*", count=1000)]
        return [orjson.loads(raw) for raw in await self.redis.mget(names)] if names else []

    async def intents(self, tenant: str) -> int:
        names = [name async for name in self.redis.scan_iter(f"*races:tenant:{tenant}*intents:*", count=1000)]
        return sum([await self.redis.hlen(name) for name in names])

    async def intents_of_the_living(self, tenant: str) -> int:
        return sum([await self.redis.hlen(self.keys.intents(tenant, _owner(one))) for one in self.living])

    async def settled(self, tenant: str) -> None:
        async def none_left() -> bool:
            return await self.intents(tenant) == 0

        await until(none_left, 30)


def _owner(process: GatewayProcess) -> str:
    return str(next(line for line in process.log if line.get("event") == "worker_ready")["process"])


async def until(true: Any, limit_s: float = 30.0) -> None:
    async with asyncio.timeout(limit_s):
        while True:
            answer = true()
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def fleet(folder: Path, redis_url: str) -> AsyncIterator[Fleet]:
    async with Redis.from_url(redis_url) as redis:
        part = Fleet(folder, redis, redis_url)
        with ExitStack() as stack:
            stack.enter_context(part.student.running())
            processes = [part.process(str(number)) for number in range(PROCESSES)]
            for process in processes:
                stack.callback(process.close)
            with ThreadPoolExecutor() as pool:
                await asyncio.gather(*(_started(pool, process) for process in processes))
            part.living = list(processes)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=60)
            ) as part.session:
                yield part


async def _started(pool: ThreadPoolExecutor, process: GatewayProcess) -> None:
    await asyncio.get_running_loop().run_in_executor(pool, process.start)


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_no_limit_and_no_budget_is_passed_by_a_thousand_callers(redis_url: str, tmp_path: Path) -> None:
    async with fleet(tmp_path, redis_url) as part:
        await _requests_of_a_minute(part)
        await _tokens_of_a_minute(part)
        await _requests_at_a_time(part)
        await _money(part)


async def _requests_of_a_minute(part: Fleet) -> None:
    part.go.set()
    outcome = Counter(await asyncio.gather(*part.crowd("by-requests")))
    print(f"\nrpm_limit 137, {CALLERS} callers, {PROCESSES} processes: {dict(outcome)}")
    assert outcome == {"ok": 137, "rate_limit_exceeded": CALLERS - 137}
    await part.settled("by-requests")
    assert len(await part.receipts("by-requests")) == 137


async def _tokens_of_a_minute(part: Fleet) -> None:
    """Each request reserves about 70 tokens until its receipt counts 12."""
    part.go.clear()
    crowd = part.crowd("by-tokens")
    await part.admitted(crowd, 1)
    _, estimate = await part.reserved_for_one("by-tokens")
    fits = 9_000 // estimate
    refused = await part.admitted(crowd, CALLERS - fits)
    assert refused == {"rate_limit_exceeded": CALLERS - fits}
    assert await part.held("by-tokens", 0, "tokens") == fits * estimate <= 9_000
    part.go.set()
    outcome = Counter(await asyncio.gather(*crowd))
    await part.settled("by-tokens")
    used = await part.held("by-tokens", 0, "tokens")
    print(f"tpm_limit 9000, {estimate} tokens each at admission: {dict(outcome)}; {used} tokens in the end")
    assert outcome["ok"] == fits
    receipts = await part.receipts("by-tokens")
    assert used == sum(one["student"]["input_tokens"] + one["student"]["output_tokens"] for one in receipts)


async def _requests_at_a_time(part: Fleet) -> None:
    """One process is killed; its slots are released after a lease."""
    part.go.clear()
    crowd = part.crowd("at-a-time")
    refused = await part.admitted(crowd, CALLERS - 30)
    assert refused == {"rate_limit_exceeded": CALLERS - 30}
    by_owner = await part.redis.hvals(part.keys.scope("at-a-time", "tenant")[1])
    assert sum(map(int, by_owner)) == 30
    await part.kill("at-a-time")
    await until(lambda: sum(one.done() for one in crowd) > CALLERS - 30)
    lost = Counter(one.result() for one in crowd if one.done())["process died"]
    assert lost > 0

    async def room() -> bool:
        more.extend(part.crowd("at-a-time", 10))
        await asyncio.sleep(0.1)
        return await part.intents_of_the_living("at-a-time") == 30

    more: list[asyncio.Task[str]] = []
    await until(room)
    extra = [await part.call("at-a-time", number) for number in range(20)]
    assert extra == ["rate_limit_exceeded"] * 20
    part.go.set()
    outcome = Counter(await asyncio.gather(*crowd))
    late = Counter(await asyncio.gather(*more))
    print(f"max_parallel_requests 30: {dict(outcome)}; of those {lost} slots, taken again after a lease: {late['ok']}")
    assert (outcome["ok"], late["ok"]) == (30 - lost, lost)
    await part.settled("at-a-time")


async def _money(part: Fleet) -> None:
    """Another process is killed; the remaining processes settle its reservations once."""
    scope = part.keys.scope("by-money", "tenant")[2]
    most = Decimal("0.01")

    async def money() -> tuple[Decimal, Decimal]:
        spent, reserved = await part.redis.hmget(scope, "spent", "reserved")
        return dollars((spent or b"0").decode()), dollars((reserved or b"0").decode())

    part.go.clear()
    crowd = part.crowd("by-money")
    await part.admitted(crowd, 1)
    each, _ = await part.reserved_for_one("by-money")
    fits = int(most // each)
    refused = await part.admitted(crowd, CALLERS - fits)
    assert refused == {"insufficient_quota": CALLERS - fits}
    assert await money() == (0, each * fits)
    await part.kill("by-money")
    await until(lambda: sum(one.done() for one in crowd) > CALLERS - fits)
    part.go.set()
    outcome = Counter(await asyncio.gather(*crowd))
    rounds = 0
    while True:  # until nothing fits any more
        more = Counter(await asyncio.gather(*part.crowd("by-money", 200)))
        spent, reserved = await money()
        assert spent + reserved <= most
        outcome += more
        rounds += 1
        if not more["ok"] and await part.intents("by-money") == 0:
            break
        assert rounds < 300
    await part.settled("by-money")
    receipts = await part.receipts("by-money")
    spent, reserved = await money()
    statuses = Counter(one["status"] for one in receipts)
    print(f"max_budget ${most}, ${each} reserved each: {dict(outcome)}; receipts {dict(statuses)}, ${spent} spent")
    assert statuses["ok"] == outcome["ok"]
    assert statuses["abandoned"] == outcome["process died"] > 0
    assert sum(statuses.values()) == statuses["ok"] + statuses["abandoned"]
    assert (spent, reserved) == (sum(Decimal(one["cost_usd"]) for one in receipts), 0)
    assert most - each < spent <= most
