"""Sends concurrent guidance requests of one batch in one HTTP call, for servers that support lists of prompts.

The members of a list share the sampling parameters and the failure of the call. Most servers also report one token
count for all members. docs/engines.md describes when lists are useful.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.engines.base import TeacherRequest, current_origin, set_origin
from gateway.engines.list_wires import list_wire
from gateway.errors import EngineError, EngineFailed, EngineProtocolError, EngineRejected
from gateway.runtime.tasks import BackgroundTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.engines.base import TeacherReply
    from gateway.engines.http import EngineHttp
    from gateway.engines.list_wires import ListWire
    from gateway.protocol.capabilities.reasoning import Reasoning

# After these statuses each member is sent alone, since one prompt or the list itself may be invalid.
_SPLIT_STATUSES = frozenset({400, 404, 405, 413, 422})

_QUESTIONS = ("What is the capital of France?", "Write the numbers from one to five.")
_PROBE_TOKENS = 8
_PROBES = {
    "chats": [
        TeacherRequest(_PROBE_TOKENS, messages=[{"role": "user", "content": question}]) for question in _QUESTIONS
    ],
    "prompts": [TeacherRequest(_PROBE_TOKENS, prompt=question) for question in _QUESTIONS],
}


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    """A guidance request in a list. The reply is None if the request must be sent alone."""

    request: TeacherRequest
    reply: asyncio.Future[TeacherReply | None]


class CallLists:
    """The lists of one engine. `alone` sends one guidance request in a separate call."""

    def __init__(
        self, http: EngineHttp, model: str, alone: Callable[[TeacherRequest], Awaitable[TeacherReply]]
    ) -> None:
        self._http = http
        self._model = model
        self._alone = alone
        self._wire: ListWire | None = None
        self._gathering: dict[tuple[Any, ...], list[_Member]] = {}
        self._tasks = BackgroundTasks()  # a call must not end when its first member is canceled
        self.supported: list[str] = []  # the kinds that the server supports as a list: `chats`, `prompts`
        self.warnings: list[str] = []  # why a kind is sent in separate calls

    async def close(self) -> None:
        await self._tasks.close()

    async def generate_guidance(self, request: TeacherRequest, batch: str) -> TeacherReply:
        """Generate guidance in one call with the concurrent requests of the batch that have the same parameters.

        The call is canceled when all its members are canceled. Raises EngineErrors; each member of a failed call gets
        its own copy.
        """
        kind = "prompts" if request.messages is None else "chats"
        # vLLM's batch route knows `logit_bias` only, and ignores the other constraints.
        alone = request.constraints is not None
        if alone or self._wire is None or kind not in self.supported or not self._wire.takes(request):
            return await self._alone(request)
        # All members of a list share these parameters.
        parameters = (request.max_tokens, request.temperature, request.top_p, request.seed, tuple(request.stop))
        reply = await self._join(request, (batch, kind, *parameters))
        return await self._alone(request) if reply is None else reply

    def _join(self, request: TeacherRequest, key: tuple[Any, ...]) -> asyncio.Future[TeacherReply | None]:
        loop = asyncio.get_running_loop()
        member = _Member(request, loop.create_future())
        members = self._gathering.setdefault(key, [])
        members.append(member)
        if len(members) == 1:
            loop.call_soon(self._send_when_gathered, key, 1)
        return member.reply

    def _send_when_gathered(self, key: tuple[Any, ...], seen: int) -> None:
        """Send the gathered members after the first turn of the event loop in which no member joined."""
        members = self._gathering[key]
        if len(members) > seen:
            asyncio.get_running_loop().call_soon(self._send_when_gathered, key, len(members))
            return
        del self._gathering[key]
        waiting = [member for member in members if not member.reply.done()]
        if len(waiting) == 1:
            waiting[0].reply.set_result(None)
        elif waiting:
            call = self._tasks.spawn(f"list:{self._http.name}", self._call(waiting, key[0]))

            def left(_: asyncio.Future[Any]) -> None:
                if all(member.reply.done() for member in waiting):
                    call.cancel()

            for member in waiting:
                member.reply.add_done_callback(left)

    async def _call(self, members: Sequence[_Member], batch: str) -> None:
        """Send a call. Its id begins with the batch's, which the receipts of all members have."""
        assert self._wire is not None
        if (origin := current_origin()).request_id:
            set_origin(origin.tenant, f"{batch}-{origin.request_id}")
        outcomes: Sequence[TeacherReply | Exception | None]
        try:
            rendered = await self._wire.render([member.request for member in members])
            # Rendering takes calls, during which members may be canceled.
            pairs = zip(members, rendered, strict=True)
            remaining = [(member, prompt) for member, prompt in pairs if not member.reply.done()]
            members = [member for member, _ in remaining]
            if len(members) < 2:
                self._settle(members, [None] * len(members))
                return
            outcomes = await self._wire.send(
                [member.request for member in members], [prompt for _, prompt in remaining]
            )
        except EngineError as error:
            is_rejected = isinstance(error, EngineRejected) and error.status_sent in _SPLIT_STATUSES
            outcomes = [None if is_rejected else error.for_other_requests() for _ in members]
            # The first waiting member reports the failure to the breaker. No member does if a prompt may be the cause,
            # since it may be the prompt of another member.
            blames_prompt = isinstance(error, EngineFailed) and error.may_blame_request
            first = None if blames_prompt else next((one for one in members if not one.reply.done()), None)
            for member, outcome in zip(members, outcomes, strict=True):
                if isinstance(outcome, EngineError):
                    outcome.is_copy = member is not first
        except asyncio.CancelledError:
            for member in members:
                member.reply.cancel()  # the engine is being closed, or all members were canceled
            raise
        except Exception as error:
            self._settle(members, [error] * len(members))
            raise
        self._settle(members, outcomes)

    @staticmethod
    def _settle(members: Sequence[_Member], outcomes: Sequence[TeacherReply | Exception | None]) -> None:
        for member, outcome in zip(members, outcomes, strict=True):
            if member.reply.done():
                continue  # canceled
            if isinstance(outcome, Exception):
                member.reply.set_exception(outcome)
            else:
                member.reply.set_result(outcome)

    async def probe(self, owner: object, reasoning: Reasoning) -> None:
        """Determine what the server supports as a list, or raise EngineErrors.

        Args:
            owner: `owned_by` in /models.
            reasoning: the setting of the model.
        """
        self.supported, self.warnings = [], []  # no lists until the probe has ended
        wire = list_wire(owner, self._http, self._model)
        wire.reasoning = reasoning
        why_not = {kind: await self._why_not(wire, kind, probes) for kind, probes in _PROBES.items()}
        self._wire = wire
        self.supported = [kind for kind, why in why_not.items() if why is None]
        self.warnings = [f"batch.calls list: {kind} are sent separately: {why}" for kind, why in why_not.items() if why]

    async def _why_not(self, wire: ListWire, kind: str, probes: Sequence[TeacherRequest]) -> str | None:
        if not wire.takes(probes[0]):
            return "no list route is known for this server"
        try:
            listed = await wire.send(probes, await wire.render(probes))
            failed = next((outcome for outcome in listed if isinstance(outcome, EngineError)), None)
            if failed is not None:
                if kind == "chats":
                    await self._alone(probes[0])  # fails too, with the reason, if the model reasons first
                return failed.message
            if kind == "prompts":
                return None
            # Chats in a list use another route than a single chat. On some servers it returns reasoning as text, and
            # guidance is shown to callers.
            single = [await self._alone(probe) for probe in probes]
        except (EngineRejected, EngineFailed, EngineProtocolError) as error:
            return error.message
        same = [_first_word(outcome) for outcome in listed] == [_first_word(reply) for reply in single]
        return None if same else "the answers of a list differ from those of single calls"


def _first_word(reply: Any) -> list[str]:
    return reply.text.split(maxsplit=1)[:1]  # type: ignore[no-any-return]
