"""Archives for tests: SQLite in a folder, or a database of its own in a real PostgreSQL."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg

from gateway.archive.archiver import Archiver, Lease
from gateway.archive.database import Entry
from gateway.archive.feed import ArchiveFeed
from gateway.archive.state import ArchiveBoard
from gateway.archive_address import address_of
from gateway.ledger.intent import abandoned
from gateway.ledger.redis_ledger import RedisLedger, Settlement
from gateway.metrics import Metrics
from gateway.redis_keys import RedisKeys
from tests.ledger.drafts import closed, guided

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from gateway.archive.archive import Archive
    from gateway.ledger.receipt import Receipt
    from gateway.redis_client import RedisClient
    from tests.postgres import Postgres


def new_database(server: Postgres) -> str:
    """The URL of an empty database."""
    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return server.url.replace("/postgres?", f"/{name}?")


def address(url: str, folder: Path) -> str:
    return address_of(url, folder)


def entry(receipt: Receipt, id_: str) -> Entry:
    return Entry(receipt.tenant, id_, receipt.to_json())


def receipts(count: int, tenant: str = "acme") -> list[Receipt]:
    """Of now, each with an id of its own."""
    return [
        msgspec.structs.replace(
            closed(guided()), id=f"{tenant}-{secrets.token_hex(6)}", tenant=tenant, created=int(time.time())
        )
        for _ in range(count)
    ]


class Fed:
    """An archive that is fed from a Redis, by one process or by several."""

    def __init__(self, redis: Redis, client: RedisClient, archive: Archive, keys: RedisKeys | None = None) -> None:
        self.redis = redis
        self.client = client
        self.archive = archive
        self.keys = keys or RedisKeys(f"t{secrets.token_hex(6)}")
        self.ledger = RedisLedger(redis, self.keys, "ann", 100, 10)
        self.feed = ArchiveFeed(redis, self.keys)
        self.metrics = Metrics()
        self.keep_s: float | None = None
        self.ann = self.archiver("ann")

    def archiver(self, owner: str, archive: Archive | None = None) -> Archiver:
        board = ArchiveBoard(self.redis, self.keys.ledger(), self.metrics, "here")
        return Archiver(
            self.client,
            self.feed,
            archive or self.archive,
            Lease(self.redis, self.keys.ledger(), owner),
            board,
            keep_s=self.keep_s,
            metrics=self.metrics,
        )

    async def settle(self, *receipts: Receipt) -> None:
        await self.ledger.exchange([], [Settlement(one, None) for one in receipts])

    async def abandon(self, one: Any, now: float) -> Receipt:
        receipt = abandoned(one, now)
        await self.ledger.abandon(one.tenant, "ann", {one.id: Settlement(receipt, one)})
        return receipt

    async def ids(self) -> list[str]:
        return [one.receipt.id async for some in self.archive.batches() for one in some]

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0
