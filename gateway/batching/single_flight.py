"""Single flight: identical requests share one teacher call. The first request pays, and the others get its reply.

Within a process, requests with the same dedupe key share one call. Between processes, the scheduler lets one ticket
lead and the others follow. A call runs as long as one of its requests waits, even after the first request is canceled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from gateway.batching.ticket import SharedGuidance
from gateway.engines.base import Finish, TeacherReply, TokenUsage
from gateway.errors import EngineError, GatewayError, QueueFull, TicketUnreadable
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.batching.permit_waiter import PermitWaiter
    from gateway.batching.teacher_queue import TeacherQueue
    from gateway.batching.ticket import Grant, Ticket
    from gateway.runtime.tasks import BackgroundTasks


class FlightResult(Record, frozen=True):
    """The reply for one request. `shared`: "" for the request that pays, "flight" or "cache" for the others."""

    reply: TeacherReply
    shared: str


class _Participant:
    """A request in a shared call. If it pays, `on_grant` and then `call` are called."""

    __slots__ = ("call", "on_grant", "pays")

    def __init__(self, call: Callable[[Grant], Awaitable[TeacherReply]], on_grant: Callable[[Grant], None]) -> None:
        self.call, self.on_grant = call, on_grant
        self.pays = False


class _SharedCall:
    """A ticket and at most one call, for all its participants."""

    __slots__ = ("participants", "task", "tenant", "waiter")

    def __init__(self, waiter: PermitWaiter) -> None:
        self.waiter = waiter
        self.tenant = waiter.ticket.tenant
        self.participants: list[_Participant] = []
        self.task: asyncio.Task[FlightResult | Exception]

    async def run(self) -> FlightResult | Exception:
        """Return the result, or the error for every participant."""
        try:
            async with self.waiter as waiter:
                outcome = waiter.outcome
                if isinstance(outcome, SharedGuidance):
                    return FlightResult(_decode(outcome.guidance), "cache" if outcome.cached else "flight")
                payer = self.participants[0]
                payer.pays = True
                payer.on_grant(outcome)
                reply = await payer.call(outcome)
                stored = _StoredReply(reply.text, reply.finish, reply.usage, token_ends=reply.token_ends)
                waiter.finish(msgspec.json.encode(stored).decode())
                return FlightResult(reply, "")
        except (GatewayError, TimeoutError) as error:
            return error


class SingleFlight:
    """All shared calls of this process, by dedupe key."""

    def __init__(self, tasks: BackgroundTasks) -> None:
        self._tasks = tasks
        self._calls: dict[str, _SharedCall] = {}

    async def join(
        self,
        queue: TeacherQueue,
        ticket: Ticket,
        call: Callable[[Grant], Awaitable[TeacherReply]],  # calls the teacher in this request's name
        on_grant: Callable[[Grant], None],  # called before `call`
        deadline: float | None = None,  # the ticket's deadline on the loop's clock, if it began to run before now
    ) -> FlightResult:
        """Join the shared call with the ticket's dedupe key, or start one. Cancellation leaves it.

        Raises the errors of `TeacherQueue.acquire` and of `call`.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + ticket.deadline_s
        while True:
            shared = self._calls.get(ticket.dedupe_key)
            if shared is None:
                shared = self._start(queue, ticket, deadline)
            else:
                shared.waiter.extend_deadline(deadline)
            participant = _Participant(call, on_grant)
            shared.participants.append(participant)
            try:
                result = await asyncio.shield(shared.task)
            finally:
                shared.participants.remove(participant)
                if not shared.participants:
                    self._remove(ticket.dedupe_key, shared)
                    shared.task.cancel()
            if isinstance(result, QueueFull) and shared.tenant != ticket.tenant:
                # Another tenant's queue is full. Remove the call here: its own callback may run later.
                self._remove(ticket.dedupe_key, shared)
                continue
            if isinstance(result, EngineError) and shared.tenant != ticket.tenant:
                raise result.for_other_requests()
            if isinstance(result, Exception):
                raise result
            return result if participant.pays or result.shared else FlightResult(result.reply, "flight")

    def _start(self, queue: TeacherQueue, ticket: Ticket, deadline: float) -> _SharedCall:
        shared = _SharedCall(queue.acquire(ticket, deadline))
        self._calls[ticket.dedupe_key] = shared
        shared.task = self._tasks.spawn("flight", shared.run())
        shared.task.add_done_callback(lambda _: self._remove(ticket.dedupe_key, shared))
        return shared

    def _remove(self, dedupe_key: str, shared: _SharedCall) -> None:
        """Let the next request with this key start a new call."""
        if self._calls.get(dedupe_key) is shared:
            del self._calls[dedupe_key]


class _StoredReply(msgspec.Struct, array_like=True, frozen=True):
    """A teacher's reply as stored in Redis."""

    text: str
    finish: Finish
    usage: TokenUsage | None
    token_ends: tuple[int, ...] | None = None


def _decode(guidance: str) -> TeacherReply:
    try:
        stored = msgspec.json.decode(guidance, type=_StoredReply)
    except msgspec.DecodeError:
        raise TicketUnreadable("The guidance stored in Redis cannot be decoded. Try again.") from None
    return TeacherReply(stored.text, stored.finish, stored.usage, token_ends=stored.token_ends)
