"""Receipts in Redis: each stored once until it expires, readable by its tenant only, and not lost during an outage.

Intents precede receipts: requests share admission exchanges, and an outage costs them at most one timeout.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import uvloop
from redis.asyncio import Redis
from structlog.testing import capture_logs

from gateway.accounting.local_limits import LocalLimits
from gateway.accounting.receipt import Receipt
from gateway.accounting.recent_settlements import REMEMBERED_S
from gateway.accounting.redis_ledger import RedisLedger
from gateway.accounting.scopes import Scope
from gateway.accounting.store import ReceiptStore
from gateway.errors import StoreUnavailable
from gateway.local.redis import EmbeddedRedis
from gateway.pricing import dollars
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.budget_fixture import budget
from tests.accounting.receipt_builders import UNREACHED, candidate, closed, guided, intent
from tests.batching.process import until
from tests.redis_faults import paused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.accounting.intent import Intent
    from gateway.accounting.redis_ledger import TenantEvent
    from gateway.accounting.store import Admitted
    from gateway.config.limits import OnRedisFailure

TTL_S = 100.0


class Kept:
    """A running store and its metrics. `redis` inspects the data and has no timeout."""

    def __init__(
        self,
        client: RedisClient,
        redis: Redis,
        metrics: Metrics,
        *,
        on_failure: OnRedisFailure = "allow",
        **settings: Any,
    ) -> None:
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}")
        self.redis = redis
        self.metrics = metrics
        self.in_redis = RedisLedger(client.commands, self.keys, "ann", TTL_S, 10.0, queries=client.queries)
        self.client = client
        self.on_failure = on_failure
        self.events: list[TenantEvent] = []
        self.store = ReceiptStore(
            client,
            self.in_redis,
            local=LocalLimits(lambda: 1, lambda: 0.0),
            on_event=self.events.append,
            metrics=metrics,
            **settings,
        )
        self.exchanges = 0
        self.in_redis.exchange = self._counted(self.in_redis.exchange)  # type: ignore[method-assign]

    def _counted(self, exchange: Any) -> Any:
        async def counted(*args: Any) -> Any:
            self.exchanges += 1
            return await exchange(*args)

        return counted

    async def admit(self, one: Intent, *scopes: Scope) -> Admitted:
        """Admit a request under a limit that is never reached, unless other scopes are given."""
        return await self.store.admit(candidate(one, *(scopes or (UNREACHED,))), on_failure=self.on_failure)

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0

    async def intents(self) -> set[str]:
        return {one.decode() for one in await self.redis.hkeys(self.keys.intents("acme", "ann"))}

    async def written(self, receipt: Receipt | Intent) -> bytes | None:
        found: bytes | None = await self.redis.get(self.keys.receipt(receipt.tenant, receipt.id))
        return found


@asynccontextmanager
async def kept(
    url: str, *, running: bool = True, on_failure: OnRedisFailure = "allow", timeout_s: float = 2.0, **settings: Any
) -> AsyncIterator[Kept]:
    metrics, tasks = Metrics(), BackgroundTasks()
    client, inspector = RedisClient(url, timeout_s=timeout_s, metrics=metrics), Redis.from_url(url)
    part = Kept(client, inspector, metrics, on_failure=on_failure, **settings)
    if running:
        tasks.keep("receipts", part.store.run())
        tasks.keep("redis", client.watch())
    try:
        yield part
    finally:
        await tasks.close()
        await client.close()
        await inspector.aclose()


async def test_a_read_that_fails_opens_no_breaker() -> None:
    """Callers read as often as they like. No request may continue without Redis because of that."""
    async with EmbeddedRedis() as server, kept(server.url, running=False, timeout_s=0.1) as part, paused(server.url):
        with pytest.raises(StoreUnavailable):
            await part.store.get("acme", "one")
        assert part.client.up


async def test_a_receipt_is_written_soon_and_found_by_its_tenant(redis_url: str) -> None:
    """A stored receipt is returned unchanged until it expires."""
    async with kept(redis_url) as part:
        receipt = closed(guided())
        part.store.put(receipt)
        await until(lambda: part.written(receipt))
        raw = await part.store.get("acme", receipt.id)
        assert raw is not None
        assert Receipt.from_json(raw) == receipt
        assert TTL_S - 5 <= await part.redis.ttl(part.keys.receipt("acme", receipt.id)) <= TTL_S
        assert part.value("gkt_receipts_waiting") == 0


async def test_a_receipt_is_found_before_it_is_written(redis_url: str) -> None:
    """The process that holds the receipt returns it: a caller may read it at once."""
    async with kept(redis_url, running=False) as part:
        receipt = closed(guided())
        part.store.put(receipt)
        assert await part.written(receipt) is None
        assert await part.store.get("acme", receipt.id) == receipt.to_json()


async def test_another_tenants_receipt_is_not_found(redis_url: str) -> None:
    """The receipt is hidden while it waits in memory and after it is stored."""
    async with kept(redis_url, running=False) as part:
        receipt = closed(guided())
        part.store.put(receipt)
        assert await part.store.get("globex", receipt.id) is None
        assert await part.store.flush()
        assert await part.store.get("globex", receipt.id) is None
        assert await part.store.get("acme", receipt.id) is not None
        assert await part.store.get("acme", "no-such-receipt") is None


async def test_a_receipt_is_written_once(redis_url: str) -> None:
    """A second write after a lost reply changes nothing."""
    async with kept(redis_url, running=False) as part:
        receipt = closed(guided())
        part.store.put(receipt)
        await part.store.flush()
        part.store.put(msgspec.structs.replace(receipt, status="client_gone"))
        assert await part.store.flush()
        assert await part.written(receipt) == receipt.to_json()


async def test_receipts_beyond_one_batch_are_all_written(redis_url: str) -> None:
    """Seven receipts, three per exchange."""
    async with kept(redis_url, running=False, batch=3) as part:
        receipts = [closed(guided()) for _ in range(7)]
        for receipt in receipts:
            part.store.put(receipt)
        assert await part.store.flush()
        assert [await part.written(receipt) for receipt in receipts] == [receipt.to_json() for receipt in receipts]


async def test_receipts_wait_during_an_outage_and_are_sent_afterwards() -> None:
    """Waiting receipts are counted and can be read. Reading other receipts raises an error."""
    async with EmbeddedRedis() as server, kept(server.url, retry_s=0.05) as part:
        await server.stop()
        receipts = [closed(guided()) for _ in range(3)]
        for receipt in receipts:
            part.store.put(receipt)
        await until(lambda: part.value("gkt_receipts_waiting") == 3)
        assert await part.store.get("acme", receipts[0].id) == receipts[0].to_json()
        with pytest.raises(StoreUnavailable):
            await part.store.get("acme", "another")
        assert not await part.store.flush()
        await server.start()
        await until(lambda: part.value("gkt_receipts_waiting") == 0)
        assert [await part.written(receipt) for receipt in receipts] == [receipt.to_json() for receipt in receipts]
        assert part.value("gkt_receipts_lost_total") == 0


async def test_too_many_waiting_receipts_are_dropped_into_the_log(redis_url: str) -> None:
    """Memory is limited. The oldest receipt is logged completely and counted."""
    async with kept(redis_url, running=False, max_waiting=2) as part:
        receipts = [closed(guided()) for _ in range(3)]
        with capture_logs() as logs:
            for receipt in receipts:
                part.store.put(receipt)
        (line,) = logs
        assert (line["event"], line["log_level"], line["id"]) == ("receipt_lost", "error", receipts[0].id)
        assert line["receipt"] == receipts[0].as_dict()
        assert part.value("gkt_receipts_lost_total") == 1
        await part.store.flush()
        assert [await part.written(receipt) is not None for receipt in receipts] == [False, True, True]


async def test_the_loop_survives_an_unexpected_error(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later receipt needs the loop."""
    async with kept(redis_url, retry_s=0.05) as part:
        with capture_logs() as logs, monkeypatch.context() as broken:
            broken.setattr(part.in_redis, "exchange", lambda *_: 1 / 0)
            receipt = closed(guided())
            part.store.put(receipt)
            await until(lambda: any(line["event"] == "receipts_waiting" and line["exc_info"] for line in logs))
        await until(lambda: part.written(receipt))


