"""`gkt-gateway budgets rebuild` on a real Redis and usage database."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.keys.held import KeyTerms
from gateway.keys.redis_keyring import NEVER, RedisKeyring
from gateway.keys.token import digest_of
from tests.cli.installation import Installation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def books(tmp_path: Path, redis_url: str) -> Installation:
    return Installation(tmp_path / "here", redis_url)


def test_spend_is_restored_from_the_database(books: Installation) -> None:
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


def test_a_repetition_changes_nothing_and_requests_go_on_counting(books: Installation) -> None:
    tenant, key = books.scopes()
    books.add([books.receipt("0.25"), books.receipt("0.5")])
    books.rebuilt()
    assert "2 receipts read, 2 budgets with spend: 0 raised, 2 unchanged" in books.rebuilt()
    books.add(books.trade(["1"]))
    assert books.spent(tenant, key) == ["1.75", "1.75"]
    assert "0 raised, 2 unchanged" in books.rebuilt()
    assert books.spent(tenant, key) == ["1.75", "1.75"]


def test_no_spend_falls(books: Installation) -> None:
    """Redis knows of spend whose receipts were deleted."""
    books.trade(["1", "2"])
    books.lose_redis("*outbox")
    books.add([books.receipt("0.25")])
    assert "0 raised, 2 unchanged" in books.rebuilt()
    assert books.spent(*books.scopes()) == ["3", "3"]


def test_a_receipt_in_an_outbox_and_in_the_database_counts_once(books: Installation) -> None:
    """The later entry counts: the outbox has the real receipt of a request that the database has as abandoned."""
    (waiting,) = books.trade(["0.25"])
    books.add([msgspec.structs.replace(waiting, status="abandoned", cost_usd=Decimal(1)), books.receipt("0.5")])
    books.lose_redis("*budget*")
    assert "2 receipts read" in books.rebuilt()
    assert books.spent(*books.scopes()) == ["0.75", "0.75"]


def test_old_receipts_do_not_count(books: Installation) -> None:
    """Receipts before the longest period are not read. A request that began before and ended in the period counts."""
    day_s = 86_400
    books.add([books.receipt("1", ago_s=31 * day_s), books.receipt("2", ago_s=29 * day_s)])
    books.add([books.receipt("4", ago_s=90 * day_s), books.receipt("8", tenant="globex")])
    books.edit("30d", "40d")
    for name in ("12mo", "366d"):
        books.edit(name, "1d")
    books.add([books.receipt("16", ago_s=40 * day_s - 3600, lasted_s=20 * 3600)])
    output = books.rebuild()
    assert "4 receipts read" in output.stdout
    assert "receipts have the key" in output.stderr
    _, key = books.scopes()
    assert books.spent(key) == ["19"]


def test_the_budgets_of_slices_share_the_spend(books: Installation) -> None:
    books.edit("tenant: acme\n", "tenant: acme\nredis_slices: 3\n")
    books.add([books.receipt("0.000000000007"), books.receipt("0.5")])
    assert "2 budgets with spend: 2 raised" in books.rebuilt()
    assert books.spent(*books.scopes(), slices=3) == ["0.500000000007"] * 2
    assert books.spent(books.scopes()[0]) == ["0.166666666669"], "of the first slice"
    assert "2 budgets with spend: 0 raised" in books.rebuilt()


def test_keys_of_redis_of_tokens_and_unknown_keys_are_charged(books: Installation) -> None:
    """An unknown key has the tenant's key_budget, as it would if it was created again. The command warns of it."""

    async def create() -> None:
        async with books.opened() as client:
            terms = KeyTerms("gk-abc", "carol", budget={"max_budget": 5, "budget_duration": "1w"})
            await RedisKeyring(client.commands, books.keys).create(
                digest_of("gk-1"), "acme", "held", terms, NEVER, "carol"
            )

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


def test_a_period_before_usage_keep_is_named(books: Installation) -> None:
    books.edit_config("keep: null", "keep: 7d")
    books.add([books.receipt("1")])
    done = books.rebuild()
    assert "Warning: the period of key:file of tenant acme began before usage.keep." in done.stderr


def test_a_gateway_must_not_run(books: Installation) -> None:
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


def test_without_a_database_nothing_is_rebuilt(books: Installation) -> None:
    done = books.rebuild()
    assert (done.returncode, "Restore the usage database first." in done.stderr) == (1, True)
    assert not books.data.exists()
