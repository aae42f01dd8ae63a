"""A replica under a load: a server that decodes many answers together and reads prompts in between.

Prefill slows down decoding, the answers being decoded are a birth-death chain, and mean waits follow from Little's law.
The steady state is exact for any distribution of lengths while slots are free. For the queue it assumes exponential
lengths, which slightly overestimates waits for equal lengths. A request gets its first token
after the end of the current round and the pass that reads it. The formulas are in docs/design/planning.md.
"""

from __future__ import annotations

from math import ceil, exp, inf, lgamma, log
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.planning.curve import Curve

_ROUND_ITERATIONS = 50
_PASS_ITERATIONS = 12
_SUBDIVISIONS = 10
_MAX_SHARE = 0.999
# 95 % of an exponentially distributed delay lie below its mean times this.
_LN_20 = log(20)
_ONE_AT_A_TIME = 2.0


class PrefillTime(NamedTuple):
    """Times of prefill: the seconds of one prompt, and the fixed seconds of each pass.

    A pass reads at most `max_prompts` prompts; below 1, a prompt takes several passes.
    """

    prompt_s: float
    pass_s: float
    max_prompts: float
    chunked: bool


class DecodeRounds(NamedTuple):
    """The rounds of one replica: requests per second, mean step and round in seconds, and the busy part of the time."""

    rate: float
    prefill: PrefillTime
    step_s: float
    busy: float
    round_s: float

    @classmethod
    def of(cls, rate: float, prefill: PrefillTime, step_s: float, busy: float = 1.0) -> DecodeRounds:
        """Compute the mean round: a step, and a pass if prompts arrived in the previous round."""
        share = min(_MAX_SHARE, rate * prefill.prompt_s)
        round_s = step_s + prefill.prompt_s
        for _ in range(_ROUND_ITERATIONS):
            round_s = step_s + prefill.pass_s * (1 - exp(-rate * round_s)) + share * round_s
        return cls(rate, prefill, step_s, busy, round_s)

    @property
    def arrivals(self) -> float:
        """Return the prompts that arrive in a mean round."""
        return self.rate * self.round_s

    @property
    def per_pass(self) -> float:
        """Return the prompts of a mean pass."""
        prompts = self.arrivals / (1 - exp(-self.arrivals)) if self.arrivals > 1e-9 else 1.0
        return min(self.prefill.max_prompts, prompts)

    @property
    def prefill_share(self) -> float:
        """Return the part of each second that prefill of prompt tokens takes."""
        return min(_MAX_SHARE, self.rate * self.prefill.prompt_s)

    @property
    def spread(self) -> float:
        """Return the variance of the prompts in a round over their mean: above 1, for long rounds cluster."""
        return 1 / (1 - self.prefill_share**2)

    @property
    def met_round_s(self) -> float:
        """Return the mean round that a request meets: E[X^2] / E[X], since it meets long rounds more often."""
        none = exp(-self.arrivals)
        with_pass_s = self.step_s + self.prefill.pass_s
        square = (
            self.step_s**2 * none
            + with_pass_s**2 * (1 - none)
            + 2 * with_pass_s * self.prefill.prompt_s * self.arrivals
            + self.prefill.prompt_s**2 * (self.arrivals * self.spread + self.arrivals**2)
        )
        return self.busy * square / self.round_s

    @property
    def first_s(self) -> float:
        """Return the mean seconds to the first token of a request that has a slot."""
        return self.met_round_s / 2 + self.overflow_s + self.own_s

    @property
    def own_s(self) -> float:
        """Return the seconds of the pass that reads the request's prompt with others of its round."""
        return self.pass_s(self.rate * self.met_round_s)

    @property
    def overflow_s(self) -> float:
        """Return the extra wait if a pass cannot hold all waiting prompts, as in a queue with bulk service."""
        max_prompts = self.prefill.max_prompts
        if max_prompts == inf:
            return 0.0
        each_s = (self.step_s + self.prefill.pass_s) / max_prompts + self.prefill.prompt_s
        share = min(_MAX_SHARE, self.rate * each_s)
        return float(share ** (1 + max_prompts)) * each_s / (2 * (1 - share))

    def pass_s(self, others: float) -> float:
        """Return the seconds to the first token of a pass that reads one request's prompt and `others` more."""
        pieces = ceil(1 / self.prefill.max_prompts) if self.prefill.max_prompts < 1 else 1
        steps = pieces if self.prefill.chunked else pieces - 1
        read = 1 + min(others, max(0.0, self.prefill.max_prompts - 1))
        return self.prefill.pass_s * pieces + self.prefill.prompt_s * read + steps * self.step_s

    def extra_decoding_s(self, steps: float) -> float:
        """Return the extra seconds of the first decoding steps: a long round lets more requests arrive for the next."""
        share = self.prefill_share
        own_round_s = self.own_s + (0.0 if self.prefill.chunked else self.step_s)
        return max(0.0, own_round_s - self.round_s) * share / (1 - share) * (1 - float(share**steps))

    def first_p95_s(self) -> float:
        """Return the seconds within which 95 of 100 requests with a slot get their first token, over all rounds."""
        outcomes = [(self.pass_s(0), 1 - self.busy)]
        lengths = [
            (chance, self.step_s + (self.prefill.pass_s + self.prefill.prompt_s * arrivals if arrivals else 0.0))
            for arrivals, chance in _counts(self.arrivals, self.spread)
        ]
        mean_s = sum(chance * length_s for chance, length_s in lengths)
        for chance, length_s in lengths:
            for others, other_chance in _counts(self.rate * length_s):
                weight = self.busy * chance * length_s / mean_s * other_chance / _SUBDIVISIONS
                own_s = self.pass_s(others)
                outcomes += [(own_s + length_s * (part + 0.5) / _SUBDIVISIONS, weight) for part in range(_SUBDIVISIONS)]
        among_rounds_s = _quantile(outcomes, 0.95) + self.overflow_s
        if self.prefill.max_prompts >= _ONE_AT_A_TIME:
            return max(self.first_s, among_rounds_s)
        # Prompts that are read one at a time wait as in a queue with one server.
        alone_s = self.pass_s(0)
        return max(among_rounds_s, alone_s + (self.first_s - alone_s) * _LN_20)


