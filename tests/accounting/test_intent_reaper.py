"""A living process settles a dead process's requests, once. Requests of living processes are not affected."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from gateway.accounting.intent_reaper import Heartbeat, IntentReaper
from gateway.accounting.ledger import Ledger
from gateway.accounting.local_limits import LocalLimits
from gateway.accounting.receipt import Receipt
from gateway.accounting.redis_ledger import RedisLedger
from gateway.accounting.request_log import LogSample
from gateway.accounting.store import ReceiptStore
from gateway.local.redis import EmbeddedRedis
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import UNREACHED, candidate, closed, guided, intent
from tests.batching.process import until
from tests.redis_faults import paused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.accounting.intent import Intent

TIMEOUT_S = 0.3
LEASE_S = 1.2


class Process:
    """The ledger, heartbeat and reaper of one gateway process."""

    def __init__(
        self, url: str, keys: RedisKeys, process_id: str, tenants: list[str], timeout_s: float, **limits: int
    ) -> None:
        self.keys = keys
        self.metrics = Metrics()
        self.tasks = BackgroundTasks()
        self.client = RedisClient(url, timeout_s=timeout_s, metrics=self.metrics)
        self.redis = Redis.from_url(url)  # for inspection
        self.in_redis = RedisLedger(self.client.commands, keys, process_id, 100, LEASE_S)
        self.store = ReceiptStore(
            self.client,
            self.in_redis,
            local=LocalLimits(lambda: 1, lambda: 0.0),
            on_event=lambda _: None,
            metrics=self.metrics,
        )
        self.ledger = Ledger(
            self.store,
            process_id=process_id,
            metrics=self.metrics,
            tasks=self.tasks,
            sample=LogSample(1.0, None),
        )
        self.heartbeat = Heartbeat(
            self.client,
            keys.heartbeat(process_id),
            lease_s=LEASE_S,
            on_beat=self.store.beat,
            on_lapse=self.store.resend,
        )
        self.sweeper = IntentReaper(
            self.client,
            self.in_redis,
            self.ledger,
            tenants=lambda: tenants,
            holds=self.store.holds,
            lease_s=LEASE_S,
            **limits,
        )

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def admit(self, one: Intent) -> None:
        await self.store.admit(candidate(one, UNREACHED), on_failure="allow")

    async def receipts(self, tenant: str = "acme") -> list[Receipt]:
        names = await self.redis.keys(self.keys.receipt(tenant, "*").replace("{", "[{]").replace("}", "[}]"))
        return [Receipt.from_json(raw) for raw in await self.redis.mget(names)] if names else []


@asynccontextmanager
async def process(
    url: str,
    keys: RedisKeys,
    process_id: str,
    *,
    tenants: list[str] | None = None,
    sweeps: bool = True,
    beats: bool = True,
    timeout_s: float = TIMEOUT_S,
    **limits: int,
) -> AsyncIterator[Process]:
    part = Process(url, keys, process_id, ["acme", "globex"] if tenants is None else tenants, timeout_s, **limits)
    part.tasks.keep("redis", part.client.watch())
    part.tasks.keep("receipts", part.store.run())
    if beats:
        part.tasks.keep("heartbeat", part.heartbeat.run())
    if sweeps:
        part.tasks.keep("sweeper", part.sweeper.run())
    try:
        yield part
    finally:
        await part.tasks.close()
        await part.client.close()
        await part.redis.aclose()


@pytest.fixture
def keys() -> RedisKeys:
    return RedisKeys(f"t{secrets.token_hex(6)}")


async def die(url: str, keys: RedisKeys, process_id: str, intents: list[Intent]) -> None:
    """Admit requests and die."""
    async with process(url, keys, process_id, sweeps=False) as part:
        await asyncio.gather(*(part.admit(one) for one in intents))


async def test_one_live_process_settles_each_request_of_a_dead_one(redis_url: str, keys: RedisKeys) -> None:
    """Within two leases. The logs and metrics of all processes together contain each request once."""
    intents = [intent(tenant=tenant) for tenant in ("acme", "globex") for _ in range(7)]
    with capture_logs() as logs:
        async with process(redis_url, keys, "bob") as bob, process(redis_url, keys, "carl") as carl:
            await die(redis_url, keys, "ann", intents)

            async def settled() -> int:
                return len(await bob.receipts()) + len(await bob.receipts("globex"))

            began = asyncio.get_running_loop().time()
            await until(lambda: _equal(settled, 14), 10)
            took_s = asyncio.get_running_loop().time() - began
            await asyncio.sleep(LEASE_S)
            counted = [part.value("gkt_intents_abandoned_total", tenant="acme") for part in (bob, carl)]
            assert sum(counted) == 7
            where = {"tenant": "globex", "route": "chat", "mode": "guided", "status": "abandoned"}
            assert sum(part.value("gkt_requests_total", **where) for part in (bob, carl)) == 7
            assert sum(part.value("gkt_stage_seconds_count", stage="total", mode="guided") for part in (bob, carl)) == 0
            assert {one.status for one in await bob.receipts()} == {"abandoned"}
            assert await bob.redis.zrange(keys.owners("acme"), 0, -1) == []
    resent = Counter(line["id"] for line in logs if line["event"] == "request")
    assert resent == Counter(one.id for one in intents)
    print(f"settled 14 of 14 in {took_s:.2f} s at a lease of {LEASE_S} s; by process: {counted}")


async def _equal(what: object, expected: int) -> bool:
    assert callable(what)
    return bool(await what() == expected)


async def test_intents_of_live_processes_are_kept(redis_url: str, keys: RedisKeys) -> None:
    """The request may run for any time."""
    async with process(redis_url, keys, "ann") as ann, process(redis_url, keys, "bob") as bob:
        one = intent()
        await ann.admit(one)
        await asyncio.sleep(3 * LEASE_S)
        assert await bob.receipts() == []
        assert await bob.redis.hkeys(keys.intents("acme", "ann")) == [one.id.encode()]


async def test_a_round_costs_no_more_than_its_bound(redis_url: str, keys: RedisKeys) -> None:
    """Eight requests, five per round."""
    await die(redis_url, keys, "ann", [intent() for _ in range(8)])
    async with process(redis_url, keys, "bob", sweeps=False, round_intents=5) as bob:
        await asyncio.sleep(LEASE_S * 1.2)
        assert [await bob.sweeper.sweep() for _ in range(3)] == [5, 3, 0]
        assert len(await bob.receipts()) == 8


async def test_many_tenants_have_their_turn(redis_url: str, keys: RedisKeys) -> None:
    """Five tenants, two per round: three rounds process all of them."""
    tenants = [f"tenant-{number}" for number in range(5)]
    await die(redis_url, keys, "ann", [intent(tenant=tenant) for tenant in tenants])
    async with process(redis_url, keys, "bob", tenants=tenants, sweeps=False, round_tenants=2) as bob:
        await asyncio.sleep(LEASE_S * 1.2)
        assert [await bob.sweeper.sweep() for _ in range(3)] == [2, 2, 1]


async def test_an_unreadable_intent_is_kept_and_blocks_no_other(redis_url: str, keys: RedisKeys) -> None:
    one = intent()
    await die(redis_url, keys, "ann", [one])
    async with process(redis_url, keys, "bob", sweeps=False) as bob:
        await bob.redis.hset(keys.intents("acme", "ann"), "req-from-the-future", b"{}")
        await asyncio.sleep(LEASE_S * 1.2)
        with capture_logs() as logs:
            assert await bob.sweeper.sweep() == 1
        assert [line["id"] for line in logs if line["event"] == "intent_unreadable"] == ["req-from-the-future"]
        assert await bob.redis.hkeys(keys.intents("acme", "ann")) == [b"req-from-the-future"]


@pytest.mark.long
async def test_an_outage_of_redis_declares_no_process_dead(keys: RedisKeys) -> None:
    """Redis was blocked for longer than a lease, and every heartbeat expired. All processes had time to renew it."""
    async with (
        EmbeddedRedis() as server,
        process(server.url, keys, "ann") as ann,
        process(server.url, keys, "bob") as bob,
    ):
        one = intent()
        await ann.admit(one)
        async with paused(server.url):
            await asyncio.sleep(2 * LEASE_S)
        await until(lambda: ann.client.up and bob.client.up)
        await asyncio.sleep(2.5 * LEASE_S)
        assert await bob.receipts() == []
        assert await bob.redis.hkeys(keys.intents("acme", "ann")) == [one.id.encode()]


async def test_a_new_process_waits_for_heartbeats_for_a_lease(redis_url: str, keys: RedisKeys) -> None:
    """Redis may have been down until the start, so that no process could renew its heartbeat."""
    await die(redis_url, keys, "ann", [intent()])
    await asyncio.sleep(LEASE_S * 1.2)
    async with process(redis_url, keys, "bob", sweeps=False) as bob:
        await until(lambda: bob.client.up_since("") < math.inf)
        assert await bob.sweeper.sweep() == 0
        await asyncio.sleep(LEASE_S)
        assert await bob.sweeper.sweep() == 1


async def test_a_redis_that_lost_its_data_between_heartbeats_gets_all_intents_again(keys: RedisKeys) -> None:
    """No request used Redis meanwhile, so only the heartbeat can detect it."""
    async with EmbeddedRedis() as server, process(server.url, keys, "ann") as ann:
        one = intent()
        await ann.admit(one)
        await ann.redis.flushdb()

        async def resent() -> bool:
            return bool(await ann.redis.hexists(keys.intents("acme", "ann"), one.id))

        await until(resent)


async def test_intents_that_their_process_has_finished_are_settled(redis_url: str, keys: RedisKeys) -> None:
    """A replica that took over has the intent but not the receipt. Requests under way stay."""
    async with process(redis_url, keys, "ann", sweeps=False) as ann:
        done, running = intent(), intent()
        for one in (done, running):
            await ann.admit(one)
        name = keys.intents("acme", "ann")
        before = await ann.redis.hgetall(name)
        ann.store.put(msgspec.structs.replace(closed(guided()), id=done.id))
        await until(lambda: ann.in_redis.receipt("acme", done.id))
        await ann.redis.hset(name, mapping=before)
        await ann.redis.delete(keys.receipt("acme", done.id))
        assert await ann.sweeper.sweep() == 1
        assert set(await ann.redis.hgetall(name)) == {running.id.encode()}
        assert [(one.id, one.status) for one in await ann.receipts()] == [(done.id, "abandoned")]
        assert await ann.sweeper.sweep() == 0
