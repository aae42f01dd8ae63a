"""The rounds of an engine: the time from a request's arrival to its first token.

In a round the engine reads the prompts of the previous round in one pass, and then gives each answer of its batch a
token. A request waits for the end of the current round and for the pass that reads it and others.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, inf, lgamma, log

_ITERATIONS = 50
_SUBDIVISIONS = 10
_MAX_SHARE = 0.999
# 95 % of an exponentially distributed delay lie below its mean times this.
_LN_20 = log(20)
_ONE_AT_A_TIME = 2.0


@dataclass(frozen=True, slots=True)
class PrefillTime:
    """Prefill of one kind of request on one engine.

    Attributes:
        prompt_s: Seconds of one prompt.
        pass_s: Fixed seconds of each pass.
        max_prompts: Maximum prompts of one pass; below 1 if one prompt takes several passes.
        chunked: Whether a pass shares its step with decoding.
    """

    prompt_s: float
    pass_s: float
    max_prompts: float
    chunked: bool


@dataclass(frozen=True, slots=True)
class DecodeRounds:
    """The rounds of one replica. All times are in seconds.

    Attributes:
        rate: Requests per second.
        prefill: Prefill of one request.
        step_s: Mean decoding step.
        busy: Part of the time in which the replica works.
        round_s: Mean round.
    """

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
        for _ in range(_ITERATIONS):
            round_s = step_s + prefill.pass_s * (1 - exp(-rate * round_s)) + share * round_s
        return cls(rate, prefill, step_s, busy, round_s)

    @property
    def arrivals(self) -> float:
        """Return the prompts that arrive in a mean round."""
        return self.rate * self.round_s

    @property
    def per_pass(self) -> float:
        """Return the prompts of a mean pass."""
        arrivals = self.arrivals
        return (
            min(self.prefill.max_prompts, arrivals / (1 - exp(-arrivals)))
            if arrivals > 1e-9
            else min(self.prefill.max_prompts, 1.0)
        )

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
        """Return the extra seconds of a request's first decoding steps compared with later ones.

        The round that read the request was long, so more requests arrived in it, and the next round is long too.
        """
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
    """Return the quantile of weighted values, whose weights add up to 1."""
    reached = 0.0
    for value, weight in sorted(outcomes):
        reached += weight
        if reached >= part:
            return value
    return max(outcomes)[0]


def _counts(mean: float, spread: float = 1.0) -> list[tuple[int, float]]:
    """Return the probable counts with their probabilities; the variance is `spread` times the mean.

    The distribution is Poisson for a spread of 1, else negative binomial.
    """
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