def _quantile(outcomes: list[tuple[float, float]], part: float) -> float:
    reached = 0.0
    for value, weight in sorted(outcomes):
        reached += weight
        if reached >= part:
            return value
    return max(outcomes)[0]


def _counts(mean: float, spread: float = 1.0) -> list[tuple[int, float]]:
    """Return the probable counts and their probabilities: Poisson, or negative binomial of variance `spread` x mean."""
    if mean <= 0:
        return [(0, 1.0)]
    width = 6 * (mean * spread) ** 0.5
    numbers = range(max(0, int(mean - width)), int(mean + width + 3 * spread) + 3)
    if spread < 1 + 1e-9:
        chances = [exp(number * log(mean) - mean - lgamma(number + 1)) for number in numbers]
    else:
        size = mean / (spread - 1)
        start = -lgamma(size) - size * log(spread)
        log_ratio = log(1 - 1 / spread)
        chances = [exp(start + lgamma(number + size) - lgamma(number + 1) + number * log_ratio) for number in numbers]
    total = sum(chances)
    return [(number, chance / total) for number, chance in zip(numbers, chances, strict=True)]


class RequestWork(NamedTuple):
    """Tokens of one request: prompt tokens to prefill, output tokens, and prompt tokens from the prefix cache."""

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


class ReplicaLoad(NamedTuple):
    """State of a replica under a load. Times are means in seconds, unless the name contains p95.

    Attributes:
        utilization: The load as a part of the capacity; from 1 on, waits are unbounded and times are infinite.
        batch: Answers decoded together while there are any.
        queued: Requests that wait for a slot, `queue_s` seconds each.
        first_s, first_p95_s: Time to the first token; `total_s` is that to the last one.
        step_s: Duration of a decoding step.
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
    for _ in range(_PASS_ITERATIONS):  # fixed point: the size of a pass depends on the round, and the round on the pass
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


class _Chain(NamedTuple):
    """Steady state: mean answers being decoded, and while there are any; probability of none; wait for a slot."""

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
        decoding, decoding / (1 - idle), idle, waiting * wait_s, wait_s * log(waiting / 0.05) if waiting > 0.05 else 0.0
    )
