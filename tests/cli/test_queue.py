"""`gkt-gateway queue` shows what waits for a teacher, asked of a real gateway; where it cannot, it says what to do."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from redis.asyncio import Redis

from gateway.local.redis import EmbeddedRedis
from gateway.redis.keys import RedisKeys
from tests.fakes import FakeEngine, reply, says, served
from tests.gateway_process import KEY, OTHER_KEY, STUDENT_ONLY, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator
    from pathlib import Path

    from tests.gateway_process import GatewayProcess

CAP = 2
WAITING = {KEY: 4, OTHER_KEY: 2}


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "queue", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


async def _queue(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(_run, *arguments, **environment)


class SlowTeacher(FakeEngine):
    """A teacher that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.resume = threading.Event()

    async def _wait(self, _: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        while not self.resume.is_set():
            await asyncio.sleep(0.01)
        return web.json_response(reply("The answer begins here", "length"))


@contextmanager
def _gateway(
    folder: Path, redis_url: str, teacher: SlowTeacher, *, max_wait: str = "10ms", **sections: Any
) -> Iterator[GatewayProcess]:
    with FakeEngine(says("and ends here.")).running() as student, teacher.running():
        batch = {"max_size": CAP, "low_water": CAP}
        models = [
            model("big", "tgi", teacher.url, max_concurrency=CAP, batch=batch),
            model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
        ]
        try:
            with running_gateway(
                folder, redis_url=redis_url, models=models, routes=[guided(max_wait=max_wait), STUDENT_ONLY], **sections
            ) as process:
                yield process
        finally:
            teacher.resume.set()


@asynccontextmanager
async def _crowd(process: GatewayProcess, teacher: SlowTeacher) -> AsyncIterator[None]:
    """Hold one call of each of two tenants in flight, with more requests waiting. All are answered at the end."""
    async with httpx.AsyncClient(base_url=process.url, timeout=60) as client:

        def ask(key: str, text: str) -> Awaitable[httpx.Response]:
            body = {"model": "chat", "messages": [{"role": "user", "content": text}]}
            headers = {"Authorization": f"Bearer {key}"}
            return client.post("/v1/chat/completions", json=body, headers=headers)

        first = asyncio.gather(*(ask(key, "First") for key in WAITING))
        await _until(process, in_flight=CAP, waiting=0)
        rest = asyncio.gather(*(ask(key, f"Question {n}") for key, many in WAITING.items() for n in range(many)))
        await _until(process, in_flight=CAP, waiting=sum(WAITING.values()))
        yield
        teacher.resume.set()
        assert {answer.status_code for answer in [*await first, *await rest]} == {200}


async def _until(process: GatewayProcess, **figures: object) -> dict[str, Any]:
    """Wait until the listener says so of the teacher."""
    give_up = time.monotonic() + 20
    async with httpx.AsyncClient(base_url=process.admin_url, timeout=20) as client:
        while True:
            answer = await client.get("/queue")
            assert answer.status_code == 200
            big: dict[str, Any] = answer.json()["teachers"]["big"]
            if {name: big[name] for name in figures} == figures:
                return big
            assert time.monotonic() < give_up, big
            await asyncio.sleep(0.02)


def _rows(printed: str) -> dict[str, list[str]]:
    """Return the rows of the teacher, of its only process, and of each tenant."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    rows = {line[1]: line[2:] for line in lines if line[1:2] in (["acme"], ["globex"])}
    (teacher,) = (line[1:] for line in lines if line[0] == "big" and len(line) > 8)
    (process,) = (line[1:] for line in lines if line[0] == "big" and len(line) == 4)
    return {"teacher": teacher, "process": process, **rows}


@pytest.mark.long
async def test_waiting_requests_are_shown_by_tenant_until_they_end(tmp_path: Path, redis_url: str) -> None:
    """Printed once on a pipe, as a table and as JSON; the student, which nobody asks for guidance, has no queue."""
    teacher = SlowTeacher()
    prefix = f"q{os.urandom(4).hex()}"
    with _gateway(tmp_path, redis_url, teacher, redis={"prefix": prefix}) as process:
        async with _crowd(process, teacher):
            for arguments in (["--url", process.admin_url], ["big", "--url", process.admin_url]):
                done = await _queue(*arguments)
                assert (done.returncode, done.stderr) == (0, "")
                assert "\x1b" not in done.stdout
                rows = _rows(done.stdout)
                assert rows["teacher"][:3] == ["2", "2", "6"]
                assert rows["teacher"][4] == "0", "followers"
                acme, globex = rows["acme"], rows["globex"]
                assert (acme[0], acme[2:]) == ("4", ["1", "1", "50%"])
                assert (globex[0], globex[2:]) == ("2", ["1", "1", "50%"])
                assert re.fullmatch(r"\d+\.\d s ago", rows["process"][1])
                assert rows["process"][2] == "2"
            shown = json.loads((await _queue("--json", "--url", process.admin_url)).stdout)
            assert (shown["worker"], shown["redis_up"], list(shown["teachers"])) == (1, True, ["big"])
            big = shown["teachers"]["big"]
            assert (big["waiting"], big["in_flight"], big["cap"], big["alone"]) == (6, 2, 2, False)
            assert [(one["tenant"], one["waiting"]) for one in big["tenants"]] == [("acme", 4), ("globex", 2)]
            assert big["oldest_wait_s"] == max(one["oldest_wait_s"] for one in big["tenants"]) > 0

            async with Redis.from_url(redis_url) as redis:
                names = RedisKeys(prefix).teacher("big")
                await redis.sadd(names.permits, "nobodys")
                await redis.hset(names.tickets, "nobodys", "garbage")
                garbled = await _queue("--url", process.admin_url)
                assert garbled.returncode == 0
                assert "1 unreadable entries omitted" in garbled.stdout
                assert _rows(garbled.stdout)["teacher"][:3] == ["3", "2", "6"]
                await redis.srem(names.permits, "nobodys")
        big = await _until(process, waiting=0, in_flight=0)
        assert big["tenants"] == []
        assert big["batches"] >= 4


@pytest.mark.long
async def test_without_redis_the_process_shows_only_its_own_queue(tmp_path: Path) -> None:
    """200 all the same, whether Redis ended or stands still, and no longer than one command may take."""
    teacher = SlowTeacher()
    async with EmbeddedRedis() as redis:
        with _gateway(tmp_path, redis.url, teacher, max_wait="1s", redis={"timeout": "5s"}) as process:
            async with _crowd(process, teacher):
                await redis.stop()
                alone = await _until(process, alone=True, why="Redis is unavailable", waiting=6, in_flight=2)
                assert {one["tenant"]: one["waiting"] for one in alone["tenants"]} == {"acme": 4, "globex": 2}
                # Waiting requests continue without guidance after `max_wait` and one `redis.timeout`.
                await _until(process, alone=True, waiting=0, in_flight=2)
                assert alone["batches"] is alone["redis_time"] is alone["cache"] is None
                done = await _queue("--url", process.admin_url)
                assert done.returncode == 0
                assert "Redis" in done.stdout
                assert "showing worker 1 only" in done.stdout
                assert _rows(done.stdout)["acme"][:1] + _rows(done.stdout)["acme"][2:3] == ["0", "1"]
                await redis.start()
                await _until(process, alone=False, in_flight=2)


async def test_a_blocked_redis_does_not_block_the_command(tmp_path: Path) -> None:
    """Stopped in its tracks, it holds its connections and says nothing."""
    teacher = SlowTeacher()
    async with EmbeddedRedis() as redis:
        async with Redis.from_url(redis.url) as client:
            pid = int((await client.info("server"))["process_id"])
        with _gateway(tmp_path, redis.url, teacher, redis={"timeout": "300ms"}) as process:
            async with httpx.AsyncClient(base_url=process.admin_url, timeout=10) as client_http:
                os.kill(pid, signal.SIGSTOP)
                try:
                    answers = [await client_http.get("/queue") for _ in range(3)]
                finally:
                    os.kill(pid, signal.SIGCONT)
            assert [answer.status_code for answer in answers] == [200, 200, 200]
            assert {answer.json()["teachers"]["big"]["alone"] for answer in answers} == {True}


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose engines' secret this shell does not hold."""
    path = tmp_path / "config.yaml"
    path.write_text("admin: {port: 1}\nmodels:\n  - {name: big, api_key: env:GKT_NOT_SET_HERE}\n")
    return path


@pytest.mark.long
def test_no_listener_is_an_error_with_the_address(config: Path) -> None:
    """The line names the address, where it comes from and how to name another; the environment may say which."""
    line = _one_line(_run("--config", str(config)))
    assert "Cannot connect to http://127.0.0.1:1 (connection refused)" in line
    assert f"admin in {config}" in line
    assert "--url" in line
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert f"http://127.0.0.1:{port} " in _one_line(_run("--config", str(config), GKT_ADMIN_PORT=str(port)))
    assert f"http://127.0.0.1:{port} " in _one_line(_run("--url", f"http://127.0.0.1:{port}/"))
    config.write_text("admin: {host: '::', port: 1}\n")
    assert "http://[::1]:1 " in _one_line(_run("--config", str(config)))


@pytest.mark.long
def test_an_address_that_cannot_be_known(config: Path) -> None:
    """The configuration has no file, a port that is chosen at the start, or an error at the address."""
    assert "--url" in _one_line(_run("--config", "nowhere.yaml"))
    config.write_text("admin: {port: 0}\n")
    assert "admin.port is 0" in _one_line(_run("--config", str(config)))
    config.write_text("admin: {port: many}\n")
    assert "config.yaml:1: admin.port" in _one_line(_run("--config", str(config)))


@pytest.mark.long
def test_another_server_is_reported_as_no_gateway() -> None:
    """Another server lacks the page, or returns other content there."""
    app = web.Application()
    with served(app) as url:
        line = _one_line(_run("--url", url))
        assert "not the admin listener of a gateway" in line
        assert "404" in line
    other = web.Application()
    other.add_routes([web.get("/queue", _half_a_list)])
    with served(other) as url:
        assert "not the admin listener of a gateway" in _one_line(_run("--url", url))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hangs_up = threading.Thread(target=_hang_up, args=(silent,), daemon=True)
        hangs_up.start()
        assert "not the admin listener" in _one_line(_run("--url", f"http://127.0.0.1:{silent.getsockname()[1]}"))
        silent.shutdown(socket.SHUT_RDWR)
        hangs_up.join(timeout=10)


def _hang_up(server: socket.socket) -> None:
    """On everybody, until the server is shut down."""
    with suppress(OSError):
        while True:
            server.accept()[0].close()


async def _half_a_list(_: web.Request) -> web.Response:
    return web.Response(text="[1, 2")


@pytest.mark.long
def test_a_teacher_that_is_none(tmp_path: Path, redis_url: str) -> None:
    """The nearest name is offered, and those there are."""
    with _gateway(tmp_path, redis_url, SlowTeacher()) as process:
        line = _one_line(_run("bgi", "--url", process.admin_url))
        assert "Did you mean 'big'?" in line
        assert "Teachers: big" in _one_line(_run("small", "--url", process.admin_url))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--url", "127.0.0.1:8081"], "--url"),
        (["--url", "http://"], "--url"),
        (["--url", "http://host:port"], "--url"),
    ],
)
def test_an_option_that_cannot_be(arguments: list[str], why: str) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert f"Invalid value for {why}" in done.stderr
