"""An opening that is heard as it is written, and whose caller cannot wait for its end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from gateway.batching.ticket import Grant
from gateway.engines.base import EngineState
from gateway.metrics import Metrics
from gateway.opening import Guide, Opening
from gateway.protocol import parse_chat
from gateway.tasks import Tasks
from tests.ledger.drafts import draft, plan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.batching.flights import Landing
    from gateway.engines.base import OpeningReply

CHAT = parse_chat(orjson.dumps({"model": "chat", "stream": True, "messages": [{"role": "user", "content": "Why?"}]}))


class Teacher:
    """Writes a few words, and then waits to be told to go on."""

    name = "big"
    state = EngineState(revision="first")

    async def opening(self, _: Any, *, batch: str | None, tell: Callable[[str], None]) -> OpeningReply:
        self.tell = tell
        tell("The quick brown")
        await asyncio.Event().wait()
        raise AssertionError


class SharedFlight:
    """The flight goes on when its leader leaves it: others sit in it. Its teacher writes in that very moment."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    async def join(
        self, queue: Any, ticket: Any, ask: Callable[[Grant], Awaitable[OpeningReply]], granted: Any, deadline: float
    ) -> Landing:
        grant = Grant("batch", 2)
        granted(grant)
        try:
            await ask(grant)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_soon(self._teacher.tell, " fox jumps over")
            raise
        raise AssertionError


class Batcher:
    def queue(self, _: str) -> None:
        return None


async def test_what_a_shared_teacher_writes_after_the_deadline_is_not_shown() -> None:
    """The student goes on from what was shown until then: the caller may not have read further than that."""
    teacher = Teacher()
    guide = Guide({"big": teacher}, Batcher(), SharedFlight(teacher), Metrics(), Tasks())  # type: ignore[dict-item, arg-type]
    guided = plan()
    assert guided.guidance is not None
    guided = replace(guided, guidance=replace(guided.guidance, stream=True, deadline_s=0.5))
    async with aclosing(guide.stream(guided, CHAT, draft(guided))) as parts:
        heard = [part async for part in parts]
    opening = heard.pop()
    assert isinstance(opening, Opening)
    assert "".join(map(str, heard)) == opening.text == "The quick"
