"""The connections to Redis: startup checks, and which failures count as an outage."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.testing import capture_logs

from gateway.errors import StartupError
from gateway.local.redis import EmbeddedRedis
from gateway.redis.client import MAX_BACKOFF_S, ReconnectBackoff, RedisClient
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.batching.process import until
from tests.redis_faults import paused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

TIMEOUT_S = 0.2  # for a blocked Redis; elsewhere a busy machine may take longer


@asynccontextmanager
async def client_on(url: str, timeout_s: float = 5.0, **more: float) -> AsyncIterator[tuple[RedisClient, Metrics]]:
    metrics = Metrics()
    client = RedisClient(url, timeout_s=timeout_s, metrics=metrics, **more)
    try:
        yield client, metrics
    finally:
        await client.close()


@asynccontextmanager
async def fake_redis(answer: Callable[[list[bytes], int], bytes | None], *, tcp: bool = False) -> AsyncIterator[str]:
    """A server that replies `answer(command, connection number)`; None closes the connection."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        try:
            while head := await reader.readline():
                command: list[bytes] = []
                for _ in range(int(head[1:])):
                    size = int((await reader.readline())[1:])
                    command.append((await reader.readexactly(size + 2))[:-2])
                reply = answer(command, number)
                if reply is None:
                    break
                writer.write(reply)
        finally:
            writer.close()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fake.sock")
        if tcp:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            host, port = server.sockets[0].getsockname()
        else:
            server = await asyncio.start_unix_server(serve, path)
        try:
            yield f"redis://{host}:{port}" if tcp else f"unix://{path}"
        finally:
            server.close()


def bulk(text: str) -> bytes:
    return f"${len(text)}\r\n{text}\r\n".encode()


def greeting(command: list[bytes]) -> bytes:
    """Return the reply to the client's commands at connect."""
    if command[0] == b"HELLO":
        return b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n"
    return b"+OK\r\n"


async def test_an_absent_redis_is_refused_in_one_line() -> None:
    """The message states what to do and contains no URL, which may contain a password."""
    async with client_on("redis://:s3cret@127.0.0.1:1/0") as (client, metrics):
        with pytest.raises(StartupError, match=r"does not answer \(ConnectionError\).*redis\.url") as refused:
            await client.require()
        assert "\n" not in refused.value.message
        assert "s3cret" not in refused.value.message
        assert metrics.registry.get_sample_value("gkt_redis_up") == 0
        assert "embedded" in refused.value.message


async def test_the_embedded_redis_is_recommended_only_where_it_works() -> None:
    async with client_on("redis://127.0.0.1:1/0") as (client, _):
        with pytest.raises(StartupError, match=r"or correct redis\.url") as refused:
            await client.require(embedded=False)
        assert "embedded" not in refused.value.message


@pytest.mark.parametrize("version", ["6.2.14", "4.0.0", "6.9"])
async def test_a_redis_that_is_too_old_is_refused_in_one_line(version: str) -> None:
    """The message has its version and the required one."""

    def answer(command: list[bytes], _: int) -> bytes:
        return bulk(f"# Server\r\nredis_version:{version}\r\n") if command[0] == b"INFO" else greeting(command)

    async with fake_redis(answer) as url, client_on(url) as (client, _):
        expected = f"Redis {version} is too old: version 7.0 or later is required."
        with pytest.raises(StartupError, match=expected) as refused:
            await client.require()
        assert "\n" not in refused.value.message


async def test_a_redis_that_is_new_enough_is_taken(redis_url: str) -> None:
    """The bundled Redis is recent enough."""
    async with client_on(redis_url) as (client, metrics):
        await client.require()
        assert metrics.registry.get_sample_value("gkt_redis_up") == 1