async def test_a_write_that_redis_refuses_is_tried_again(redis_url: str) -> None:
    """A Redis without memory, or a replica, rejects writes: the receipt waits."""
    async with kept(redis_url, retry_s=0.05) as part, Redis.from_url(redis_url) as admin:
        receipt = closed(guided())
        await admin.config_set("maxmemory", "1")
        try:
            part.store.put(receipt)
            await until(lambda: part.value("gkt_receipts_waiting") == 1)
        finally:
            await admin.config_set("maxmemory", "0")
        await until(lambda: part.written(receipt))
        assert (await asyncio.gather(part.written(receipt)))[0] == receipt.to_json()


def receipt_of(one: Intent, status: str = "ok", usd: str | None = None) -> Receipt:
    receipt = msgspec.structs.replace(closed(guided(), status), id=one.id)
    return receipt if usd is None else msgspec.structs.replace(receipt, cost_usd=Decimal(usd))


async def test_a_request_is_admitted_after_redis_stored_its_intent(redis_url: str) -> None:
    """The receipt replaces the intent."""
    async with kept(redis_url) as part:
        one = intent()
        await part.admit(one)
        assert await part.intents() == {one.id}
        part.store.put(receipt_of(one))
        await until(lambda: part.written(one))
        assert await part.intents() == set()
        await until(lambda: not part.store.holds(one.id))


