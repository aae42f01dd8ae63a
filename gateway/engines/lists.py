"""One HTTP call for the openings that come together, for servers that take a list.

What a list shares: its fate, its sampling, and, on most servers, its token count. The engine's own queue is the same
either way. docs/engines.md says when it pays.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.engines.base import OpeningRequest
from gateway.engines.list_wires import list_wire
from gateway.errors import EngineError, EngineFailed, EngineProtocolError, EngineRejected
from gateway.runtime.tasks import BackgroundTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.engines.base import OpeningReply
    from gateway.engines.http import EngineHttp
    from gateway.engines.list_wires import ListWire

# A list that was refused like this may go through member by member: one prompt may be to blame, or the list itself.
_EACH_ALONE = frozenset({400, 404, 405, 413, 422})

_QUESTIONS = ("What is the capital of France?", "Write the numbers from one to five.")
_PROBE_TOKENS = 8
_PROBES = {
    "chats": [
        OpeningRequest(_PROBE_TOKENS, messages=[{"role": "user", "content": question}]) for question in _QUESTIONS
    ],
    "prompts": [OpeningRequest(_PROBE_TOKENS, prompt=question) for question in _QUESTIONS],
}


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    """An opening in a list. Its reply is None when it must ask alone."""

    request: OpeningRequest
    reply: asyncio.Future[OpeningReply | None]


class CallLists:
    """The lists of one engine.

    Args:
        http: the engine's pool.
        model: what the server calls the model.
        alone: asks for one opening in a call of its own.
    """

    def __init__(
        self,
        http: EngineHttp,
        model: str,
        alone: Callable[[OpeningRequest], Awaitable[OpeningReply]],
    ) -> None:
        self._http = http
        self._model = model
        self._alone = alone
        self._wire: ListWire | None = None
        self._gathering: dict[tuple[Any, ...], list[_Member]] = {}
        self._tasks = (
            BackgroundTasks()
        )  # a call belongs to all its members: it may not end with the one that came first
        self.taken: list[str] = []
        """What the server is known to take as a list: `chats`, `prompts`."""
        self.doubts: list[str] = []
        """Why something goes out one by one."""

    async def close(self) -> None:
        await self._tasks.close()

    async def opening(self, request: OpeningRequest, batch: str) -> OpeningReply:
        """The opening, out of one call with the others of its batch that ask for the same.

        A caller that leaves just leaves; the call is given up when all have left. Raises EngineErrors: one that failed
        the call is raised to each member, as an instance of its own.
        """
        kind = "prompts" if request.messages is None else "chats"
        if self._wire is None or kind not in self.taken or not self._wire.takes(request):
            return await self._alone(request)
        reply = await self._join(request, (batch, kind, *_parameters(request)))
        return await self._alone(request) if reply is None else reply

    def _join(self, request: OpeningRequest, key: tuple[Any, ...]) -> asyncio.Future[OpeningReply | None]:
        loop = asyncio.get_running_loop()
        member = _Member(request, loop.create_future())
        members = self._gathering.setdefault(key, [])
        members.append(member)
        if len(members) == 1:
            loop.call_soon(self._depart, key, 1)
        return member.reply

    def _depart(self, key: tuple[Any, ...], seen: int) -> None:
        """Send what was gathered, after the first turn of the event loop in which nobody joined."""
        members = self._gathering[key]
        if len(members) > seen:
            asyncio.get_running_loop().call_soon(self._depart, key, len(members))
            return
        del self._gathering[key]
        waiting = [member for member in members if not member.reply.done()]
        if len(waiting) == 1:
            waiting[0].reply.set_result(None)
        elif waiting:
            call = self._tasks.spawn(f"list:{self._http.name}", self._call(waiting))

            def left(_: asyncio.Future[Any]) -> None:
                if all(member.reply.done() for member in waiting):
                    call.cancel()

            for member in waiting:
                member.reply.add_done_callback(left)

    async def _call(self, members: Sequence[_Member]) -> None:
        assert self._wire is not None
        outcomes: Sequence[OpeningReply | Exception | None]
        try:
            rendered = await self._wire.render([member.request for member in members])
            # Rendering takes calls of its own: who left meanwhile would be written for in vain.
            left = [(member, one) for member, one in zip(members, rendered, strict=True) if not member.reply.done()]
            members = [member for member, _ in left]
            if len(members) < 2:
                self._settle(members, [None] * len(members))
                return
            outcomes = await self._wire.send([member.request for member in members], [one for _, one in left])
        except EngineError as error:
            refused = isinstance(error, EngineRejected) and error.status_sent in _EACH_ALONE
            outcomes = [None if refused else error.for_others() for _ in members]
            # The first member that waits reports the failure to the breaker. Where a prompt may be at fault none does:
            # it may be another member's.
            blames_prompt = isinstance(error, EngineFailed) and error.may_blame_request
            first = None if blames_prompt else next((one for one in members if not one.reply.done()), None)
            for member, outcome in zip(members, outcomes, strict=True):
                if isinstance(outcome, EngineError):
                    outcome.is_twin = member is not first
        except asyncio.CancelledError:
            for member in members:
                member.reply.cancel()  # the engine is being closed, or nobody waits any more
            raise
        except Exception as error:
            self._settle(members, [error] * len(members))
            raise
        self._settle(members, outcomes)

    @staticmethod
    def _settle(members: Sequence[_Member], outcomes: Sequence[OpeningReply | Exception | None]) -> None:
        for member, outcome in zip(members, outcomes, strict=True):
            if member.reply.done():
                continue  # it left
            if isinstance(outcome, Exception):
                member.reply.set_exception(outcome)
            else:
                member.reply.set_result(outcome)

    async def look(self, owner: object) -> None:
        """Find out what the server takes as a list; `owner` is whatever /models says of it.

        Raises EngineErrors when the server does not answer at all.
        """
        self.taken, self.doubts = [], []  # until it is known what came in its place, nothing goes out as a list
        wire = list_wire(owner, self._http, self._model)
        why_not = {kind: await self._why_not(wire, kind, probes) for kind, probes in _PROBES.items()}
        self._wire = wire
        self.taken = [kind for kind, why in why_not.items() if why is None]
        self.doubts = [f"batch.calls list: {kind} go out one by one: {why}" for kind, why in why_not.items() if why]

    async def _why_not(self, wire: ListWire, kind: str, probes: Sequence[OpeningRequest]) -> str | None:
        if not wire.takes(probes[0]):
            return "no list of them is known for this server"
        try:
            listed = await wire.send(probes, await wire.render(probes))
            failed = next((outcome for outcome in listed if isinstance(outcome, EngineError)), None)
            if failed is not None:
                return failed.message
            if kind == "prompts":
                return None
            # A list of chats goes through another route than a chat. A model that thinks aloud, for one, shows its
            # thoughts on some; and guidance is shown to callers.
            single = [await self._alone(probe) for probe in probes]
        except (EngineRejected, EngineFailed, EngineProtocolError) as error:
            return error.message
        same = [_first_word(outcome) for outcome in listed] == [_first_word(reply) for reply in single]
        return None if same else "a list's answers begin otherwise than those of single calls"


def _parameters(request: OpeningRequest) -> tuple[Any, ...]:
    """What the members of one list have in common."""
    return request.max_tokens, request.temperature, request.top_p, request.seed, tuple(request.stop)


def _first_word(reply: Any) -> list[str]:
    return reply.text.split(maxsplit=1)[:1]  # type: ignore[no-any-return]
