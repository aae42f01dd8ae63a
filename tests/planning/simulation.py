"""The modeled engine of the load tests on a simulated clock: hours in seconds, deterministically.

Its scheduler (load_tests/fake/batching.py) sleeps between passes. Here the loop's clock jumps to the next
timer, so nothing sleeps and results do not depend on the speed of the machine.
"""

from __future__ import annotations

import asyncio
import selectors
from contextlib import closing
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from gateway.planning.curve import Curve, CurveOrigin, CurvePrefill, DecodeStep
from load_tests.fake import batching
from load_tests.fake.profile import TIMINGS, Profile, read_profile
from load_tests.fake.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.planning.replica import RequestWork
    from load_tests.fake.batching import Sequence


class _Clock(selectors.SelectSelector):
    """Advance the clock by the timeout without waiting."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now_s += timeout or 0.0
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now_s


class _Call:
    """A request: its arrival, its first token and its latest token, in seconds."""

    gone = False

    def __init__(self, tokens: int, now: Callable[[], float]) -> None:
        self._tokens = tokens
        self._now = now
        self.arrived_s = now()
        self.first_s = self.last_s = 0.0
        self.done = False

    def joins(self) -> None: ...

    def token(self, sequence: Sequence) -> bool:
        self.last_s = self._now()
        if sequence.written == 1:
            self.first_s = self.last_s
        self.done = sequence.written >= self._tokens
        return self.done


@dataclass(frozen=True, slots=True)
class SimulatedTimes:
    """Seconds to the first and to the last token, one entry for each request."""

    first_s: list[float]
    total_s: list[float]


def simulate(profile: Profile, work: RequestWork, rate: float, requests: int, seed: int = 1) -> SimulatedTimes:
    """Simulate `requests` random arrivals at `rate` per second; the first and the last tenth are not measured."""
    loop = _Loop()
    rng = Random(seed)
    calls: list[_Call] = []

    async def run() -> None:
        scheduler = batching.Batching(profile, Stats())
        working = loop.create_task(scheduler.run())
        for number in range(requests):
            await asyncio.sleep(rng.expovariate(rate))
            calls.append(_Call(work.written, loop.time))
            scheduler.submit(batching.Sequence(calls[-1], number, work.read))
        # The last tenth would see an engine that empties, so it is not measured.
        counted = calls[requests // 10 : -requests // 10]
        while not all(call.done for call in counted):
            await asyncio.sleep(1)
        working.cancel()

    with patch.object(batching, "time", SimpleNamespace(monotonic=loop.time)), closing(loop):
        loop.run_until_complete(run())
    counted = calls[requests // 10 : -requests // 10]
    return SimulatedTimes(
        [call.first_s - call.arrived_s for call in counted], [call.last_s - call.arrived_s for call in counted]
    )


def engine(name: str) -> Profile:
    """Return an engine profile of the load tests with unlimited answers."""
    return read_profile(TIMINGS / f"{name}.yaml").model_copy(update={"answer_tokens": ()})


def curve_of(profile: Profile) -> Curve:
    """Return the curve that a perfect measurement of this engine would yield."""
    prefill, decode = profile.prefill, profile.decode
    assert prefill is not None
    assert decode is not None
    sizes = sorted(decode.table) if decode.table else [1, profile.max_batch_size]
    return Curve(
        model=profile.model,
        decode=tuple(DecodeStep(batch=size, step_s=decode.step_s(size)) for size in sizes),
        prefill=CurvePrefill(
            tokens_per_s=1 / prefill.per_token_s,
            pass_s=prefill.fixed_s,
            pass_tokens=prefill.max_tokens,
            chunked=prefill.chunked,
        ),
        max_batch=profile.max_batch_size,
        origin=CurveOrigin(kind="assumed", source="load_tests/timings"),
    )
