"""Collected requests wait for Redis in a bounded number, and those that are dropped are counted."""

from __future__ import annotations

import asyncio
import weakref
from types import SimpleNamespace
from typing import Any

import orjson
from msgspec import structs

from gateway.pipeline.request_collector import MAX_PENDING_PER_TENANT, RequestCollector
from gateway.policy.route_rules import CollectRule
from gateway.protocol.chat import parse_chat
from gateway.runtime.tasks import BackgroundTasks

RULE = CollectRule()
CHAT = parse_chat(orjson.dumps({"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}))


class Samples:
    """Record the calls. They wait until `gate` is set, and fail while `fails` is set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.fails = False
        self.added: list[tuple[str, bytes, int]] = []

    async def add(
        self, tenant: str, route: str, rule: CollectRule, request_id: str, content: bytes, *, reason: str, dropped: int
    ) -> None:
        await self.gate.wait()
        if self.fails:
            raise ConnectionError
        self.added.append((tenant, content, dropped))


class World:
    """A collector, and the requests that it is given."""

    def __init__(self) -> None:
        self.samples: Any = Samples()
        self.client: Any = SimpleNamespace(up=True)
        self.tasks = BackgroundTasks()
        self.collector = RequestCollector(self.samples, self.client, self.tasks)

    def start(self, tenant: str = "acme") -> None:
        builder: Any = SimpleNamespace(tenant=tenant, route="chat", id="req_1", created=0)
        self.collector.start(builder, CHAT, RULE)

    async def arrive(self) -> None:
        """Let all writes arrive."""
        self.samples.gate.set()
        await self.tasks.drain(5)

    def dropped(self) -> int:
        return sum(dropped for _, _, dropped in self.samples.added)


async def test_a_request_is_added_in_the_background() -> None:
    world = World()
    world.start()
    assert world.samples.added == []
    await world.arrive()
    ((tenant, content, dropped),) = world.samples.added
    assert (tenant, dropped) == ("acme", 0)
    assert orjson.loads(content)["messages"] == CHAT.messages


async def test_a_write_that_waits_for_redis_holds_no_body() -> None:
    """Bodies may have megabytes: only the bounded line is held."""

    class Body(dict[str, Any]):
        pass

    world = World()
    for _ in range(8):
        body = Body(CHAT.body)
        builder: Any = SimpleNamespace(tenant="acme", route="chat", id="req_1", created=0)
        world.collector.start(builder, structs.replace(CHAT, body=body), RULE)
    held = weakref.ref(body)
    del body
    await asyncio.sleep(0.01)
    assert held() is None
    await world.arrive()
    assert len(world.samples.added) == 8


async def test_a_tenant_holds_a_bounded_number_and_takes_no_room_of_another() -> None:
    world = World()
    for _ in range(MAX_PENDING_PER_TENANT + 10):
        world.start()
    world.start("globex")
    await asyncio.sleep(0)
    await world.arrive()
    tenants = [tenant for tenant, _, _ in world.samples.added]
    assert (tenants.count("acme"), tenants.count("globex")) == (MAX_PENDING_PER_TENANT, 1)
    world.start()
    await world.tasks.drain(5)
    assert world.dropped() == 10


async def test_requests_that_redis_does_not_get_are_counted_with_the_next_one() -> None:
    world = World()
    world.samples.fails = True
    world.start()
    await world.arrive()
    world.client.up = False
    world.start()
    await world.tasks.drain(5)
    world.samples.fails, world.client.up = False, True
    world.start()
    await world.tasks.drain(5)
    assert [(tenant, dropped) for tenant, _, dropped in world.samples.added] == [("acme", 2)]
