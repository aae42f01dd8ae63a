"""Faults of the nodes of a cluster, without servers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import AskError, MovedError
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.redis.client import RedisClient
from gateway.redis.cluster_client import NODE, ClusterClient
from gateway.redis.slots import slot_of
from gateway.redis.topology import Topology
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.batching.process import until

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST, SECOND = "10.0.0.1:7000", "10.0.0.2:7000"


class Cluster:
    """A client whose checks of the nodes return `found`."""

    def __init__(self) -> None:
        self.client = RedisClient(
            "redis+cluster://127.0.0.1:1", timeout_s=5.0, metrics=Metrics(), check_interval_s=0.01
        )
        self.servers: Any = self.client._servers
        self.servers.check = self.check
        self.found: Mapping[str, Mapping[str, Any]] = {}
        self.checks = 0

    async def check(self, _: Redis) -> Mapping[str, Mapping[str, Any]]:
        self.checks += 1
        return {"": {}, **self.found}

    async def checked(self) -> None:
        """Wait until a later check has been handled."""
        before = self.checks
        await until(lambda: self.checks >= before + 2)


def primary(run_id: str) -> dict[str, str]:
    return {"run_id": run_id, "redis_version": "8.0.0"}


async def test_a_failover_of_the_only_shard_is_a_restart() -> None:
    """The new primary may lack the last writes."""
    cluster, tasks, restarts = Cluster(), BackgroundTasks(), list[bool]()
    cluster.client.on_restart = lambda: restarts.append(True)
    cluster.found = {FIRST: primary("a")}
    tasks.keep("redis", cluster.client.watch())
    await cluster.checked()
    assert not restarts
    cluster.found = {SECOND: primary("b")}
    await cluster.checked()
    assert restarts == [True]
    await tasks.close()
    await cluster.client.close()


async def test_a_new_primary_that_fails_during_a_check_is_used_again() -> None:
    """That check began before the failover, so that it does not contain the node."""
    cluster, tasks = Cluster(), BackgroundTasks()
    cluster.servers._topology.move(slot_of("key"), SECOND)
    cluster.found = {FIRST: primary("a")}
    tasks.keep("redis", cluster.client.watch())
    await cluster.checked()
    error = RedisConnectionError("lost")
    setattr(error, NODE, SECOND)
    cluster.client.failed(error)
    assert not cluster.client.is_up("key")
    await cluster.checked()
    cluster.found = {FIRST: primary("a"), SECOND: primary("b")}
    await cluster.checked()
    assert cluster.client.is_up("key")
    await tasks.close()
    await cluster.client.close()


def cluster_client() -> ClusterClient:
    def connect(address: str) -> Redis:
        return Redis.from_url(f"redis://{address}")

    return ClusterClient(Topology([FIRST], connect), connect)


async def test_a_node_may_be_added_while_others_are_left() -> None:
    client = cluster_client()

    async def disconnect() -> None:
        client.node("10.0.0.3:7000")
        await asyncio.sleep(0)

    for address in (FIRST, SECOND):
        client.node(address).connection_pool.disconnect = disconnect  # type: ignore[method-assign,assignment]
    await client.disconnect_except([])


async def test_the_failed_node_of_a_moving_slot_is_the_one_that_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error without a node would open the breaker of the whole cluster."""
    client, slot = cluster_client(), slot_of("key")
    client._topology.move(slot, FIRST)

    async def redirect(*_: object, **__: object) -> None:
        raise AskError(f"{slot} 127.0.0.1:1")

    monkeypatch.setattr(client.node(FIRST), "execute_command", redirect)
    with pytest.raises(RedisConnectionError) as failed:
        await client.execute_command("GET", "key")
    assert getattr(failed.value, NODE) == "127.0.0.1:1"
    await client.aclose()


@pytest.mark.parametrize(("named", "address"), [("::1:1", "[::1]:1"), (":1", "127.0.0.1:1"), ("?:1", "127.0.0.1:1")])
async def test_a_redirection_names_a_node_as_the_list_of_slots_does(
    monkeypatch: pytest.MonkeyPatch, named: str, address: str
) -> None:
    client, slot = cluster_client(), slot_of("key")
    client._topology.move(slot, "127.0.0.1:2")

    async def redirect(*_: object, **__: object) -> None:
        raise MovedError(f"{slot} {named}")

    monkeypatch.setattr(client.node("127.0.0.1:2"), "execute_command", redirect)
    with pytest.raises(RedisConnectionError):
        await client.execute_command("GET", "key")
    assert await client._topology.owner(slot) == address
    await client.aclose()
