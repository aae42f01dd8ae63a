"""A deployment for commands that work on Redis and the usage database, and what tests read and change there."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from redis.asyncio import Redis
from sqlalchemy import select

from gateway.accounting.budgets import Account, Budgets, Raise
from gateway.accounting.redis_ledger import Settlement
from gateway.accounting.scopes import Scopes
from gateway.keys.audit import AuditTrail
from gateway.keys.follower import KeyFollower
from gateway.keys.held import Keyring, KeyTerms
from gateway.keys.redis_keyring import NEVER, KeyExpiry, RedisKeyring
from gateway.keys.token import digest_of, hint_of, new_token
from gateway.policy.book import Caller, load_all
from gateway.policy.guidance_off import GuidanceOff, GuidanceScope
from gateway.policy.key_entry import KeyEntry
from gateway.quality.switches import GuidanceSwitchStore
from gateway.redis.client import RedisClient
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from gateway.usage.feed import OutboxFeed
from gateway.usage.state import WorkerLease
from gateway.usage.store import UsageStore
from gateway.usage.tables import METADATA
from gateway.usage.uptime_table import minutes_in_redis
from gateway.usage.worker import UsageWorker
from tests.accounting.budget_fixture import BudgetFixture, budget
from tests.accounting.receipt_builders import closed, guided
from tests.cli import in_process
from tests.cli.usage_place import Place
from tests.usage.databases import FOREVER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from gateway.accounting.receipt import Receipt
    from gateway.accounting.scopes import Scope
    from gateway.usage.queries import UsageQueries

POLICY = """
tenant: acme
budget: {max_budget: 100, budget_duration: 12mo}
key_budget: {max_budget: 50, budget_duration: 30d, calendar_aligned: false}
labels:
  team:
    header: x-team
    budget: {max_budget: 20, budget_duration: 12mo}
    exceptions: {search: {budget: {max_budget: 30, budget_duration: 366d}}}
keys:
  - {id: file, sha256: "%s"}