async def test_a_skew_near_its_limit_changes_the_clock_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast clock counts as right again below half of the limit."""
    ahead_s, corrections = [0.6, 1.4, 0.6, 1.4, 0.6, 0.1], []
    true_time = time.time
    async with client_on(redis_url) as (client, _):
        with capture_logs() as logs:
            for seconds in ahead_s:
                monkeypatch.setattr(time, "time", lambda seconds=seconds: true_time() + seconds)
                await client.wait_answered()
                corrections.append(client.clock_skew_s)
    assert corrections == pytest.approx([0, 1.4, 1.4, 1.4, 1.4, 0], abs=0.3)
    assert [log["event"] for log in logs].count("clock_skew") == 2


async def test_versions_are_compared_as_numbers() -> None:
    """10 is greater than 7, although it sorts before it."""

    def answer(command: list[bytes], _: int) -> bytes:
        return bulk("redis_version:10.0.1\r\n") if command[0] == b"INFO" else greeting(command)

    async with fake_redis(answer) as url, client_on(url) as (client, _):
        await client.require()


async def test_a_closed_pooled_connection_is_replaced_silently() -> None:
    """Redis closed a pooled connection during a command: the command is sent once more."""
    pings: list[int] = []

    def answer(command: list[bytes], connection: int) -> bytes | None:
        if command[0] != b"PING":
            return greeting(command)
        pings.append(connection)
        return None if pings == [1, 1] else b"+PONG\r\n"

    async with fake_redis(answer) as url, client_on(url) as (client, _):
        assert await client.commands.ping()
        assert await client.commands.ping()
        assert pings == [1, 1, 2]


async def test_a_command_is_sent_again_once_and_no_more() -> None:
    """A Redis that closes the connection at every command counts as down."""
    pings: list[int] = []

    def answer(command: list[bytes], connection: int) -> bytes | None:
        if command[0] != b"PING":
            return greeting(command)
        pings.append(connection)
        return None

    async with fake_redis(answer) as url, client_on(url) as (client, _):
        with pytest.raises(RedisConnectionError):
            await client.commands.ping()
        assert len(pings) == 2


async def test_a_slow_command_times_out_without_a_retry() -> None:
    """Waiting twice would not help."""

    pings = 0

    def answer(command: list[bytes], _: int) -> bytes:
        nonlocal pings
        if command[0] != b"PING":
            return greeting(command)
        pings += 1
        return b""

    async with fake_redis(answer) as url, client_on(url, TIMEOUT_S) as (client, _):
        began = time.monotonic()
        with pytest.raises(RedisTimeoutError):
            await client.commands.ping()
        assert time.monotonic() - began >= TIMEOUT_S * 0.9
        assert pings == 1


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_is_held_for_longer_than_the_timeout_is_no_failure_of_redis(
    redis_url: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Commands on an existing connection, on a new one, and in a pipeline, on either event loop."""

    async def hold_around(work: Awaitable[object]) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(time.sleep, TIMEOUT_S * 1.5)
        loop.call_later(TIMEOUT_S, time.sleep, TIMEOUT_S)
        await work

    async def use() -> None:
        async with client_on(redis_url, TIMEOUT_S) as (client, _):
            await hold_around(client.commands.ping())
            await hold_around(client.commands.ping())
            async with client.commands.pipeline(transaction=False) as pipe:
                pipe.get("one")
                pipe.get("two")
                await hold_around(pipe.execute())

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(use())


async def test_a_blocked_redis_is_detected_while_the_loop_lags() -> None:
    tasks, loop = BackgroundTasks(), asyncio.get_running_loop()
    async with EmbeddedRedis() as server, client_on(server.url, TIMEOUT_S, check_interval_s=0.02) as (client, _):

        def hold() -> None:
            time.sleep(TIMEOUT_S * 0.6)
            if client.up:
                loop.call_later(0.01, hold)

        await client.commands.ping()
        async with paused(server.url):
            hold()
            tasks.keep("redis", client.watch())
            await until(lambda: not client.up)
        await asyncio.wait_for(client.wait_up(), 5)
        await tasks.close()


async def test_a_silent_subscription_does_not_time_out() -> None:
    """A message may take long. A lost connection raises an error at once instead of reconnecting silently."""
    async with (
        EmbeddedRedis() as server,
        client_on(server.url, TIMEOUT_S) as (client, _),
        client.listening.pubsub() as pubsub,
    ):
        await pubsub.subscribe("quiet")
        assert (await anext(pubsub.listen()))["type"] == "subscribe"
        waiting = asyncio.ensure_future(anext(pubsub.listen()))  # noqa: TID251
        await asyncio.sleep(TIMEOUT_S * 2)
        assert not waiting.done()
        await client.commands.client_kill_filter(_type="pubsub")
        with pytest.raises(RedisConnectionError):
            await asyncio.wait_for(waiting, 5)


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the system cannot set times of TCP keepalive")
async def test_a_vanished_peer_is_detected_within_seconds() -> None:
    """A subscriber sends nothing: without the system's probes it would wait forever."""
    async with (
        fake_redis(lambda command, _: greeting(command), tcp=True) as url,
        client_on(url) as (client, _),
        client.listening.pubsub() as pubsub,
    ):
        await pubsub.connect()
        assert pubsub.connection is not None
        sock = pubsub.connection._writer.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle_s, every_s, times = (
            sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        )
        assert idle_s + every_s * times <= 15


async def test_keepalive_has_macos_name_of_the_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_KEEPIDLE", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name, raising=False)
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", 16, raising=False)
    async with client_on("redis://127.0.0.1:1/0") as (client, _):
        options = client.commands.connection_pool.connection_kwargs["socket_keepalive_options"]
    assert options == {16: 5, socket.TCP_KEEPINTVL: 2}


