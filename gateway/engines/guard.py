"""An engine behind its circuit breaker: calls are refused while the circuit is open.

A failure that is proven to be caused by the request is raised as EngineRejected and does not count toward the breaker.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

import orjson
import structlog

from gateway.engines.control import CONTROL_CHAT, CONTROL_TEXT, ControlCall
from gateway.engines.origin import current_origin
from gateway.engines.request_faults import RequestFaults
from gateway.errors import (
    CircuitOpen,
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineRejected,
    EngineUnreachable,
    EngineUnsupported,
    StopStream,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable
    from types import TracebackType

    from gateway.capabilities.continuation import Prefill
    from gateway.engines.base import Engine, EngineEmbeddings, EngineState, TeacherReply, TeacherRequest
    from gateway.engines.breaker import Breaker, BreakerCall, BreakerState
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.protocol.body import Json
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_GAUGE_INTERVAL_S = 0.5

STATE_VALUES = {"closed": 0, "half_open": 1, "open": 2}
"""The value of the metric for each state of the breaker."""


class GuardedEngine:
    """Pass calls to `engine` while its breaker permits them, and report their outcomes to the breaker.

    The first chunks of a stream end a trial, but only the end of the stream counts as a success.

    Args:
        budgets: counts the successful calls; None: they are not counted.
        controlled: whether control calls are permitted. Providers bill each call, so they get none.
        clock: a monotonic clock, in seconds.

    Raises:
        CircuitOpen: the breaker refuses the call.
    """

    def __init__(
        self,
        engine: Engine,
        breaker: Breaker,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        budgets: RetryBudgets | None = None,
        controlled: bool = False,
    ) -> None:
        self._engine = engine
        self._breaker = breaker
        self._faults = RequestFaults()
        self._budgets = budgets
        self._chat_control = ControlCall(lambda: engine.complete(dict(CONTROL_CHAT)), clock) if controlled else None
        self._text_control = ControlCall(lambda: engine.embed(dict(CONTROL_TEXT)), clock) if controlled else None
        self._metrics = metrics
        self._clock = clock
        self._published: BreakerState = "closed"
        self._in_flight = CallsInFlight()
        metrics.engine_breaker.labels(engine.name).set(0)

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def state(self) -> EngineState:
        return self._engine.state

    @property
    def breaker(self) -> str:
        """The state of the breaker: closed, open or half_open."""
        return self._breaker.state(self._clock())

    @property
    def calls(self) -> int:
        """The number of calls in flight, without probes."""
        return self._in_flight.calls

    @property
    def in_cooldown(self) -> bool:
        """Return whether calls of all tenants are refused now."""
        return self._breaker.state(self._clock()) == "open"

    def in_cooldown_for(self, tenant: str) -> bool:
        """Return whether calls of the tenant are refused now."""
        return self._breaker.refuses_for_s(tenant, self._clock()) > 0

    def refusal(self, tenant: str) -> CircuitOpen | None:
        """Return the error that a call of the tenant would raise now; None if the call is permitted."""
        return _refusal(self.name, self._breaker, tenant, self._clock())

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        async with self._guarded(request, self._chat_control) as outcome:
            reply = await self._engine.generate_guidance(request, batch=batch, on_text=on_text)
            outcome.succeeded()
        return reply

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        async with self._guarded(body, self._chat_control) as outcome:
            reply = await self._engine.complete(body, prefill)
            outcome.succeeded()
        return reply

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        async with self._guarded(body, self._chat_control) as outcome:
            async with aclosing(self._engine.stream(body, prefill)) as groups:
                async for chunks in groups:
                    if not outcome.started:
                        outcome.started_answering()
                    yield chunks
            outcome.succeeded()

    async def embed(self, body: Json) -> EngineEmbeddings:
        async with self._guarded(body, self._text_control) as outcome:
            reply = await self._engine.embed(body)
            outcome.succeeded()
        return reply

    async def probe(self) -> None:
        await self._engine.probe()
        self._breaker.probe_succeeded(self._clock())
        self._publish()

    async def close(self) -> None:
        for control in (self._chat_control, self._text_control):
            if control is not None:
                await control.close()
        await self._engine.close()

    def _answered(self, call: BreakerCall, sent_at: float) -> None:
        """Record a successful call in the breaker, the request faults and the retry budgets."""
        self._breaker.succeeded()
        self._faults.succeeded(call.request_id, sent_at, self._clock())
        if self._budgets is not None:
            self._budgets.succeeded(self.name, call.tenant)
        self._publish()

    def _guarded(self, sent: Any, control: ControlCall | None) -> _CallOutcome:
        return _CallOutcome(
            self.name,
            self._breaker,
            self._clock,
            self._publish,
            self._in_flight,
            self._faults,
            self._answered,
            sent=sent,
            control=control,
        )

    def _publish(self) -> None:
        """Publish the state of the breaker in the metric and the log if it changed."""
        state = self._breaker.state(self._clock())
        if state == self._published:
            return
        self._published = state
        self._metrics.engine_breaker.labels(self.name).set(STATE_VALUES[state])
        log.log(logging.WARNING if state == "open" else logging.INFO, "breaker", engine=self.name, state=state)


def _refusal(engine: str, breaker: Breaker, tenant: str, now: float) -> CircuitOpen | None:
    wait_s = breaker.refuses_for_s(tenant, now)
    if wait_s <= 0:
        return None
    return CircuitOpen(
        f"The circuit breaker of engine '{engine}' is open after failures or a pause that the engine requested. "
        "Retry after the time in Retry-After.",
        engine=engine,
        retry_after_s=wait_s,
    )


class CallsInFlight:
    """The number of calls in flight. A gauge update in each call would cost more than the rest of this module."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


