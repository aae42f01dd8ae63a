"""A deployment to back up: a config.yaml, API keys, budgets and a usage database."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from redis.asyncio import Redis
from sqlalchemy import select

from gateway.accounting.budgets import Account, Budgets
from gateway.accounting.intent import Intent, abandoned
from gateway.accounting.redis_ledger import RedisLedger, Settlement
from gateway.config.database_url import sqlalchemy_url
from gateway.config.limits import BudgetDuration
from gateway.keys.follower import KeyFollower
from gateway.keys.held import Keyring, KeyTerms
from gateway.keys.redis_keyring import NEVER, RedisKeyring
from gateway.keys.token import digest_of, hint_of, new_token
from gateway.quality.comparison import Comparison
from gateway.quality.outcome import Outcome
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from gateway.usage.database import add_comparisons, add_outcomes
from gateway.usage.feed import OutboxFeed
from gateway.usage.queries import UsageQueries
from gateway.usage.rollup import SumRow
from gateway.usage.state import WorkerLease
from gateway.usage.store import UsageStore
from gateway.usage.sums import Period as SumPeriod
from gateway.usage.sums_writer import TOTAL, fill_sums
from gateway.usage.tables import COMPARISONS, SUMS, TAGS, UPTIME
from gateway.usage.uptime_table import EngineMinutes, add_minutes, minutes_in_redis
from gateway.usage.worker import UsageWorker
from tests.accounting.budget_fixture import BudgetFixture, budget
from tests.cli import in_process
from tests.usage.databases import FOREVER
from tests.usage.outboxes import receipts
from tests.usage.sum_rows import sum_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from decimal import Decimal
    from pathlib import Path

    from sqlalchemy import Table

    from gateway.accounting.receipt import Receipt

CONFIG = """
redis: {{url: "{url}", prefix: "{prefix}"}}
usage: {{run: command, days: 3660d, url: "{usage}"}}
data: {data}
models:
  - {{name: big, protocol: openai, api_base: "http://big", price: {{input_per_1m: 1, output_per_1m: 1}}}}