routes: [{model: chat, mode: student, student: big, baseline: big}]
""" % ("ab" * 32)
"""A budget of the tenant, of each key (rolling), and of each team."""

TENANT = budget("10")
KEY = budget("5", name="key:ci")
TOKENS = budget("2", name="key:staff:ada")
LABEL = budget("3", name="label:team=a b:budget")
TEACHER = GuidanceOff(0.0, actor="carol", reason="new teacher", answer_by="teacher")


class Installation(Place):
    """A policy with budgets of a tenant, its keys and its teams, a Redis and a usage database."""

    def __init__(self, folder: Path, redis_url: str, usage: str = "sqlite", *, prefix: str | None = None) -> None:
        folder.mkdir()
        super().__init__(folder, redis_url, usage)
        (folder / "policies" / "acme.yaml").write_text(POLICY)
        self.number, self.usage_url = 0, usage
        if prefix is not None:
            self.edit_config(self.keys.prefix, prefix)
            self.keys = RedisKeys(prefix)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[RedisClient]:
        client = RedisClient(self.url, timeout_s=20, metrics=Metrics())
        yield client
        await client.close()

    def work(self) -> None:
        """Write waiting receipts to the usage database, like a stopping usage worker."""

        async def run() -> None:
            async with self.opened() as client:
                redis, store = client.commands, UsageStore(self.address, FOREVER)
                await client.require()
                seat = WorkerLease(redis, self.keys.ledger(), "ann")
                await seat.join()
                feed = OutboxFeed(redis, self.keys, f"worker-{seat.number}")
                minutes = partial(minutes_in_redis, redis, self.keys.ledger())
                stop = asyncio.Event()
                stop.set()
                await UsageWorker(client, feed, store, seat, minutes, keep_s=None).run(stop)
                await store.close()

        asyncio.run(run())

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the rows of the usage database by table."""

        def rows(queries: UsageQueries) -> dict[str, list[tuple[Any, ...]]]:
            found = {}
            for table in METADATA.sorted_tables:
                query = select(table).order_by(*table.primary_key)
                found[table.name] = [tuple(row) for row in queries.connection.execute(query)]
            return found

        async def read() -> dict[str, list[tuple[Any, ...]]]:
            store = UsageStore(self.address, FOREVER)
            try:
                return await store.read(rows)
            finally:
                await store.close()

        return asyncio.run(read())

    def edit(self, old: str, new: str) -> None:
        policy = self.config.parent / "policies" / "acme.yaml"
        assert old in policy.read_text()
        policy.write_text(policy.read_text().replace(old, new))

    def edit_config(self, old: str, new: str) -> None:
        self.config.write_text(self.config.read_text().replace(old, new))

    def rebuild(self) -> in_process.Done:
        return in_process.run("budgets", "rebuild", "--config", str(self.config))

    def rebuilt(self) -> str:
        done = self.rebuild()
        assert done.returncode == 0, done
        return done.stdout

    def receipt(
        self,
        usd: str,
        *,
        key: str = "file",
        team: str | None = None,
        ago_s: float = 60.0,
        lasted_s: float = 1.0,
        status: str = "ok",
        tenant: str = "acme",
    ) -> Receipt:
        """Return the receipt of a request that ended `ago_s` seconds ago."""
        self.number += 1
        base = closed(guided())
        created = int(time.time() - ago_s - lasted_s)
        return msgspec.structs.replace(
            base,
            id=f"req_{created:08x}{self.number:016x}",
            created=created,
            tenant=tenant,
            key=key,
            cost_usd=Decimal(usd),
            status=status,
            timings=msgspec.structs.replace(base.timings, total_ms=lasted_s * 1000),
            stored_labels={"team": team} if team else msgspec.UNSET,
        )

    def scopes(self, key: str = "file", team: str | None = None) -> tuple[Scope, ...]:
        settings, policies, _ = load_all(self.config)
        policy = policies.policy_of("acme")
        assert policy is not None
        entry = next((one for one in policy.keys if one.id == key), KeyEntry.model_construct(id=key, sha256=""))
        return Scopes(settings.defaults).of(Caller(policy, entry), {"team": team} if team else {})

    def spent(self, *scopes: Scope, slices: int = 1) -> list[str]:
        async def read() -> list[str]:
            async with self.opened() as client:
                budgets = Budgets(client.commands, self.keys)
                balances = await budgets.read([Account("acme", scope, slices) for scope in scopes])
                return [str(balance.spent_usd) for balance in balances]

        return asyncio.run(read())

    def trade(self, costs: Iterable[str], *, team: str | None = None) -> list[Receipt]:
        """Admit and settle requests as a gateway does. Return the receipts, which wait in the outbox."""

        async def run() -> list[Receipt]:
            settled = []
            async with Redis.from_url(self.url) as redis:
                fixture = BudgetFixture(redis, self.keys)
                for cost in costs:
                    await fixture.ask("1", *self.scopes(team=team))
                    receipt = self.receipt(cost, team=team, ago_s=0)
                    settled.append(msgspec.structs.replace(receipt, id=fixture.last.id))
                    await fixture.tell(settled=(Settlement(settled[-1], fixture.last),))
            return settled

        return asyncio.run(run())

    def lose_redis(self, names: str = "*") -> None:
        """Delete keys of this deployment in Redis."""

        async def delete() -> None:
            async with Redis.from_url(self.url) as redis:
                await redis.unlink(*[name async for name in redis.scan_iter(f"*{self.keys.prefix}:{names}")])

        asyncio.run(delete())

    def keys_run(self, command: str, *more: object) -> in_process.Done:
        return in_process.run("keys", command, *map(str, more), "--config", str(self.config))

    async def create(self, key_id: str, *, expiry: KeyExpiry = NEVER) -> str:
        token = new_token()
        limits: dict[str, Any] = {"max_budget": Decimal("0.10"), "budget_duration": "2w"}
        terms = KeyTerms(hint_of(token), "carol", models=("chat",), budget=limits, labels={"team": "search"})
        async with self.opened() as client:
            keyring = RedisKeyring(client.commands, self.keys)
            await keyring.create(digest_of(token), "acme", key_id, terms, expiry, "carol")
            await keyring.record_use([digest_of(token)])
        return token

    async def revoke(self, key_id: str) -> None:
        async with self.opened() as client:
            await RedisKeyring(client.commands, self.keys).revoke("acme", key_id, "carol")

    async def rotate(self, key_id: str) -> None:
        async with self.opened() as client:
            ring = Keyring()
            keyring = RedisKeyring(client.commands, self.keys)
            await KeyFollower(client, keyring, ring).catch_up()
            old = ring.by_id("acme", key_id)
            assert old is not None
            await keyring.rotate(old, digest_of(new_token()), old.terms, grace_s=600, expiry=NEVER, actor="carol")

    async def raise_budget(self, scope: Scope, usd: str, until_s: int) -> None:
        async with self.opened() as client:
            await Budgets(client.commands, self.keys).put_raise(Account("acme", scope), Raise(Decimal(usd), until_s))

    async def switch_off(self, scope: GuidanceScope) -> None:
        async with self.opened() as client:
            await GuidanceSwitchStore(client.commands, self.keys).switch(scope, TEACHER, "carol")

    async def state(self) -> dict[str, Any]:
        """Return all that an import must reproduce."""
        async with self.opened() as client:
            redis, ring = client.commands, Keyring()
            keyring = RedisKeyring(redis, self.keys)
            await KeyFollower(client, keyring, ring).catch_up()
            held = sorted(ring.all(), key=lambda key: key.id)
            scopes = (TENANT, KEY, TOKENS, LABEL)
            balances = await Budgets(redis, self.keys).read([Account("acme", scope) for scope in scopes])
            return {
                "keys": held,
                "used": await keyring.last_used([key.sha256 for key in held]),
                "raises": [balance.raised for balance in balances],
                "switches": await GuidanceSwitchStore(redis, self.keys).read(),
                "audit": (await self.audit())[::-1],
            }

    async def audit(self) -> list[Any]:
        async with Redis.from_url(self.url) as redis:
            trail = AuditTrail(redis, self.keys.keyring().audit)
            return [entry for entry in await trail.read(1000) if entry.action != "keys.import"]

    def fill(self) -> list[str]:
        """Create keys in every state, raises, switches and an audit trail. Return the keys."""
        until_s = int(time.time()) + 86_400

        async def run() -> list[str]:
            tokens = [await self.create(one) for one in ("ci", "old", "rotated")]
            tokens.append(await self.create("dated", expiry=KeyExpiry(in_s=3600)))
            await self.revoke("old")
            await self.rotate("rotated")
            for number, scope in enumerate((TENANT, KEY, LABEL), 1):
                await self.raise_budget(scope, f"{number}.25", until_s + number)
            await self.raise_budget(TOKENS, "0.000000000001", until_s)
            for off in (GuidanceScope(), GuidanceScope("acme"), GuidanceScope("acme", "org/chat")):
                await self.switch_off(off)
            return tokens

        return asyncio.run(run())
