"""Gateways of two versions on one Redis, between one teacher and one student, under load."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import orjson
from redis.asyncio import Redis

from gateway.local.redis import EmbeddedRedis
from gateway.redis.keys import RedisKeys
from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import KEY, GatewayProcess, guided, model
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from aiohttp import web

CAP = 3
CALLERS = 10
OPENING, REST = "The answer to your question begins", " here and ends there."
KEYS = RedisKeys("upgrade")


class Teacher:
    """Answer after a pause; count the calls and their maximum concurrency."""

    def __init__(self) -> None:
        self.calls = self.now = self.most = 0

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.05)
            return await says(OPENING, "length")(request, body)
        finally:
            self.now -= 1


class Student:
    """Answer JSON at once. A stream waits for `go` after its first word."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            return await says(REST)(request, body)
        response = await begin_events(request)
        await response.write(event(chunk({"content": " here"})))
        while not self.go.is_set():  # set by another thread's loop
            await asyncio.sleep(0.01)
        await response.write(event(chunk({"content": " and ends there."})))
        await response.write(event({**chunk({}, "stop")}) + b"data: [DONE]\n\n")
        await response.write_eof()
        return response


@dataclass
class Balancer:
    """Send each request to the next gateway in service, without retries."""

    client: httpx.AsyncClient
    urls: list[str] = field(default_factory=list)
    unheard: Counter[str] = field(default_factory=Counter)  # by gateway: requests that have no head of an answer yet
    answers: dict[str, str] = field(default_factory=dict)  # by request: the gateway that answered
    failed: list[str] = field(default_factory=list)
    _turn: int = 0

    async def ask(self, text: str, *, at: str | None = None, stream: bool = False) -> None:
        self._turn += 1
        url = at or self.urls[self._turn % len(self.urls)]
        body = {"model": "chat", "messages": [{"role": "user", "content": text}], "stream": stream}
        self.unheard[url] += 1
        has_head = False
        try:
            async with self.client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                self.unheard[url] -= 1
                has_head = True
                generated = _generated_text(await answer.aread(), stream=stream)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            self.unheard[url] -= not has_head
            self.failed.append(f"{url}: {error!r}")
            return
        if answer.status_code != 200 or generated != "The answer to your question" + REST:
            self.failed.append(f"{url}: {answer.status_code}, {generated}")
        self.answers[answer.headers["x-request-id"]] = url

    async def take_out(self, url: str) -> None:
        """Take a gateway out of service and wait until it has received all sent requests, as a preStop pause does."""
        self.urls.remove(url)
        await until(lambda: self.unheard[url] == 0)


def _generated_text(raw: bytes, *, stream: bool) -> str:
    if not stream:
        return str(orjson.loads(raw)["choices"][0]["message"]["content"])
    events = raw.decode().split("\n\n")
    assert "data: [DONE]" in events, raw
    chunks = [orjson.loads(one.removeprefix("data: ")) for one in events if one.startswith("data: {")]
    return "".join(one["choices"][0]["delta"].get("content", "") for one in chunks if one["choices"])


async def until(true: Callable[[], bool], limit_s: float = 60) -> None:
    give_up = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


class World:
    """Gateways of two versions between one teacher and one student, and callers that send requests without a pause."""

    def __init__(self, folder: Path, server: EmbeddedRedis, redis: Redis, client: httpx.AsyncClient) -> None:
        self.folder, self.server, self.redis = folder, server, redis
        self.teacher, self.student = Teacher(), Student()
        self.student.go.set()
        self.balancer = Balancer(client)
        self.gateways: list[GatewayProcess] = []
        self.engines: tuple[str, str] = ("", "")
        self.done = False

    async def start(self, **version: Any) -> GatewayProcess:
        """Start a gateway of a version, and put it in service."""
        teacher, student = self.engines
        version.setdefault("usage", {"run": "host"})
        process = GatewayProcess(
            self.folder / f"gateway-{len(self.gateways)}",
            redis_url=self.server.url,
            redis={"prefix": KEYS.prefix, "lease": "60s", "timeout": "5s"},
            data=str(self.folder / "data"),
            models=[
                model("big", "tgi", teacher, max_concurrency=CAP, batch={"max_size": CAP}),
                model("small", "openai", f"{student}/v1", continuation="trailing", echo=False),
            ],
            routes=[guided(deadline="60s", cache_ttl="0s")],
            **version,
        )
        self.gateways.append(process)
        await asyncio.to_thread(process.start)
        await asyncio.to_thread(wait_until_up, process.admin_url)
        self.balancer.urls.append(process.url)
        return process

    async def stop(self, process: GatewayProcess) -> None:
        """Take a gateway out of service, then stop it while streams are in flight."""
        self.student.go.clear()
        streams = [asyncio.ensure_future(self.balancer.ask(f"Stream {n}", at=process.url, stream=True)) for n in "abc"]  # noqa: TID251
        await self.balancer.take_out(process.url)
        stopped = asyncio.ensure_future(asyncio.to_thread(process.terminate))  # noqa: TID251
        await asyncio.to_thread(process.wait_for_log, "draining", 60.0)
        assert not any(one.done() for one in streams)
        self.student.go.set()
        await asyncio.gather(*streams)
        assert await stopped == 0
        stopped_line = process.wait_for_log("stopped")
        assert (stopped_line["cut"], stopped_line["receipts_kept"]) == (0, True)

    async def load(self) -> None:
        """Run callers that send one request after the other.

        Every third caller streams; one caller repeats its question.
        """

        async def caller(number: int) -> None:
            while not self.done:
                text = "What all want to know" if number == 0 else f"{number}: {os.urandom(4).hex()}"
                await self.balancer.ask(text, stream=number % 3 == 0)

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))

    async def receipts(self, process: GatewayProcess) -> list[dict[str, Any]]:
        """Return the receipts of all answers as a gateway shows them."""
        found = []
        for name in self.balancer.answers:
            answer = await self.balancer.client.get(f"{process.url}/v1/receipts/{name}")
            assert answer.status_code == 200, answer.text
            found.append(answer.json())
        return found

    async def some(self, requests: int = 40) -> None:
        """Wait until `requests` more requests are answered."""
        enough = len(self.balancer.answers) + requests
        await until(lambda: len(self.balancer.answers) >= enough or bool(self.balancer.failed))


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedRedis())
        redis = await stack.enter_async_context(Redis.from_url(server.url))
        client = await stack.enter_async_context(
            httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=120)
        )
        here = World(folder, server, redis, client)
        teacher, student = (stack.enter_context(FakeEngine(one).running()) for one in (here.teacher, here.student))
        here.engines = (teacher.url, student.url)
        try:
            yield here
        finally:
            here.done = True
            for process in here.gateways:
                await asyncio.to_thread(process.close)
