"""A ticket of this process, from the queue until its permit is returned."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from gateway.batching.ticket import Grant, SharedGuidance, TicketBroken, TicketRefused
from gateway.errors import PermitUnavailable, QueueFull, StoreUnavailable, TicketUnreadable

if TYPE_CHECKING:
    from gateway.batching.ticket import Outcome, Ticket


class TicketQueue(Protocol):
    """The queue that a waiter belongs to; see `TeacherQueue`."""

    def enqueue(self, waiter: PermitWaiter) -> None: ...

    def extend_deadline(self, waiter: PermitWaiter, deadline: float) -> None: ...

    def withdraw(self, waiter: PermitWaiter) -> None: ...

    def release(self, waiter: PermitWaiter, guidance: str | None) -> None: ...


class PermitWaiter:
    """Wait for a ticket's outcome; see `TeacherQueue.acquire`.

    Attributes:
        future: done when the ticket's outcome is known.
        deadline: on the loop's clock.
        sent: the fleet's scheduler may know the ticket, so its release must be sent.
    """

    __slots__ = ("_guidance", "_queue", "deadline", "enqueued_at", "future", "sent", "ticket")

    def __init__(self, queue: TicketQueue, ticket: Ticket, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._queue = queue
        self._guidance: str | None = None
        self.ticket = ticket
        self.enqueued_at = loop.time()
        self.deadline = self.enqueued_at + ticket.deadline_s if deadline is None else deadline
        self.future: asyncio.Future[Outcome | StoreUnavailable] = loop.create_future()
        self.sent = False

    @property
    def outcome(self) -> Grant | SharedGuidance:
        outcome = self.future.result()
        assert isinstance(outcome, Grant | SharedGuidance)
        return outcome

    @property
    def holds_permit(self) -> bool:
        return self.future.done() and not self.future.cancelled() and isinstance(self.future.result(), Grant)

    def extend_deadline(self, deadline: float) -> None:
        """Move the deadline, on the loop's clock, to a later time. An earlier time has no effect."""
        if deadline > self.deadline:
            self._queue.extend_deadline(self, deadline)

    def finish(self, guidance: str) -> None:
        """Set the fetched guidance, which waiters with the same key receive when the block ends."""
        self._guidance = guidance

    def refuse_without_store(self) -> None:
        if not self.future.done():
            self.future.set_result(
                StoreUnavailable("Redis is unavailable, and this gateway gives no guidance without it. Try again.")
            )

    def refuse_without_permit(self) -> None:
        """End the wait for a permit of this process. The future is not done."""
        message = "Redis is unavailable, and this process has no free permit for the teacher. Try again."
        self.future.set_result(PermitUnavailable(message))

    def remaining_ticket(self, now: float) -> Ticket:
        """Return the ticket with the times that remain of it."""
        ticket = self.ticket
        wait_s = max(0.0, self.enqueued_at + ticket.max_wait_s - now)
        return replace(ticket, max_wait_s=wait_s, deadline_s=self.deadline - now)

    async def __aenter__(self) -> PermitWaiter:
        self._queue.enqueue(self)
        try:
            outcome = await self.future
            if isinstance(outcome, TicketRefused):
                raise QueueFull(
                    "Too many requests of this tenant wait for guidance. Try again later.",
                    retry_after_s=outcome.retry_after_s,
                )
            if isinstance(outcome, TicketBroken):
                raise TicketUnreadable("The ticket of this request in Redis cannot be decoded. Try again.")
            if isinstance(outcome, StoreUnavailable):
                raise outcome
            if isinstance(outcome, Grant) and self.deadline <= asyncio.get_running_loop().time():
                raise TimeoutError("The permit was granted after the deadline.")
        except (asyncio.CancelledError, TimeoutError):
            self._queue.withdraw(self)
            raise
        except BaseException:
            self._queue.release(self, None)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queue.release(self, self._guidance)
