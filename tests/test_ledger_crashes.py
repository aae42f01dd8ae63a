"""Gateways and their Redis are killed while they settle and add up: the rows are the sum of the receipts, each once.

The counts stand in one line of output per test (`pytest -rP`, or `-s`).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.asyncio import Redis

from gateway.ledger.receipt import Receipt
from gateway.local.redis import EmbeddedRedis
from gateway.redis_keys import RedisKeys
from gateway.rollups.rollup import Row, usd
from gateway.rollups.rollups import SECONDS, Retention, Rollups, periods
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, GatewayProcess, model
from tests.readiness import wait_until_up
from tests.rollups.books import plainly

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp import web

    from gateway.rollups.rollup import Dims
    from gateway.rollups.rollups import Period

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

LEASE_S = 2.0
SETTLED_LIMIT_S = 60.0
AT_ONCE = 6  # callers of each gateway
BODY = {"model": "chat-student", "messages": [{"role": "user", "content": "Write a story."}], "max_tokens": 50}


class Shop:
    """Some gateways that share a Redis, and callers of two tenants that never stop asking."""

    def __init__(self, folder: Path, server: EmbeddedRedis, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.server = server
        self.stack = stack
        self.prefix = "ledgercrashes"
        self.keys = RedisKeys(self.prefix)
        self.student = FakeEngine(self._answers)
        self.gateways: dict[int, GatewayProcess] = {}
        self.answered: set[str] = set()
        self.broken = 0
        self.open = True

    @staticmethod
    async def _answers(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(random.random() / 20)
        return await says(" and ends.")(request, body)

    async def start(self, number: int) -> None:
        process = GatewayProcess(
            self.folder / str(number),
            redis_url=self.server.url,
            redis={"prefix": self.prefix, "lease": f"{LEASE_S:g}s", "timeout": "500ms"},
            usage={"run": "host"},
            models=[
                model("big", "tgi", self.student.url),
                model("small", "openai", f"{self.student.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[STUDENT_ONLY],
        )
        await asyncio.to_thread(process.start)
        self.stack.callback(process.close)
        await asyncio.to_thread(wait_until_up, process.admin_url)
        self.gateways[number] = process

    def kill(self, number: int) -> None:
        self.gateways.pop(number).process.kill()

    async def call(self, number: int, key: str) -> None:
        """Ask one gateway for ever; while it is down wait for it."""
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=20) as client:
            while self.open:
                process = self.gateways.get(number)
                if process is None:
                    await asyncio.sleep(0.05)
                    continue
                try:
                    answer = await client.post(f"{process.url}/v1/chat/completions", json=BODY)
                except httpx.HTTPError:
                    self.broken += 1
                    continue
                assert answer.status_code == 200, answer.text
                self.answered.add(answer.headers["x-request-id"])

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for number in self.gateways:
                for place in range(AT_ONCE):
                    group.create_task(self.call(number, (KEY, OTHER_KEY)[place % 2]))
            yield
            self.open = False

    async def accounts(self, redis: Redis) -> tuple[list[Receipt], dict[Period, dict[Dims, Row]], int]:
        """All receipts that Redis keeps, all rows, and how many intents are left."""
        kept: list[bytes] = await redis.keys(f"*{self.prefix}:tenant:*:receipt:*")
        receipts = [Receipt.from_json(raw) for raw in await redis.mget(kept)] if kept else []
        now = time.time()
        wanted = [one for name in SECONDS for one in periods(name, now - 3600, now + 1)]
        rows: dict[Period, dict[Dims, Row]] = {}
        for period, where, row in await Rollups(redis, self.keys, Retention(3600, 86_400, 864_000)).rows(wanted):
            if row != Row():  # what was taken out again leaves an empty one
                rows.setdefault(period, {})[where] = row
        return receipts, rows, len(await redis.keys(f"*{self.prefix}:tenant:*:intents:*"))

    async def settled(self) -> list[Receipt]:
        """Wait until no request is under way and all receipts are added up; the receipts. Rows must be their sum."""
        give_up = time.monotonic() + SETTLED_LIMIT_S
        async with Redis.from_url(self.server.url) as redis:
            while True:
                receipts, rows, intents = await self.accounts(redis)
                together = {one.id for one in receipts}
                if not intents and self.answered <= together and rows == plainly(receipts):
                    return receipts
                assert time.monotonic() < give_up, (
                    f"{intents} intents, {len(self.answered - together)} without a receipt, {len(receipts)} receipts, "
                    f"{sum(row.requests for one, found in rows.items() for row in found.values()) / 3:g} in rows"
                )
                await asyncio.sleep(0.2)

    def one_adds_up(self) -> None:
        """Of those who live one leads, and all it has left is nothing."""
        told = [httpx.get(f"{one.admin_url}/readyz").json()["ledger"] for one in self.gateways.values()]
        (leader,) = [one for one in told if one["adds_up"]]
        assert leader["lost"] == {"sums": 0, "archive": 0}
        assert [one for one in told if one is not leader] == [{"adds_up": False}] * (len(told) - 1)

    async def report(self, what: str, receipts: list[Receipt]) -> None:
        statuses = {
            status: sum(one.status == status for one in receipts) for status in {one.status for one in receipts}
        }
        ids = {one.id for one in receipts}
        assert len(ids) == len(receipts)
        assert self.answered <= ids
        # A call that broke has one receipt, or none where it was not taken.
        assert len(self.answered) <= len(receipts) <= len(self.answered) + self.broken
        cost = sum(one.cost_usd for one in receipts)
        rows = plainly(receipts)
        pico = sum(
            row.cost_pico for period, found in rows.items() if period.granularity == "day" for row in found.values()
        )
        assert usd(pico) == cost
        print(
            f"{what}: answered {len(self.answered)}, calls that broke {self.broken}, receipts {len(receipts)} "
            f"{statuses}, in rows {len(receipts)}, {cost:f} USD"
        )


@asynccontextmanager
async def shop(folder: Path, gateways: int, *, durable: bool) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedRedis(append_fsync="always" if durable else None))
        here = Shop(folder, server, stack)
        stack.enter_context(here.student.running())
        await asyncio.gather(*(here.start(number) for number in range(gateways)))
        yield here


async def test_gateways_that_are_killed_while_they_settle_and_add_up_lose_and_double_nothing(tmp_path: Path) -> None:
    dice = random.Random(5)
    kills = 4
    async with shop(tmp_path, 2, durable=False) as here:
        async with here.load():
            for kill in range(kills):
                await asyncio.sleep(dice.uniform(1, 3))
                here.kill(kill % 2)
                await here.start(kill % 2)
            await asyncio.sleep(1)
        await here.report(f"{kills} kills of gateways", await here.settled())
        here.one_adds_up()


async def test_a_redis_that_is_killed_and_syncs_always_loses_and_doubles_nothing(tmp_path: Path) -> None:
    dice = random.Random(6)
    kills = 4
    async with shop(tmp_path, 2, durable=True) as here:
        async with here.load():
            for _ in range(kills):
                await asyncio.sleep(dice.uniform(1, 3))
                async with Redis.from_url(here.server.url) as redis:
                    pid = (await redis.info("server"))["process_id"]
                os.kill(pid, signal.SIGKILL)
                await here.server.stop()
                await asyncio.sleep(dice.uniform(0, 1))
                await here.server.start()
            await asyncio.sleep(2)
        await here.report(f"{kills} kills of Redis", await here.settled())
