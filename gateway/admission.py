"""Step 4: a place in this process and an intent in Redis, or an honest 503.

A process bounds how many requests it works on at once, and says so to the next one. What a request may spend is written
down before it does; limits and budgets of tenants will be reserved in the same breath.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from gateway.errors import GatewayError, Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType

    from gateway.ledger.draft import Draft
    from gateway.ledger.ledger import Ledger
    from gateway.metrics import Metrics
    from gateway.protocol import CallerRequest


class Admission:
    """Counts the requests this process holds.

    Args:
        max_in_flight: the bound; the next request is refused.
    """

    def __init__(self, max_in_flight: int, ledger: Ledger, metrics: Metrics) -> None:
        self._max_in_flight = max_in_flight
        self._ledger = ledger
        self._in_flight = 0
        self._gauge = metrics.in_flight
        self._empty = asyncio.Event()
        self._empty.set()
        self._cuts: set[asyncio.Timeout] = set()
        self.draining = False
        self.cutting = False

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def place(self) -> AbstractContextManager[None]:
        """Hold a place inside the block. Entering raises Overloaded."""
        return _Place(self)

    def take(self) -> None:
        """What entering `place` does."""
        if self.draining:
            raise Overloaded("This process is shutting down. Try again: another one will answer.")
        if self._in_flight >= self._max_in_flight:
            raise Overloaded(f"The gateway holds {self._in_flight} requests, its limit. Try again shortly.")
        self._in_flight += 1
        self._gauge.set(self._in_flight)
        self._empty.clear()

    def leave(self) -> None:
        """What leaving `place` does."""
        self._in_flight -= 1
        self._gauge.set(self._in_flight)
        if not self._in_flight:
            self._empty.set()

    async def reserve(self, draft: Draft, asked: CallerRequest) -> None:
        """Reserve what the request may spend; the draft must be settled in the end. Raises StoreUnavailable."""
        await self._ledger.admit(draft, asked)
        draft.admitted = time.perf_counter()

    @contextmanager
    def settled(self, draft: Draft) -> Iterator[None]:
        """Settle one receipt for what happens inside the block, whatever that is."""
        status = "internal"
        try:
            yield
            status = "ok"
        except GatewayError as error:
            status, error.recorded = error.label, True
            raise
        except (asyncio.CancelledError, GeneratorExit, ConnectionError):
            status = "shutdown" if self.cutting else "client_gone"
            raise
        finally:
            self._ledger.settle(draft, status)

    def until_cut(self) -> AbstractAsyncContextManager[None]:
        """Let a drain end what is inside the block, while its caller can still be told. Raises Overloaded then."""
        return _UntilCut(self._cuts)

    async def drain(self, timeout_s: float) -> int:
        """Refuse what is new, wait for what is here, and cut what is still here after `timeout_s`: how many."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        cut = self._in_flight
        self.cutting = True
        for limit in self._cuts:
            limit.reschedule(asyncio.get_running_loop().time())
        return cut


# Classes, and no generators with a decorator: each request enters both, and the difference is a hundredth of its time.


class _Place:
    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def __enter__(self) -> None:
        self._admission.take()

    def __exit__(self, *_: object) -> None:
        self._admission.leave()


class _UntilCut:
    def __init__(self, cuts: set[asyncio.Timeout]) -> None:
        self._cuts = cuts
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._cuts.add(self._limit)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cuts.discard(self._limit)
        late = isinstance(error, TimeoutError)
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            late = True
        if late and self._limit.expired():
            raise Overloaded("This process shut down before the answer was finished. Try again.") from None
