"""An engine behind its circuit breaker: calls are refused while the circuit is open.

A failure that is proven to be caused by the request is raised as EngineRejected and does not count toward the breaker.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

from gateway.engines.base import current_origin
from gateway.engines.breaker import BreakerCall
from gateway.engines.call_slots import CallSlots
from gateway.engines.control_call import CONTROL_CHAT, CONTROL_TEXT, ControlCall
from gateway.engines.failures import record_failure
from gateway.engines.published_breaker import PublishedBreaker
from gateway.engines.request_faults import fingerprint_of, proven_rejection
from gateway.errors import (
    CircuitOpen,
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineRejected,
    EngineUnreachable,
    EngineUnsupported,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from gateway.engines.base import Engine, EngineEmbeddings, TeacherReply, TeacherRequest
    from gateway.engines.breaker import Breaker, BreakerState
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Prefill
    from gateway.protocol.content_run import ChunkGroup
    from gateway.telemetry.metrics import Metrics

_CONTROL_AFTER = 2  # failures of one request before a control call. After one more the request is not retried
# A call that fails later, without any data, is not repeated at the engine. It may be as slow again.
_LONGEST_RETRIED_S = 20.0

_OVERDUE = 0.9  # the part of the longest duration of a call after which a canceled call without data has failed
_LOST_INTERVAL_S = 10.0  # between two calls after lost connections


class GuardedEngine:
    """Pass calls to `engine` while its breaker permits them, and report their outcomes to the breaker.

    The first chunks of a stream end a trial, but only the end of the stream counts as a success. Calls raise
    CircuitOpen while the breaker refuses them.
    """

    def __init__(
        self,
        engine: Engine,
        breaker: Breaker,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        budgets: RetryBudgets | None = None,  # counts the successful calls; None: they are not counted
        controlled: bool = False,  # whether control calls are permitted. Providers bill each call, so they get none.
        slots: CallSlots | None = None,  # bounds the calls in flight; None: they are only counted
        total_s: float = math.inf,  # the longest duration of a call
        always_streams: bool = False,  # whether calls for JSON callers are streamed too
    ) -> None:
        self.total_s, self.always_streams = total_s, always_streams
        self.name, self.state = engine.name, engine.state
        self._engine = engine
        self._guard = PublishedBreaker(
            engine.name, breaker, metrics, clock, budgets, slots or CallSlots(engine.name), total_s
        )
        self._chat_control = ControlCall(lambda: engine.complete(dict(CONTROL_CHAT)), clock) if controlled else None
        self._text_control = ControlCall(lambda: engine.embed(dict(CONTROL_TEXT)), clock) if controlled else None

    @property
    def breaker(self) -> BreakerState:
        """The state of the breaker. While it is open, calls of some or all tenants are refused."""
        return self._guard.breaker.state(self._guard.clock())

    @property
    def calls(self) -> int:
        """The number of calls in flight, without probes."""
        return self._guard.slots.in_flight

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a slot."""
        return self._guard.slots.waiting

    @property
    def is_full(self) -> bool:
        """Return whether a call that completes an answer must wait for a slot first."""
        return self._guard.slots.is_full

    def must_wait(self, tenant: str) -> bool:
        """Return whether a call that completes an answer must wait first: for a slot, or for a trial's outcome."""
        return self.is_full or self._guard.awaits_trial(tenant)

    async def wait_for_slot(self, most_s: float = math.inf) -> None:
        """Wait for the outcome of a trial, and for a slot. The caller must start its call before its next suspension.

        Each of the two waits ends after `most_s`. Raises CircuitOpen and EngineOverloaded.
        """
        tenant, request_id, _ = current_origin()
        try:
            await self._guard.wait_for_trial(tenant, most_s)
            if self.is_full:
                await self._guard.slots.wait(tenant, most_s)
        except EngineError as error:
            record_failure(error, request_id, self._guard.metrics)
            raise

    async def wait_for_trial(self, most_s: float) -> None:
        """Wait until no trial is in flight, for at most `most_s`. Raises CircuitOpen."""
        await self._guard.wait_for_trial(current_origin().tenant, most_s)

    def update_limit(self, processes: int, others: int = 0) -> None:
        """Follow the engine's own limit on calls in flight, and the number of processes that share it.

        `others` are calls of this process to the server by an earlier engine.
        """
        self._guard.slots.update(self.state.max_concurrency, processes, others)

    def in_cooldown_for(self, tenant: str) -> bool:
        """Return whether calls of the tenant are refused now."""
        return self._guard.breaker.refuses_for_s(tenant, self._guard.clock()) > 0

    def refusal(self, tenant: str) -> CircuitOpen | None:
        """Return the error that a call of the tenant would raise now; None if it may start, or wait for a trial."""
        guard = self._guard
        return guard.refusal(guard.breaker.cools_for_s(tenant, guard.clock()))

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        call = _GuardedCall(self._guard, request, self._chat_control)
        call.start()
        try:
            reply = await self._engine.generate_guidance(request, batch=batch, on_text=on_text)
        except BaseException as error:
            await call.failed(error)
            raise
        call.ended()
        return reply

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        call = _GuardedCall(self._guard, body, self._chat_control)
        call.start()
        try:
            reply = await self._engine.complete(body, prefill)
        except BaseException as error:
            await call.failed(error)
            raise
        call.ended()
        return reply

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[ChunkGroup, None]:
        async with _GuardedCall(self._guard, body, self._chat_control) as call:
            async with aclosing(self._engine.stream(body, prefill)) as groups:
                async for chunks in groups:
                    if not call.started:
                        call.started_answering()
                    yield chunks
            call.succeeded()

    async def embed(self, body: Json) -> EngineEmbeddings:
        async with _GuardedCall(self._guard, body, self._text_control) as call:
            reply = await self._engine.embed(body)
            call.succeeded()
        return reply

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the engine, which is up, loses a connection: it may have restarted.

        A probe ends cooldowns, and one caller may provoke losses. So further losses have no effect for a while.
        """
        guard, next_at = self._guard, -math.inf

        def lost() -> None:
            nonlocal next_at
            if self.state.up and guard.clock() >= next_at:
                next_at = guard.clock() + _LOST_INTERVAL_S
                callback()

        guard.on_lost = lost

    async def probe(self) -> None:
        guard = self._guard
        try:
            await self._engine.probe()
        except EngineError:
            if self.state.asleep:
                guard.breaker.suspend(guard.clock())
                guard.publish()
            raise
        guard.breaker.probe_succeeded(guard.clock())
        guard.publish()

    async def close(self) -> None:
        for control in (self._chat_control, self._text_control):
            if control is not None:
                await control.close()
        await self._engine.close()


class _GuardedCall:
    """The context of one call. Entering it may raise CircuitOpen; leaving it reports the outcome to the breaker."""

    __slots__ = ("_call", "_control", "_guard", "_number", "_sent", "_sent_at", "started")

    _call: BreakerCall
    _number: int  # counts the calls of the engine
    _sent_at: float

    def __init__(self, guard: PublishedBreaker, sent: Any, control: ControlCall | None) -> None:
        self._guard = guard
        self._sent = sent
        self._control = control
        self.started = False

    def start(self) -> None:
        """Register the call. Raises CircuitOpen while the breaker refuses it."""
        guard, (tenant, request_id, _) = self._guard, current_origin()
        self._sent_at = now = guard.clock()
        if guard.is_closed(now):
            self._call = BreakerCall(tenant, request_id)
        else:
            if (refusal := guard.refusal(guard.breaker.refuses_for_s(tenant, now))) is not None:
                raise refusal
            self._call = guard.breaker.start_call(tenant, request_id, now)
            guard.publish()
        guard.slots.enter(tenant)
        guard.sent = self._number = guard.sent + 1

    async def __aenter__(self) -> Self:
        self.start()
        return self

    def started_answering(self) -> None:
        """Record the first data of the answer."""
        self.started = True
        self._guard.breaker.started(self._call)
        self._guard.publish()

    def succeeded(self) -> None:
        self._guard.answered(self._call, self._sent_at)

    def ended(self) -> None:
        """Record the end of a successful call."""
        self._guard.slots.leave(self._call.tenant)
        self.succeeded()

    async def failed(self, error: BaseException) -> None:
        """Report a failed call. Raises EngineRejected if the request is proven to cause the failure."""
        guard = self._guard
        guard.slots.leave(self._call.tenant)
        if isinstance(error, EngineUnreachable):
            guard.on_lost()
        if isinstance(error, EngineError) and not self.started and guard.clock() - self._sent_at > _LONGEST_RETRIED_S:
            error.retryable = False
        if isinstance(error, EngineFailed) and not error.is_copy and await self._is_caused_by_request(error):
            guard.breaker.refused(self._call)
            guard.publish()
            raise proven_rejection(error) from error
        self._record(error)
        guard.publish()

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self._guard.slots.leave(self._call.tenant)
        else:
            await self.failed(error)

    def _record(self, error: BaseException) -> None:
        breaker = self._guard.breaker
        match error:
            case EngineOverloaded() if error.is_copy:
                breaker.abandoned(self._call)
            case EngineOverloaded() if error.engine_retry_after_s:
                breaker.abandoned(self._call)
                breaker.pause(self._call.tenant, self._guard.clock(), error.engine_retry_after_s)
            case EngineOverloaded():
                breaker.overloaded(self._call, self._guard.clock(), busy=self._guard.has_earlier(self._number))
            case EngineRejected() if error.blames_request and not isinstance(error, EngineUnsupported):
                breaker.refused(self._call)
            case EngineError() if not (error.is_copy or isinstance(error, EngineUnsupported)):
                connected = not isinstance(error, EngineUnreachable) or error.may_have_run
                breaker.failed(self._call, self._guard.clock(), connected=connected)
            case GeneratorExit() if self.started:
                self.succeeded()  # the reader closed the stream
            case asyncio.CancelledError() if self._is_overdue():
                breaker.failed(self._call, self._guard.clock(), connected=True)
            case _:
                breaker.abandoned(self._call)

    def _is_overdue(self) -> bool:
        """Return whether the engine sent nothing for nearly the longest duration of a call.

        The deadline of all attempts cancels a second call shortly before the timeout of the engine expires.
        """
        guard = self._guard
        return not self.started and guard.clock() - self._sent_at > _OVERDUE * guard.total_s

    async def _is_caused_by_request(self, error: EngineFailed) -> bool:
        """Return whether only this request makes the engine fail. Store the evidence for the next attempt."""
        if self.started or not error.may_blame_request:
            return False
        guard = self._guard
        fingerprint = await asyncio.to_thread(fingerprint_of, self._call.tenant, self._sent)
        failures = guard.faults.failed(fingerprint, self._call.request_id, self._sent_at, guard.clock())
        if guard.faults.is_proven(fingerprint, self._sent_at):
            return True
        if failures < _CONTROL_AFTER:
            return False
        error.retryable = error.retryable and failures == _CONTROL_AFTER
        answered = await self._control.outcome() if self._control is not None else None
        if answered is not None:
            guard.breaker.succeeded()
            guard.faults.succeeded("", *answered)
        return False