async def test_requests_that_come_together_are_admitted_together(redis_url: str) -> None:
    """A hundred at once: at most one goes first, and the others share a round trip with the receipts."""
    async with kept(redis_url) as part:
        await part.admit(intent())
        intents = [intent() for _ in range(100)]
        before = part.exchanges
        await asyncio.gather(*(part.admit(one) for one in intents))
        assert part.exchanges - before <= 2
        assert len(await part.intents()) == 101


async def test_a_request_that_is_ready_when_an_exchange_is_due_joins_it(redis_url: str) -> None:
    """The store wakes up before the second request's task, and lets it run first."""
    async with kept(redis_url) as part:
        await asyncio.sleep(0.01)  # the store waits for work
        first = asyncio.ensure_future(part.admit(intent("req_1")))  # noqa: TID251
        await asyncio.sleep(0)
        second = asyncio.ensure_future(part.admit(intent("req_2")))  # noqa: TID251
        await asyncio.gather(first, second)
        assert part.exchanges == 1


async def test_a_request_without_limits_does_not_wait_and_its_intent_follows(redis_url: str) -> None:
    """The delay of a minute holds back the intent and not the request."""
    async with kept(redis_url, linger_s=60) as part:
        one, limited = intent(), intent()
        async with asyncio.timeout(1):
            assert await part.store.admit(candidate(one), on_failure="degrade") is None
        assert await part.intents() == set()
        assert part.store.holds(one.id)
        await part.admit(limited)
        assert await part.intents() == {one.id, limited.id}


async def test_the_receipt_of_a_request_whose_intent_was_not_sent_is_enough(redis_url: str) -> None:
    async with kept(redis_url) as part:
        one = intent()
        await part.store.admit(candidate(one), on_failure="degrade")
        part.store.put(receipt_of(one))
        await until(lambda: part.written(one))
        assert (part.exchanges, await part.intents()) == (1, set())


