"""Slots and threads of requests that count tokens."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from gateway.accounting.engine_set import CurrentEngines
from gateway.api import messages
from gateway.api.keys import READS, TOKEN_COUNTER
from gateway.pipeline import token_count
from gateway.pipeline.admission import Slots
from gateway.pipeline.token_count import TokenCounter
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import NO_ENGINES

if TYPE_CHECKING:
    import pytest

MANY = 40  # more than the threads of the event loop


class World:
    """Counts of prompts, each of which takes until `end` is set. `counted` are the chats, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slots = Slots(4 * MANY, "reads", Metrics())
        self.end = threading.Event()
        self.counted: list[Any] = []
        app = {READS: self.slots, TOKEN_COUNTER: TokenCounter(CurrentEngines(NO_ENGINES))}
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
        caller = SimpleNamespace(policy=SimpleNamespace(tenant=tenant, weight=1.0))
        chat = cast("Any", tenant)
        work = messages._counted(cast("Any", self._request), cast("Any", caller), chat)
        return asyncio.get_running_loop().create_task(work)


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
