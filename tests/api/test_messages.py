"""Slots of requests that count tokens."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from gateway.api import messages
from gateway.api.keys import COMPLETIONS, READS
from gateway.pipeline.admission import Slots
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    import pytest


async def test_a_count_holds_its_slot_after_the_caller_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a tenant that disconnects could fill the threads of all tenants."""
    slots = Slots(4, "reads", Metrics())
    counting: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def route(*_: Any) -> None: ...

    monkeypatch.setattr(messages, "find_route", route)
    monkeypatch.setattr(messages, "count_prompt", lambda *_: counting)
    completions = SimpleNamespace(student_call=SimpleNamespace(encodings={}))
    request = SimpleNamespace(app={READS: slots, COMPLETIONS: completions}, headers={})
    caller = SimpleNamespace(policy=SimpleNamespace(tenant="acme", weight=1.0))
    with suppress(TimeoutError):
        await asyncio.wait_for(messages._counted(cast("Any", request), cast("Any", caller), cast("Any", None)), 0.01)
    assert slots.held == 1
    counting.set_result(7)
    await asyncio.sleep(0)
    assert slots.held == 0
