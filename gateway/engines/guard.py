"""An engine behind its circuit breaker: calls that could only fail are refused at once.

A failure that is proven to be the request's own becomes an EngineRejected, and does not count toward the breaker.
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
from gateway.engines.origin import origin
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
    from gateway.engines.base import Engine, EngineEmbeddings, EngineState, OpeningReply, OpeningRequest
    from gateway.engines.breaker import Breaker, BreakerCall, BreakerState
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.protocol.body import Json
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_SHOW_EVERY_S = 0.5

AS_NUMBER = {"closed": 0, "half_open": 1, "open": 2}
"""The breaker's states, as the metric tells them."""


class GuardedEngine:
    """Passes calls on to `engine` as long as its breaker lets them, and tells the breaker how they ended.

    A stream's first chunks end a trial, so that nobody waits for its end. It has succeeded at its end only.
    Raises CircuitOpen, beside what the engine raises.

    Args:
        budgets: told of each call that succeeded; None: nobody counts them.
        controlled: whether a control call may be made. Not where each call goes to a provider that bills it.
        clock: seconds that only grow.
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
        self._told: BreakerState = "closed"
        self._under_way = CallsInFlight()
        metrics.engine_breaker.labels(engine.name).set(0)

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def state(self) -> EngineState:
        return self._engine.state

    @property
    def breaker(self) -> str:
        """What the breaker is now: closed, open or half_open."""
        return self._breaker.state(self._clock())

    @property
    def calls(self) -> int:
        """How many are under way; probes do not count."""
        return self._under_way.calls

    @property
    def rests(self) -> bool:
        """Return whether some call would be refused now."""
        return self._breaker.state(self._clock()) == "open"

    def rests_for(self, tenant: str) -> bool:
        """Return whether a call of the tenant would be refused now."""
        return self._breaker.refuses_for_s(tenant, self._clock()) > 0

    def refusal(self, tenant: str) -> CircuitOpen | None:
        """Return the error that a call of the tenant would raise now, without a call; None: the call may go."""
        return _refusal(self.name, self._breaker, tenant, self._clock())

    async def opening(
        self, request: OpeningRequest, *, batch: str | None = None, tell: Callable[[str], None] | None = None
    ) -> OpeningReply:
        async with self._guarded(request, self._chat_control) as verdict:
            reply = await self._engine.opening(request, batch=batch, tell=tell)
            verdict.well()
        return reply

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        async with self._guarded(body, self._chat_control) as verdict:
            reply = await self._engine.complete(body, prefill)
            verdict.well()
        return reply

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        async with self._guarded(body, self._chat_control) as verdict:
            async with aclosing(self._engine.stream(body, prefill)) as groups:
                async for chunks in groups:
                    if not verdict.begun:
                        verdict.begins()
                    yield chunks
            verdict.well()

    async def embed(self, body: Json) -> EngineEmbeddings:
        async with self._guarded(body, self._text_control) as verdict:
            reply = await self._engine.embed(body)
            verdict.well()
        return reply

    async def probe(self) -> None:
        await self._engine.probe()
        self._breaker.answers(self._clock())
        self._tell()

    async def close(self) -> None:
        for control in (self._chat_control, self._text_control):
            if control is not None:
                await control.close()
        await self._engine.close()

    def _answered(self, call: BreakerCall, sent_at: float) -> None:
        """Tell all who count what succeeds."""
        self._breaker.succeeded()
        self._faults.succeeded(call.request_id, sent_at, self._clock())
        if self._budgets is not None:
            self._budgets.succeeded(self.name, call.tenant)
        self._tell()

    def _guarded(self, sent: Any, control: ControlCall | None) -> _Verdict:
        return _Verdict(
            self.name,
            self._breaker,
            self._clock,
            self._tell,
            self._under_way,
            self._faults,
            self._answered,
            sent=sent,
            control=control,
        )

    def _tell(self) -> None:
        """Let operators know what the breaker is now, if that is news to them."""
        state = self._breaker.state(self._clock())
        if state == self._told:
            return
        self._told = state
        self._metrics.engine_breaker.labels(self.name).set(AS_NUMBER[state])
        log.log(logging.WARNING if state == "open" else logging.INFO, "breaker", engine=self.name, state=state)


def _refusal(engine: str, breaker: Breaker, tenant: str, now: float) -> CircuitOpen | None:
    wait_s = breaker.refuses_for_s(tenant, now)
    if wait_s <= 0:
        return None
    return CircuitOpen(
        f"Engine '{engine}' failed again and again, or asked to be left alone: for now it is not called.",
        engine=engine,
        retry_after_s=wait_s,
    )


class CallsInFlight:
    """How many calls there are. A gauge that each call moved would cost more than all else that is done here."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


