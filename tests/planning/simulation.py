"""The modelled engine of the load tests on a clock of its own: hours of it in seconds, and the same each time.

Its scheduler (load_tests/fake/batching.py) sleeps between passes. Here the loop's clock jumps to the next moment that
somebody waits for, so nothing sleeps and nothing depends on how fast this machine is.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from gateway.planning.curve import Curve
from load_tests.fake import batching
from load_tests.fake.profile import TIMINGS, Decode, Prefill, Profile, read_profile
from load_tests.fake.stats import Stats

if TYPE_CHECKING:
    from gateway.planning.replica import Work
    from load_tests.fake.batching import Sequence


class _Clock(selectors.SelectSelector):
    """Waits for nothing: the time is later at once."""

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


@dataclass(slots=True)
class _Call:
    """One request: when it came, when its first token did, and its last."""

    tokens: int
    came_s: float
    now: Any
    gone: bool = False
    first_s: float = 0.0
    last_s: float = 0.0

    def joins(self) -> None: ...

    def token(self, sequence: Sequence) -> bool:
        if sequence.written == 1:
            self.first_s = self.now()
        self.last_s = self.now()
        return sequence.written >= self.tokens


@dataclass(slots=True)
class Seen:
    """Seconds of each answered request in turn: until the first token, and in all; and the mean batch."""

    first_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    batch: float = 0.0


def simulated(profile: Profile, work: Work, rate: float, requests: int, seed: int = 1) -> Seen:
    """So many requests, which come at random at `rate` in a second. The first tenth warms up and is left out."""
    loop = _Loop()
    random = Random(seed)
    calls: deque[_Call] = deque()
    stats = Stats()

    async def run() -> None:
        engine = batching.Batching(profile, stats)
        working = loop.create_task(engine.run())
        for number in range(requests):
            await asyncio.sleep(random.expovariate(rate))
            call = _Call(round(work.written), loop.time(), loop.time)
            calls.append(call)
            engine.submit(batching.Sequence(call, number, round(work.read)))
        while not all(call.last_s and call.first_s for call in list(calls)[-1:]):
            await asyncio.sleep(1)
        working.cancel()

    with patch.object(batching, "time", SimpleNamespace(monotonic=loop.time)):
        loop.run_until_complete(run())
    loop.close()
    done = list(calls)[requests // 10 :]
    done = [call for call in done if call.last_s]
    sizes = stats.batch_sizes
    mean = sum(size * count for size, count in sizes.items()) / max(1, sum(sizes.values()))
    return Seen([call.first_s - call.came_s for call in done], [call.last_s - call.came_s for call in done], mean)


def engine(name: str) -> Profile:
    """An engine of the load tests, whose answers run to their end."""
    return read_profile(TIMINGS / f"{name}.yaml").model_copy(update={"answer_tokens": ()})


def curve_of(profile: Profile) -> Curve:
    """The curve that a perfect measurement of this engine would find."""
    prefill, decode = profile.prefill, profile.decode
    assert isinstance(prefill, Prefill)
    assert isinstance(decode, Decode)
    sizes = sorted(decode.table) if decode.table else [1, profile.max_batch_size]
    steps = [{"batch": int(size), "step_s": decode.step_s(int(size))} for size in sizes]
    return Curve.model_validate(
        {
            "model": profile.model,
            "decode": steps,
            "prefill": {
                "tokens_per_s": 1 / prefill.per_token_s,
                "pass_s": prefill.fixed_s,
                "pass_tokens": prefill.max_tokens,
                "chunked": prefill.chunked,
            },
            "max_batch": profile.max_batch_size,
            "origin": {"kind": "assumed", "source": "load_tests/timings"},
        }
    )
