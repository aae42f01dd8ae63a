"""A rolling upgrade from the last version without labels. Each version reads the data of the other.

The old code comes from this repository's history. Receipts, outboxes and intents of both versions are in one Redis, and
usage workers of both write to one database. The counts are printed (`pytest -rP`, or `-s`).
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from gateway.config.database_url import sqlalchemy_url
from gateway.local.redis import EmbeddedRedis
from gateway.redis.keys import RedisKeys
from gateway.usage.queries import UsageQueries
from gateway.usage.receipt_sum_query import receipt_sums
from gateway.usage.span import UsageSpan
from gateway.usage.store import UsageStore
from gateway.usage.sums import periods
from tests.fakes import FakeEngine
from tests.gateway_process import COMMAND, KEY, UNREACHED, GatewayProcess, model
from tests.postgres import new_database, running_postgres
from tests.previous_code import WITHOUT_LABELS, extract_previous
from tests.readiness import wait_until_up
from tests.upgrade_world import Student
from tests.usage.databases import FOREVER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

_GIVE_UP_S = 120
_KEYS = RedisKeys("labels")
_ROUTE = {
    "model": "chat",
    "mode": "student",
    "student": "small",
    "retries": {"num_retries": 0},
    "default_max_tokens": 9,
}
_TEAM = {"labels": {"team": {"header": "x-team", "budget": {"max_budget": 5}, "limits": {"max_parallel_requests": 50}}}}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Return the arguments that start a gateway of the old version."""
    return {
        "entry": COMMAND,
        "environ": extract_previous(tmp_path_factory.mktemp("previous"), WITHOUT_LABELS),
        "tenants": UNREACHED,
    }


NEW = {"tenants": {**UNREACHED, "acme": UNREACHED["acme"] | _TEAM}}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite":
        yield "sqlite"
    else:
        with running_postgres() as server:
            yield new_database(server)


class Fleet:
    """Gateways of two versions on one Redis and one usage database."""

    def __init__(self, folder: Path, redis: Redis, redis_url: str, url: str, engine: str) -> None:
        self.folder, self.redis, self.redis_url, self.url, self.engine = folder, redis, redis_url, url, engine
        self.gateways: list[GatewayProcess] = []
        self.asked: dict[str, str | None] = {}  # by request: the team
        self.client = httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=120)
        self.store = UsageStore(sqlalchemy_url(url, folder / "data"), FOREVER)

    async def start(self, version: Mapping[str, Any], *, worker: bool = False) -> GatewayProcess:
        price = {"price": {"input_per_1m": 1000, "output_per_1m": 1000}}
        process = GatewayProcess(
            self.folder / f"gateway-{len(self.gateways)}",
            redis_url=self.redis_url,
            redis={"prefix": _KEYS.prefix, "lease": "12s", "timeout": "3s"},
            data=str(self.folder / "data"),
            usage={"run": "host" if worker else "command", "url": self.url},
            models=[model("small", "openai", f"{self.engine}/v1", continuation="trailing", echo=False) | price],
            routes=[_ROUTE],
            **version,
        )
        self.gateways.append(process)
        await asyncio.to_thread(process.start)
        await asyncio.to_thread(wait_until_up, process.admin_url)
        return process

    async def ask(self, process: GatewayProcess, count: int, team: str | None) -> None:
        body = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}]}
        for _ in range(count):
            headers = {} if team is None else {"x-team": team}
            answer = await self.client.post(f"{process.url}/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            self.asked[answer.headers["x-request-id"]] = team

    async def die_with_a_request(self, process: GatewayProcess, student: Student, team: str | None) -> str:
        """Kill a gateway while it streams an answer. Return the id of the request."""
        student.go.clear()
        body = {"model": "chat", "messages": [{"role": "user", "content": "Why?"}], "stream": True}
        headers = {} if team is None else {"x-team": team}
        async with self.client.stream(
            "POST", f"{process.url}/v1/chat/completions", json=body, headers=headers
        ) as answer:
            request_id = answer.headers["x-request-id"]
            await until(lambda: self.redis.keys("*:intents:*"))
            process.process.send_signal(signal.SIGKILL)
            with pytest.raises(httpx.HTTPError):
                await answer.aread()
        student.go.set()
        self.asked[request_id] = team
        return request_id

    async def written(self) -> dict[str, dict[str, Any]]:
        """Return the receipts in the database by id, when all are there."""
        give_up = time.monotonic() + _GIVE_UP_S
        while await self.store.count() < len(self.asked) and time.monotonic() < give_up:
            await asyncio.sleep(0.1)
        found = [msgspec.json.decode(raw) async for some in self.store.receipts() for raw in some]
        assert Counter(one["id"] for one in found) == Counter(self.asked.keys())
        now = time.time()
        sums = await self.store.read(UsageQueries.totals, list(periods("day", now - 86_400, now + 1)))
        assert sum(row.requests for row in sums.values()) == len(self.asked)
        return {one["id"]: one for one in found}

    async def shown(self, process: GatewayProcess, request_id: str) -> dict[str, Any]:
        reply = await self.client.get(f"{process.url}/v1/receipts/{request_id}")
        assert reply.status_code == 200, reply.text
        body: dict[str, Any] = reply.json()
        return body

    async def teams(self) -> dict[str, int]:
        """Return the requests that usage by label counts."""
        now = int(time.time())
        when = UsageSpan(now - 86_400, now + 60, [])

        def query(queries: UsageQueries) -> dict[str, int]:
            rows = receipt_sums(queries.connection, when, ["label:team"], {})
            return {one.names[0]: one.sums[0] for one in rows}

        return await self.store.read(query)


async def until(true: Callable[[], Any]) -> None:
    give_up = time.monotonic() + _GIVE_UP_S
    while not await true():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)