async def show_calls(engines: Iterable[GuardedEngine], metrics: Metrics) -> None:
    """Show, again and again, how many calls each engine has under way."""
    shown = [(metrics.engine_in_flight.labels(engine.name), engine) for engine in engines]
    while True:
        for gauge, engine in shown:
            gauge.set(engine.calls)
        await asyncio.sleep(_SHOW_EVERY_S)


class _Verdict:
    """The context of one call. Entering may raise CircuitOpen; leaving tells the breaker how the call ended.

    Leaving raises EngineRejected in the place of a failure that is proven to be the request's own.
    """

    __slots__ = ("_answered", "_breaker", "_call", "_clock", "_control", "_engine", "_faults", "_sent", "_sent_at",
                 "_tell", "_under_way", "begun")  # fmt: skip

    _call: BreakerCall
    _sent_at: float

    def __init__(
        self,
        engine: str,
        breaker: Breaker,
        clock: Callable[[], float],
        tell: Callable[[], None],
        under_way: CallsInFlight,
        faults: RequestFaults,
        answered: Callable[[BreakerCall, float], None],
        *,
        sent: Any,
        control: ControlCall | None,
    ) -> None:
        self._engine = engine
        self._breaker = breaker
        self._clock = clock
        self._tell = tell
        self._under_way = under_way
        self._faults = faults
        self._answered = answered
        self._sent = sent
        self._control = control
        self.begun = False

    async def __aenter__(self) -> Self:
        self._sent_at = now = self._clock()
        asked = origin()
        if (refusal := _refusal(self._engine, self._breaker, asked.tenant, now)) is not None:
            raise refusal
        self._call = self._breaker.begin(asked.tenant, asked.request_id, now)
        self._under_way.calls += 1
        self._tell()
        return self

    def begins(self) -> None:
        """The first of an answer has come."""
        self.begun = True
        self._breaker.begun(self._call)
        self._tell()

    def well(self) -> None:
        """The engine has done its part."""
        self._answered(self._call, self._sent_at)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._under_way.calls -= 1
        if error is None:
            return
        if isinstance(error, EngineFailed) and not error.is_twin and await self._is_requests_own(error):
            self._breaker.refused(self._call)
            self._tell()
            raise _proven(error) from error
        self._note(error)
        self._tell()

    def _note(self, error: BaseException) -> None:
        """Tell the breaker of an error."""
        breaker = self._breaker
        match error:
            case EngineOverloaded():
                # It lives: how much it is given is the batcher's to mend, and the caller's.
                breaker.abandoned(self._call)
                if error.asked_s is not None and not error.is_twin:
                    breaker.asked_to_wait(self._call.tenant, self._clock(), error.asked_s)
            case EngineRejected() if error.blames_request and not isinstance(error, EngineUnsupported):
                breaker.refused(self._call)
            case EngineError() if not (error.is_twin or isinstance(error, EngineUnsupported)):
                connected = not isinstance(error, EngineUnreachable) or error.heard
                breaker.failed(self._call, self._clock(), connected=connected)
            case StopStream():
                self.well()
            case GeneratorExit() if self.begun:
                self.well()  # whoever reads it has enough
            case _:
                breaker.abandoned(self._call)

    async def _is_requests_own(self, error: EngineFailed) -> bool:
        """Return whether this request alone makes the engine fail. Collect the evidence for the next attempt."""
        if self.begun or not error.may_blame_request:
            return False
        sent = await asyncio.to_thread(_fingerprint, self._call.tenant, self._sent)
        times = self._faults.failed(sent, self._call.request_id, self._sent_at, self._clock())
        if self._faults.is_proven(sent, self._sent_at):
            return True
        if times < _REPEATED:
            return False
        error.again = times == _REPEATED
        answered = await self._control.outcome() if self._control is not None else None
        if answered is not None:
            self._breaker.succeeded()
            self._faults.succeeded("", *answered)
        return False


_REPEATED = 2
"""So often a request must have failed before a control call is made, and before it is retried no more."""


# A prompt that is sent again without its opening, or as a stream, is the same request.
_NOT_ITS_OWN = frozenset({"max_completion_tokens", "max_tokens", "stream", "stream_options"})


def _fingerprint(tenant: str, sent: Any) -> bytes:
    """Return a hash of what a tenant sent. Only for calls that failed, in a thread: a body may have megabytes."""
    if isinstance(sent, dict):
        sent = {name: value for name, value in sent.items() if name not in _NOT_ITS_OWN}
    return hashlib.blake2b(orjson.dumps((tenant, sent), default=str), digest_size=16).digest()


def _proven(error: EngineFailed) -> EngineRejected:
    """The failure of a request that fails alone, in the terms of its caller."""
    refused = EngineRejected(
        f"Engine '{error.engine}' fails at this request, and not at others: {error.said}",
        engine=error.engine,
        status_sent=error.status_sent or 500,
        proven=True,
    )
    refused.reason, refused.said, refused.heard = error.reason, error.said, error.heard
    return refused
