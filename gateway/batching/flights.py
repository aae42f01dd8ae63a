"""Identical work in flight is done once: the first request leads and pays, the others get what it fetched.

Within a process the requests share one flight. Between processes the board lets one flight lead and the others follow.
A flight lives for as long as one of its requests waits: the leader's caller may go while the call goes on for the rest.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.batching.ticket import SharedGuidance
from gateway.engines.base import OpeningReply, TokenUsage
from gateway.errors import EngineError, GatewayError, QueueFull, TicketUnreadable
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.batching.batcher import TeacherQueue
    from gateway.batching.ticket import Grant, Ticket
    from gateway.batching.turn import PermitWaiter
    from gateway.runtime.tasks import BackgroundTasks


class FlightResult(Record, frozen=True):
    """What a request gets of a flight. `shared`: "" for the one that pays, "flight" or "cache" for the others."""

    reply: OpeningReply
    shared: str


class _Seat:
    """One request on a flight. `granted` is called if the teacher is asked in its name."""

    __slots__ = ("granted", "pays")

    def __init__(self, granted: Callable[[Grant], None]) -> None:
        self.granted = granted
        self.pays = False


class _Flight:
    """One ticket and, when its turn comes, one call, for all who sit in it."""

    __slots__ = ("_ask", "_turn", "seats", "task", "tenant")

    def __init__(self, turn: PermitWaiter, ask: Callable[[Grant], Awaitable[OpeningReply]]) -> None:
        self._turn = turn
        self._ask = ask
        self.tenant = turn.ticket.tenant
        self.seats: list[_Seat] = []
        self.task: asyncio.Task[FlightResult | Exception]

    def wait_until(self, deadline: float) -> None:
        self._turn.wait_until(deadline)

    async def fly(self) -> FlightResult | Exception:
        """An error is returned and not raised: it is for every seat."""
        try:
            async with self._turn as turn:
                outcome = turn.outcome
                if isinstance(outcome, SharedGuidance):
                    return FlightResult(_read(outcome.guidance), "cache" if outcome.cached else "flight")
                payer = self.seats[0]
                payer.pays = True
                payer.granted(outcome)
                reply = await self._ask(outcome)
                turn.finish(_written(reply))
                return FlightResult(reply, "")
        except (GatewayError, TimeoutError) as error:
            return error


class SingleFlight:
    """All flights of this process, by the hash of their work."""

    def __init__(self, tasks: BackgroundTasks) -> None:
        self._tasks = tasks
        self._flights: dict[str, _Flight] = {}

    async def join(
        self,
        queue: TeacherQueue,
        ticket: Ticket,
        ask: Callable[[Grant], Awaitable[OpeningReply]],
        granted: Callable[[Grant], None],
        deadline: float | None = None,
    ) -> FlightResult:
        """Share the flight of the same work, or start one with this ticket. Leave it by cancellation.

        Args:
            ask: calls the teacher; the first one's is used.
            granted: told, before the call, that it is made in this request's name.
            deadline: the ticket's, on the loop's clock, where it began to run before now.

        Raises what `TeacherQueue.turn` and `ask` raise.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + ticket.deadline_s
        while True:
            flight = self._flights.get(ticket.work)
            if flight is None:
                flight = self._take_off(queue, ticket, deadline, ask)
            else:
                flight.wait_until(deadline)
            seat = _Seat(granted)
            flight.seats.append(seat)
            try:
                landed = await asyncio.shield(flight.task)
            finally:
                flight.seats.remove(seat)
                if not flight.seats:
                    self._land(ticket.work, flight)
                    flight.task.cancel()
            if isinstance(landed, QueueFull) and flight.tenant != ticket.tenant:
                # Another tenant's queue is full. Landed here, since the flight's own callback may come later.
                self._land(ticket.work, flight)
                continue
            if isinstance(landed, EngineError) and flight.tenant != ticket.tenant:
                raise landed.for_others()
            if isinstance(landed, Exception):
                raise landed
            return landed if seat.pays or landed.shared else FlightResult(landed.reply, "flight")

    def _take_off(
        self, queue: TeacherQueue, ticket: Ticket, deadline: float, ask: Callable[[Grant], Awaitable[OpeningReply]]
    ) -> _Flight:
        flight = _Flight(queue.turn(ticket, deadline), ask)
        self._flights[ticket.work] = flight
        flight.task = self._tasks.spawn("flight", flight.fly())
        flight.task.add_done_callback(lambda _: self._land(ticket.work, flight))
        return flight

    def _land(self, work: str, flight: _Flight) -> None:
        """From now on the same work starts a new flight."""
        if self._flights.get(work) is flight:
            del self._flights[work]


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    """An opening on its way through Redis."""

    text: str
    finish: Literal["stop", "length"]
    usage: TokenUsage | None
    ends_at: int | None = None


def _written(reply: OpeningReply) -> str:
    return msgspec.json.encode(_Kept(reply.text, reply.finish, reply.usage, reply.ends_at)).decode()


def _read(guidance: str) -> OpeningReply:
    """Raises TicketUnreadable."""
    try:
        kept = msgspec.json.decode(guidance, type=_Kept)
    except msgspec.DecodeError:
        raise TicketUnreadable("The guidance that Redis kept cannot be read. Try again.") from None
    return OpeningReply(kept.text, kept.finish, kept.usage, kept.ends_at)