async def publish_calls(engines: Iterable[GuardedEngine], metrics: Metrics) -> None:
    """Publish the number of calls in flight of each engine every half second, until canceled."""
    gauges = [(metrics.engine_in_flight.labels(engine.name), engine) for engine in engines]
    while True:
        for gauge, engine in gauges:
            gauge.set(engine.calls)
        await asyncio.sleep(_GAUGE_INTERVAL_S)


class _CallOutcome:
    """The context of one call. Entering it may raise CircuitOpen; leaving it reports the outcome to the breaker.

    Leaving it raises EngineRejected instead of a failure that is proven to be caused by the request.
    """

    __slots__ = (
        "_answered",
        "_breaker",
        "_call",
        "_clock",
        "_control",
        "_engine",
        "_faults",
        "_in_flight",
        "_publish",
        "_sent",
        "_sent_at",
        "started",
    )  # fmt: skip

    _call: BreakerCall
    _sent_at: float

    def __init__(
        self,
        engine: str,
        breaker: Breaker,
        clock: Callable[[], float],
        publish: Callable[[], None],
        in_flight: CallsInFlight,
        faults: RequestFaults,
        answered: Callable[[BreakerCall, float], None],
        *,
        sent: Any,
        control: ControlCall | None,
    ) -> None:
        self._engine = engine
        self._breaker = breaker
        self._clock = clock
        self._publish = publish
        self._in_flight = in_flight
        self._faults = faults
        self._answered = answered
        self._sent = sent
        self._control = control
        self.started = False

    async def __aenter__(self) -> Self:
        self._sent_at = now = self._clock()
        caller = current_origin()
        if (refusal := _refusal(self._engine, self._breaker, caller.tenant, now)) is not None:
            raise refusal
        self._call = self._breaker.start_call(caller.tenant, caller.request_id, now)
        self._in_flight.calls += 1
        self._publish()
        return self

    def started_answering(self) -> None:
        """Record the first data of the answer."""
        self.started = True
        self._breaker.started(self._call)
        self._publish()

    def succeeded(self) -> None:
        """Record a successful call."""
        self._answered(self._call, self._sent_at)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_flight.calls -= 1
        if error is None:
            return
        if isinstance(error, EngineFailed) and not error.is_copy and await self._is_caused_by_request(error):
            self._breaker.refused(self._call)
            self._publish()
            raise _proven(error) from error
        self._record(error)
        self._publish()

    def _record(self, error: BaseException) -> None:
        """Report an error to the breaker."""
        breaker = self._breaker
        match error:
            case EngineOverloaded():
                # The engine is available. The batcher and the callers reduce the load.
                breaker.abandoned(self._call)
                if error.engine_retry_after_s is not None and not error.is_copy:
                    breaker.pause(self._call.tenant, self._clock(), error.engine_retry_after_s)
            case EngineRejected() if error.blames_request and not isinstance(error, EngineUnsupported):
                breaker.refused(self._call)
            case EngineError() if not (error.is_copy or isinstance(error, EngineUnsupported)):
                connected = not isinstance(error, EngineUnreachable) or error.may_have_run
                breaker.failed(self._call, self._clock(), connected=connected)
            case StopStream():
                self.succeeded()
            case GeneratorExit() if self.started:
                self.succeeded()  # the reader closed the stream
            case _:
                breaker.abandoned(self._call)

    async def _is_caused_by_request(self, error: EngineFailed) -> bool:
        """Return whether only this request makes the engine fail. Store the evidence for the next attempt."""
        if self.started or not error.may_blame_request:
            return False
        fingerprint = await asyncio.to_thread(_fingerprint, self._call.tenant, self._sent)
        failures = self._faults.failed(fingerprint, self._call.request_id, self._sent_at, self._clock())
        if self._faults.is_proven(fingerprint, self._sent_at):
            return True
        if failures < _CONTROL_AFTER:
            return False
        error.retryable = failures == _CONTROL_AFTER
        answered = await self._control.outcome() if self._control is not None else None
        if answered is not None:
            self._breaker.succeeded()
            self._faults.succeeded("", *answered)
        return False


_CONTROL_AFTER = 2
"""The number of failures of one request before a control call. After one more the request is not retried."""


# A request with another token limit, or as a stream, is the same request.
_IGNORED_FIELDS = frozenset({"max_completion_tokens", "max_tokens", "stream", "stream_options"})


def _fingerprint(tenant: str, sent: Any) -> bytes:
    """Return a hash of a tenant's request. Called in a thread and only after a failure: a body may have megabytes."""
    if isinstance(sent, dict):
        sent = {name: value for name, value in sent.items() if name not in _IGNORED_FIELDS}
    return hashlib.blake2b(orjson.dumps((tenant, sent), default=str), digest_size=16).digest()


def _proven(error: EngineFailed) -> EngineRejected:
    """Return the error for a request that is proven to cause the failure."""
    rejected = EngineRejected(
        f"Engine '{error.engine}' fails for this request and answers others. Correct the request: {error.engine_text}",
        engine=error.engine,
        status_sent=error.status_sent or 500,
        proven=True,
    )
    rejected.reason, rejected.engine_text, rejected.may_have_run = error.reason, error.engine_text, error.may_have_run
    return rejected
