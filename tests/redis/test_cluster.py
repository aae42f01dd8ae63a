"""Clients of a Redis Cluster: commands, pipelines and scripts reach the nodes of their keys while nodes change."""

from __future__ import annotations

import asyncio
import math
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from gateway.batching.redis_scheduler import listen_for_wakeups
from gateway.errors import StartupError
from gateway.redis.script import RedisScript
from gateway.redis.slots import slot_of
from gateway.redis.topology import NodeDown
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.redis_clients import client_on
from tests.redis_groups import (
    PASSWORD,
    PERCENT_ENCODED,
    ClusterGroup,
    RedisServer,
    cluster_group,
    free_port,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

KEYS = [f"{{tenant-{number}}}:key" for number in range(60)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group() -> AsyncIterator[ClusterGroup]:
    async with cluster_group() as running:
        yield running


async def test_each_call_of_a_script_runs_on_the_node_of_its_keys(group: ClusterGroup) -> None:
    """No node knows the script at first. An error among the replies affects no other reply."""
    async with client_on(group.url) as client:
        await client.require()
        for server in group.servers[:3]:
            await group.run(server, "SCRIPT FLUSH")
        script = RedisScript(client.commands, "tests.redis", "echo.lua")
        calls = [([key], [b"%d" % number]) for number, key in enumerate(KEYS)]
        replies = [[key.encode(), b"%d" % number] for number, key in enumerate(KEYS)]
        assert await script.run(calls) == replies
        await group.run(group.servers[1], "SCRIPT FLUSH")
        assert await script.run(calls) == replies
        assert await script.run(calls[:1]) == replies[:1]
        with pytest.raises(ResponseError, match="bad"):
            await script.run([calls[0], ([KEYS[1]], [b"bad"]), calls[2]])
        assert await script.run(calls) == replies


async def test_commands_without_keys_and_scans_see_all_nodes(group: ClusterGroup) -> None:
    async with client_on(group.url) as client:
        redis = client.commands
        async with redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for key in KEYS:
                pipe.set(key, key)
            (seconds, _), *stored = await pipe.execute()
        assert seconds > 0
        assert all(stored)
        assert {raw.decode() async for raw in redis.scan_iter("{tenant-*}:key", 10)} == set(KEYS)
        assert await redis.unlink(*KEYS) == len(KEYS)
        async with redis.pipeline(transaction=True) as pipe:
            pipe.set("{one}:a", 1)
            pipe.incrby("{one}:b", 2)
            pipe.get("{one}:a")
            assert await pipe.execute() == [True, 2, b"1"]
        await redis.unlink("{one}:a", "{one}:b")


async def test_a_moving_slot_is_followed(group: ClusterGroup) -> None:
    """Redirections ASK and MOVED, for single commands, pipelines and transactions, on several pooled connections."""
    slot = slot_of(KEYS[0])
    async with client_on(group.url) as client:
        redis = client.commands
        await asyncio.gather(*(redis.set(f"{{tenant-0}}:{number}", number) for number in range(8)))
        source = await group.owner(slot)
        target = next(server for server in group.servers[:3] if server is not source)
        await group.begin_move(slot, target)
        # A key that the source lacks belongs to the target.
        assert all(await asyncio.gather(*(redis.set(f"{{tenant-0}}:new-{number}", 1) for number in range(8))))
        assert await redis.get("{tenant-0}:3") == b"3"
        async with redis.pipeline(transaction=False) as pipe:
            for number in range(8):
                pipe.get(f"{{tenant-0}}:{number}")
                pipe.incr(f"{{tenant-0}}:new-{number}")
            assert await pipe.execute() == [value for number in range(8) for value in (b"%d" % number, 2)]
        await group.end_move(slot, source, target)
        async with redis.pipeline(transaction=True) as pipe:
            pipe.get("{tenant-0}:7")
            pipe.incr("{tenant-0}:new-7")
            assert await pipe.execute() == [b"7", 3]
        assert await redis.get("{tenant-0}:1") == b"1"
        assert (await group.owner(slot)) is target
        await group.move(slot, source)
        names = [f"{{tenant-0}}:{kind}{number}" for number in range(8) for kind in ("", "new-")]
        assert await redis.unlink(*names) == 16


async def test_a_publication_on_any_node_reaches_a_subscriber(group: ClusterGroup) -> None:
    async with client_on(group.url) as client:
        await client.require()
        async with client.listening.pubsub() as pubsub:
            await pubsub.subscribe("channel")
            messages = pubsub.listen()
            assert (await anext(messages))["type"] == "subscribe"
            for server in group.servers[:3]:
                async with server.client() as redis:
                    await redis.publish("channel", str(server.port))
                assert (await asyncio.wait_for(anext(messages), 10))["data"] == b"%d" % server.port


async def test_a_subscriber_leaves_a_node_that_hangs(group: ClusterGroup) -> None:
    """The system answers for the node, so that the connection alone would never end."""
    async with client_on(group.url, timeout_s=0.5) as client:
        await client.require()
        missed: asyncio.Queue[None] = asyncio.Queue()
        tasks = BackgroundTasks()
        tasks.keep(
            "wakeups",
            listen_for_wakeups(client.listening, "wakeups", lambda *_: None, lambda: missed.put_nowait(None)),
        )
        await asyncio.wait_for(missed.get(), 30)
        hosts: list[RedisServer] = []
        for server in group.servers:
            async with server.client() as redis:
                hosts += [server for _, count in await redis.pubsub_numsub("wakeups") if count]
        (host,) = hosts
        host.send(signal.SIGSTOP)
        try:
            await asyncio.wait_for(missed.get(), 30)
        finally:
            host.send(signal.SIGCONT)
            await tasks.close()
    await until(group.is_ready)


async def test_a_cluster_url_of_a_single_server_is_refused(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "single")
    try:
        await server.start()
        async with client_on(server.url.replace("redis://", "redis+cluster://").removesuffix("/0")) as client:
            with pytest.raises(StartupError, match="has cluster mode disabled: write redis://") as refused:
                await client.require()
        assert PASSWORD not in refused.value.message
    finally:
        await server.stop()


async def test_a_node_of_a_cluster_is_refused_as_single_server(group: ClusterGroup) -> None:
    async with client_on(group.servers[0].url) as client:
        with pytest.raises(StartupError, match=r"is a node of a Redis Cluster\. Write redis\+cluster://"):
            await client.require()


async def test_a_failed_primary_is_replaced(group: ClusterGroup) -> None:
    """Other shards answer meanwhile. The new primary may lack writes."""
    restarts: list[bool] = []
    async with client_on(group.url, timeout_s=1) as client:
        await client.require()
        client.on_restart = lambda: restarts.append(True)
        victim = await group.owner(slot_of(KEYS[0]))
        await client.commands.set(KEYS[0], 1)
        others = [key for key in KEYS if (await group.owner(slot_of(key))) is not victim]
        await victim.kill()
        with pytest.raises((RedisConnectionError, TimeoutError)) as failed:
            await client.commands.get(KEYS[0])
        client.failed(failed.value)
        assert client.up
        assert not client.is_whole
        assert not client.is_up(KEYS[0])
        assert all(client.is_up(key) for key in others)
        with pytest.raises(NodeDown):
            await client.commands.get(KEYS[0])
        assert await client.commands.set(others[0], 1)

        async def is_served() -> bool:
            return client.is_up(KEYS[0]) and client.is_whole

        await until(is_served)
        assert await client.commands.set(KEYS[0], 2)
        assert (await group.owner(slot_of(KEYS[0]), await group.living())) is not victim
        assert restarts
        await victim.start()
        await until(group.is_ready)
        assert not client.problems


async def test_a_stopped_shard_does_not_stop_the_others(group: ClusterGroup) -> None:
    """Primary and replica hang. The subscription moves to another node."""
    async with client_on(group.url, timeout_s=0.5) as client:
        await client.require()
        victim = await group.owner(slot_of(KEYS[0]))
        stopped = [victim, *await group.replicas(victim)]
        assert len(stopped) == 2
        others = [key for key in KEYS if (await group.owner(slot_of(key))) is not victim]
        for server in stopped:
            server.send(signal.SIGSTOP)
        try:

            async def is_known() -> bool:
                return not client.is_up(KEYS[0])

            await until(is_known)
            assert client.up
            async with client.commands.pipeline(transaction=False) as pipe:
                for key in (KEYS[0], *others):
                    pipe.set(key, 1)
                failed, *stored = await pipe.execute(raise_on_error=False)
            assert isinstance(failed, RedisConnectionError)
            assert all(one is True for one in stored)
            assert any(str(victim.port) in problem for problem in client.problems)
        finally:
            for server in stopped:
                server.send(signal.SIGCONT)

        async def is_whole() -> bool:
            return client.is_whole

        await until(is_whole)
        assert await client.commands.set(KEYS[0], 2)
    await until(group.is_ready)


async def test_uncovered_slots_are_reported_at_startup(group: ClusterGroup) -> None:
    slot = slot_of("{uncovered}")
    owner = await group.owner(slot)
    await uncover(group, owner, slot)
    try:
        async with client_on(group.url, watched=False) as client:
            await client.require()
            assert client.problems == [
                f"1 of 16384 slots have no node: {slot}. redis-cli --cluster fix HOST:PORT assigns them"
            ]
            assert not client.is_whole
            with pytest.raises(RedisConnectionError, match=f"no node serves slot {slot}"):
                await client.commands.get("{uncovered}")
            assert not client.is_up("{uncovered}")
            assert client.is_up(KEYS[0])
        await require_coverage(group, "yes")
        await uncover(group, owner, slot + 1)
        refusals: list[str] = []

        async def is_refused() -> bool:
            async with client_on(group.url, watched=False) as client:
                try:
                    await client.require()
                except StartupError as refused:
                    refusals.append(refused.message)
            return bool(refusals)

        await until(is_refused, 30)
        assert f"serves no request: 2 of 16384 slots have no node: {slot}-{slot + 1}. redis-cli" in refusals[0]
        assert "cluster_state:fail" in refusals[0]
    finally:
        await require_coverage(group, "no")
        for one in (slot, slot + 1):
            with suppress(ResponseError):  # it has an owner
                await group.run(owner, "CLUSTER", "ADDSLOTS", one)
    await until(group.is_ready)


async def test_uncovered_slots_are_reported_until_they_have_an_owner(group: ClusterGroup) -> None:
    """The log, the metric and the readiness details report them."""
    slot = slot_of("{uncovered}")
    owner = await group.owner(slot)
    metrics = Metrics()
    with capture_logs() as logs:
        async with client_on(group.url, metrics=metrics) as client:
            await client.require()
            assert client.is_whole
            await uncover(group, owner, slot)

            async def is_reported() -> bool:
                return not client.is_whole and bool(client.problems)

            try:
                await until(is_reported)
                assert client.up
                assert f"have no node: {slot}." in client.problems[0]
                assert metrics.registry.get_sample_value("gkt_redis_up") == 0
                assert client.up_since("{uncovered}") == math.inf
                ended_s = asyncio.get_running_loop().time()
            finally:
                await group.run(owner, "CLUSTER", "ADDSLOTS", slot)

            async def is_served() -> bool:
                return client.is_whole and not client.problems

            await until(is_served)
            assert client.up_since("{uncovered}") >= ended_s
            assert client.up_since(KEYS[0]) < ended_s
    lines = [line for line in logs if line["event"].startswith("redis_slots")]
    assert [line["event"] for line in lines] == ["redis_slots_unserved", "redis_slots_served"]
    assert (lines[0]["count"], lines[0]["slots"]) == (1, str(slot))
    await until(group.is_ready)


async def test_a_cluster_without_slots_is_refused(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "node", **{"cluster-enabled": "yes", "cluster-port": str(free_port())})
    try:
        await server.start()
        async with client_on(f"redis+cluster://:{PERCENT_ENCODED}@{server.address}", watched=False) as client:
            with pytest.raises(StartupError, match=r"serves no request: 16384 of 16384 slots have no node: 0-16383\."):
                await client.require()
    finally:
        await server.stop()


async def uncover(group: ClusterGroup, owner: RedisServer, slot: int) -> None:
    # The owner first: the others hear of the slots that it has.
    for server in sorted(group.servers, key=lambda one: one is not owner):
        await group.run(server, "CLUSTER", "DELSLOTS", slot)


async def require_coverage(group: ClusterGroup, value: str) -> None:
    """Let uncovered slots stop all nodes, or not."""
    for server in group.servers:
        await group.run(server, "CONFIG", "SET", "cluster-require-full-coverage", value)
