"""A replica under a load: a server that decodes many answers together and reads prompts in between.

The model has two parts:

- Prefill takes rate x prefill seconds of each second. The rest is left for decoding, so that a step takes longer by
  1 / (1 - rate x prefill).
- With n answers in the batch, one ends every steps x step(n) / n seconds. So the number of answers is a birth-death
  chain, with births at the rate of requests, and beyond `slots` requests queue. Its steady state is exact for any
  distribution of lengths while slots are free. For the queue it assumes exponential lengths, which slightly
  overestimates waits for equal lengths.

Mean waits are the mean queue length divided by the rate (Little's law).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log
from typing import TYPE_CHECKING

from gateway.planning.rounds import DecodeRounds, PrefillTime

if TYPE_CHECKING:
    from gateway.planning.curve import Curve

_ITERATIONS = 12
_MAX_SHARE = 0.999


@dataclass(frozen=True, slots=True)
class RequestWork:
    """Tokens that one request needs from an engine.

    Attributes:
        read: Prompt tokens to prefill.
        written: Output tokens.
        cached: Prompt tokens from the prefix cache.
    """

    read: int
    written: int
    cached: int = 0

    @property
    def context(self) -> int:
        """Return the tokens of the request at its end."""
        return self.read + self.cached + self.written

    @property
    def steps(self) -> int:
        """Return the number of decoding steps; prefill yields the first token."""
        return self.written - 1


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """State of a replica under a load. Times are means in seconds, unless the name contains p95.

    Attributes:
        utilization: The load as a part of the capacity; from 1 on, waits are unbounded and times are infinite.
        batch: Answers decoded together while there are any.
        queued: Requests that wait for a slot, `queue_s` seconds each.
        first_s, first_p95_s: Time to the first token.
        step_s: Duration of a decoding step.
        total_s: Time to the last token.
    """

    utilization: float
    batch: float
    queued: float
    queue_s: float
    first_s: float
    first_p95_s: float
    step_s: float
    total_s: float

    @property
    def stable(self) -> bool:
        """Return whether the replica can serve the load."""
        return self.utilization < 1


def replica_s(curve: Curve, work: RequestWork) -> float:
    """Return the seconds of a full replica that one request takes: the inverse of the maximum requests per second."""
    prefill_time = _prefill(curve, work)
    slots = curve.slots(work.context)
    if not work.steps:
        return prefill_time.prompt_s + prefill_time.pass_s / prefill_time.max_prompts
    # No more requests can begin in a round than one pass reads. If fewer begin than end, the batch is never full.
    per_round = min(prefill_time.max_prompts, slots / work.steps)
    per_pass = min(prefill_time.max_prompts, max(1.0, per_round))
    return prefill_time.prompt_s + prefill_time.pass_s / per_pass + curve.step_s(per_round * work.steps) / per_round


def replica_load(curve: Curve, work: RequestWork, rate: float) -> ReplicaLoad:
    """Return the state of one replica to which `rate` requests per second arrive, at random and independently."""
    utilization = rate * replica_s(curve, work)
    if utilization >= 1:
        batch = float(curve.slots(work.context))
        return ReplicaLoad(utilization, batch, inf, inf, inf, inf, curve.step_s(batch), inf)
    prefill_time = _prefill(curve, work)
    per_pass = min(prefill_time.max_prompts, max(1.0, curve.slots(work.context) / max(1, work.steps)))
    for _ in range(_ITERATIONS):  # fixed point: the size of a pass depends on the round, and the round on the pass
        share = min(_MAX_SHARE, rate * (prefill_time.prompt_s + prefill_time.pass_s / per_pass))
        chain = _chain(curve, work, rate, share)
        rounds = DecodeRounds.of(
            rate, prefill_time, curve.step_s(chain.batch) if work.steps else 0.0, 1 - chain.idle * (1 - share)
        )
        per_pass = rounds.per_pass
    first_s = chain.queue_s + rounds.first_s
    decoding_s = chain.decoding / rate + rounds.extra_decoding_s(work.steps)
    return ReplicaLoad(
        utilization=utilization,
        batch=chain.batch,
        queued=chain.queue_s * rate,
        queue_s=chain.queue_s,
        first_s=first_s,
        first_p95_s=chain.queue_p95_s + rounds.first_p95_s(),
        step_s=decoding_s / work.steps if work.steps else 0.0,
        total_s=first_s + decoding_s,
    )


def idle_first_s(curve: Curve, work: RequestWork) -> float:
    """Return the seconds to the first token of an idle replica; no number of replicas is faster."""
    return DecodeRounds.of(0.0, _prefill(curve, work), curve.step_s(1) if work.steps else 0.0).pass_s(0)


def _prefill(curve: Curve, work: RequestWork) -> PrefillTime:
    prefill = curve.prefill
    max_prompts = inf
    if prefill.pass_tokens is not None:
        fit = prefill.pass_tokens / work.read
        max_prompts = fit if prefill.chunked else max(1.0, float(int(fit)))
    return PrefillTime(work.read / prefill.tokens_per_s, prefill.pass_s, max_prompts, prefill.chunked)


@dataclass(frozen=True, slots=True)
class _Chain:
    """Steady state of a replica.

    Attributes:
        decoding: Mean number of answers being decoded.
        batch: The mean while there are any.
        idle: Probability that there are none.
        queue_s, queue_p95_s: Wait for a slot.
    """

    decoding: float
    batch: float
    idle: float
    queue_s: float
    queue_p95_s: float


def _chain(curve: Curve, work: RequestWork, rate: float, prefill_share: float) -> _Chain:
    """Solve the chain: birth at `rate`, death of one of n at n / (steps x step(n)), slowed down by prefill."""
    if not work.steps:
        return _Chain(0.0, 0.0, 1.0, 0.0, 0.0)
    slots = curve.slots(work.context)
    steps = work.steps / (1 - prefill_share)
    log_weights = [0.0]
    for number in range(1, slots + 1):
        log_weights.append(log_weights[-1] + log(rate * steps * curve.step_s(number) / number))
    highest = max(log_weights)
    weights = [exp(one - highest) for one in log_weights]
    leave_s = steps * curve.step_s(slots) / slots
    # From the last slot on, each further state is less likely by a constant ratio.
    ratio = min(_MAX_SHARE, rate * leave_s)
    full = weights[-1] / (1 - ratio)
    total = sum(weights[:-1]) + full
    decoding = (sum(number * weight for number, weight in enumerate(weights[:-1])) + slots * full) / total
    idle, waiting = weights[0] / total, full / total
    wait_s = leave_s / (1 - ratio)  # of requests that wait
    return _Chain(
        decoding,
        decoding / (1 - idle),
        idle,
        waiting * wait_s,
        wait_s * log(waiting / 0.05) if waiting > 0.05 else 0.0,
    )
