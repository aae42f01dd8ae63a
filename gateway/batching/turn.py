"""One ticket of this process, from when it enters the queue until its permit is back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from gateway.batching.ticket import Grant, SharedGuidance, TicketBroken, TicketRefused
from gateway.errors import QueueFull, StoreUnavailable, TicketUnreadable

if TYPE_CHECKING:
    from gateway.batching.ticket import Outcome, Ticket


class TicketQueue(Protocol):
    """The queue of tickets that a turn belongs to; see `TeacherQueue`."""

    def enter(self, turn: PermitWaiter) -> None: ...

    def wait_longer(self, turn: PermitWaiter, deadline: float) -> None: ...

    def give_up(self, turn: PermitWaiter) -> None: ...

    def leave(self, turn: PermitWaiter, guidance: str | None) -> None: ...


class PermitWaiter:
    """See `TeacherQueue.turn`.

    Attributes:
        waiting: done when the ticket's outcome is known.
        deadline: on the loop's clock.
        told: the board may know the ticket, so it must hear when it is gone.
    """

    __slots__ = ("_guidance", "_queue", "deadline", "entered", "ticket", "told", "waiting")

    def __init__(self, queue: TicketQueue, ticket: Ticket, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._queue = queue
        self._guidance: str | None = None
        self.ticket = ticket
        self.entered = loop.time()
        self.deadline = self.entered + ticket.deadline_s if deadline is None else deadline
        self.waiting: asyncio.Future[Outcome | StoreUnavailable] = loop.create_future()
        self.told = False

    @property
    def outcome(self) -> Grant | SharedGuidance:
        """Only inside the block."""
        outcome = self.waiting.result()
        assert isinstance(outcome, Grant | SharedGuidance)
        return outcome

    @property
    def holds_permit(self) -> bool:
        return self.waiting.done() and not self.waiting.cancelled() and isinstance(self.waiting.result(), Grant)

    def wait_until(self, deadline: float) -> None:
        """Somebody wants its outcome until then, on the loop's clock. An earlier deadline changes nothing."""
        if deadline > self.deadline:
            self._queue.wait_longer(self, deadline)

    def finish(self, guidance: str) -> None:
        """Say what was fetched; those who wait for the same get it when the block is left."""
        self._guidance = guidance

    def refuse_without_store(self) -> None:
        if not self.waiting.done():
            self.waiting.set_result(StoreUnavailable("Redis is away, and guidance needs it here. Try again."))

    def left(self, now: float) -> Ticket:
        """The ticket with the time it has left."""
        ticket = self.ticket
        wait_s = max(0.0, self.entered + ticket.max_wait_s - now)
        return replace(ticket, max_wait_s=wait_s, deadline_s=self.deadline - now)

    async def __aenter__(self) -> PermitWaiter:
        self._queue.enter(self)
        try:
            outcome = await self.waiting
            if isinstance(outcome, TicketRefused):
                raise QueueFull(
                    "Too many requests of this tenant wait for guidance. Try again later.",
                    retry_after_s=outcome.retry_after_s,
                )
            if isinstance(outcome, TicketBroken):
                raise TicketUnreadable("What was noted of this request's guidance cannot be read. Try again.")
            if isinstance(outcome, StoreUnavailable):
                raise outcome
            if isinstance(outcome, Grant) and self.deadline <= asyncio.get_running_loop().time():
                raise TimeoutError("its turn came too late")
        except (asyncio.CancelledError, TimeoutError):
            self._queue.give_up(self)
            raise
        except BaseException:
            self._queue.leave(self, None)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queue.leave(self, self._guidance)
