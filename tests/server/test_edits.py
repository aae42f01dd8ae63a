"""Edits of config.yaml while requests run: new workers take over, and no request of the earlier ones is cut."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from ruamel.yaml import YAML

from gateway.server.supervisor import MAX_RETIRED
from tests.fakes import FakeEngine, begin_events, chunk, event, says
from tests.gateway_process import COMMAND, KEY, STUDENT_ONLY, GatewayProcess, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from aiohttp import web

LIMIT_S = 60.0
CALLERS = 8
HEADERS = {"Authorization": f"Bearer {KEY}"}


def body(*, stream: bool) -> dict[str, Any]:
    return {"model": "chat-student", "stream": stream, "messages": [{"role": "user", "content": "Write."}]}


class HeldStreams:
    """An engine whose streams send one word, and the rest after `resume`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._resumed = asyncio.Event()

    async def answer(self, request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        self._loop = asyncio.get_running_loop()
        response = await begin_events(request)
        await response.write(event(chunk({"content": "A ship"})))
        await self._resumed.wait()
        await response.write(event(chunk({"content": " sails."}, "stop")))
        return response

    def resume(self) -> None:
        self._loop.call_soon_threadsafe(self._resumed.set)


class Callers:
    """Requests without pauses, JSON and streams. Half of the callers keep their connections."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.ids: list[str] = []
        self.failed: list[str] = []

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._call(stop, stream=bool(number % 2), keeps=number < CALLERS // 2))
            try:
                yield
            finally:
                stop.set()

    async def _call(self, stop: asyncio.Event, *, stream: bool, keeps: bool) -> None:
        connector = aiohttp.TCPConnector(force_close=not keeps)
        async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:
            while not stop.is_set():
                try:
                    async with session.post(f"{self._url}/v1/chat/completions", json=body(stream=stream)) as reply:
                        text = await reply.text()
                except aiohttp.ClientError as error:
                    self.failed.append(repr(error))
                    continue
                if reply.status == 200 and "sea." in text and (not stream or "[DONE]" in text):
                    self.ids.append(reply.headers["x-request-id"])
                else:
                    self.failed.append(f"{reply.status} {text}")


class Running:
    """A gateway whose config.yaml the test edits."""

    def __init__(self, process: GatewayProcess, session: aiohttp.ClientSession) -> None:
        self.process, self.session = process, session
        self.config: dict[str, Any] = YAML(typ="safe").load(process.config)
        self._loaded = 0

    def write(self, **sections: Any) -> None:
        """Replace sections of config.yaml."""
        self.config |= sections
        new = self.process.config.with_name(".config.yaml.new")
        YAML().dump(self.config, new)
        new.rename(self.process.config)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [line for line in list(self.process.log) if line["event"] == name]

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not true():
                await asyncio.sleep(0.02)

    async def edit(self, **sections: Any) -> dict[str, Any]:
        """Edit config.yaml, and return the log line of its use."""
        loaded = len(self.lines("config_loaded"))
        self.write(**sections)
        await self.until(lambda: len(self.lines("config_loaded")) > loaded)
        return self.lines("config_loaded")[-1]

    async def detail(self) -> dict[str, Any]:
        async with self.session.get(f"{self.process.admin_url}/readyz") as reply:
            detail: dict[str, Any] = await reply.json()
        return detail

    async def metrics(self) -> str:
        async with self.session.get(f"{self.process.admin_url}/metrics") as reply:
            return await reply.text()

    async def ask(self) -> int:
        async with self.session.post(
            f"{self.process.url}/v1/chat/completions", json=body(stream=False), headers=HEADERS
        ) as reply:
            await reply.read()
            return reply.status

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[aiohttp.ClientResponse]:
        """Begin a stream, whose first word has arrived."""
        async with self.session.post(
            f"{self.process.url}/v1/chat/completions", json=body(stream=True), headers=HEADERS
        ) as reply:
            assert reply.status == 200
            assert b"A ship" in await reply.content.readuntil(b"\n\n")
            yield reply


@asynccontextmanager
async def running(folder: Path, redis_url: str, engine: FakeEngine, **config: Any) -> AsyncIterator[Running]:
    models = [model("small", "openai", f"{engine.url}/v1", continuation="none")]
    routes = [STUDENT_ONLY | {"baseline": "small"}]
    connector = aiohttp.TCPConnector(force_close=True)  # the kernel selects a worker for each request
    async with aiohttp.ClientSession(connector=connector) as session:
        with running_gateway(folder, models=models, routes=routes, redis_url=redis_url, **config) as process:
            yield Running(process, session)


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine(says("A ship sails over the sea.")).running() as engine:
        yield engine


@pytest.mark.parametrize("workers", [1, 2])
async def test_edits_under_load_fail_no_request_and_cut_no_stream(
    tmp_path: Path, redis_url: str, engine: FakeEngine, workers: int
) -> None:
    """A stream that began before two edits ends after them. New requests use the new settings. Each has one receipt."""
    held = HeldStreams()
    async with running(tmp_path, redis_url, engine, server={"workers": workers}) as gateway:
        engine.behave = held.answer
        async with gateway.streaming() as stream:
            engine.behave = says("A ship sails over the sea.")
            callers = Callers(gateway.process.url)
            with FakeEngine(says("A boat sails over the sea.")).running() as other:
                async with callers.calling():
                    moved = model("small", "openai", f"{other.url}/v1", continuation="none")
                    server = gateway.config["server"] | {"workers": workers + 1, "max_in_flight": 500}
                    line = await gateway.edit(models=[moved], server=server)
                    assert line["settings"] == ["server.max_in_flight", "server.workers", "models.small"]
                    assert line["workers"] == workers + 1
                    before, answered = len(other.requests), len(callers.ids)
                    await gateway.until(lambda: len(callers.ids) > answered + 50)
                    assert len(other.requests) > before
                    asked = len(engine.requests)
                    assert await gateway.ask() == 200
                    await gateway.edit(log={"format": "json", "level": "debug"})
                    answered = len(callers.ids)
                    await gateway.until(lambda: len(callers.ids) > answered + 50)
                    assert len(engine.requests) <= asked + CALLERS, "requests of the edit go to its engine"
            assert callers.failed == []
            assert not any(reply["cut"] for reply in gateway.lines("stopped"))
            held.resume()
            rest = await stream.text()
        assert " sails." in rest
        assert rest.endswith("data: [DONE]\n\n")
        await gateway.until(lambda: len(gateway.lines("stopped")) == 2 * workers + 1)
        ids = [*callers.ids, stream.headers["x-request-id"]]
        logged = [line["id"] for line in gateway.lines("request") if line["status"] == "ok"]
        assert sorted(one for one in logged if one in set(ids)) == sorted(ids)
        assert all(line["receipts_kept"] for line in gateway.lines("stopped"))
        assert gateway.lines("worker_ended") == []
        assert gateway.process.terminate() == 0


async def test_an_invalid_edit_is_reported_and_changes_nothing(
    tmp_path: Path, redis_url: str, engine: FakeEngine
) -> None:
    """Then a port that is in use, which only the start of workers finds, and a valid edit."""
    async with running(tmp_path, redis_url, engine) as gateway:
        version = (await gateway.detail())["config"]["version"]
        gateway.write(models=[])
        await gateway.until(lambda: gateway.lines("config_refused"))
        (issue,) = gateway.lines("config_refused")[0]["issues"]
        assert "config.yaml:" in issue
        await _shows(gateway, version, issue)
        models = [model("small", "openai", f"{engine.url}/v1", continuation="none")]
        own = gateway.config["server"]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            gateway.write(models=models, server=own | {"port": taken.getsockname()[1]})
            await gateway.until(lambda: len(gateway.lines("config_refused")) == 2)
            (issue,) = gateway.lines("config_refused")[1]["issues"]
            assert "is already in use" in issue
            await _shows(gateway, version, issue)
        assert await gateway.ask() == 200
        gateway.write(server=own)
        await gateway.until(lambda: gateway.lines("config_valid_again") or gateway.lines("config_loaded"))
        async with asyncio.timeout(LIMIT_S):
            while (await gateway.detail())["config"]["error"]:
                await asyncio.sleep(0.02)


async def test_workers_that_do_not_start_leave_the_requests_to_the_former_ones(
    tmp_path: Path, redis_url: str, engine: FakeEngine
) -> None:
    """One of them is ready before another fails, so it has requests. Then a valid edit is used."""
    async with running(tmp_path, redis_url, engine, server={"workers": 2}, entry=COMMAND) as gateway:
        callers = Callers(gateway.process.url)
        async with callers.calling():
            gateway.write(server=gateway.config["server"] | {"workers": 3})
            async with asyncio.timeout(LIMIT_S):
                while (pid := worker_pid(gateway, 4)) is None:
                    await asyncio.sleep(0.002)
            os.kill(pid, signal.SIGSTOP)
            await gateway.until(lambda: len(gateway.lines("worker_ready")) == 2 + 2)
            answered = len(callers.ids)
            await gateway.until(lambda: len(callers.ids) > answered + 20)
            os.kill(pid, signal.SIGKILL)
            await gateway.until(lambda: gateway.lines("config_refused"))
            answered = len(callers.ids)
            await gateway.until(lambda: len(callers.ids) > answered + 50)
        assert callers.failed == []
        (issue,) = gateway.lines("config_refused")[0]["issues"]
        assert "worker 4 ended during its start with exit code -9" in issue
        await gateway.until(lambda: len(gateway.lines("stopped")) == 2)
        line = await gateway.edit(server=gateway.config["server"] | {"workers": 2, "max_in_flight": 500})
        assert line["settings"] == ["server.max_in_flight"]
        assert await gateway.ask() == 200
        assert gateway.lines("worker_ended") == []
        assert gateway.process.terminate() == 0


def worker_pid(gateway: Running, number: int) -> int | None:
    """Return the process of a worker that may still be starting; None: there is none."""
    supervisor = gateway.process.process.pid
    for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:  # the process has ended
            continue
        if b"gateway.server.worker" in command and json.loads(command[-2])["number"] == number:
            return int(child)
    return None


async def test_an_edit_with_an_invalid_host_is_refused_and_the_next_one_is_used(
    tmp_path: Path, redis_url: str, engine: FakeEngine
) -> None:
    async with running(tmp_path, redis_url, engine) as gateway:
        own = gateway.config["server"]
        gateway.write(server=own | {"host": f"{'a' * 64}.example"})
        await gateway.until(lambda: gateway.lines("config_refused"))
        (issue,) = gateway.lines("config_refused")[0]["issues"]
        assert "is no host name or address" in issue
        await gateway.edit(server=own | {"max_in_flight": 500})
        assert await gateway.ask() == 200


async def test_a_retired_worker_reports_no_invalid_policies(tmp_path: Path, redis_url: str, engine: FakeEngine) -> None:
    """A policy names a model that a later edit of config.yaml adds. The worker of a stream has only the former one."""
    held = HeldStreams()
    engine.behave = held.answer
    policy = tmp_path / "policies" / "acme.yaml"
    async with running(tmp_path, redis_url, engine) as gateway, gateway.streaming() as stream:
        policy.write_text(policy.read_text().replace("student: small", "student: tiny"))
        await gateway.until(lambda: gateway.lines("policies_refused"))
        small = gateway.config["models"]
        await gateway.edit(models=[*small, model("tiny", "openai", f"{engine.url}/v1", continuation="none")])
        async with asyncio.timeout(LIMIT_S):
            while "gkt_policy_stale 0.0" not in await gateway.metrics():
                await asyncio.sleep(0.02)
        assert gateway.lines("stopped") == []
        held.resume()
        assert (await stream.text()).endswith("data: [DONE]\n\n")


async def test_receipts_are_written_by_one_usage_worker_after_an_edit(
    tmp_path: Path, redis_url: str, engine: FakeEngine
) -> None:
    """A stream keeps a worker of the former edition. Its usage worker ends, since the settings of usage may differ."""
    held = HeldStreams()
    engine.behave = held.answer
    usage = {"run": "host", "url": f"sqlite:///{tmp_path / 'usage.db'}"}
    async with running(tmp_path, redis_url, engine, usage=usage) as gateway, gateway.streaming() as stream:
        await gateway.until(lambda: gateway.lines("usage_worker"))
        await gateway.edit(receipts={"ttl": "2d"})
        await gateway.until(lambda: len(gateway.lines("usage_worker")) == 2 and gateway.lines("usage_worker_stopped"))
        assert gateway.lines("stopped") == []
        held.resume()
        assert (await stream.text()).endswith("data: [DONE]\n\n")


async def _shows(gateway: Running, version: str, issue: str) -> None:
    """Wait until /readyz and the metrics show the issue, and check that the earlier version is in use."""
    async with asyncio.timeout(LIMIT_S):
        while (config := (await gateway.detail())["config"])["error"] != [issue]:
            await asyncio.sleep(0.02)
    assert (config["version"], config["stale"]) == (version, True)
    assert "gkt_config_stale 1.0" in await gateway.metrics()


async def test_an_edit_moves_the_gateway_to_another_port(tmp_path: Path, redis_url: str, engine: FakeEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with running(tmp_path, redis_url, engine) as gateway:
        line = await gateway.edit(server=gateway.config["server"] | {"port": port})
        assert line["public"] == f"http://127.0.0.1:{port}"
        with pytest.raises(aiohttp.ClientConnectorError):
            await gateway.ask()
        gateway.process.url = line["public"]
        assert await gateway.ask() == 200


async def test_an_edit_waits_while_workers_of_many_edits_still_finish_requests(
    tmp_path: Path, redis_url: str, engine: FakeEngine
) -> None:
    """The newest content is used when the workers of one edit have ended."""
    streams = [HeldStreams() for _ in range(MAX_RETIRED)]
    async with running(tmp_path, redis_url, engine) as gateway:
        replies = []
        for number, held in enumerate(streams):
            engine.behave = held.answer
            stream = gateway.streaming()
            replies.append((stream, await stream.__aenter__()))
            await gateway.edit(receipts={"ttl": f"{number + 2}d"})
        gateway.write(receipts={"ttl": "9d"})
        await gateway.until(lambda: gateway.lines("config_refused"))
        assert "waits" in gateway.lines("config_refused")[-1]["issues"][0]
        gateway.write(receipts={"ttl": "10d"})
        for held, (stream, reply) in zip(streams, replies, strict=True):
            held.resume()
            assert (await reply.text()).endswith("data: [DONE]\n\n")
            await stream.__aexit__(None, None, None)
        await gateway.until(lambda: len(gateway.lines("stopped")) == MAX_RETIRED)
        loaded = len(gateway.lines("config_loaded"))
        gateway.process.process.send_signal(1)  # SIGHUP: at once, not after the pause
        await gateway.until(lambda: len(gateway.lines("config_loaded")) > loaded)
        async with gateway.session.get(f"{gateway.process.admin_url}/readyz") as reply:
            assert (await reply.json())["config"]["error"] == []