"""
POLICY = "tenant: acme\nroutes: [{model: chat, mode: student, student: big, baseline: big}]\n"
MONTH = budget("10", soft="1")
ROLLING = budget("5", name="key:ci", period=BudgetDuration(30, "d"), aligned=False)
SCOPES = (MONTH, ROLLING)
DAY_S = 86_400
OLD_DAY = 1_699_900_000 // DAY_S * DAY_S
"""A day without receipts: the day before the receipts of the budgets_fixture."""


@dataclass
class Parts:
    """Clients of the Redis and the usage database of a deployment."""

    redis: Redis
    client: RedisClient
    store: UsageStore
    budgets_fixture: BudgetFixture
    keyring: RedisKeyring


@dataclass(frozen=True)
class Standing:
    """The state of a deployment that a restore must reproduce.

    Attributes:
        keys: callers' keys by id, and whether they hold.
        money: of each scope what is spent and reserved.
        sums: by their primary keys.
        stored: ids of the receipts in the usage database.
        tables: rows of its other tables.
        unreadable: the number of its entries that cannot be read.
    """

    keys: dict[str, str]
    money: list[tuple[Decimal, Decimal]]
    sums: dict[Any, SumRow]
    stored: list[str]
    tables: list[Any]
    unreadable: int

    @property
    def by_day(self) -> dict[int, SumRow]:
        """Sums over all tenants, without `OLD_DAY`."""
        return {key[1]: row for key, row in self.sums.items() if key[0] == DAY_S and key[1] != OLD_DAY and not key[2]}

    @property
    def requests(self) -> int:
        return sum(row.requests for row in self.by_day.values())


class Deployment:
    """Args:
    usage: usage.url of config.yaml.
    """

    def __init__(self, folder: Path, url: str, usage: str = "sqlite") -> None:
        self.url = url
        self.keys = RedisKeys(f"b{secrets.token_hex(6)}")
        self.data = folder / "data"
        self.address = sqlalchemy_url(usage, self.data)
        (folder / "policies").mkdir(parents=True)
        (folder / "policies" / "acme.yaml").write_text(POLICY)
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG.format(url=url, prefix=self.keys.prefix, usage=usage, data=self.data))

    def run(self, command: str, *more: object) -> in_process.Done:
        """Run a command with this deployment's config.yaml."""
        return in_process.run(command, *map(str, more), "--config", str(self.config))

    @asynccontextmanager
    async def parts(self) -> AsyncIterator[Parts]:
        client = RedisClient(self.url, timeout_s=20, metrics=Metrics())
        store = UsageStore(self.address, FOREVER)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            stack.push_async_callback(store.close)
            redis = await stack.enter_async_context(Redis.from_url(self.url))
            yield Parts(redis, client, store, BudgetFixture(redis, self.keys), RedisKeyring(client.commands, self.keys))

    async def trade(self) -> str:
        """Simulate traffic: create and revoke keys, spend budgets, write receipts to the
        usage database, and some of all that is under way. Return the key that holds, in plain.
        """
        async with self.parts() as here:
            token = new_token()
            await here.keyring.create(digest_of(token), "acme", "ci", KeyTerms(hint_of(token), "carol"), NEVER, "carol")
            await here.keyring.create(
                digest_of(new_token()), "acme", "old", KeyTerms("gk-old", "carol"), NEVER, "carol"
            )
            await here.keyring.revoke("acme", "old", "carol")
            await here.keyring.record_use([digest_of(token)])
            await here.budgets_fixture.ask("0.5", *SCOPES)
            await here.budgets_fixture.settle(here.budgets_fixture.last, "0.25")
            await here.budgets_fixture.ask("0.125", *SCOPES)  # stays in flight
            tagged = [msgspec.structs.replace(one, stored_tags=("a", "b")) for one in receipts(7, "globex")]
            await self.settle(*receipts(30), *tagged)
            await here.redis.xadd(self.keys.outbox("acme"), {"receipt": b"of a later version"})
            await self.work()
            await self._put_what_is_beside_receipts(here.store)
            await self.settle(*receipts(5), *receipts(2, "globex"))  # wait in outboxes
        return token

    async def _put_what_is_beside_receipts(self, store: UsageStore) -> None:
        comparison = Comparison("req_1", OLD_DAY, "acme", "words", "short", "chat", 900, 800)
        await store.change(add_comparisons, [comparison])
        outcome = Outcome("req_1", OLD_DAY, "acme", "chat", "long", "0123456789abcdef", "feedback", 7500)
        await store.change(add_outcomes, [outcome])
        minutes = EngineMinutes(OLD_DAY // DAY_S, "big", 10**12, b"\xf0".ljust(180, b"\0"), bytes(180))
        await store.change(add_minutes, [minutes])
        row = sum_row(requests=5, cost_pico=7).to_bytes()
        sums = {TOTAL: row, TOTAL._replace(tenant="acme", mode="guided"): row}
        await store.change(fill_sums, {SumPeriod("day", OLD_DAY): sums})

    async def work(self) -> None:
        """Write waiting receipts to the usage database, like a stopping usage worker."""
        async with self.parts() as here:
            await here.client.require()
            seat = WorkerLease(here.redis, self.keys.ledger(), "ann")
            await seat.join()
            feed = OutboxFeed(here.redis, self.keys, f"worker-{seat.number}")
            minutes = partial(minutes_in_redis, here.redis, self.keys.ledger())
            stop = asyncio.Event()
            stop.set()
            await UsageWorker(here.client, feed, here.store, seat, minutes, keep_s=None).run(stop)

    async def standing(self, *, caught_up: bool = False) -> Standing:
        """Return the state. `caught_up`: first write all waiting receipts."""
        if caught_up:
            await self.work()
        async with self.parts() as here:
            ring = Keyring()
            await KeyFollower(here.client, here.keyring, ring).catch_up()
            balances = await Budgets(here.redis, self.keys).read([Account("acme", scope) for scope in SCOPES])
            tables = [await here.store.read(_rows, one) for one in (COMPARISONS, UPTIME, TAGS)]
            sums = {row[:-1]: SumRow.from_bytes(row[-1]) for row in await here.store.read(_rows, SUMS)}
            stored = [msgspec.json.decode(raw)["id"] async for batch in here.store.receipts() for raw in batch]
            unreadable = await here.store.read(UsageQueries.count_unreadable)
        return Standing(
            {key.id: key.status(ring.now()) for key in ring.all()},
            [(balance.spent_usd, balance.reserved_usd) for balance in balances],
            sums,
            sorted(stored),
            tables,
            unreadable,
        )

    async def names(self) -> set[bytes]:
        """Return all keys of this deployment in Redis."""
        async with Redis.from_url(self.url) as redis:
            return {one async for one in redis.scan_iter(f"*{self.keys.prefix}:*")}

    async def settle(self, *receipts: Receipt) -> None:
        async with Redis.from_url(self.url) as redis:
            ledger = RedisLedger(redis, self.keys, "ann", 100, 10)
            await ledger.exchange([], [Settlement(one, None) for one in receipts])

    async def under_way(self) -> list[Intent]:
        """Return admitted requests without receipts, by process in Redis."""
        async with self.parts() as here:
            ledger = here.budgets_fixture.processes["bob"]
            owners = await ledger.expired_processes(["acme"], 0)
            found = [await ledger.intents(tenant, owner, 10) for tenant, owner in owners]
        return [Intent.from_json(raw) for batch in found for raw in batch.values()]

    async def abandon(self, one: Intent) -> None:
        """Settle the request like a request of a dead process."""
        async with self.parts() as here:
            settlement = Settlement(abandoned(one, time.time()), one)
            await here.budgets_fixture.processes["bob"].abandon("acme", one.process_id, {one.id: settlement})


def _rows(queries: UsageQueries, table: Table) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in queries.connection.execute(select(table).order_by(*table.primary_key))]
