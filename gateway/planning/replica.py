"""One replica under a load: a server that decodes many answers together and reads prompts in between.

Two things make all of it:

- A second holds rate x reading seconds of reading; the rest is left for decoding, so that a step takes longer by
  1 / (1 - rate x reading).
- With n answers in the batch one ends every steps x step(n) / n seconds. So their number is a birth-death chain, with
  births at the rate of requests, and beyond `places` requests queue. Its long run is exact whatever the lengths of
  answers while there are places; for the queue it is that of exponential lengths, a little too long for even ones.

Waits are the mean number of those who wait over the rate: Little's law.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log
from typing import TYPE_CHECKING

from gateway.planning.rounds import DecodeRounds, PrefillTime

if TYPE_CHECKING:
    from gateway.planning.curve import Curve

_TURNS = 12
_NEARLY_ALL = 0.999


@dataclass(frozen=True, slots=True)
class RequestWork:
    """What one request asks of an engine, in tokens: to read afresh, to write, to take from its prefix cache."""

    read: int
    written: int
    cached: int = 0

    @property
    def context(self) -> int:
        """Tokens that it holds in the end."""
        return self.read + self.cached + self.written

    @property
    def steps(self) -> int:
        """Steps of decoding: the first token comes out of the reading."""
        return self.written - 1


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """How a replica stands under a load. Times are means in seconds, unless the name says p95.

    `utilisation`: the load as a part of the most that it bears; from 1 on, waits have no end and times are infinite.
    `batch`: answers decoded together while any are. `queued`: requests that wait for a place, `queue_s` each.
    `first_p95_s`: 95 of 100 first tokens come within about this. `total_s`: until the last token.
    """

    utilisation: float
    batch: float
    queued: float
    queue_s: float
    first_s: float
    first_p95_s: float
    step_s: float
    total_s: float

    @property
    def stable(self) -> bool:
        """Whether it gets done what comes."""
        return self.utilisation < 1


def replica_s(curve: Curve, work: RequestWork) -> float:
    """Seconds of a full replica that one request takes: one over the requests per second that it bears at most."""
    reading = _reading(curve, work)
    places = curve.places(work.context)
    if not work.steps:
        return reading.prompt_s + reading.pass_s / reading.most
    # No more can begin in a round than one pass reads; where that is less than end in one, the batch is never full.
    per_round = min(reading.most, places / work.steps)
    per_pass = min(reading.most, max(1.0, per_round))
    return reading.prompt_s + reading.pass_s / per_pass + curve.step_s(per_round * work.steps) / per_round


def stand(curve: Curve, work: RequestWork, rate: float) -> ReplicaLoad:
    """How one replica stands when `rate` requests come to it in a second, at random and independent of each other."""
    utilisation = rate * replica_s(curve, work)
    if utilisation >= 1:
        batch = float(curve.places(work.context))
        return ReplicaLoad(utilisation, batch, inf, inf, inf, inf, curve.step_s(batch), inf)
    reading = _reading(curve, work)
    per_pass = min(reading.most, max(1.0, curve.places(work.context) / max(1, work.steps)))
    for _ in range(_TURNS):  # how many share a pass depends on how long a round is, and that on how many share
        share = min(_NEARLY_ALL, rate * (reading.prompt_s + reading.pass_s / per_pass))
        chain = _chain(curve, work, rate, share)
        rounds = DecodeRounds.of(
            rate, reading, curve.step_s(chain.batch) if work.steps else 0.0, 1 - chain.idle * (1 - share)
        )
        per_pass = rounds.per_pass
    first_s = chain.queue_s + rounds.first_s
    decoding_s = chain.decoding / rate + rounds.aftermath_s(work.steps)
    return ReplicaLoad(
        utilisation=utilisation,
        batch=chain.batch,
        queued=chain.queue_s * rate,
        queue_s=chain.queue_s,
        first_s=first_s,
        first_p95_s=chain.queue_p95_s + rounds.first_p95_s(),
        step_s=decoding_s / work.steps if work.steps else 0.0,
        total_s=first_s + decoding_s,
    )


def idle_first_s(curve: Curve, work: RequestWork) -> float:
    """Seconds to the first token of a replica that has nothing else to do: no number of replicas comes below it."""
    return DecodeRounds.of(0.0, _reading(curve, work), curve.step_s(1) if work.steps else 0.0).pass_s(0)


def _reading(curve: Curve, work: RequestWork) -> PrefillTime:
    prefill = curve.prefill
    most = inf
    if prefill.pass_tokens is not None:
        fit = prefill.pass_tokens / work.read
        most = fit if prefill.chunked else max(1.0, float(int(fit)))
    return PrefillTime(work.read / prefill.tokens_per_s, prefill.pass_s, most, prefill.chunked)


@dataclass(frozen=True, slots=True)
class _Chain:
    """The long run of a replica: answers being decoded, on average in all and while there are any; how often there are
    none; and how long requests wait for a place."""

    decoding: float
    batch: float
    idle: float
    queue_s: float
    queue_p95_s: float


def _chain(curve: Curve, work: RequestWork, rate: float, reading_share: float) -> _Chain:
    """Birth at `rate`, death of one of n at n / (steps x step(n)), slowed down by what reading takes of each second."""
    if not work.steps:
        return _Chain(0.0, 0.0, 1.0, 0.0, 0.0)
    places = curve.places(work.context)
    steps = work.steps / (1 - reading_share)
    logs = [0.0]
    for number in range(1, places + 1):
        logs.append(logs[-1] + log(rate * steps * curve.step_s(number) / number))
    highest = max(logs)
    weights = [exp(one - highest) for one in logs]
    leave_s = steps * curve.step_s(places) / places
    # From the last place on, each further state is less likely by the same ratio.
    ratio = min(_NEARLY_ALL, rate * leave_s)
    full = weights[-1] / (1 - ratio)
    whole = sum(weights[:-1]) + full
    decoding = (sum(number * weight for number, weight in enumerate(weights[:-1])) + places * full) / whole
    idle, waiting = weights[0] / whole, full / whole
    wait_s = leave_s / (1 - ratio)  # of those who wait at all
    return _Chain(
        decoding,
        decoding / (1 - idle),
        idle,
        waiting * wait_s,
        wait_s * log(waiting / 0.05) if waiting > 0.05 else 0.0,
    )
