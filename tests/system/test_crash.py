"""Each request keeps exactly one receipt while processes die, hang or stop and Redis fails."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from gateway.local.redis import EmbeddedRedis
from gateway.redis.keys import RedisKeys
from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, STUDENT_ONLY, UNREACHED, GatewayProcess, guided, model, running_gateway
from tests.redis_faults import paused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from aiohttp import web

LEASE_S = 2.0
_numbers = itertools.count()
ALONE = {"model": "chat-student", "messages": [{"role": "user", "content": "Write a story."}], "max_tokens": 50}


class World:
    """Engines that can wait for a signal, and readers of the requests' Redis keys."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis = redis
        self.keys = RedisKeys(prefix)
        self.go = threading.Event()  # what waits may answer now
        self.teacher = FakeEngine(says("The answer begins", "length"))
        self.student = FakeEngine(says(" and ends."))

    async def intents(self) -> set[str]:
        names = await self._found("intents:*")
        return {one.decode() for name in names for one in await self.redis.hkeys(name)}

    async def receipts(self) -> list[dict[str, Any]]:
        return [orjson.loads(await self.redis.get(name)) for name in await self._found("receipt:*")]

    async def _found(self, what: str) -> list[bytes]:
        found: list[bytes] = await self.redis.keys(f"*{self.keys.prefix}:tenant:*:v?:{what}")
        return found

    async def waits(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Answer when `go` is set."""
        while not self.go.is_set():
            await asyncio.sleep(0.01)
        return await says(" and ends.")(request, body)


def guided_story() -> dict[str, Any]:
    """Return a new request each time: identical ones would share a teacher call."""
    messages = [{"role": "user", "content": f"Write story {next(_numbers)}."}]
    return {"model": "chat", "messages": messages, "max_tokens": 50}


async def dribbles(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    response = await begin_events(request)
    while True:
        await response.write(event(chunk({"content": " word"})))
        await asyncio.sleep(0.05)


@asynccontextmanager
async def world(redis_url: str, prefix: str) -> AsyncIterator[World]:
    async with Redis.from_url(redis_url) as redis:
        part = World(redis, prefix)
        with part.teacher.running(), part.student.running():
            yield part


@contextmanager
def a_gateway(folder: Path, world: World, redis_url: str, **redis: str) -> Iterator[GatewayProcess]:
    with running_gateway(
        folder,
        redis_url=redis_url,
        redis={"prefix": world.keys.prefix, "lease": f"{LEASE_S:g}s"} | redis,
        models=[
            model("big", "tgi", world.teacher.url),
            model("small", "openai", f"{world.student.url}/v1", continuation="trailing", echo=False),
        ],
        routes=[guided(deadline=f"{LEASE_S:g}s"), STUDENT_ONLY],
        tenants=UNREACHED,
    ) as process:
        yield process


def a_client(process: GatewayProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=process.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=body)


async def until(true: Any, limit_s: float = 10.0) -> None:
    """Wait until the awaitable that `true` creates returns the expected result."""
    give_up = time.monotonic() + limit_s
    while not await true():
        assert time.monotonic() < give_up, f"not within {limit_s:g} s"
        await asyncio.sleep(0.02)


def ids_with_status(process: GatewayProcess, status: str) -> list[str]:
    return [line["id"] for line in process.log if line["event"] == "request" and line["status"] == status]


def counted(process: GatewayProcess, metric: str, label: str = "") -> float:
    text = httpx.get(f"{process.admin_url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith((metric + "{", metric + " ")) and label in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_requests_of_a_killed_process_are_settled_once_by_the_others(redis_url: str, tmp_path: Path) -> None:
    """kill -9 with 4 requests at the teacher and 3 in a student's stream, after 5 answers: 7 requests are abandoned."""
    finished, at_teacher, streaming = 5, 4, 3
    async with world(redis_url, "killed") as part:
        with ExitStack() as stack:
            survivors = [stack.enter_context(a_gateway(tmp_path / name, part, redis_url)) for name in ("two", "three")]
            victim = stack.enter_context(a_gateway(tmp_path / "one", part, redis_url))
            async with a_client(victim) as client, asyncio.TaskGroup() as group:
                answers = await asyncio.gather(*(ask(client, guided_story()) for _ in range(finished)))
                assert {answer.status_code for answer in answers} == {200}
                done = {answer.headers["x-request-id"] for answer in answers}
                await until(lambda: _has(part.receipts, finished))

                part.student.behave = dribbles
                begun = [asyncio.Event() for _ in range(streaming)]

                async def stream(seen: asyncio.Event) -> None:
                    try:
                        async with client.stream("POST", "/v1/chat/completions", json=ALONE | {"stream": True}) as got:
                            async for line in got.aiter_lines():
                                if "word" in line:
                                    seen.set()
                    except httpx.HTTPError:
                        return
                    raise AssertionError("the stream ended as if it were whole")

                async def guide() -> None:
                    try:
                        await ask(client, guided_story())
                    except httpx.HTTPError:
                        return
                    raise AssertionError("answered")

                for seen in begun:
                    group.create_task(stream(seen))
                for seen in begun:
                    await seen.wait()
                part.teacher.behave = part.waits
                calls_before = len(part.teacher.requests)
                for _ in range(at_teacher):
                    group.create_task(guide())
                while len(part.teacher.requests) < calls_before + at_teacher:
                    await asyncio.sleep(0.01)
                left = await part.intents()
                assert len(left) == at_teacher + streaming
                victim.process.kill()
                killed = time.monotonic()

            await until(lambda: _has(part.receipts, finished + at_teacher + streaming), 5 * LEASE_S)
            took_s = time.monotonic() - killed
            await asyncio.sleep(LEASE_S)
            receipts = await part.receipts()
            assert Counter(receipt["status"] for receipt in receipts) == {"ok": finished, "abandoned": len(left)}
            lost = [receipt for receipt in receipts if receipt["status"] == "abandoned"]
            assert {receipt["id"] for receipt in lost} == left
            assert {receipt["id"] for receipt in receipts} == left | done
            assert Counter((one["mode"], one["stream"]) for one in lost) == {
                ("guided", False): at_teacher,
                ("student", True): streaming,
            }
            assert all(float(one["savings_usd"]) == -float(one["cost_usd"]) < 0 for one in lost)
            assert await part.intents() == set()
            by_process = [ids_with_status(one, "abandoned") for one in survivors]
            assert Counter(by_process[0] + by_process[1]) == Counter(left)
            for name in ("gkt_requests_total", "gkt_intents_abandoned_total"):
                label = 'status="abandoned"' if name == "gkt_requests_total" else ""
                assert sum(counted(one, name, label) for one in survivors) == len(left)
            async with a_client(survivors[0]) as client:
                shown = (await client.get(f"/v1/receipts/{lost[0]['id']}")).json()
                assert shown["status"] == "abandoned"
    print(
        f"finished {finished}, at the teacher {at_teacher}, streaming {streaming}: abandoned {len(lost)} "
        f"({len(by_process[0])} + {len(by_process[1])}), receipts {len(receipts)}, {took_s:.1f} s after the kill "
        f"at a lease of {LEASE_S:g} s"
    )


async def _has(what: Any, count: int) -> bool:
    return len(await what()) == count


@pytest.mark.long
async def test_receipts_of_a_resumed_process_replace_abandoned_ones(redis_url: str, tmp_path: Path) -> None:
    """SIGSTOP for longer than the lease: the requests are abandoned.

    SIGCONT: they are answered, and their final receipts stay.
    """
    async with world(redis_url, "hung") as part:
        part.student.behave = part.waits
        with (
            a_gateway(tmp_path / "one", part, redis_url) as hung,
            a_gateway(tmp_path / "two", part, redis_url) as other,
        ):
            async with a_client(hung) as client:
                asking = [asyncio.ensure_future(ask(client, ALONE)) for _ in range(3)]  # noqa: TID251
                await until(lambda: _has(part.intents, 3))
                # A call that was still connecting when it hung would come too late for its time-out.
                while sum(body["messages"] == ALONE["messages"] for body in part.student.requests) < 3:
                    await asyncio.sleep(0.01)
                hung.process.send_signal(signal.SIGSTOP)
                try:
                    await until(lambda: _has(part.receipts, 3), 5 * LEASE_S)
                    assert {one["status"] for one in await part.receipts()} == {"abandoned"}
                    while len(ids_with_status(other, "abandoned")) < 3:  # Redis has them a moment earlier
                        await asyncio.sleep(0.01)
                    part.go.set()
                finally:
                    hung.process.send_signal(signal.SIGCONT)
                answers = await asyncio.gather(*asking)
                assert [answer.status_code for answer in answers] == [200] * 3

            async def true_receipts() -> bool:
                return {one["status"] for one in await part.receipts()} == {"ok"}

            await until(true_receipts)
            receipts = await part.receipts()
            assert {one["id"] for one in receipts} == {answer.headers["x-request-id"] for answer in answers}
            assert await part.intents() == set()
            replaced = hung.wait_for_log("abandoned_replaced")["ids"]
            await asyncio.sleep(1.5 * LEASE_S)
            assert await true_receipts()
            assert len(ids_with_status(other, "abandoned")) == 3
    print(f"abandoned 3, then replaced by the truth {len(receipts)} (first word of it: {len(replaced)} at once)")


@pytest.mark.long
async def test_an_empty_redis_gets_the_requests_in_flight(tmp_path: Path) -> None:
    """Two requests end after the restart: a receipt each. Two others die with their process: abandoned."""
    async with EmbeddedRedis() as server, world(server.url, "restart") as part:
        part.student.behave = part.waits
        with (
            a_gateway(tmp_path / "one", part, server.url) as first,
            a_gateway(tmp_path / "two", part, server.url) as second,
        ):
            async with a_client(first) as one, a_client(second) as two:
                ending = [asyncio.ensure_future(ask(one, ALONE)) for _ in range(2)]  # noqa: TID251
                dying = [asyncio.ensure_future(ask(two, ALONE)) for _ in range(2)]  # noqa: TID251
                await until(lambda: _has(part.intents, 4))
                before = await part.intents()
                await server.stop()
                await asyncio.sleep(0.3)
                await server.start()
                await until(lambda: _has(part.intents, 4))
                assert await part.intents() == before
                second.process.kill()
                for gone in await asyncio.gather(*dying, return_exceptions=True):
                    assert isinstance(gone, httpx.HTTPError)
                part.go.set()
                answers = await asyncio.gather(*ending)
            assert [answer.status_code for answer in answers] == [200, 200]
            await until(lambda: _has(part.receipts, 4), 6 * LEASE_S)
            receipts = await part.receipts()
            assert Counter(one["status"] for one in receipts) == {"ok": 2, "abandoned": 2}
            assert {one["id"] for one in receipts} == before
            assert await part.intents() == set()
    print("after a restart of Redis: 2 ok, 2 abandoned, 4 receipts")


async def test_a_stopped_process_leaves_no_intent(redis_url: str, tmp_path: Path) -> None:
    """Each request has its receipt, answered during the drain or canceled, and none is abandoned."""
    async with world(redis_url, "stopped") as part:
        part.student.behave = part.waits
        with a_gateway(tmp_path, part, redis_url) as process:
            async with a_client(process) as client:
                asking = [asyncio.ensure_future(ask(client, ALONE)) for _ in range(6)]  # noqa: TID251
                await until(lambda: _has(part.intents, 6))
                stopping = asyncio.ensure_future(asyncio.to_thread(process.terminate))  # noqa: TID251
                await asyncio.to_thread(process.wait_for_log, "draining")
                part.go.set()
                answers = await asyncio.gather(*asking)
                assert await stopping == 0
            assert [answer.status_code for answer in answers] == [200] * 6
            assert process.wait_for_log("stopped")["receipts_kept"] is True
            receipts = await part.receipts()
            assert Counter(one["status"] for one in receipts) == {"ok": 6}
            assert await part.intents() == set()
    print(f"after SIGTERM: {len(receipts)} receipts, 0 intents")


async def test_a_disconnect_during_admission_leaves_no_intent_or_reservation(tmp_path: Path) -> None:
    """Redis is paused and four callers disconnect before it resumes: four receipts and no engine call."""
    async with EmbeddedRedis() as server, world(server.url, "left") as part:
        with a_gateway(tmp_path, part, server.url, timeout="4s", lease="20s") as process:
            async with a_client(process) as client:
                assert (await ask(client, ALONE)).status_code == 200
                calls_before = len(part.student.requests)
                async with paused(server.url):
                    gone = await asyncio.gather(
                        *(client.post("/v1/chat/completions", json=ALONE, timeout=1.5) for _ in range(4)),
                        return_exceptions=True,
                    )
                    assert [type(one) for one in gone] == [httpx.ReadTimeout] * 4
                    await asyncio.sleep(0.3)
                await until(lambda: _has(part.receipts, 5))
                assert Counter(one["status"] for one in await part.receipts()) == {"ok": 1, "client_gone": 4}
                assert await part.intents() == set()
                assert len(part.student.requests) == calls_before
    print("left while admitted: 4 client_gone, 0 intents")


@pytest.mark.long
async def test_a_blocked_redis_delays_each_caller_by_at_most_one_timeout(tmp_path: Path) -> None:
    """Five seconds, eight callers without pauses: each waits at most once, and all are answered, with receipts."""
    callers = 8
    async with EmbeddedRedis() as server, world(server.url, "still") as part:
        with a_gateway(tmp_path, part, server.url) as process:
            async with a_client(process) as client:
                waited_ms: list[float] = []
                over = False

                async def caller() -> int:
                    count = 0
                    while not over:
                        answer = await ask(client, ALONE)
                        assert answer.status_code == 200
                        waited_ms.append(float(answer.headers["x-gkt-admission-ms"]))
                        count += 1
                        await asyncio.sleep(0.02)
                    return count

                assert (await ask(client, ALONE)).status_code == 200
                async with paused(server.url):
                    calling = [asyncio.ensure_future(caller()) for _ in range(callers)]  # noqa: TID251
                    await asyncio.sleep(5)
                    over = True
                    counts = await asyncio.gather(*calling)
                slow = [one for one in waited_ms if one >= 150]
                # Each could have been there when it began. As many again for a machine that is busy itself.
                assert len(slow) <= 2 * callers
                assert len(waited_ms) == sum(counts) >= 10 * callers
                await until(lambda: _has(part.receipts, 1 + len(waited_ms)), 15)
                assert {one["status"] for one in await part.receipts()} == {"ok"}
                assert await part.intents() == set()
                missed = counted(process, "gkt_intents_missed_total")
                assert missed == len(waited_ms)
    print(
        f"Redis stopped for 5 s: {len(waited_ms)} requests answered, {len(slow)} waited for it "
        f"(longest {max(waited_ms):.0f} ms), {missed:.0f} without an intent"
    )
