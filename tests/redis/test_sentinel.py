"""Clients of a Redis Sentinel deployment follow the master, and never write to a replica."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from gateway.errors import StartupError
from gateway.redis.connection import ReplicaConnected
from tests.redis_clients import client_on
from tests.redis_groups import (
    MASTER,
    PASSWORD,
    PERCENT_ENCODED,
    SENTINEL_PASSWORD,
    SENTINEL_PERCENT_ENCODED,
    RedisServer,
    SentinelGroup,
    free_port,
    sentinel_group,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.redis.client import RedisClient

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group() -> AsyncIterator[SentinelGroup]:
    async with sentinel_group() as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
async def test_a_replica_is_refused_by_name(group: SentinelGroup) -> None:
    (replica,) = [server for server in group.servers if server is not await group.master()]
    async with client_on(replica.url) as client:
        with pytest.raises(StartupError, match=f"{replica.address} is a replica of 127.0.0.1:") as refused:
            await client.require()
    assert "redis+sentinel://" in refused.value.message
    assert PASSWORD not in refused.value.message


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", ["another name", "no sentinel", "another password", "a password of Redis"])
async def test_a_url_that_finds_no_master_is_refused_with_the_reason(group: SentinelGroup, case: str) -> None:
    url, reason = {
        "another name": (group.url.replace(f"/{MASTER}/", "/other/"), f"know no master 'other'; they know: {MASTER}"),
        "no sentinel": (f"redis+sentinel://127.0.0.1:{free_port()}/{MASTER}", "do not answer (ConnectionError)"),
        "another password": (
            group.url.replace(SENTINEL_PERCENT_ENCODED, "wrong"),
            "do not answer (AuthenticationError)",
        ),
        "a password of Redis": (
            group.url.replace(PERCENT_ENCODED, "wrong"),
            f"The master '{MASTER}' of the sentinels at",
        ),
    }[case]
    async with client_on(url) as client:
        with pytest.raises(StartupError) as refused:
            await client.require()
    assert reason in refused.value.message
    assert "redis.url" in refused.value.message
    for secret in (PASSWORD, PERCENT_ENCODED, SENTINEL_PASSWORD, SENTINEL_PERCENT_ENCODED):
        assert secret not in refused.value.message


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.long
async def test_all_connections_follow_the_master(group: SentinelGroup) -> None:
    """A stopped master is replaced. It returns as a replica, and no pooled connection to it writes again."""
    restarts: list[bool] = []
    before = await group.master()
    async with client_on(group.url, timeout_s=0.5) as client:
        await client.require()
        client.on_restart = lambda: restarts.append(True)
        # Several pooled connections to the first master.
        await asyncio.gather(*(client.commands.set(f"key-{number}", 1) for number in range(5)))
        await client.queries.get("key-0")
        async with client.listening.pubsub() as pubsub:
            await pubsub.subscribe("channel")
            assert (await anext(pubsub.listen()))["type"] == "subscribe"
            before.send(signal.SIGSTOP)
            try:
                await until(lambda: _is_down(client))
                await until(lambda: group.has_moved(before))
                await asyncio.wait_for(client.wait_up(), 30)
            finally:
                before.send(signal.SIGCONT)
            assert restarts, "the new master may lack writes"
            await until(lambda: group.follows(before))
            with pytest.raises(RedisConnectionError):  # the sentinels close connections to a server that they demote
                await asyncio.wait_for(_next_message(pubsub), 30)
        after = await group.master()
        await asyncio.gather(*(client.commands.set(f"later-{number}", 1) for number in range(20)))
        async with client.commands.pipeline(transaction=False) as pipe:
            for number in range(20):
                pipe.set(f"pipelined-{number}", 1)
            await pipe.execute()
        assert await client.queries.get("later-19") == b"1"
        async with client.listening.pubsub() as pubsub:
            await pubsub.subscribe("channel")
            assert (await anext(pubsub.listen()))["type"] == "subscribe"
            async with after.client() as redis:
                assert await redis.pubsub_numsub("channel") == [(b"channel", 1)]
        async with after.client() as redis:
            assert await redis.get("later-19") == b"1"


async def _is_down(client: RedisClient) -> bool:
    return not client.up


async def _next_message(pubsub: object) -> None:
    async for _ in pubsub.listen():  # type: ignore[attr-defined]
        pass


@pytest.mark.asyncio(loop_scope="module")
async def test_a_server_that_becomes_a_replica_counts_as_down(tmp_path: Path) -> None:
    """A managed service moves the name of the primary. Until then, the previous one rejects writes."""
    first, second = RedisServer(tmp_path / "first"), RedisServer(tmp_path / "second")
    try:
        await first.start()
        await second.start()
        async with client_on(first.url, timeout_s=2) as client:
            await client.require()
            async with first.client() as redis:
                await redis.execute_command("REPLICAOF", "127.0.0.1", str(second.port))
                with pytest.raises(ReadOnlyError) as rejected:
                    await client.commands.set("key", 1)
                assert not client.failed(rejected.value)
                assert not client.up
                await until(lambda: _is_replica_seen(client))
                assert not client.up
                await redis.execute_command("REPLICAOF", "NO", "ONE")
            await asyncio.wait_for(client.wait_up(), 30)
            assert await client.commands.set("key", 1)
    finally:
        await first.stop()
        await second.stop()


async def _is_replica_seen(client: RedisClient) -> bool:
    checks = await client._servers.check(client.commands)
    return isinstance(checks[""], ReplicaConnected)