async def test_behind_a_full_exchange_a_request_without_limits_waits(redis_url: str) -> None:
    """Otherwise requests could end faster than Redis stores their receipts."""
    async with kept(redis_url, running=False, batch=2, linger_s=60) as part:
        for one in (intent(), intent()):
            assert await part.store.admit(candidate(one), on_failure="degrade") is None
        tasks = BackgroundTasks()
        third = tasks.spawn("third", part.store.admit(candidate(intent()), on_failure="degrade"))
        await asyncio.sleep(0.05)
        assert not third.done()
        tasks.keep("receipts", part.store.run())
        async with asyncio.timeout(5):
            assert await third is not None
        await tasks.close()


async def test_with_reject_a_request_without_limits_waits_for_redis(redis_url: str) -> None:
    async with kept(redis_url, on_failure="reject") as part:
        one = intent()
        assert await part.store.admit(candidate(one), on_failure="reject") is not None
        assert await part.intents() == {one.id}


async def test_a_receipt_is_sent_with_the_next_admission(redis_url: str) -> None:
    """The receipt could wait for a minute. The admitted request's exchange includes it."""
    async with kept(redis_url, linger_s=60) as part:
        first, second = intent(), intent()
        await part.admit(first)
        part.store.put(receipt_of(first))
        before = part.exchanges
        await part.admit(second)
        assert part.exchanges - before == 1
        assert await part.written(first)
        assert await part.intents() == {second.id}


async def test_a_disconnect_during_admission_leaves_no_intent(redis_url: str) -> None:
    """The receipt is stored and no intent remains, before and after the intent was sent."""
    async with kept(redis_url) as part:
        intents = [intent() for _ in range(10)]
        for turns, one in enumerate(intents):
            admission = asyncio.ensure_future(part.admit(one))  # noqa: TID251
            for _ in range(turns):
                await asyncio.sleep(0)
            admission.cancel()
            await asyncio.wait([admission])
            part.store.put(receipt_of(one, "client_gone"))
        await until(lambda: part.value("gkt_receipts_waiting") == 0)
        assert [await part.written(one) is not None for one in intents] == [True] * 10
        assert await part.intents() == set()
        assert (part.store._admitting, part.store._under_way, part.store._unsent) == ({}, {}, {})