@asynccontextmanager
async def fleet(folder: Path, url: str, student: Student) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedRedis())
        redis = await stack.enter_async_context(Redis.from_url(server.url))
        engine = stack.enter_context(FakeEngine(student).running())
        here = Fleet(folder, redis, server.url, url, engine.url)
        try:
            yield here
        finally:
            student.go.set()
            for process in here.gateways:
                await asyncio.to_thread(process.close)
            await here.client.aclose()
            await here.store.close()


@pytest.mark.timeout(900)
@pytest.mark.long
async def test_versions_with_and_without_labels_read_each_others_receipts_and_intents(
    tmp_path: Path, old: dict[str, Any], url: str
) -> None:
    """The old worker writes new receipts with their labels, which usage by label does not count."""
    student = Student()
    student.go.set()
    async with fleet(tmp_path, url, student) as here:
        before, after = await here.start(old, worker=True), await here.start(NEW)
        await here.ask(before, 10, None)
        await here.ask(after, 10, "a")
        found = await here.written()
        assert Counter(str(one.get("labels")) for one in found.values()) == {"None": 10, "{'team': 'a'}": 10}
        teams = [await here.teams()]
        one = next(name for name, team in here.asked.items() if team == "a")
        assert {**await here.shown(before, one), "labels": {"team": "a"}} == await here.shown(after, one)

        assert await asyncio.to_thread(before.terminate) == 0
        worker, before = await here.start(NEW, worker=True), await here.start(old)
        await here.ask(before, 10, None)
        await here.ask(after, 10, "b")
        await here.written()
        teams.append(await here.teams())

        # The new version settles the request of an old gateway that died, and the old version that of a new one.
        left = [await here.die_with_a_request(before, student, None)]
        await until(lambda: _none(here.redis, "*:intents:*"))
        before = await here.start(old)
        assert await asyncio.to_thread(worker.terminate) == 0
        left.append(await here.die_with_a_request(after, student, "c"))
        await until(lambda: _none(here.redis, "*:intents:*"))
        last = await here.start(NEW, worker=True)
        found = await here.written()
        assert {found[name]["status"] for name in left} == {"abandoned"}
        assert Counter(one["status"] for one in found.values()) == {"ok": 40, "abandoned": 2}
        teams.append(await here.teams())
        reply = await here.client.get(f"{last.url}/v1/limits", headers={"x-team": "c"})
        (label,) = reply.json()["labels"]
        assert (label["parallel_requests"]["used"], label["budget"]["reserved_usd"]) == (0, "0")
        assert teams == [{}, {"b": 10}, {"b": 10}]

        # Back: an old worker writes to the tables that the new one has changed.
        assert await asyncio.to_thread(last.terminate) == 0
        await here.start(old, worker=True)
        last = await here.start(NEW)
        await here.ask(before, 10, None)
        await here.ask(last, 10, "d")
        found = await here.written()
        labels = Counter(str(one.get("labels")) for one in found.values())
        assert labels["{'team': 'd'}"] == 10
        print(f"{url.partition(':')[0]}: {len(found)} receipts, labels {dict(labels)}, usage by team {teams}, labels "
              f"of the abandoned receipts {[found[name].get('labels') for name in left]}, budget of team c "
              f"{label['budget']}")  # fmt: skip
        errors = [line for process in here.gateways for line in process.log if line.get("level") == "error"]
        assert errors == []


async def _none(redis: Redis, pattern: str) -> bool:
    return not await redis.keys(pattern)
