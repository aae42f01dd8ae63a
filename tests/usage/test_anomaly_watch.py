"""Anomalies in a real database and a real Redis, reported once to a real webhook."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy import text
from structlog.testing import capture_logs

from gateway.accounting.budget_watch import BudgetAlerts
from gateway.config.sections import WorkerAlerts
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from gateway.usage import anomaly_watch, hours, label_hours
from gateway.usage.anomalies import ENGINE, LABEL, TENANT, AnomalyReporter, AnomalyStore, LabelValue
from gateway.usage.anomaly_watch import AnomalyWatch
from gateway.usage.entries import OutboxEntry
from gateway.usage.hours import EVERYTHING, LABELS_READ, OMITTED, READ_FROM, HourSums, Series
from gateway.usage.label_hours import changed_tenants, read_labels
from gateway.usage.spend_limits import HOUR_S
from gateway.usage.sql import UsageSql
from gateway.usage.store import UsageStore
from gateway.usage.sums import Retention
from tests.fakes import served
from tests.usage.databases import FOREVER, receipt
from tests.usage.outboxes import open_outboxes, receipts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from gateway.usage.anomalies import Anomaly
    from gateway.usage.hours import HourRows

NOW = 1_790_000_000 // HOUR_S * HOUR_S
ACME, BIG, SMALL = Series(TENANT, "acme"), Series(ENGINE, "big"), Series(ENGINE, "small")


KEEP_DAYS = hours.KEEP_S // 86_400


def team(value: str, tenant: str = "acme") -> Series:
    return Series(LABEL, LabelValue(tenant, "team", value).name)


def pico(usd: float) -> int:
    return round(usd * 1e12)


class World:
    """A usage database with weeks of history, a worker that checks it, and the gateways that report anomalies."""

    def __init__(self, redis: Redis, address: str, webhook: str, retention: Retention = FOREVER) -> None:
        self.redis, self.address = redis, address
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}").ledger()
        self.found = AnomalyStore(redis, self.keys)
        self.store = UsageStore(address, retention)
        self.now = float(NOW + 600)
        self.watch = self.new_watch()
        self.tasks = BackgroundTasks()
        self.metrics = [Metrics(), Metrics()]
        self.alerts = [BudgetAlerts(webhook, None, metrics=one, tasks=self.tasks) for one in self.metrics]
        self.reporters = [
            AnomalyReporter(self.found, f"gateway-{number}", metrics, alerts)
            for number, (metrics, alerts) in enumerate(zip(self.metrics, self.alerts, strict=True))
        ]

    def new_watch(self, **alerts: Any) -> AnomalyWatch:
        thresholds = WorkerAlerts.model_validate(alerts)
        return AnomalyWatch(self.found, self.store, "worker", thresholds, lambda: self.now)

    async def remember(self, sums: Callable[[int], dict[Series, HourSums] | None], days: int = 29) -> None:
        """Write the history before NOW. `sums` gets the hours until NOW; None: a gap."""
        found = {NOW - back * HOUR_S: sums(back) for back in range(1, days * 24 + 1)}
        rows = {start: {EVERYTHING: HourSums(), **one} for start, one in found.items() if one is not None}
        await self.store.change(hours.write, rows)

    async def spend(self, usd: float, tenant: str = "acme", **more: Any) -> None:
        """Add a receipt of this hour."""
        one = receipt(int(self.now), tenant=tenant, cost_usd=Decimal(str(usd)), **more)
        await self.store.write([OutboxEntry(tenant, "1-0", one.to_json())])

    async def spend_as(self, value: str, usd: float, tenant: str = "acme") -> None:
        """Add a receipt of this hour with a label."""
        await self.spend(usd, tenant, stored_labels={"team": value})

    async def labels(self) -> tuple[set[str], HourRows]:
        """Write the rows of labels of this hour. Return the tenants whose labels have changed, and all such rows."""
        rows = (await self.store.read(hours.read_sums, [NOW]))[NOW]
        changed = await self.store.read(changed_tenants, NOW, rows, 1, False)
        await self.store.change(hours.write_labels, NOW, await self.store.read(read_labels, NOW, changed, pico(0.5)))
        return {series.name for series in changed}, await self.of_labels(NOW)

    async def of_labels(self, start: int) -> HourRows:
        rows = await self.store.read(hours.rows_of, start)
        return {series: sums for series, sums in rows.items() if series.dimension in {LABEL, READ_FROM, OMITTED}}

    async def check(self, watch: AnomalyWatch | None = None) -> list[Anomaly]:
        """Check once, a minute after the last check, and let both gateways report. Return the anomalies."""
        await self.redis.delete(self.keys.anomaly_check)
        await (watch or self.watch).check()
        for one in self.reporters:
            await one.read()
        current = await self.found.read()
        assert sorted(one.id for one in current) == [one.id for one in self.reporters[0].current]
        return current

    async def close(self) -> None:
        await self.tasks.close()
        for one in self.alerts:
            await one.close()
        await self.store.close()


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver of webhooks: its URL, and the events."""
    events: list[dict[str, Any]] = []

    async def receive(request: web.Request) -> web.Response:
        events.append(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", receive)
    with served(app) as url:
        yield f"{url}/hook", events


@asynccontextmanager
async def opened_world(redis_url: str, address: str, webhook: str, **more: Any) -> AsyncIterator[World]:
    async with Redis.from_url(redis_url) as redis:
        world = World(redis, address, webhook, **more)
        try:
            yield world
        finally:
            await world.close()


@pytest_asyncio.fixture
async def world(redis_url: str, address: str, hook: tuple[str, list[Any]]) -> AsyncIterator[World]:
    async with opened_world(redis_url, address, hook[0]) as world:
        yield world


async def posted(world: World, events: list[dict[str, Any]], count: int) -> None:
    """Wait until all posts are made, and assert their number."""
    await world.tasks.drain(10)
    assert len(events) == count, events


def steady(usd: float) -> Callable[[int], dict[Series, HourSums]]:
    return lambda back: {ACME: HourSums(100, 0, pico(usd * (1 + 0.05 * (back % 5 - 2))))}


async def test_doubled_spend_is_reported_once_until_it_has_ended(
    world: World, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    """The hour need not end: its spend can only grow. Two gateways report together once."""
    _, events = hook
    await world.remember(steady(20))
    await world.spend(21)
    assert await world.check() == []
    await world.spend(19)
    (found,) = await world.check()
    assert (found.kind, found.dimension, found.name, found.since, found.hour) == ("spend", "tenant", "acme", NOW, NOW)
    assert found.spent_pico == pico(40)
    assert pico(18) < found.expected_pico < found.limit_pico < pico(40)
    await posted(world, events, 1)
    assert events[0] | {"at": 0, "expected_usd": "", "limit_usd": ""} == {
        "event": "spend_unusual", "dimension": "tenant", "name": "acme", "tenant": "acme",
        "since": "2026-09-21T14:00:00Z", "hour": "2026-09-21T14:00:00Z",
        "spent_usd": "40.000000000000", "expected_usd": "", "limit_usd": "", "at": 0,
    }  # fmt: skip
    value = world.metrics[1].registry.get_sample_value
    assert value("gkt_spend_unusual", {"tenant": "acme"}) == 1
    total = sum(
        one.registry.get_sample_value("gkt_anomaly_events_total", {"kind": "spend"}) or 0 for one in world.metrics
    )
    assert total == 1
    await world.spend(5)
    (found,) = await world.check()
    assert found.spent_pico == pico(45)
    for usd in (50, 21, 21, 60, 20, 20):  # hours above the limit between calm ones
        world.now += HOUR_S
        await world.spend(usd)
        (found,) = await world.check()
        assert found.since == NOW
    for _ in range(2):
        world.now += HOUR_S
        await world.spend(20)
        await world.check()
    assert await world.found.read() == []
    assert value("gkt_spend_unusual", {"tenant": "acme"}) is None
    await posted(world, events, 1)
    world.now += HOUR_S
    await world.spend(80)
    (found,) = await world.check()
    assert found.since > NOW
    await posted(world, events, 2)


async def test_a_weekly_pattern_a_new_tenant_and_small_amounts_raise_no_alert(
    world: World, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    new, tiny = Series(TENANT, "new"), Series(TENANT, "tiny")

    def sums(back: int) -> dict[Series, HourSums]:
        found = {
            ACME: HourSums(100, 0, pico(200 if back % 168 in {0, 1, 167} else 10)),
            tiny: HourSums(9, 0, pico(0.1)),
        }
        return found | ({new: HourSums(100, 0, pico(10))} if back < 5 * 24 else {})

    await world.remember(sums)
    await world.spend(205)
    await world.spend(100, "new")
    await world.spend(100, "unknown")
    await world.spend(3, "tiny")
    assert await world.check() == []
    world.now += 50 * HOUR_S
    await world.spend(205)
    (found,) = await world.check()
    assert found.name == "acme"
    await posted(world, hook[1], 1)


async def test_hours_in_which_no_worker_ran_are_no_zeros(world: World) -> None:
    """An hour without requests of the tenant counts as zero if a worker ran."""

    def gap(back: int) -> dict[Series, HourSums] | None:
        return None if back % 168 in {0, 1, 167} and back < 400 else {ACME: HourSums(100, 0, pico(20))}

    await world.remember(gap)
    await world.spend(28)
    assert await world.check() == []
    earlier = await world.store.read(hours.history, ACME, NOW)
    assert {sums.cost_pico for sums in earlier.values()} == {pico(20)}
    assert NOW - 168 * HOUR_S not in earlier

    quiet = {ACME: HourSums(100, 0, pico(20))}
    await world.remember(lambda back: {} if back % 24 in {23, 0, 1} else quiet)
    world.watch = world.new_watch()
    (found,) = await world.check()
    assert found.expected_pico == 0


async def test_an_hour_is_replaced_as_a_whole_and_only_where_it_differs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that vanish are deleted, and expired hours go a day at a time."""
    old = {NOW - (KEEP_DAYS + back) * 86_400: {EVERYTHING: HourSums(1)} for back in range(1, 4)}
    await world.store.change(hours.write, old)
    rows = {EVERYTHING: HourSums(9), ACME: HourSums(5, 0, 50), BIG: HourSums(4, 1)}
    await world.store.change(hours.write, {NOW: rows})
    changed = {EVERYTHING: HourSums(9), ACME: HourSums(6, 0, 60), SMALL: HourSums(4, 1)}
    assert await world.store.read(hours.changed, {NOW: rows, NOW + HOUR_S: rows}) == {NOW + HOUR_S: rows}
    assert await world.store.read(hours.changed, {NOW: changed}) == {NOW: changed}
    put, statements = UsageSql.put_hours, []

    def noted(sql: UsageSql, new: Any) -> None:
        statements.extend(new)
        put(sql, new)

    monkeypatch.setattr(UsageSql, "put_hours", noted)
    await world.store.change(hours.write, {NOW: changed})
    assert statements == [(*ACME, NOW, 6, 0, 60), (*SMALL, NOW, 4, 1, 0)]
    assert await world.store.read(hours.rows_of, NOW) == changed
    starts = text("SELECT DISTINCT start FROM usage_hours ORDER BY start")
    left = await world.store.read(lambda queries: [row[0] for row in queries.connection.execute(starts)])
    assert left == [NOW - (KEEP_DAYS + 1) * 86_400, NOW]


async def test_each_hour_has_its_own_transaction(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receipts are written in between. An hour without changes needs none."""
    for back in range(5):
        one = receipt(NOW - back * HOUR_S, tenant="acme", cost_usd=Decimal(1))
        await world.store.write([OutboxEntry("acme", "1-0", one.to_json())])
    await world.store.change(hours.write, {NOW - 5 * HOUR_S: {EVERYTHING: HourSums()}})
    written: list[list[int]] = []
    write = hours.write

    def noted(connection: Any, rows: Any) -> None:
        written.append(list(rows))
        write(connection, rows)

    monkeypatch.setattr(hours, "write", noted)
    await world.check()
    assert written == [[NOW - back * HOUR_S] for back in (4, 3, 2, 1, 0)]
    written.clear()
    await world.check(world.new_watch())
    assert written == []


async def test_an_hour_without_requests_is_stored_while_a_worker_runs(world: World) -> None:
    await world.spend(1)
    await world.check()
    world.now += HOUR_S
    await world.check()
    world.now += 3 * HOUR_S  # no worker
    await world.spend(1)
    await world.check()
    found = await world.store.read(hours.history, ACME, NOW + 10 * HOUR_S)
    assert {start: sums.requests for start, sums in found.items()} == {NOW: 1, NOW + HOUR_S: 0, NOW + 4 * HOUR_S: 1}


async def test_late_receipts_of_the_last_day_are_added_and_expired_sums_keep_their_rows(
    redis_url: str, address: str, hook: tuple[str, list[Any]]
) -> None:
    retention = Retention(minute=3600, hour=2 * 86_400, day=1e9)
    async with opened_world(redis_url, address, hook[0], retention=retention) as world:
        world.now = time.time()  # the database counts no receipt that is too old for its sums
        hour = int(world.now // HOUR_S) * HOUR_S
        one = {hour - 50 * HOUR_S: {EVERYTHING: HourSums(), ACME: HourSums(7, 0, pico(7))}}
        await world.store.change(hours.write, one)
        late = receipt(hour - 20 * HOUR_S, tenant="acme", cost_usd=Decimal(3))
        await world.store.write([OutboxEntry("acme", "1-0", late.to_json())])
        await world.check()
        found = await world.store.read(hours.history, ACME, hour)
        assert {start: sums.cost_pico for start, sums in found.items() if sums.requests} == {
            hour - 50 * HOUR_S: pico(7), hour - 20 * HOUR_S: pico(3)
        }  # fmt: skip


async def test_an_engine_that_stops_to_report_usage_is_reported_once(
    world: World, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    """An engine that never reported usage, and one with few requests, are not."""
    silent, rare = Series(ENGINE, "silent"), Series(ENGINE, "rare")

    def sums(_: int) -> dict[Series, HourSums]:
        return {SMALL: HourSums(100, 2), silent: HourSums(100, 100), rare: HourSums(100, 0)}

    await world.remember(sums)
    hour = NOW
    rows = {EVERYTHING: HourSums(300), SMALL: HourSums(40, 8), silent: HourSums(90, 90), rare: HourSums(20, 20)}
    await world.store.change(hours.write, {hour - HOUR_S: rows})
    assert await world.check() == []
    share = receipt().student
    assert share is not None
    counted = msgspec.structs.replace(share, estimated=True)
    for _ in range(40):
        await world.spend(0.01, student=counted, estimated=True)
    (found,) = await world.check()
    assert (found.kind, found.name, found.requests, found.share) == ("usage", "small", 40, 1.0)
    await posted(world, hook[1], 1)
    event = hook[1][0]
    assert (event["event"], event["name"], event["share"], event["usual_share"]) == (
        "usage_not_reported",
        "small",
        1.0,
        0.02,
    )
    assert world.metrics[0].registry.get_sample_value("gkt_usage_not_reported", {"engine": "small"}) == 1
    world.now += 26 * HOUR_S  # no further requests
    await world.check()
    await posted(world, hook[1], 1)


async def test_calls_that_failed_or_were_canceled_do_not_count_as_missing_reports(world: World) -> None:
    share = receipt().student
    assert share is not None
    counted = msgspec.structs.replace(share, estimated=True)
    await world.spend(1, student=counted, estimated=True, status="client_gone")
    await world.spend(1, student=counted, estimated=True)
    await world.spend(1)
    await world.check()
    rows = await world.store.read(hours.rows_of, NOW)
    assert rows[SMALL] == HourSums(2, 1, 0)
    assert rows[BIG] == HourSums(2, 0, 0)
    assert rows[ACME] == HourSums(3, 0, pico(3))


async def test_alerts_that_are_switched_off_find_nothing(world: World) -> None:
    await world.remember(lambda _: {ACME: HourSums(100, 0, pico(20))})
    await world.spend(90)
    off = world.new_watch(spend={"enabled": False}, missing_usage={"enabled": False})
    assert await world.check(off) == []
    assert await world.check(world.new_watch(spend={"enabled": False})) == []
    assert [one.name for one in await world.check(world.new_watch(spend={"min_usd": 100}))] == []
    assert [one.name for one in await world.check()] == ["acme"]


async def test_of_several_workers_one_checks_at_a_time(world: World) -> None:
    await world.remember(steady(20))
    await world.spend(50)
    await world.redis.set(world.keys.anomaly_check, "another worker")
    await world.watch.check()
    assert await world.found.read() == []
    await world.check()
    assert len(await world.found.read()) == 1


async def test_a_claim_whose_reply_is_lost_is_reported_once(
    world: World, hook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway claims the report again. An anomaly that comes back with the same id is no new one."""
    await world.remember(steady(20))
    await world.spend(50)
    await world.watch.check()
    execute = world.redis.set

    async def lost(*arguments: Any, **more: Any) -> None:
        await execute(*arguments, **more)
        raise RedisTimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(world.redis, "set", lost)
        with pytest.raises(RedisTimeoutError):
            await world.reporters[0].read()
    for one in (world.reporters[1], *world.reporters):
        await one.read()
    await posted(world, hook[1], 1)
    (found,) = await world.found.read()
    for current in ([], [found]):
        await world.found.write(current, [] if current else [found])
        for one in world.reporters:
            await one.read()
    await posted(world, hook[1], 1)


async def test_an_unreadable_anomaly_is_left_alone(world: World) -> None:
    await world.redis.hset(world.keys.anomalies, "later", b'{"kind": "of a later version"}')
    with capture_logs() as log:
        for one in world.reporters:
            await one.read()
    assert Counter(line["event"] for line in log) == {"anomaly_unreadable": 2}
    assert await world.redis.hexists(world.keys.anomalies, "later")


async def test_the_sums_that_a_worker_has_written_are_checked(redis_url: str, address: str) -> None:
    async with open_outboxes(redis_url, address) as outboxes:
        found = AnomalyStore(outboxes.redis, outboxes.keys.ledger())
        thresholds = WorkerAlerts.model_validate({"spend": {"min_usd": 1}})
        watch = AnomalyWatch(found, outboxes.store, "ann", thresholds)
        hour = int(time.time() // HOUR_S) * HOUR_S
        known = {
            hour - back * HOUR_S: {EVERYTHING: HourSums(), ACME: HourSums(10, 0, pico(2))} for back in range(1, 29 * 24)
        }
        await outboxes.store.change(hours.write, known)
        await outboxes.settle(*(msgspec.structs.replace(one, cost_usd=Decimal(1)) for one in receipts(9)))
        worker = await outboxes.worker()
        async with asyncio.timeout(30):
            while await worker.round() == 0:
                pass
        await watch.check()
        (one,) = await found.read()
        assert (one.name, one.spent_pico) == ("acme", pico(9))


async def test_anomalies_of_a_disabled_kind_end(world: World) -> None:
    await world.remember(lambda _: {ACME: HourSums(100, 0, pico(20))})
    await world.spend(90)
    assert [one.name for one in await world.check()] == ["acme"]
    off = world.new_watch(spend={"enabled": False}, missing_usage={"enabled": False})
    assert await world.check(off) == []


async def test_a_failure_of_the_checks_is_logged_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = iter(range(4))

    async def failing() -> None:
        raise RedisTimeoutError

    class Enough(Exception):
        pass

    async def sleep(_: float) -> None:
        if next(pauses) == 3:
            raise Enough

    watch = world.new_watch()
    monkeypatch.setattr(watch, "check", failing)
    monkeypatch.setattr(anomaly_watch.asyncio, "sleep", sleep)
    with capture_logs() as logs, pytest.raises(Enough):
        await watch.run()
    assert [one["event"] for one in logs] == ["anomalies_not_checked"]


async def test_a_value_of_a_label_that_spends_more_is_reported_while_its_tenant_spends_as_usual(
    world: World, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    _, events = hook
    await world.remember(lambda _: {ACME: HourSums(9, 0, pico(100)), team("a=b"): HourSums(3, 0, pico(20))})
    await world.spend_as("new", 60)  # without history
    await world.spend_as("a=b", 28)
    assert await world.check() == []
    await world.spend_as("a=b", 12)
    (found,) = await world.check()
    assert (found.kind, found.dimension, found.name, found.since) == ("spend", "label", "acme/team=a=b", NOW)
    assert (found.spent_pico, found.expected_pico, found.tenant) == (pico(40), pico(20), "acme")
    await posted(world, events, 1)
    named = {"dimension": "label", "name": "acme/team=a=b", "tenant": "acme", "label": "team", "value": "a=b"}
    assert events[0].items() >= ({"event": "spend_unusual", "spent_usd": "40.000000000000"} | named).items()
    registry = world.metrics[0].registry
    assert registry.get_sample_value("gkt_label_spend_unusual", {"tenant": "acme", "label": "team"}) == 1
    assert "a=b" not in "".join(str(one.labels) for metric in registry.collect() for one in metric.samples)
    for _ in range(4):
        world.now += HOUR_S
        await world.spend_as("a=b", 20)
        await world.check()
    assert await world.found.read() == []
    assert registry.get_sample_value("gkt_label_spend_unusual", {"tenant": "acme", "label": "team"}) is None


async def test_rows_of_labels_are_added_up_again_only_after_a_change(world: World) -> None:
    await world.spend_as("a", 3)
    await world.spend_as("b", 4)
    await world.spend_as("a", 5, tenant="globex")
    changed, first = await world.labels()
    assert changed == {"acme", "globex"}
    assert {series: sums for series, sums in first.items() if series.dimension == LABEL} == {
        team("a"): HourSums(1, 0, pico(3)), team("b"): HourSums(1, 0, pico(4)),
        team("a", "globex"): HourSums(1, 0, pico(5)),
    }  # fmt: skip
    assert await world.labels() == (set(), first)
    await world.spend_as("a", 1)
    changed, later = await world.labels()
    assert changed == {"acme"}
    assert (later[team("a")], later[team("a", "globex")]) == (
        HourSums(2, 0, pico(4)), HourSums(1, 0, pico(5))
    )  # fmt: skip
    # A worker of an earlier version replaces all rows of an hour.
    await world.store.change(lambda connection: connection.execute(text("DELETE FROM usage_hours")))
    assert await world.labels() == ({"acme", "globex"}, later)


async def test_a_tenants_hour_keeps_the_values_with_the_highest_spend_and_others_are_no_zeros(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_hours, "MAX_VALUES", 2)
    for value, usd in (("a", 3), ("b", 5), ("c", 4)):
        await world.spend_as(value, usd)
    _, rows = await world.labels()
    omitted = Series(OMITTED, "acme")
    assert {series: sums.cost_pico for series, sums in rows.items() if series.dimension != READ_FROM} == {
        team("b"): pico(5), team("c"): pico(4), omitted: pico(3)
    }  # fmt: skip
    read = {LABELS_READ: HourSums(), omitted: HourSums(0, 0, pico(3))}
    await world.remember(lambda back: read if back < 3 else {team("a"): HourSums(1)})
    known = await world.store.read(hours.history, team("a"), NOW)
    assert NOW - 3 * HOUR_S in known
    assert not {NOW - HOUR_S, NOW - 2 * HOUR_S} & set(known)
    # Without the omitted values' spend, they are zeros.
    await world.spend_as("d", 0.1)
    monkeypatch.setattr(label_hours, "MAX_VALUES", 3)
    assert omitted not in (await world.labels())[1]


async def test_many_expensive_values_of_a_tenant_leave_those_of_other_tenants(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_hours, "MAX_VALUES", 2)
    for number in range(5):
        await world.spend_as(f"v{number}", 90 + number)
    await world.spend_as("b", 2, tenant="globex")
    await world.remember(lambda _: {team("b", "globex"): HourSums(1)})
    _, rows = await world.labels()
    assert {series: sums.cost_pico for series, sums in rows.items() if series.dimension != READ_FROM} == {
        team("v4"): pico(94), team("v3"): pico(93), Series(OMITTED, "acme"): pico(92), team("b", "globex"): pico(2)
    }  # fmt: skip


async def test_hours_whose_labels_were_not_read_are_no_zeros(world: World) -> None:
    """Labels are not read while the alerts are switched off, nor by a worker of an earlier version."""
    await world.spend_as("a", 20)
    await world.check()
    off = world.new_watch(spend={"enabled": False})
    for watch in (off, off, world.watch, world.watch):
        world.now += 30 * HOUR_S
        await world.spend_as("other", 20)
        await world.check(watch)
    world.now += HOUR_S
    await world.check()
    spans = {number: NOW + 30 * number * HOUR_S for number in range(5)}
    of_tenant = await world.store.read(hours.history, ACME, spans[4] + HOUR_S)
    assert set(spans.values()) <= set(of_tenant)
    known = await world.store.read(hours.history, team("a"), spans[4] + HOUR_S)
    assert {start: sums.cost_pico for start, sums in known.items()} == {spans[0]: pico(20), spans[4]: 0}


async def test_an_hour_that_may_have_omitted_a_value_does_not_end_its_anomaly(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_hours, "MAX_VALUES", 1)
    await world.remember(lambda _: {team("a"): HourSums(3, 0, pico(1))})
    await world.spend_as("a", 50)
    assert [one.name for one in await world.check()] == ["acme/team=a"]
    for _ in range(6):
        world.now += HOUR_S
        await world.spend_as("a", 50)
        await world.spend_as("b", 60)
        assert [one.name for one in await world.check()] == ["acme/team=a"]
    for _ in range(4):
        world.now += HOUR_S
        await world.spend_as("b", 60)
        await world.check()
    assert await world.found.read() == []


async def test_labels_of_finished_hours_are_stored_and_their_markers_expire(world: World) -> None:
    await world.spend_as("a", 0.2)
    await world.check()
    stored = await world.of_labels(NOW)
    assert stored == {}, "in the current hour, the tenant spent too little for an alert"
    world.now += HOUR_S
    await world.check()
    stored = await world.of_labels(NOW)
    sums = HourSums(1, 0, pico(0.2))
    assert stored == {team("a"): sums, Series(READ_FROM, "acme"): sums, LABELS_READ: HourSums()}
    world.now += 100 * HOUR_S
    await world.spend_as("a", 9)
    await world.check()
    assert set(await world.of_labels(NOW)) == {team("a"), LABELS_READ}


async def test_the_number_of_a_tenants_labels_with_an_anomaly_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anomaly_watch, "_MAX_LABELS", 2)
    values = [f"v{number}" for number in range(5)]
    other = team("b", "globex")
    await world.remember(lambda _: {one: HourSums(3, 0, pico(1)) for one in (*map(team, values), other)})
    for number, value in enumerate(values):
        await world.spend_as(value, 20 + number)
    await world.spend_as("b", 9, tenant="globex")
    found = ["acme/team=v3", "acme/team=v4", "globex/team=b"]
    for _ in range(2):
        assert sorted(one.name for one in await world.check()) == found


async def test_a_limit_is_computed_once_and_only_above_the_least_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    limit = anomaly_watch.SpendRule.limit

    def counted(rule: Any, history: Any, hour: int) -> Any:
        computed.append(hour)
        return limit(rule, history, hour)

    monkeypatch.setattr(anomaly_watch.SpendRule, "limit", counted)
    await world.remember(steady(20))
    await world.spend(21)
    await world.spend(90, "new")  # without history
    await world.check()
    assert computed == []
    await world.spend(30)
    for minute in range(3):
        world.now = NOW + 600 + 60 * minute
        assert len(await world.check()) == 1
    world.now = NOW + HOUR_S + 60
    assert len(await world.check()) == 1
    assert Counter(computed) == {NOW: 1, NOW + HOUR_S: 1}