@pytest.mark.parametrize("on_failure", ["allow", "degrade", "reject"])
async def test_a_blocked_redis_delays_only_current_requests_by_one_timeout(on_failure: OnRedisFailure) -> None:
    """Later requests wait for nothing. They continue without an intent or are refused.

    When Redis runs again, it counts all of them except refused ones for which it was not asked.
    """
    async with EmbeddedRedis() as server, kept(server.url, on_failure=on_failure, timeout_s=0.2) as part:
        before = intent()
        await part.admit(before)
        loop = asyncio.get_running_loop()
        refused: list[bool] = []

        async def took(one: Intent) -> float:
            began = loop.time()
            try:
                await part.admit(one)
                refused.append(False)
            except StoreUnavailable:
                refused.append(True)
            return loop.time() - began

        first, later = [intent() for _ in range(5)], [intent() for _ in range(50)]
        async with paused(server.url):
            assert min(await asyncio.gather(*(took(one) for one in first))) >= 0.2 * 0.9
            assert not part.client.up
            assert max(await asyncio.gather(*(took(one) for one in later))) < 0.1
        assert refused == [on_failure == "reject"] * 55
        assert part.value("gkt_intents_missed_total") == 55
        await until(lambda: part.client.up)
        under_way = {one.id for one in (before, *first, *later) if part.store.holds(one.id)}
        asked_for = {one.id for one in (before, *first)}
        if on_failure == "reject":
            assert before.id in under_way <= asked_for
        else:
            assert under_way == asked_for | {one.id for one in later}

        async def all_told() -> bool:
            return await part.intents() == under_way

        await until(all_told)
        for one in (before, *first, *later):
            if one.id in under_way:
                part.store.put(receipt_of(one))
        await until(lambda: part.value("gkt_receipts_waiting") == 0)
        assert await part.intents() == set()
        assert len(await part.redis.keys(f"*{part.keys.prefix}*receipt:*")) == len(under_way)
        assert not any(part.store.holds(one.id) for one in (before, *first, *later))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_blocked_event_loop_admits_no_uncounted_request(
    redis_url: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Redis is blocked for five timeouts during admissions. It counts as up and counts every request."""

    async def admit() -> None:
        loop = asyncio.get_running_loop()
        async with kept(redis_url, timeout_s=0.2) as part:
            await part.admit(intent())
            intents = [intent() for _ in range(8)]
            admission = []
            for one in intents:
                admission.append(asyncio.ensure_future(part.admit(one)))  # noqa: TID251
                await asyncio.sleep(0)
            loop.call_soon(time.sleep, 1.0)
            assert None not in await asyncio.gather(*admission)
            assert part.client.up
            assert part.value("gkt_intents_missed_total") == 0

    with capture_logs() as logs, asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(admit())
    assert logs == []


@pytest.mark.long
async def test_during_an_outage_half_of_the_remaining_budget_is_usable_and_charged_later() -> None:
    """Redis reported the remainder. The request at the start of the outage has a receipt, later ones have none."""
    async with EmbeddedRedis() as server, kept(server.url, timeout_s=0.2) as part:
        scope = budget("1")

        async def admitted(one: Intent) -> bool:
            try:
                answer = await part.store.admit(candidate(one, scope), on_failure="degrade")
            except StoreUnavailable as error:
                messages.add(error.message.split(":")[0])
                part.store.put(receipt_of(one, "store_unavailable", "0"))
                return False
            assert answer is not None
            return answer[0].refusal is None

        before, messages = intent(reserved_usd=Decimal("0.2")), set[str]()
        assert await admitted(before)
        ten = [intent(reserved_usd=Decimal("0.1")) for _ in range(10)]
        async with paused(server.url):
            first = await asyncio.gather(*(admitted(one) for one in ten[:6]))
            assert not part.client.up
            later = await asyncio.gather(*(admitted(one) for one in ten[6:]))
        assert (sum(first), sum(later)) == (4, 0)
        (message,) = messages
        assert message.endswith("Until Redis is up, it may spend $0.4 of the budget of this tenant")
        assert part.value("gkt_receipts_waiting") == 2
        await until(lambda: part.client.up)
        for one in (before, *(one for one, went_on in zip(ten, first, strict=False) if went_on)):
            part.store.put(receipt_of(one, "ok", "0.05"))
        await until(lambda: part.value("gkt_receipts_waiting") == 0)
        spent, reserved = await part.redis.hmget(part.keys.scope("acme", "tenant")[2], "spent", "reserved")
        assert (dollars(spent.decode()), dollars(reserved.decode())) == (Decimal("0.25"), Decimal(0))
        counted = part.metrics.registry.get_sample_value
        for outcome, count in (("admitted", 4), ("budget", 6)):
            assert counted("gkt_local_admissions_total", {"tenant": "acme", "outcome": outcome}) == count
        assert (part.store._under_way, part.store._in_doubt) == ({}, set())
        # Others may not have reported their spending yet. So 0.2 of the share of 0.4 is left.
        assert not await admitted(intent(reserved_usd=Decimal("0.3")))
        async with asyncio.timeout(10):
            while not await admitted(intent(reserved_usd=Decimal("0.3"))):
                await asyncio.sleep(0.1)


async def test_a_redis_that_lost_its_data_gets_all_intents_again() -> None:
    """All requests under way are sent, in as many exchanges as needed. Requests with receipts are not."""
    async with EmbeddedRedis() as server, kept(server.url) as part:
        intents = [intent() for _ in range(450)]
        await asyncio.gather(*(part.admit(one) for one in intents))
        part.store.put(receipt_of(intents[0]))
        await until(lambda: part.written(intents[0]))
        await part.redis.flushdb()
        part.store.resend()

        async def all_told() -> bool:
            return await part.intents() == {one.id for one in intents[1:]}

        await until(all_told)


async def test_receipts_are_kept_until_the_same_redis_has_answered_after_three_seconds() -> None:
    """A process that was not scheduled may use another Redis before its watch has checked the run id."""
    async with EmbeddedRedis() as server, kept(server.url, running=False) as part:

        async def settle() -> Receipt:
            one = receipt_of(intent())
            part.store.put(one)
            assert await part.store.flush()
            return one

        first = await settle()
        taken = part.store._recent._kept
        taken[0] = (taken[0][0] - 2 * REMEMBERED_S, taken[0][1])
        second = await settle()
        await part.redis.flushdb()
        part.store.resend()
        assert await part.store.flush()
        assert None not in [await part.written(one) for one in (first, second)]

        taken[0] = (taken[0][0] - 2 * REMEMBERED_S, taken[0][1])
        part.client.unchanged_at = asyncio.get_running_loop().time()
        await settle()
        assert next(one.receipt.id for _, one in taken) == second.id


async def test_a_redis_that_refuses_intents_is_not_away(redis_url: str) -> None:
    """Redis is full or a replica, but it answers. Requests continue, and the breaker stays closed."""
    async with kept(redis_url) as part, Redis.from_url(redis_url) as admin:
        one = intent()
        await admin.config_set("maxmemory", "1")
        try:
            await part.admit(one)
        finally:
            await admin.config_set("maxmemory", "0")
        assert part.value("gkt_intents_missed_total") == 1
        assert part.client.up
        part.store.put(receipt_of(one))
        await until(lambda: part.written(one))


async def test_a_rejected_request_is_not_resent_as_admitted(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resend before the verdict must not admit the request: nothing would ever release the reservation."""
    async with kept(redis_url) as part:
        scope = Scope("tenant", 0, 0, 1)
        holder, late = intent(), intent()
        await part.store.admit(candidate(holder, scope), on_failure="allow")
        exchange = part.in_redis.exchange

        async def as_redis_forgets(*args: Any) -> Any:
            brought = await exchange(*args)
            part.store.resend()
            return brought

        with monkeypatch.context() as forgetting:
            forgetting.setattr(part.in_redis, "exchange", as_redis_forgets)
            admitted = await part.store.admit(candidate(late, scope), on_failure="allow")
        assert admitted is not None
        assert admitted[0].refusal is not None
        before = part.exchanges
        part.store.resend()
        await until(lambda: part.exchanges > before)
        part.store.put(receipt_of(holder))
        await until(lambda: part.written(holder))
        assert await part.intents() == set()


async def test_many_concurrent_receipt_reads_do_not_affect_admission(redis_url: str) -> None:
    """More reads than connections: some callers must retry, and Redis counts as up."""
    async with kept(redis_url) as part:
        reading = [asyncio.ensure_future(part.store.get("acme", f"none-{number}")) for number in range(300)]  # noqa: TID251
        await asyncio.sleep(0)
        assert await part.admit(intent()) is not None
        read = await asyncio.gather(*reading, return_exceptions=True)
        assert {type(one) for one in read} == {StoreUnavailable, type(None)}
        assert part.client.up
        assert part.value("gkt_intents_missed_total") == 0


async def test_a_flush_ends_while_receipts_to_resend_wait_for_a_failed_node(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(redis_url, running=False) as part:
        part.store.put(closed(guided()))
        assert await part.store.flush()
        monkeypatch.setattr(part.client, "is_cluster", True)
        monkeypatch.setattr(part.client, "is_up", lambda _: False)
        part.store.resend()
        assert not await part.store.flush()
        monkeypatch.setattr(part.client, "is_up", lambda _: True)
        assert await part.store.flush()
