"""A real HAProxy with the configuration that is delivered: streams pass at once, and who leaves is left alone."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from aiohttp import web

from tests.deploy.written import DEPLOY
from tests.fakes import FakeEngine, says, served
from tests.gateway_process import KEY, STUDENT_ONLY, model, running_gateway
from tests.installed import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = DEPLOY / "compose" / "haproxy.cfg"
LIMIT_S = 20.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def with_servers(text: str, addresses: list[str]) -> str:
    """Docker's DNS names the replicas there; here they stand in the file."""
    for port in re.findall(r"^    server-template .* gateway:(\d+) .*$", text, re.MULTILINE):
        lines = [f"    server g{number} {address}" for number, address in enumerate(addresses)]
        text = re.sub(rf"^    server-template .* gateway:{port} .*$", "\n".join(lines), text, flags=re.MULTILINE)
    return text


@contextmanager
def balanced(folder: Path, urls: list[str]) -> Iterator[str]:
    """HAProxy over these; the callers' address."""
    port = free_port()
    text = with_servers(CONFIG.read_text("utf-8"), [url.removeprefix("http://") for url in urls])
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}").replace("bind :8081", f"bind 127.0.0.1:{free_port()}")
    (folder / "haproxy.cfg").write_text(text, "utf-8")
    with (folder / "haproxy.log").open("w") as log:
        process = subprocess.Popen(
            [program("haproxy"), "-db", "-f", folder / "haproxy.cfg"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            _until_open(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=LIMIT_S)


def _until_open(port: int) -> None:
    give_up = time.monotonic() + LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < give_up, "HAProxy did not start"
            time.sleep(0.05)
        else:
            return


class Replica:
    """A fake gateway: `status` is its reply to new requests and to /readyz."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.request_count = 0
        self.event_received = threading.Event()

    async def readyz(self, _: web.Request) -> web.Response:
        return web.Response(status=200)

    async def chat(self, request: web.Request) -> web.Response:
        await request.read()
        self.request_count += 1
        return web.Response(status=self.status, text="it")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Send one event, and the next one after the first was received."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        if await asyncio.to_thread(self.event_received.wait, LIMIT_S):
            await response.write(b"data: second\n\n")
        await response.write_eof()
        return response

    def app(self) -> web.Application:
        app = web.Application(client_max_size=10_000_000)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/healthz", self.readyz)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/stream", self.stream)
        return app


def test_haproxy_accepts_the_configuration() -> None:
    done = subprocess.run(
        [program("haproxy"), "-c", "-f", CONFIG], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_event_passes_before_the_next_one_is_there(tmp_path: Path) -> None:
    """The second one is sent only when the first was heard: what is held back would never come."""
    replica = Replica()
    with (
        served(replica.app()) as url,
        balanced(tmp_path, [url]) as way,
        httpx.stream("POST", f"{way}/stream", timeout=LIMIT_S) as response,
    ):
        event_received = b""
        for part in response.iter_raw():
            event_received += part
            if b"first" in event_received:
                replica.event_received.set()
    assert event_received == b"data: first\n\ndata: second\n\n"


@pytest.mark.parametrize("size", [10, 50_000])
def test_requests_rejected_by_a_draining_replica_go_to_another_one(size: int, tmp_path: Path) -> None:
    """Health checks of the draining replica still succeed."""
    leaving, staying = Replica(503), Replica()
    with (
        served(leaving.app()) as one,
        served(staying.app()) as other,
        balanced(tmp_path, [one, other]) as way,
    ):
        statuses = [
            httpx.post(f"{way}/v1/chat/completions", content=b"x" * size, timeout=LIMIT_S).status_code
            for _ in range(12)
        ]
    assert statuses == [200] * 12
    assert leaving.request_count > 0
    assert staying.request_count == 12


def test_a_dead_replica_gets_no_requests(tmp_path: Path) -> None:
    """Before its checks say so, another one has its requests."""
    staying = Replica()
    with served(staying.app()) as there, balanced(tmp_path, [f"http://127.0.0.1:{free_port()}", there]) as way:
        statuses = [
            httpx.post(f"{way}/v1/chat/completions", content=b"x", timeout=LIMIT_S).status_code for _ in range(12)
        ]
    assert statuses == [200] * 12
    assert staying.request_count == 12


@pytest.mark.parametrize("status", [400, 429, 500, 502, 504])
def test_other_failures_are_not_retried(status: int, tmp_path: Path) -> None:
    """An engine may have been paid for it."""
    replicas = Replica(status), Replica(status)
    with served(replicas[0].app()) as one, served(replicas[1].app()) as other, balanced(tmp_path, [one, other]) as way:
        assert httpx.post(f"{way}/v1/chat/completions", content=b"x", timeout=LIMIT_S).status_code == status
    assert sum(replica.request_count for replica in replicas) == 1


@pytest.mark.long
def test_no_request_fails_while_one_of_two_gateways_is_stopped(tmp_path: Path, redis_url: str) -> None:
    body = {"model": "chat-student", "messages": [{"role": "user", "content": "Hi"}]}
    with ExitStack() as stack:
        engine = stack.enter_context(FakeEngine(says("Hello there")).running())
        gateways = [
            stack.enter_context(
                running_gateway(
                    tmp_path / f"{number}",
                    redis_url=redis_url,
                    redis={"prefix": "balanced"},
                    models=[model("big", "tgi", engine.url), model("small", "openai", engine.url + "/v1")],
                    routes=[STUDENT_ONLY],
                )
            )
            for number in range(2)
        ]
        way = stack.enter_context(balanced(tmp_path, [gateway.url for gateway in gateways]))
        callers = stack.enter_context(
            httpx.Client(base_url=way, headers={"Authorization": f"Bearer {KEY}"}, timeout=LIMIT_S)
        )
        statuses = []
        for number in range(40):
            if number == 10:
                gateways[0].process.terminate()
            statuses.append(callers.post("/v1/chat/completions", json=body).status_code)
        assert gateways[0].process.wait(timeout=LIMIT_S) == 0
    assert statuses == [200] * 40
