"""`gkt-gateway budgets rebuild` on a real Redis and usage database."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.accounting.budgets import Account, Budgets
from gateway.accounting.redis_ledger import Settlement
from gateway.accounting.scopes import Scopes
from gateway.accounting.token_budgets import TokenBudgets
from gateway.keys.held import KeyTerms
from gateway.keys.redis_keyring import NEVER, RedisKeyring
from gateway.keys.token import digest_of
from gateway.policy.book import Caller, load_all
from gateway.policy.key_entry import KeyEntry
from gateway.redis.client import RedisClient
from gateway.telemetry.metrics import Metrics
from tests.accounting.budget_fixture import BudgetFixture
from tests.accounting.receipt_builders import closed, guided
from tests.cli import in_process
from tests.cli.usage_place import Place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from gateway.accounting.receipt import Receipt
    from gateway.accounting.scopes import Scope

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


class Books(Place):
    """A Redis and a usage database with receipts of budgets."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        super().__init__(folder, redis_url)
        (folder / "policies" / "acme.yaml").write_text(POLICY)
        self.number = 0

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

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[RedisClient]:
        client = RedisClient(self.url, timeout_s=20, metrics=Metrics())
        yield client
        await client.close()

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


@pytest.fixture
def books(tmp_path: Path, redis_url: str) -> Books:
    return Books(tmp_path, redis_url)


def test_spend_is_restored_from_the_database(books: Books) -> None:
    """A calendar budget of the tenant, a rolling one of the key, and those of two teams."""
    tenant, key, search = books.scopes(team="search")
    (*_, ads) = books.scopes(team="ads")
    receipts = books.trade(["0.25", "0.000000000001"], team="search") + books.trade(["0.5"], team="ads")
    before = books.spent(tenant, key, search, ads)
    books.add(receipts)
    books.lose_redis()
    assert books.spent(tenant, key) == ["0", "0"]
    output = books.rebuilt()
    assert "3 receipts read, 4 budgets with spend: 4 raised, 0 unchanged" in output
    assert books.spent(tenant, key, search, ads) == before == ["0.750000000001"] * 2 + ["0.250000000001", "0.5"]


def test_a_repetition_changes_nothing_and_requests_go_on_counting(books: Books) -> None:
    tenant, key = books.scopes()
    books.add([books.receipt("0.25"), books.receipt("0.5")])
    books.rebuilt()
    assert "2 receipts read, 2 budgets with spend: 0 raised, 2 unchanged" in books.rebuilt()
    books.add(books.trade(["1"]))
    assert books.spent(tenant, key) == ["1.75", "1.75"]
    assert "0 raised, 2 unchanged" in books.rebuilt()
    assert books.spent(tenant, key) == ["1.75", "1.75"]


def test_no_spend_falls(books: Books) -> None:
    """Redis knows of spend whose receipts were deleted."""
    books.trade(["1", "2"])
    books.lose_redis("*outbox")
    books.add([books.receipt("0.25")])
    assert "0 raised, 2 unchanged" in books.rebuilt()
    assert books.spent(*books.scopes()) == ["3", "3"]


def test_a_receipt_in_an_outbox_and_in_the_database_counts_once(books: Books) -> None:
    """The later entry counts: the outbox has the real receipt of a request that the database has as abandoned."""
    (waiting,) = books.trade(["0.25"])
    books.add([msgspec.structs.replace(waiting, status="abandoned", cost_usd=Decimal(1)), books.receipt("0.5")])
    books.lose_redis("*budget*")
    assert "2 receipts read" in books.rebuilt()
    assert books.spent(*books.scopes()) == ["0.75", "0.75"]


def test_old_receipts_do_not_count(books: Books) -> None:
    """Receipts before the longest period are not read. Those of unknown tenants are not charged."""
    day_s = 86_400
    books.add([books.receipt("1", ago_s=31 * day_s), books.receipt("2", ago_s=29 * day_s)])
    books.add([books.receipt("4", ago_s=90 * day_s), books.receipt("8", tenant="globex")])
    books.edit("30d", "40d")
    for name in ("12mo", "366d"):
        books.edit(name, "1d")
    output = books.rebuild()
    assert "3 receipts read" in output.stdout
    assert "receipts have the key" in output.stderr
    _, key = books.scopes()
    assert books.spent(key) == ["3"]


def test_the_budgets_of_slices_share_the_spend(books: Books) -> None:
    books.edit("tenant: acme\n", "tenant: acme\nredis_slices: 3\n")
    books.add([books.receipt("0.000000000007"), books.receipt("0.5")])
    assert "2 budgets with spend: 2 raised" in books.rebuilt()
    assert books.spent(*books.scopes(), slices=3) == ["0.500000000007"] * 2
    assert books.spent(books.scopes()[0]) == ["0.166666666669"], "of the first slice"
    assert "2 budgets with spend: 0 raised" in books.rebuilt()


def test_keys_of_redis_of_tokens_and_unknown_keys_are_charged(books: Books) -> None:
    """An unknown key has the tenant's key_budget, as it would if it was created again. The command warns of it."""

    async def create() -> None:
        async with books.opened() as client:
            terms = KeyTerms("gk-abc", "carol", budget={"max_budget": 5, "budget_duration": "1w"})
            await RedisKeyring(client.commands, books.keys).create(
                digest_of("gk-1"), "acme", "held", terms, NEVER, "carol"
            )

    async def listed() -> dict[str, list[str]]:
        async with books.opened() as client:
            return await TokenBudgets(client, books.keys).listed(["acme"])

    asyncio.run(create())
    books.edit("keys:\n", "identities:\n  - {id: staff, issuer: idp, key: sub}\nkeys:\n")
    issuer = "{name: idp, issuer: 'https://idp.example', audience: gkt}"
    books.edit_config("models:", f"identity: {{issuers: [{issuer}]}}\nmodels:")
    books.add([books.receipt("1", key=key) for key in ("held", "staff:ada", "gone", "playground")])
    done = books.rebuild()
    assert done.returncode == 0, done
    assert "4 receipts read, 5 budgets with spend: 5 raised" in done.stdout
    assert done.stderr == "Warning: receipts have the key gone of tenant acme, which does not exist.\n"
    spent = {key: books.spent(*books.scopes(key)) for key in ("staff:ada", "gone", "playground")}
    assert spent == {"staff:ada": ["4", "1"], "gone": ["4", "1"], "playground": ["4", "1"]}
    assert asyncio.run(listed()) == {"acme": ["staff:ada"]}


def test_a_period_before_usage_keep_is_named(books: Books) -> None:
    books.edit_config("keep: null", "keep: 7d")
    books.add([books.receipt("1")])
    done = books.rebuild()
    assert "Warning: the period of key:file of tenant acme began before usage.keep." in done.stderr


def test_a_gateway_must_not_run(books: Books) -> None:
    async def beat(*, lives: bool) -> None:
        async with Redis.from_url(books.url) as redis:
            name = books.keys.heartbeat("ann")
            await (redis.set(name, b"") if lives else redis.delete(name))

    books.add([books.receipt("1")])
    asyncio.run(beat(lives=True))
    done = books.rebuild()
    assert (done.returncode, "Gateway processes that use this Redis: 1" in done.stderr) == (1, True)
    assert books.spent(*books.scopes()) == ["0", "0"]
    asyncio.run(beat(lives=False))
    assert "2 raised" in books.rebuilt()


def test_without_a_database_nothing_is_rebuilt(books: Books) -> None:
    done = books.rebuild()
    assert (done.returncode, "Restore the usage database first." in done.stderr) == (1, True)
    assert not books.data.exists()
