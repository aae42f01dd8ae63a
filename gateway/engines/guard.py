"""An engine behind its breaker: calls that could only fail are refused at once."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Self

import structlog

from gateway.errors import EngineCannot, EngineError, EngineOverloaded, EngineRejected, EngineResting, EnoughHeard

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable
    from types import TracebackType

    from gateway.continuation import Prefill
    from gateway.engines.base import EmbeddingsReply, Engine, EngineState, OpeningReply, OpeningRequest
    from gateway.engines.breaker import Breaker, BreakerState
    from gateway.metrics import Metrics
    from gateway.protocol import Json

log = structlog.get_logger()

_SHOW_EVERY_S = 0.5

AS_NUMBER = {"closed": 0, "half_open": 1, "open": 2}
"""The breaker's states, as the metric tells them."""


class GuardedEngine:
    """Passes calls on to `engine` as long as its breaker lets them, and tells the breaker how they ended.

    A stream's first chunks end a trial, so that nobody waits for its end. It has succeeded at its end only.
    Raises EngineResting, beside what the engine raises.

    Args:
        clock: seconds that only grow.
    """

    def __init__(
        self, engine: Engine, breaker: Breaker, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._breaker = breaker
        self._metrics = metrics
        self._clock = clock
        self._told: BreakerState = "closed"
        self._under_way = UnderWay()
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
        """Whether a call would be refused now."""
        return self._breaker.refuses_for_s(self._clock()) > 0

    async def opening(
        self, request: OpeningRequest, *, batch: str | None = None, tell: Callable[[str], None] | None = None
    ) -> OpeningReply:
        with self._guarded() as verdict:
            reply = await self._engine.opening(request, batch=batch, tell=tell)
            verdict.well()
        return reply

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        with self._guarded() as verdict:
            reply = await self._engine.complete(body, prefill)
            verdict.well()
        return reply

    async def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        with self._guarded() as verdict:
            async with aclosing(self._engine.stream(body, prefill)) as groups:
                async for chunks in groups:
                    if not verdict.begun:
                        verdict.begins()
                    yield chunks
            verdict.well()

    async def embed(self, body: Json) -> EmbeddingsReply:
        with self._guarded() as verdict:
            reply = await self._engine.embed(body)
            verdict.well()
        return reply

    async def probe(self) -> None:
        await self._engine.probe()
        self._breaker.answers(self._clock())
        self._tell()

    async def close(self) -> None:
        await self._engine.close()

    def _guarded(self) -> _Verdict:
        return _Verdict(self.name, self._breaker, self._clock, self._tell, self._under_way)

    def _tell(self) -> None:
        """Let operators know what the breaker is now, if that is news to them."""
        state = self._breaker.state(self._clock())
        if state == self._told:
            return
        self._told = state
        self._metrics.engine_breaker.labels(self.name).set(AS_NUMBER[state])
        log.log(logging.WARNING if state == "open" else logging.INFO, "breaker", engine=self.name, state=state)


class UnderWay:
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
    """One call: entering may raise EngineResting, leaving tells the breaker how the call ended."""

    __slots__ = ("_breaker", "_clock", "_engine", "_tell", "_trial", "_under_way", "begun")

    def __init__(
        self,
        engine: str,
        breaker: Breaker,
        clock: Callable[[], float],
        tell: Callable[[], None],
        under_way: UnderWay,
    ) -> None:
        self._engine = engine
        self._breaker = breaker
        self._clock = clock
        self._tell = tell
        self._under_way = under_way
        self._trial = False
        self.begun = False

    def __enter__(self) -> Self:
        now = self._clock()
        wait_s = self._breaker.refuses_for_s(now)
        if wait_s > 0:
            raise EngineResting(
                f"Engine '{self._engine}' failed again and again, or asked to be left alone: for now it is not called.",
                engine=self._engine,
                retry_after_s=wait_s,
            )
        self._trial = self._breaker.begin(now)
        self._under_way.calls += 1
        self._tell()
        return self

    def begins(self) -> None:
        """The first of an answer has come."""
        self.begun, self._trial = True, False
        self._breaker.begun()
        self._tell()

    def well(self) -> None:
        """The engine has done its part."""
        self._trial = False
        self._breaker.succeeded()
        self._tell()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._under_way.calls -= 1
        breaker = self._breaker
        match error:
            case None:
                return
            case EngineOverloaded():
                # It lives: how much it is given is the batcher's to mend, and the caller's.
                breaker.abandoned(trial=self._trial)
                if error.asked_s is not None:
                    breaker.asked_to_wait(self._clock(), error.asked_s)
            case EngineRejected() if error.blames_request and not isinstance(error, EngineCannot):
                self.well()
            case EngineError() if not (error.is_twin or isinstance(error, EngineCannot)):
                breaker.failed(self._clock(), trial=self._trial)
            case EnoughHeard():
                self.well()
            case GeneratorExit() if self.begun:
                self.well()  # whoever reads it has enough
            case _:
                breaker.abandoned(trial=self._trial)
        self._tell()
