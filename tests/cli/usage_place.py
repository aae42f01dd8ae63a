"""A config.yaml with a Redis and a usage database, for commands that work on both."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from gateway.accounting.redis_ledger import RedisLedger, Settlement
from gateway.config.database_url import sqlalchemy_url
from gateway.redis.keys import RedisKeys
from tests.cli import in_process
from tests.usage.books import UsageBook

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.accounting.receipt import Receipt

CONFIG = """
redis: {{url: "{url}", prefix: "{prefix}"}}
usage: {{run: command, days: 3660d, keep: null, url: "{usage}"}}
models:
  - {{name: big, protocol: openai, api_base: "http://big", price: {{input_per_1m: 1, output_per_1m: 1}}}}
"""
POLICY = "tenant: acme\nroutes: [{model: chat, mode: student, student: big, baseline: big}]\n"


class Place:
    def __init__(self, folder: Path, redis_url: str, usage: str = "sqlite") -> None:
        self.url, self.keys = redis_url, RedisKeys(f"c{secrets.token_hex(6)}")
        self.data = folder / "data"
        self.address = sqlalchemy_url(usage, self.data) if not usage.startswith("env:") else ""
        (folder / "policies").mkdir()
        (folder / "policies" / "acme.yaml").write_text(POLICY)
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG.format(url=redis_url, prefix=self.keys.prefix, usage=usage))

    def run(self, command: str, *more: str, **environment: str) -> in_process.Done:
        return in_process.run("usage", command, "--config", str(self.config), *more, **environment)

    def book(self) -> UsageBook:
        """The usage database; close it."""
        self.data.mkdir(exist_ok=True)
        return UsageBook(self.address)

    def add(self, receipts: Sequence[Receipt]) -> None:
        """Write receipts to the database, as a usage worker does."""
        book = self.book()
        book.add(receipts)
        book.close()

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        """Let receipts wait in Redis."""
        async with Redis.from_url(self.url) as redis:
            await RedisLedger(redis, self.keys, "ann", 100, 10).exchange(
                [], [Settlement(one, None) for one in receipts]
            )
