"""Hundreds of edits of config.yaml and of the policy while requests run: no request fails, and nothing accumulates."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from contextlib import AsyncExitStack, suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.accounting.receipt import Receipt
from gateway.api import keys
from gateway.redis.keys import RedisKeys
from tests.gateway_process import guided, redis_prefix
from tests.live.world import LIMIT_S, Engine, World, following, route, student

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(900)

CALLERS = 12
ROUTES = ("chat", "alias", "alone", "shadowed")
COUNTED = {
    "EngineSet",
    "GuardedEngine",
    "TeacherQueue",
    "HttpPool",
    "Settings",
    "ModelSettings",
    "PolicySet",
    "OpenAIEngine",
}
_SHORT_PROMPT = {"tokens": 12, "deadline": "60s", "max_wait": "10ms"}


@pytest_asyncio.fixture
async def engines() -> AsyncIterator[list[Engine]]:
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(Engine().running()) for _ in range(4)]
        for one in running:
            one.resume.set()
        yield running


def models_of(number: int, engines: list[Engine]) -> list[dict[str, Any]]:
    """Return the models of an edit: engines change, come and go, and the price of the student grows."""
    first, second, third, fourth = engines
    models = [
        student("big", (first, second)[number % 2], continuation="trailing"),
        student("small", (third, fourth)[number // 2 % 2], price=1 + number, continuation="trailing"),
    ]
    if number % 3 == 0:
        models.append(student("extra", third, continuation="trailing", max_concurrency=8 + number % 5))
    if number % 5 == 0:
        models.append(student("unused", fourth))
    return models


def price_of(number: int) -> Decimal:
    """Return the price of a token of the student in USD."""
    return Decimal(1 + number) / 1_000_000


def routes_of(number: int) -> list[dict[str, Any]]:
    """Return the routes of an edit. The alias moves between two routes, and one route comes and goes."""
    chat, alone = guided("chat", teacher="big"), route("alone", "small")
    (chat, alone)[number % 2]["aliases"] = ["alias"]
    shadowed = {"model": "shadowed", "mode": "shadow", "teacher": "big", "student": "small", "guidance": _SHORT_PROMPT}
    return [chat, alone, shadowed, *([guided("more", teacher="extra")] if number % 3 == 0 else [])]


class Callers:
    """Requests that run at once until `stop`: streams and JSON, of all routes."""

    def __init__(self, world: World) -> None:
        self._world, self._stop = world, asyncio.Event()
        self.ids: list[str] = []
        self.failed: list[str] = []
        self._tasks = [asyncio.get_running_loop().create_task(self._call(number)) for number in range(CALLERS)]

    async def _call(self, number: int) -> None:
        streams = number % 2 == 1
        while not self._stop.is_set():
            async with self._world.post(ROUTES[number % len(ROUTES)], stream=streams) as answer:
                text = await answer.text()
                whole = "[DONE]" in text if streams else "finish_reason" in text
                if answer.status == 200 and whole:
                    self.ids.append(answer.headers["x-request-id"])
                else:
                    self.failed.append(f"{answer.status} {text[:300]}")

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)


async def make_edit(world: World, number: int, engines: list[Engine]) -> None:
    """Write both files, in either order: the gateway refuses one until the other fits. Some edits are invalid first."""
    models, routes = models_of(number, engines), routes_of(number)
    reload = world.parts.admin[keys.RELOADER]._now  # as SIGHUP does: the gateway polls a few times a second otherwise
    if number % 10 == 9:
        wrong = ("models:\n  - name: small\n    protocoll: openai\n", "models: [\n", "")[number // 10 % 3]
        (world.folder / "config.yaml").write_text(wrong)
        reload.set()
        await world.until(lambda: world.config["error"])
    if number % 2:
        world.write_config(models)
        world.write_policy(*routes)
    else:
        world.write_policy(*routes)
        world.write_config(models)
    if number % 4 == 0:
        reload.set()
        await asyncio.sleep(0)  # the next edit follows before this one is in use
        return
    reload.set()
    await world.until(lambda: is_in_effect(world, number, engines))


def is_in_effect(world: World, number: int, engines: list[Engine]) -> bool:
    models, current = models_of(number, engines), world.engine_set
    addresses = {model["name"]: model["api_base"] for model in models}
    return (
        not world.config["error"]
        and {name: engine.state.address for name, engine in current.by_name.items()} == addresses
        and current.prices["small"].input_usd == price_of(number)
    )


async def at_rest(world: World, number: int, engines: list[Engine]) -> tuple[Counter[str], int]:
    """Put an edit into effect, and wait until only its engines are open. Return what the process holds."""
    await make_edit(world, number, engines)
    await world.until(lambda: is_in_effect(world, number, engines))
    await world.until(lambda: len(world.live_engines._open) == len(world.engine_set.by_name))
    await world.until(lambda: not world.live_engines._former)
    return held()


def held() -> tuple[Counter[str], int]:
    """Return the objects by class, and the number of open files."""
    gc.collect()
    objects = Counter(name for one in gc.get_objects() if (name := type(one).__name__) in COUNTED)
    return objects, sum(1 for _ in Path("/proc/self/fd").iterdir())


def tasks() -> Counter[str]:
    """Return the tasks of the gateway, by name. The others are of the test or of a connection."""
    names = (task.get_name() for task in asyncio.all_tasks())
    return Counter(name for name in names if not name.startswith("Task-"))


@pytest.mark.long
@pytest.mark.parametrize("edits", [12, 200])
async def test_edits_fail_no_request_and_leave_nothing_behind(
    edits: int, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, engines: list[Engine]
) -> None:
    """Each answered request has one receipt. Engines, tasks and files do not accumulate. The last edit is in effect."""
    async with AsyncExitStack() as stack:
        models, routes = models_of(0, engines), routes_of(0)
        world = await stack.enter_async_context(following(tmp_path, redis_url, monkeypatch, models, *routes))
        answered: list[str] = []

        async def edit_under_load(numbers: range) -> tuple[Counter[str], int]:
            callers = Callers(world)
            for number in numbers:
                await make_edit(world, number, engines)
            await callers.stop()
            assert callers.failed == []
            assert len(callers.ids) >= CALLERS
            answered.extend(callers.ids)
            return await at_rest(world, 7, engines)

        objects_before, files_before = await edit_under_load(range(1, 6))
        tasks_before = tasks()
        objects, files = await edit_under_load(range(1, edits + 1))
        accumulated = Counter[str]()

        def has_no_more_tasks() -> bool:
            accumulated.clear()
            accumulated.update(tasks() - tasks_before)
            return not accumulated

        with suppress(TimeoutError):
            await world.until(has_no_more_tasks)
        assert accumulated == {}
        more = {name: count - objects_before[name] for name, count in objects.items()}
        assert all(count <= 3 for count in more.values()), more
        assert files <= files_before + 2 * CALLERS
        for engine in engines:
            assert engine.connections <= 4 * CALLERS

        last = 12 * edits + 1  # odd, and not divisible by 3: the alias is of `alone`, and the route `more` is gone
        await make_edit(world, last, engines)
        status, request_id = await world.ask("alias")
        assert status == 200
        answered.append(request_id)
        share = (await world.receipt(request_id))["student"]
        assert share["model"] == "small"
        tokens = share["input_tokens"] + share["output_tokens"]
        assert Decimal(share["cost_usd"]) == tokens * price_of(last)
        assert set(await world.models()) == set(ROUTES)
        await world.until(lambda: not world.metric("gkt_receipts_waiting"))
        recorded = await receipts_of(redis_url, tmp_path, len(answered))
        assert {name: count for name, count in recorded.items() if count > 1} == {}
        assert {name for name in recorded if "-shadow" not in name} == set(answered)
        problems = [line for line in world.log if line["log_level"] in {"error", "critical"}]
        assert [line for line in problems if line["event"] not in {"config_refused", "policies_refused"}] == []


async def receipts_of(redis_url: str, folder: Path, at_least: int) -> Counter[str]:
    """Return the ids of all receipts for the usage database, once there are enough."""
    outbox = RedisKeys(redis_prefix(folder)).outbox("acme")
    async with Redis.from_url(redis_url) as redis, asyncio.timeout(LIMIT_S):
        while True:
            entries = await redis.xrange(outbox)
            ids = Counter(Receipt.from_json(fields[b"receipt"]).id for _, fields in entries)
            if sum(count for name, count in ids.items() if "-shadow" not in name) >= at_least:
                return ids
            await asyncio.sleep(0.05)
