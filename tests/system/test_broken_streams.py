"""Streams of real engines that break within the answer: the next student continues it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest

from tests.gateway_process import KEY, GatewayProcess, guided, local_models, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.local.stack import LocalStack

pytestmark = pytest.mark.models

QUESTION = "Write three sentences about the sea."


@dataclass
class CuttingProxy:
    """A TCP proxy that resets a connection after `events` events of a stream. It forwards other replies."""

    target: str
    events: int
    url: str = ""
    cuts: int = 0

    @contextmanager
    def running(self) -> Iterator[CuttingProxy]:
        loop = asyncio.new_event_loop()
        started = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            started.set()
            with suppress(asyncio.CancelledError):
                await server.serve_forever()

        def run() -> None:
            task = loop.create_task(serve())
            loop.run_forever()
            others = asyncio.all_tasks(loop)
            for one in others:
                one.cancel()
            loop.run_until_complete(asyncio.gather(*others, return_exceptions=True))
            assert task.done()
            loop.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = urlsplit(self.target)
        from_engine, to_engine = await asyncio.open_connection(address.hostname, address.port)
        forward = asyncio.get_running_loop().create_task(_copy(reader, to_engine))
        seen = 0
        try:
            while data := await from_engine.read(65_536):
                seen += data.count(b"data: {")
                if seen > self.events:
                    self.cuts += 1
                    writer.transport.abort()
                    return
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            forward.cancel()
            to_engine.close()
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)


@dataclass
class World:
    proxy: CuttingProxy
    gateway: GatewayProcess


@pytest.fixture(scope="module")
def world(engines: LocalStack, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with CuttingProxy(engines.student.url, events=9).running() as proxy:
        names = {"students": ["cut", "small"]}
        retries = {"retries": {"num_retries": 1, "backoff": "10ms"}}
        route = guided("chat")
        del route["student"]
        with running_gateway(
            tmp_path_factory.mktemp("broken"),
            redis_url=redis_url,
            redis={"prefix": "broken"},
            models=[
                *local_models(engines),
                model("cut", "openai", proxy.url + "/v1"),
            ],
            routes=[
                route | names | retries,
                guided("chat-whole"),
                {"model": "student", "mode": "student", "baseline": "big"} | names | retries,
                {"model": "student-whole", "mode": "student", "student": "small", "baseline": "big"},
            ],
        ) as gateway:
            wait_until_probed(gateway.admin_url)
            yield World(proxy, gateway)


def stream(gateway: GatewayProcess, route: str, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
    """Return the text and the chunks of a greedy answer."""
    body = {"model": route, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}, **fields}
    headers = {"Authorization": f"Bearer {KEY}"}
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=60)
    *events, last = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert last == "[DONE]", last
    chunks = [orjson.loads(event) for event in events]
    return "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"]), chunks


@pytest.mark.parametrize(("route", "whole"), [("student", "student-whole"), ("chat", "chat-whole")])
def test_a_second_student_finishes_a_cut_answer(world: World, route: str, whole: str) -> None:
    """Both students are one model, so that the greedy answer is that of one student that was not cut."""
    before = world.proxy.cuts
    text, chunks = stream(world.gateway, route, max_tokens=200)
    expected, whole_chunks = stream(world.gateway, whole, max_tokens=200)
    assert world.proxy.cuts == before + 1
    assert text == expected
    usage, facts = chunks[-1]["usage"], chunks[-1]["gkt"]
    assert facts["student"] == "small"
    assert facts["failed_attempts"] == 1
    assert facts["continued_tokens"] >= 5
    assert abs(usage["completion_tokens"] - whole_chunks[-1]["usage"]["completion_tokens"]) <= 2
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
