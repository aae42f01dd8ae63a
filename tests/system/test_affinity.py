"""Conversations stay on one replica, through two gateways with one configuration, and leave a replica that fails."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from tests.fakes import FakeEngine, reply
from tests.gateway_process import KEY, GatewayProcess, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT_S = 60.0
CONVERSATIONS = 16


class Replica(FakeEngine):
    """An engine with a prefix cache, which reports the messages that it read before as cached tokens."""

    def __init__(self) -> None:
        super().__init__(self._reply)
        self.read: set[str] = set()
        self.broken = False
        self.holds: Callable[[], bool] = lambda: False

    async def _reply(self, _: web.Request, body: dict[str, Any]) -> web.Response:
        if self.broken:
            return web.json_response({"error": {"message": "broken"}}, status=500)
        while self.holds():
            await asyncio.sleep(0.02)
        prefixes = [str(body["messages"][: length + 1]) for length in range(len(body["messages"]))]
        cached = sum(prefix in self.read for prefix in prefixes)
        self.read.update(prefixes)
        usage: Any = {"prompt_tokens": len(prefixes), "completion_tokens": 1}
        return web.json_response(reply("Yes", usage=usage | {"prompt_tokens_details": {"cached_tokens": cached}}))


@dataclass
class World:
    replicas: dict[str, Replica]
    gateways: list[GatewayProcess]

    def ask(self, messages: list[dict[str, str]], gateway: int = 0, route: str = "chat", **headers: str) -> Any:
        """Return the reply, whose `model` is the replica that answered."""
        answer = httpx.post(
            f"{self.gateways[gateway].url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {KEY}"} | headers,
            json={"model": route, "messages": messages},
            timeout=LIMIT_S,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def turns(self, first: str, route: str = "chat", count: int = 4) -> tuple[set[str], int]:
        """Hold a conversation over both gateways in turn. Return the replicas that answered and the cached tokens."""
        messages, replicas, cached = [{"role": "user", "content": first}], set(), 0
        for turn in range(count):
            answer = self.ask(messages, turn % 2, route)
            replicas.add(answer["model"])
            cached += answer["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0)
            messages += [{"role": "assistant", "content": "Yes"}, {"role": "user", "content": f"Turn {turn}?"}]
        return replicas, cached


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        replicas = {name: stack.enter_context(Replica().running()) for name in ("a", "b", "c")}
        students = [{"model": name, "weight": 1} for name in replicas]
        route = {"model": "chat", "mode": "student", "students": students, "reply_model": "engine"}
        route["retries"] = {"num_retries": 0}
        own = {"continuation": "trailing", "echo": False, "breaker": {"failures": 1000}}
        gateways = [
            stack.enter_context(
                running_gateway(
                    tmp_path_factory.mktemp(f"affinity-{number}"),
                    redis_url=redis_url,
                    redis={"prefix": "affinity"},
                    models=[model(name, "openai", f"{one.url}/v1", **own) for name, one in replicas.items()],
                    routes=[route, route | {"model": "drawn", "affinity": "none"}],
                )
            )
            for number in range(2)
        ]
        for gateway in gateways:
            wait_until_probed(gateway.admin_url)
        yield World(replicas, gateways)


def test_the_turns_of_a_conversation_reach_one_replica_through_both_gateways(world: World) -> None:
    found = [world.turns(f"Question {number}?") for number in range(CONVERSATIONS)]
    assert all(len(replicas) == 1 for replicas, _ in found)
    assert {name for replicas, _ in found for name in replicas} == set(world.replicas)
    # Of the 1, 3, 5 and 7 messages of the turns, all of the turn before are cached.
    assert {cached for _, cached in found} == {1 + 3 + 5}


def test_without_affinity_turns_miss_the_cache(world: World) -> None:
    found = [world.turns(f"Drawn {number}?", "drawn") for number in range(CONVERSATIONS)]
    assert any(len(replicas) > 1 for replicas, _ in found)
    assert sum(cached for _, cached in found) < CONVERSATIONS * (1 + 3 + 5)


def test_a_session_header_keeps_different_prompts_together(world: World) -> None:
    for header in ("x-claude-code-session-id", "session_id", "x-session-affinity"):
        found = {
            session: {
                world.ask([{"role": "user", "content": f"{number}?"}], number % 2, **{header: session})["model"]
                for number in range(4)
            }
            for session in map(str, range(8))
        }
        assert all(len(replicas) == 1 for replicas in found.values())
        assert len(set.union(*found.values())) > 1


def test_only_the_conversations_of_a_failed_replica_move(world: World) -> None:
    chats = [[{"role": "user", "content": f"Conversation {number}?"}] for number in range(CONVERSATIONS)]
    before = [world.ask(messages)["model"] for messages in chats]
    lost = before[0]
    world.replicas[lost].broken = True
    try:
        during = [world.ask(messages, 1)["model"] for messages in chats]
    finally:
        world.replicas[lost].broken = False
    assert lost not in during
    assert all(now == then for now, then in zip(during, before, strict=True) if then != lost)
    assert [world.ask(messages)["model"] for messages in chats] == before, "they return with the replica"


def test_a_busy_conversation_is_bounded_by_the_load(world: World) -> None:
    """24 concurrent calls of one conversation: 1.25 times the mean of 8 are at its own replica."""
    messages = [{"role": "user", "content": "All at once?"}]
    home = world.ask(messages)["model"]
    replicas = world.replicas.values()
    expected = 24 + sum(len(one.requests) for one in replicas)
    for one in replicas:
        one.holds = lambda: sum(len(one.requests) for one in replicas) < expected
    with ThreadPoolExecutor(24) as pool:
        found = [one["model"] for one in pool.map(lambda _: world.ask(messages), range(24))]
    assert max(found.count(name) for name in world.replicas) == found.count(home) <= 11
    assert found.count(home) >= 10
    assert world.ask(messages)["model"] == home
