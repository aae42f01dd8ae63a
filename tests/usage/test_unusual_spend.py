"""Unusual spend is found in the sums of a real database, and reported once to a real webhook."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.accounting.budget_watch import BudgetAlerts
from gateway.config.sections import AlertSettings
from gateway.errors import UsageUnavailable
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from gateway.usage.spend_watch import SpendWatch
from gateway.usage.state import WorkerState
from gateway.usage.unusual_spend import DAY_S, HOUR_S, UnusualSpend, usual_spend
from tests.fakes import served
from tests.usage.databases import receipt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from gateway.accounting.receipt import Receipt
    from tests.usage.books import UsageBook

HOUR = 1_790_000_000 // HOUR_S * HOUR_S  # a Monday


def pico(usd: float) -> int:
    return round(usd * 1e12)


def spent(tenant: str, usd: float, start: int = HOUR) -> Receipt:
    """Return a receipt in the hour with this start."""
    return receipt(start + 600, tenant=tenant, cost_usd=Decimal(str(usd)))


def days(tenant: str, usd: Callable[[int], float | None], last: int = 28) -> list[Receipt]:
    """Return receipts in the same hour of earlier days. `usd` gets the number of days before; None: no receipt."""
    amounts = {day: usd(day) for day in range(1, last + 1)}
    return [spent(tenant, amount, HOUR - day * DAY_S) for day, amount in amounts.items() if amount is not None]


async def found(book: UsageBook) -> dict[str, tuple[int, int]]:
    """Return spend and usual spend of the unusual tenants."""
    unusual = await book.reader.unusual_spend(HOUR, 3.0, 5.0)
    return {one.tenant: (one.spent_pico, one.usual_pico) for one in unusual}


@pytest.mark.parametrize(
    ("earlier", "usual"),
    [
        (dict.fromkeys(range(1, 7), 10), None),
        ({day: 10 * day for day in range(1, 8)}, 40),
        ({day: 500 if day % 7 == 0 else 10 for day in range(1, 15)}, 10),
        ({day: 500 if day % 7 == 0 else 10 for day in range(1, 22)}, 500),
        ({7: 30, 14: 10, 28: 20}, 20),
    ],
    ids=["six days", "a week", "two weeks", "three weeks", "only weekdays"],
)
def test_the_same_weekday_counts_if_three_weeks_are_known(earlier: dict[int, int], usual: int | None) -> None:
    assert usual_spend({HOUR - day * DAY_S: spent for day, spent in earlier.items()}, HOUR) == usual


async def test_tenants_above_the_factor_and_the_least_amount_are_unusual(book: UsageBook) -> None:
    usual_usd = {"acme": 10, "steady": 10, "small": 0.1}
    for tenant, usd in usual_usd.items():
        book.add(days(tenant, lambda _, usd=usd: usd))
    book.add([spent("acme", 16), spent("acme", 15), spent("steady", 29), spent("small", 4.5)])
    book.add([spent("acme", 900, HOUR - HOUR_S), spent("steady", 900, HOUR + HOUR_S)])
    assert await found(book) == {"acme": (pico(31), pico(10))}


async def test_a_known_hour_without_requests_of_a_tenant_is_a_zero(book: UsageBook) -> None:
    book.add([*days("other", lambda _: 1), spent("night", 1, HOUR - 28 * DAY_S - 5 * HOUR_S), spent("night", 6)])
    assert await found(book) == {"night": (pico(6), 0)}


async def test_hours_without_any_receipts_are_gaps(book: UsageBook) -> None:
    book.add([*days("alone", lambda day: 20 if day % 3 == 0 else None), spent("alone", 50)])
    assert await found(book) == {}, "with zeros, the median would be 0"
    book.add([spent("alone", 11)])
    assert await found(book) == {"alone": (pico(61), pico(20))}


async def test_the_hour_four_weeks_before_counts(book: UsageBook) -> None:
    """One of four weeks is a gap, so that three of the same weekday are known."""
    book.add(days("weekly", lambda day: None if day == 14 else 30 if day % 7 == 0 else 1, 35))
    book.add([spent("weekly", 40)])
    assert await found(book) == {}
    book.add([spent("weekly", 51)])
    assert await found(book) == {"weekly": (pico(91), pico(30))}


async def test_a_tenant_needs_a_week_of_history(book: UsageBook) -> None:
    """The first day does not count: the tenant may have begun after that hour."""
    book.add([*days("week", lambda _: 2, 8), *days("new", lambda _: 2, 7), spent("week", 50), spent("new", 50)])
    assert await found(book) == {"week": (pico(50), pico(2))}


async def test_many_requests_of_a_tenant_change_nothing_for_another(book: UsageBook) -> None:
    book.add([*days("acme", lambda _: 10), spent("acme", 40)])
    before = await found(book)
    for start in (HOUR, HOUR - DAY_S, HOUR - 7 * DAY_S):
        noisy = [spent("noisy", 100, start) for _ in range(50)]
        book.add(noisy)
    assert {tenant: sums for tenant, sums in (await found(book)).items() if tenant == "acme"} == before


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


class Fleet:
    """Two gateways that watch one database."""

    def __init__(self, client: RedisClient, book: UsageBook, webhook: str) -> None:
        self.now = HOUR + HOUR_S + 600.0
        self.workers: Any = SimpleNamespace(state=WorkerState(up=True))
        self.tasks = BackgroundTasks()
        self.metrics = Metrics()
        self.alerts = BudgetAlerts(webhook, None, metrics=self.metrics, tasks=self.tasks)
        self.client = client
        self.keys = RedisKeys(f"t{secrets.token_hex(6)}").ledger()
        rest = book.reader, self.workers, AlertSettings(), self.metrics, self.alerts, lambda: self.now
        self.watches = [SpendWatch(client, self.keys, *rest) for _ in range(2)]

    async def check(self) -> list[str]:
        """Let both gateways check. Return the reported tenants."""
        with capture_logs() as logs:
            for watch in self.watches:
                await watch.check()
        return [line["tenant"] for line in logs if line["event"] == "spend_unusual"]


@asynccontextmanager
async def running_fleet(redis_url: str, book: UsageBook, webhook: str) -> AsyncIterator[Fleet]:
    client = RedisClient(redis_url, timeout_s=5.0, metrics=Metrics())
    fleet = Fleet(client, book, webhook)
    try:
        yield fleet
    finally:
        await fleet.tasks.close()
        await fleet.alerts.close()
        await client.close()


async def test_a_tenant_is_reported_once_a_day(
    sqlite_book: UsageBook, redis_url: str, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    """Two gateways report together once, and not again in the next unusual hour."""
    later = [spent("acme", 10, HOUR + HOUR_S - day * DAY_S) for day in range(1, 29)]
    sqlite_book.add([*days("acme", lambda _: 10), *later, spent("acme", 40), spent("acme", 41, HOUR + HOUR_S)])
    async with running_fleet(redis_url, sqlite_book, hook[0]) as fleet:
        assert await fleet.check() == ["acme"]
        fleet.now += HOUR_S
        assert await fleet.check() == []
        await fleet.tasks.drain(10)
        assert fleet.metrics.registry.get_sample_value("gkt_spend_unusual_total") == 1
    (event,) = hook[1]
    assert event | {"at": 0} == {
        "event": "spend_unusual",
        "tenant": "acme",
        "hour": "2026-09-21T14:00:00Z",
        "spent_usd": "40.000000000000",
        "usual_usd": "10.000000000000",
        "at": 0,
    }


async def test_an_hour_is_checked_when_its_receipts_are_written(
    sqlite_book: UsageBook, redis_url: str, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    sqlite_book.add([*days("acme", lambda _: 10), spent("acme", 40)])
    async with running_fleet(redis_url, sqlite_book, hook[0]) as fleet:
        fleet.workers.state = WorkerState(up=False)
        assert await fleet.check() == []
        fleet.workers.state = WorkerState(up=True, lag_s=600.0)
        assert await fleet.check() == []
        fleet.now = HOUR + HOUR_S + 200.0
        fleet.workers.state = WorkerState(up=True)
        assert await fleet.check() == [], "long requests may still end"
        fleet.now += 100.0
        assert await fleet.check() == ["acme"]


async def test_a_check_that_failed_is_repeated(
    sqlite_book: UsageBook, redis_url: str, hook: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite_book.add([*days("acme", lambda _: 10), spent("acme", 40)])
    read = sqlite_book.reader.unusual_spend

    async def fail(*_: object) -> list[UnusualSpend]:
        raise UsageUnavailable

    async with running_fleet(redis_url, sqlite_book, hook[0]) as fleet:
        monkeypatch.setattr(sqlite_book.reader, "unusual_spend", fail)
        assert await fleet.check() == []
        monkeypatch.setattr(sqlite_book.reader, "unusual_spend", read)
        assert await fleet.check() == [], "another process may be checking the hour"
        await fleet.client.commands.delete(fleet.keys.spend_check(HOUR))
        assert await fleet.check() == ["acme"]
