"""Slots and threads of requests that count tokens."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest

from gateway.accounting.estimate import TextSize, count_text, token_error
from gateway.api import messages
from gateway.api.keys import READS, TOKEN_COUNTER
from gateway.pipeline import token_count
from gateway.pipeline.admission import Slots
from gateway.pipeline.token_count import TokenCounter
from gateway.protocol.anthropic.request import parse_count_tokens
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import NO_ENGINES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from gateway.protocol.chat import ChatRequest

MANY = 40  # more than the threads of the event loop


class World:
    """Counts of prompts, each of which takes until `end` is set. `counted` are the chats, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slots = Slots(4 * MANY, "reads", Metrics())
        self.end = threading.Event()
        self.counted: list[Any] = []
        app = {READS: self.slots, TOKEN_COUNTER: TokenCounter(NO_ENGINES)}
        self._request = SimpleNamespace(app=app, headers={})

        async def route(*_: Any) -> Any:
            return SimpleNamespace(all_students=(), teacher="big")

        def bound(chat: Any, _: Any) -> int:
            self.counted.append(chat)
            self.end.wait(10)
            return 7

        monkeypatch.setattr(messages, "find_route", route)
        monkeypatch.setattr(token_count, "prompt_bound", bound)

    def count(self, tenant: str) -> asyncio.Task[int]:
        return asyncio.get_running_loop().create_task(messages._counted(*self._asked(tenant)))

    def counting(self, tenant: str) -> AbstractContextManager[Callable[[], Awaitable[int]]]:
        return messages._counting(*self._asked(tenant))

    def _asked(self, tenant: str) -> Any:
        return self._request, SimpleNamespace(policy=SimpleNamespace(tenant=tenant, weight=1.0)), tenant


async def test_a_count_holds_its_slot_after_the_caller_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a tenant that disconnects could fill the thread of all tenants."""
    world = World(monkeypatch)
    counting = world.count("acme")
    await asyncio.sleep(0.01)
    counting.cancel()
    await asyncio.sleep(0.01)
    assert world.slots.held == 1
    world.end.set()
    with suppress(asyncio.CancelledError):
        await counting
    assert world.slots.held == 0


async def test_a_stream_starts_its_count_with_the_request_and_does_not_wait_long_at_its_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    with world.counting("acme") as counted:
        async with asyncio.timeout(5):
            while not world.counted:
                await asyncio.sleep(0.01)
        assert await counted() == 0
        world.end.set()
        async with asyncio.timeout(5):
            while await counted() != 7:
                pass


async def test_the_count_of_a_stream_that_fails_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another count of the tenant holds the turn."""
    world = World(monkeypatch)
    first = world.count("acme")
    await asyncio.sleep(0.01)
    with world.counting("acme"):
        await asyncio.sleep(0.01)
    world.end.set()
    assert await first == 7
    assert await world.count("globex") == 7
    assert world.counted == ["acme", "globex"]


def chat_of(text: str) -> ChatRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": text}]}
    return parse_count_tokens(orjson.dumps(body)).chat


async def counted(text: str, counter: TokenCounter | None = None) -> int:
    counter = counter or TokenCounter(NO_ENGINES)
    return await counter.count("acme", chat_of(text), cast("Any", SimpleNamespace(all_students=(), teacher="big")))


@pytest.mark.parametrize("size", [200_000, 800_000])
async def test_the_work_of_a_count_is_bounded(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The tokens of a long prompt are estimated from 64,000 of its characters."""
    sizes: list[int] = []

    def count_part(encoding: str, text: str) -> int:
        sizes.append(len(text))
        return count_text(encoding, text)

    monkeypatch.setattr(token_count, "count_text", count_part)
    await counted("word " * (size // 5))
    assert sum(sizes) == 64_000


async def test_an_estimate_is_an_upper_bound_near_the_count() -> None:
    """The text has prose, numbers and other scripts, in proportions that change."""
    parts = [f"The {n}th line of {n * 7919} has a word or two. {'Größe und Wörter ' * (n % 5)}" for n in range(9_000)]
    text = "\n".join(parts)
    encoding = NO_ENGINES.encodings["big"]
    exact = sum(count_text(encoding.name, text[start : start + 40_000]) for start in range(0, len(text), 40_000))
    assert len(text) > 400_000
    error = token_error(exact, TextSize.of([text]))
    assert exact + error <= await counted(text) <= 1.3 * (exact + error)


async def test_the_thread_rests_three_times_as_long_as_it_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts use a quarter of a core at most. A reply does not wait for the rest."""
    rests: list[float] = []
    woken = threading.Event()

    def rest(seconds: float) -> None:
        rests.append(seconds)
        woken.wait(10)

    clock = iter([1.0, 1.5, 2.0, 2.25])
    monkeypatch.setattr(token_count, "time", SimpleNamespace(thread_time=lambda: next(clock)))
    counter = TokenCounter(NO_ENGINES, rest)
    async with asyncio.timeout(5):
        first = await counted("Hello", counter)
        second = asyncio.get_running_loop().create_task(counted("Hello", counter))
        await asyncio.sleep(0.05)
        assert not second.done()
        assert rests == [1.5]
        woken.set()
        assert await second == first
        await asyncio.get_running_loop().run_in_executor(counter._thread, int)
    assert rests == [1.5, 0.75]


async def test_the_counts_of_one_tenant_delay_no_other_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither their counts, which take turns, nor their other work in threads."""
    world = World(monkeypatch)
    counts = [world.count("acme") for _ in range(MANY)]
    await asyncio.sleep(0.01)
    counts.append(world.count("globex"))
    async with asyncio.timeout(5):
        await asyncio.to_thread(int)
    world.end.set()
    assert await asyncio.gather(*counts) == [7] * (MANY + 1)
    assert "globex" in world.counted[:3]