def test_pauses_double_until_a_long_success() -> None:
    rest = ReconnectBackoff(1.0)
    now, took = 100.0, []
    for well_s in (0.0, 0.2, 0.2, 5.0, 0.2, MAX_BACKOFF_S + 0.1, 0.2):
        now += well_s
        rest.begin(now)
        took.append(rest.until - now)
        now = rest.until
    assert took == pytest.approx([1, 2, 4, 8, 8, 1, 2])


async def test_attempts_back_off_if_only_the_watch_succeeds(redis_url: str) -> None:
    """Each attempt costs waiting requests time."""
    tasks, tries = BackgroundTasks(), []
    loop = asyncio.get_running_loop()
    async with client_on(redis_url, check_interval_s=0.02) as (client, metrics):
        tasks.keep("redis", client.watch())
        for _ in range(6):
            await asyncio.wait_for(client.wait_up(), 5)
            tries.append(loop.time())
            client.failed(RedisTimeoutError("the script is slow"))
        await asyncio.sleep(0.1)
        assert metrics.registry.get_sample_value("gkt_redis_up") == 0
        await tasks.close()
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert all(rest >= 0.02 * 2**number - 0.001 for number, rest in enumerate(pauses)), pauses


async def test_the_watch_follows_redis() -> None:
    """Readiness and the metric show the outage and its end."""
    tasks = BackgroundTasks()
    async with EmbeddedRedis() as server, client_on(server.url, check_interval_s=0.02) as (client, metrics):

        def seen() -> tuple[bool, float | None]:
            return client.up, metrics.registry.get_sample_value("gkt_redis_up")

        tasks.keep("redis", client.watch())
        await until(lambda: seen() == (True, 1))
        await server.stop()
        await until(lambda: seen() == (False, 0))
        await server.start()
        await until(lambda: seen() == (True, 1))
        await tasks.close()


async def test_the_first_failure_is_everybodys_until_redis_has_answered() -> None:
    """The outage is logged once, and waiting tasks continue when Redis is up."""
    tasks = BackgroundTasks()
    async with EmbeddedRedis() as server, client_on(server.url, TIMEOUT_S, check_interval_s=0.02) as (client, metrics):
        await asyncio.wait_for(client.wait_up(), 5)
        with capture_logs() as logs:
            async with paused(server.url):
                for _ in range(3):
                    client.failed(RedisTimeoutError("it did not answer"))
                assert not client.up
                assert metrics.registry.get_sample_value("gkt_redis_up") == 0
                tasks.keep("redis", client.watch())
                waiting = asyncio.ensure_future(client.wait_up())  # noqa: TID251
                await asyncio.sleep(TIMEOUT_S * 2)
                assert not waiting.done()
                assert not client.up
            await asyncio.wait_for(waiting, 5)
            assert client.up
            assert metrics.registry.get_sample_value("gkt_redis_up") == 1
        assert [(line["event"], line["up"], line["error"]) for line in logs] == [
            ("redis", False, "TimeoutError"),
            ("redis", True, None),
        ]
        await tasks.close()


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), ConnectionResetError(), RedisTimeoutError()])
async def test_silence_and_lost_connections_open_the_breaker(error: Exception) -> None:
    async with client_on("redis://127.0.0.1:1/0") as (client, _):
        client.failed(error)
        assert not client.up


async def test_a_lack_of_connections_or_files_in_this_process_does_not() -> None:
    async with client_on("redis://127.0.0.1:1/0") as (client, _):
        client.failed(MaxConnectionsError("Too many connections"))
        try:
            try:
                raise OSError(errno.EMFILE, "Too many open files")
            except OSError as error:
                raise RedisConnectionError(str(error))  # noqa: B904  as the library does
        except RedisConnectionError as error:
            client.failed(error)
        assert client.up


async def test_an_error_that_redis_replied_with_does_not(redis_url: str) -> None:
    """A failing script is no evidence against the next one."""
    async with client_on(redis_url) as (client, _):
        with pytest.raises(ResponseError) as refused:
            await client.commands.eval("return redis.error_reply('ERR no')", 0)
        client.failed(refused.value)
        assert client.up


async def test_an_answer_to_an_earlier_question_does_not_count_as_answered() -> None:
    """Redis was blocked at the time of the command. The wait ends with its next reply."""
    tasks = BackgroundTasks()
    async with EmbeddedRedis() as server, client_on(server.url, TIMEOUT_S, check_interval_s=0.02) as (client, _):
        await client.require()
        async with paused(server.url):
            waiting = asyncio.ensure_future(client.wait_answered())  # noqa: TID251
            tasks.keep("redis", client.watch())
            await until(lambda: not client.up)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 5)
        await tasks.close()
