"""A deployment as a backup finds it: a config.yaml, callers' keys, budgets, sums and an archive."""

from __future__ import annotations

import secrets
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis

from gateway.allowances import Period
from gateway.archive.archive import Archive
from gateway.keyring.follower import KeyFollower
from gateway.keyring.held import Terms
from gateway.keyring.redis_keyring import NEVER, RedisKeyring
from gateway.keyring.ring import Keyring
from gateway.keyring.token import digest_of, hint_of, new_token
from gateway.ledger.budgets import Account, Budgets
from gateway.ledger.intent import Intent, abandoned
from gateway.ledger.redis_ledger import Settlement
from gateway.metrics import Metrics
from gateway.redis_client import RedisClient
from gateway.redis_keys import RedisKeys
from tests.archive.archives import Fed, address
from tests.cli import in_process
from tests.ledger.purse import Purse, budget
from tests.rollups.books import Books, receipts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from decimal import Decimal
    from pathlib import Path

    from gateway.ledger.receipt import Receipt

CONFIG = """
redis: {{url: "{url}", prefix: "{prefix}"}}
archive: {{run: command, url: {archive}}}
data: {data}
models:
  - {{name: big, protocol: openai, api_base: "http://big", price: {{input_per_1m: 1, output_per_1m: 1}}}}
"""
POLICY = "tenant: acme\nroutes: [{model: chat, mode: student, student: big, baseline: big}]\n"
MONTH = budget("10", soft="1")
ROLLING = budget("5", name="key:ci", period=Period(30, "d"), aligned=False)
SCOPES = (MONTH, ROLLING)


@dataclass
class Parts:
    """What works on the Redis and the archive of a deployment."""

    redis: Redis
    client: RedisClient
    archive: Archive
    purse: Purse
    books: Books
    fed: Fed
    keyring: RedisKeyring


@dataclass(frozen=True)
class Standing:
    """How a deployment stands: what a restore must bring back.

    Attributes:
        keys: callers' keys by id, and whether they hold.
        money: of each scope what is spent and reserved.
        sums: requests and picodollars of all rows of the last hours, by period and dims.
        archived: ids in the archive with their entries, and how many cannot be read.
    """

    keys: dict[str, str]
    money: list[tuple[Decimal, Decimal]]
    sums: dict[Any, Any]
    archived: list[tuple[str, str]]
    aside: int


class Shop:
    """Args:
    archive: as config.yaml says it; None: there is none.
    """

    def __init__(self, folder: Path, url: str, archive: str | None = "sqlite") -> None:
        self.url, self.archive = url, archive
        self.keys = RedisKeys(f"b{secrets.token_hex(6)}")
        self.data = folder / "data"
        (folder / "policies").mkdir(parents=True)
        (folder / "policies" / "acme.yaml").write_text(POLICY)
        self.config = folder / "config.yaml"
        said = "null" if archive is None else f'"{archive}"'
        self.config.write_text(CONFIG.format(url=url, prefix=self.keys.prefix, archive=said, data=self.data))

    def run(self, command: str, *more: object) -> in_process.Done:
        """`backup` or `restore` by its config.yaml."""
        return in_process.run(command, *map(str, more), "--config", str(self.config))

    @asynccontextmanager
    async def parts(self) -> AsyncIterator[Parts]:
        client = RedisClient(self.url, timeout_s=20, metrics=Metrics())
        archive = Archive(address(self.archive or "sqlite", self.data))
        async with AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            stack.push_async_callback(archive.close)
            redis = await stack.enter_async_context(Redis.from_url(self.url))
            yield Parts(
                redis,
                client,
                archive,
                Purse(redis, self.keys),
                Books(redis, client, keys=self.keys),
                Fed(redis, client, archive, self.keys),
                RedisKeyring(client.commands, self.keys),
            )

    async def trade(self) -> str:
        """What goes on in a deployment: keys are made and revoked, budgets are spent, receipts are added up and
        archived, and some of all that is under way. Returns the key that holds, in plain.
        """
        async with self.parts() as here:
            token = new_token()
            await here.keyring.create(digest_of(token), "acme", "ci", Terms(hint_of(token), "carol"), NEVER, "carol")
            await here.keyring.create(digest_of(new_token()), "acme", "old", Terms("gk-old", "carol"), NEVER, "carol")
            await here.keyring.revoke("acme", "old", "carol")
            await here.keyring.saw([digest_of(token)])
            await here.purse.ask("0.5", *SCOPES)
            await here.purse.settle(here.purse.last, "0.25")
            await here.purse.ask("0.125", *SCOPES)  # and is under way
            await here.books.settle(*receipts(30), *receipts(7, "globex"))
            await here.books.roll_all()
            if self.archive is not None:
                await here.fed.ann._turn()
                await here.redis.xadd(self.keys.outbox("acme"), {"receipt": b"of a later version"})
                await here.fed.ann._turn()
                await here.fed.ann._lease.leave()
            await here.books.settle(*receipts(5), *receipts(2, "globex"))  # which wait
        return token

    async def standing(self, *, caught_up: bool = False) -> Standing:
        """How it stands; `caught_up`: when all that waits is added up and archived."""
        async with self.parts() as here:
            if caught_up:
                await here.books.roll_all()
            if caught_up and self.archive is not None:
                await here.fed.ann._turn()
                await here.fed.ann._lease.leave()
            ring = Keyring()
            await KeyFollower(here.client, here.keyring, ring).catch_up()
            balances = await Budgets(here.redis, self.keys).look([Account("acme", scope) for scope in SCOPES])
            sums = await here.books.rows()
            archived, aside = [], 0
            if self.archive is not None:
                archived = [(one.receipt.id, one.entry) async for some in here.archive.batches() for one in some]
                aside = await here.archive.unreadable()
        return Standing(
            {key.id: key.status(ring.now()) for key in ring.all()},
            [(balance.spent_usd, balance.reserved_usd) for balance in balances],
            sums,
            sorted(archived),
            aside,
        )

    async def names(self) -> set[bytes]:
        """All keys of this deployment in Redis."""
        async with Redis.from_url(self.url) as redis:
            return {one async for one in redis.scan_iter(f"*{self.keys.prefix}:*")}

    async def settle(self, *receipts: Receipt) -> None:
        async with self.parts() as here:
            await here.books.settle(*receipts)

    async def under_way(self) -> list[Intent]:
        """Requests that were let in and have no receipt, by the processes that Redis knows of."""
        async with self.parts() as here:
            ledger = here.purse.processes["bob"]
            owners = await ledger.gone_owners(["acme"], 0)
            found = [await ledger.intents(tenant, owner, 10) for tenant, owner in owners]
        return [Intent.from_json(raw) for some in found for raw in some.values()]

    async def abandon(self, one: Intent) -> None:
        """Settle it as that of a process that is gone."""
        async with self.parts() as here:
            settlement = Settlement(abandoned(one, time.time()), one)
            await here.purse.processes["bob"].abandon("acme", one.owner, {one.id: settlement})
