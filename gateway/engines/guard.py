"""An engine behind its circuit breaker: calls are refused while the circuit is open.

A failure that the request causes is raised as EngineRejected and does not count toward the breaker.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from gateway.engines.base import current_origin
from gateway.engines.call_slots import CallSlots
from gateway.engines.failures import record_failure
from gateway.engines.request_faults import RequestFaults, callers_error, fingerprint_of
from gateway.errors import (
    CircuitOpen,
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    EngineUnsupported,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from gateway.engines.base import Engine, EngineEmbeddings, TeacherReply, TeacherRequest
    from gateway.engines.breaker import Breaker, BreakerCall, BreakerState
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Prefill
    from gateway.protocol.content_run import ChunkGroup
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

# A call that fails later, without any data, is not repeated at the engine. It may be as slow again.
_LONGEST_RETRIED_S = 20.0
_LOST_INTERVAL_S = 10.0  # between two calls after lost connections
_TRIAL_WAIT_S = 30.0  # the longest wait for the outcome of a trial


@dataclass(slots=True)
class _Call:
    """A call in flight.

    Attributes:
        body: the request.
        sent: when it was sent.
        success_sent: when the last call was sent that succeeded before.
        started: whether the engine sent the first data of a streamed answer.
    """

    permit: BreakerCall
    request_id: str
    body: Any
    sent: float
    success_sent: float
    started: bool = False


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
        slots: CallSlots | None = None,  # bounds the calls in flight; None: they are only counted
        total_s: float = math.inf,  # the longest duration of a call
        always_streams: bool = False,  # whether calls for JSON callers are streamed too
    ) -> None:
        self.total_s, self.always_streams = total_s, always_streams
        self.name, self.state = engine.name, engine.state
        self._engine, self._breaker, self._metrics, self._clock = engine, breaker, metrics, clock
        self._slots = slots or CallSlots(engine.name)
        self._budgets = budgets
        self._faults = RequestFaults()
        self._logged: BreakerState = "closed"
        self._trial_ended: asyncio.Future[None] | None = None  # done when the outcome of a trial may be known
        self._on_lost: Callable[[], None] = lambda: None
        self._next_lost_at = -math.inf

    @property
    def breaker(self) -> BreakerState:
        """The state of the breaker for all tenants. While it is open, their calls are refused."""
        return self._breaker.state(self._clock())

    @property
    def paused_tenants(self) -> int:
        """The number of tenants whose calls are refused, except for trials, while others pass."""
        return self._breaker.paused_tenants(self._clock())

    @property
    def calls(self) -> int:
        """The number of calls in flight, without probes."""
        return self._slots.in_flight

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a slot."""
        return self._slots.waiting

    @property
    def is_full(self) -> bool:
        """Return whether a call that completes an answer must wait for a slot first."""
        return self._slots.is_full

    def must_wait(self, tenant: str) -> bool:
        """Return whether a call that completes an answer must wait first: for a slot, or for a trial's outcome."""
        return self.is_full or self._breaker.tries_for_s(tenant, self._clock()) > 0

    async def wait_for_slot(self, most_s: float = math.inf) -> None:
        """Wait for a slot while no trial is in flight. The caller must start its call before its next suspension.

        Raises CircuitOpen and EngineOverloaded, also if the wait exceeds `most_s`.
        """
        tenant, request_id, _ = current_origin()
        now = asyncio.get_running_loop().time
        until = now() + most_s
        try:
            await self.wait_for_trial(until - now())
            while self.is_full:
                await self._slots.wait(tenant, until - now())
                await self.wait_for_trial(until - now())  # one may have started meanwhile
        except EngineError as error:
            record_failure(error, request_id, self._metrics)
            raise

    async def wait_for_trial(self, most_s: float) -> None:
        """Wait until no trial is in flight, for at most `most_s` or 30 s.

        Raises CircuitOpen if the trial failed or is still in flight.
        """
        tenant, now = current_origin().tenant, asyncio.get_running_loop().time
        until = now() + min(most_s, _TRIAL_WAIT_S)
        while (trial_s := self._breaker.tries_for_s(tenant, self._clock())) > 0 and (left_s := until - now()) > 0:
            if self._trial_ended is None:
                self._trial_ended = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._trial_ended], timeout=min(trial_s, left_s))
        self._check_permitted(tenant)

    def update_limit(self, processes: int) -> None:
        """Follow the engine's own limit on calls in flight, and the number of processes that share it."""
        self._slots.update(self.state.max_concurrency, processes)

    def is_closed_for(self, tenant: str) -> bool:
        """Return whether calls of the tenant pass, and none of them is a trial."""
        return self._breaker.is_closed_for(tenant, self._clock())

    def in_cooldown_for(self, tenant: str) -> bool:
        """Return whether calls of the tenant are refused now."""
        return self._breaker.refuses_for_s(tenant, self._clock()) > 0

    def refusal(self, tenant: str) -> CircuitOpen | None:
        """Return the error that a call of the tenant would raise now; None if it may start, or wait for a trial."""
        return self._refusal(self._breaker.cools_for_s(tenant, self._clock()))

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        async with self._call(request):
            return await self._engine.generate_guidance(request, batch=batch, on_text=on_text)

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        async with self._call(body):
            return await self._engine.complete(body, prefill)

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[ChunkGroup, None]:
        async with self._call(body) as call, aclosing(self._engine.stream(body, prefill)) as groups:
            async for chunks in groups:
                if not call.started:
                    call.started = True
                    self._breaker.started(call.permit)
                    self._report()
                yield chunks

    async def embed(self, body: Json) -> EngineEmbeddings:
        async with self._call(body):
            return await self._engine.embed(body)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the engine, which is up, loses a connection: it may have restarted.

        A probe ends cooldowns, and one caller may provoke losses. So further losses have no effect for a while.
        """
        self._on_lost = callback

    async def probe(self) -> None:
        try:
            await self._engine.probe()
        except EngineError as error:
            if not error.is_copy:  # else it is the error of a call, which a caller may have caused
                self._breaker.probe_failed(self._clock(), asleep=self.state.asleep)
                self._report()
            raise
        self._breaker.probe_succeeded()
        self._report()

    async def close(self) -> None:
        await self._engine.close()

    def _refusal(self, wait_s: float) -> CircuitOpen | None:
        """Return the error of a call that is refused for `wait_s`; None if that is no time."""
        if wait_s <= 0:
            return None
        return CircuitOpen(
            f"The circuit breaker of engine '{self.name}' is open: the engine failed, requested a pause, or sleeps. "
            "Retry after the time in Retry-After.",
            engine=self.name,
            retry_after_s=wait_s,
        )

    def _check_permitted(self, tenant: str) -> None:
        """Raise CircuitOpen if a call of the tenant may not start now."""
        if (refusal := self._refusal(self._breaker.refuses_for_s(tenant, self._clock()))) is not None:
            raise refusal

    @asynccontextmanager
    async def _call(self, body: Any) -> AsyncIterator[_Call]:
        """Count a call, and report its outcome. Raises CircuitOpen if the breaker refuses the call."""
        tenant, request_id, _ = current_origin()
        self._check_permitted(tenant)
        now = self._clock()
        call = _Call(self._breaker.start_call(tenant, now), request_id, body, now, self._faults.success_sent)
        self._slots.enter(tenant)
        try:
            yield call
        except BaseException as error:
            self._slots.leave(tenant)
            await self._record_failure(call, error)
            raise
        self._slots.leave(tenant)
        self._record_success(call)

    def _record_success(self, call: _Call) -> None:
        self._breaker.succeeded(call.permit)
        self._faults.succeeded(call.request_id, call.sent, self._clock())
        if self._budgets is not None:
            self._budgets.succeeded(self.name, call.permit.tenant)
        self._report()

    async def _record_failure(self, call: _Call, error: BaseException) -> None:
        """Report a failed call. Raises EngineRejected if the request causes the failure."""
        now = self._clock()
        if isinstance(error, EngineUnreachable):
            self._lost_connection(now)
        if isinstance(error, EngineError) and not call.started and now - call.sent > _LONGEST_RETRIED_S:
            error.retryable = False
        try:
            if isinstance(error, EngineFailed) and await self._is_caused_by_request(call, error):
                self._breaker.rejected(call.permit)
                self._report()
                raise callers_error(error) from error
        except asyncio.CancelledError:
            self._record_outcome(call, error, now)
            self._report()
            raise
        self._record_outcome(call, error, now)
        self._report()

    def _record_outcome(self, call: _Call, error: BaseException, now: float) -> None:
        breaker = self._breaker
        match error:
            case GeneratorExit() if call.started:
                self._record_success(call)  # the reader closed the stream
            case EngineUnsupported():
                breaker.abandoned(call.permit)
            case EngineError() if error.is_copy:
                breaker.abandoned(call.permit)
            case EngineRejected() if error.blames_request:
                breaker.rejected(call.permit)
            case EngineOverloaded() if error.engine_retry_after_s:
                breaker.pause(call.permit, now, error.engine_retry_after_s)
            case EngineUnreachable() if not error.connected:
                breaker.unconnected(call.permit, now)
            case EngineError():
                replied = not isinstance(error, EngineTimeout | EngineUnreachable)
                if breaker.failed(call.permit, now, replied=replied):
                    log.warning("tenant_paused", engine=self.name, tenant=call.permit.tenant)
            case _:
                breaker.abandoned(call.permit)

    async def _is_caused_by_request(self, call: _Call, error: EngineFailed) -> bool:
        """Return whether only this request makes the engine fail. Remember the request."""
        if call.started or error.is_copy or not error.may_blame_request:
            return False
        fingerprint = await asyncio.to_thread(fingerprint_of, call.permit.tenant, call.body)
        return self._faults.failed(fingerprint, call.request_id, call.sent, call.success_sent, self._clock())

    def _lost_connection(self, now: float) -> None:
        if self.state.up and now >= self._next_lost_at:
            self._next_lost_at = now + _LOST_INTERVAL_S
            self._on_lost()

    def _report(self) -> None:
        """Log a change of the breaker's state, and wake calls that wait for a trial."""
        if self._trial_ended is not None:
            self._trial_ended.set_result(None)
            self._trial_ended = None
        if (state := self.breaker) != self._logged:
            self._logged = state
            log.log(logging.WARNING if state == "open" else logging.INFO, "breaker", engine=self.name, state=state)
