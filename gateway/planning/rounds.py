"""The rounds of an engine as a request finds them: how long until its first token.

In a round the engine reads the prompts that came in the round before, in one pass, and then gives each answer of its
batch a token. A request waits until the round under way ends, and for the pass that reads it, with others beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, inf, lgamma, log

_TURNS = 50
_PARTS = 10
_NEARLY_ALL = 0.999
# Of a delay that is exponentially distributed, 95 % lie below its mean times this.
_LN_20 = log(20)
_ONE_AT_A_TIME = 2.0


@dataclass(frozen=True, slots=True)
class PrefillTime:
    """How one engine reads the prompts of one kind of request.

    `prompt_s`: of one prompt. `pass_s`: of each pass beside. `most`: prompts in one pass at most; a part of one where
    one prompt takes several. `chunked`: a pass shares its step with decoding.
    """

    prompt_s: float
    pass_s: float
    most: float
    chunked: bool


@dataclass(frozen=True, slots=True)
class DecodeRounds:
    """The rounds of one replica to which `rate` requests come in a second.

    `step_s`: of its mean step of decoding. `busy`: the part of the time in which it works. All times are in seconds.
    """

    rate: float
    reading: PrefillTime
    step_s: float
    busy: float
    round_s: float

    @classmethod
    def of(cls, rate: float, reading: PrefillTime, step_s: float, busy: float = 1.0) -> DecodeRounds:
        """With the mean round worked out: a step, and where prompts came in the round before, a pass over them."""
        share = min(_NEARLY_ALL, rate * reading.prompt_s)
        round_s = step_s + reading.prompt_s
        for _ in range(_TURNS):
            round_s = step_s + reading.pass_s * (1 - exp(-rate * round_s)) + share * round_s
        return cls(rate, reading, step_s, busy, round_s)

    @property
    def came(self) -> float:
        """Prompts that come in a mean round."""
        return self.rate * self.round_s

    @property
    def per_pass(self) -> float:
        """Prompts in a mean pass."""
        came = self.came
        return min(self.reading.most, came / (1 - exp(-came))) if came > 1e-9 else min(self.reading.most, 1.0)

    @property
    def reading_share(self) -> float:
        """The part of each second that goes to the tokens of prompts."""
        return min(_NEARLY_ALL, self.rate * self.reading.prompt_s)

    @property
    def spread(self) -> float:
        """The variance of the prompts in a round over their mean. More than 1: after a long round comes a long one."""
        return 1 / (1 - self.reading_share**2)

    @property
    def met_s(self) -> float:
        """The round that a request meets, 0 where there is none: E[X^2] / E[X], for long ones are met more often."""
        none = exp(-self.came)
        with_pass_s = self.step_s + self.reading.pass_s
        square = (
            self.step_s**2 * none
            + with_pass_s**2 * (1 - none)
            + 2 * with_pass_s * self.reading.prompt_s * self.came
            + self.reading.prompt_s**2 * (self.came * self.spread + self.came**2)
        )
        return self.busy * square / self.round_s

    @property
    def first_s(self) -> float:
        """The mean time to the first token of a request that has its place."""
        return self.met_s / 2 + self.left_out_s + self.own_s

    @property
    def own_s(self) -> float:
        """The pass that reads the request's prompt, beside those that came in the same round."""
        return self.pass_s(self.rate * self.met_s)

    @property
    def left_out_s(self) -> float:
        """What is added where a pass does not hold all that wait: as in a queue whose server takes several at once."""
        most = self.reading.most
        if most == inf:
            return 0.0
        each_s = (self.step_s + self.reading.pass_s) / most + self.reading.prompt_s
        share = min(_NEARLY_ALL, self.rate * each_s)
        return float(share ** (1 + most)) * each_s / (2 * (1 - share))

    def pass_s(self, beside: float) -> float:
        """A pass that reads a request's prompt and so many others, to the first token."""
        pieces = ceil(1 / self.reading.most) if self.reading.most < 1 else 1
        steps = pieces if self.reading.chunked else pieces - 1
        read = 1 + min(beside, max(0.0, self.reading.most - 1))
        return self.reading.pass_s * pieces + self.reading.prompt_s * read + steps * self.step_s

    def aftermath_s(self, steps: float) -> float:
        """What the first of a request's steps take longer than later ones.

        The round in which it was read was a long one, so more came in it, so the next one is long too, and so on.
        """
        share = self.reading_share
        whole_s = self.own_s + (0.0 if self.reading.chunked else self.step_s)
        return max(0.0, whole_s - self.round_s) * share / (1 - share) * (1 - float(share**steps))

    def first_p95_s(self) -> float:
        """Within how long 95 of 100 that have their place get the first token: over all rounds that they may meet."""
        outcomes = [(self.pass_s(0), 1 - self.busy)]
        lengths = [
            (chance, self.step_s + (self.reading.pass_s + self.reading.prompt_s * came if came else 0.0))
            for came, chance in _counts(self.came, self.spread)
        ]
        mean_s = sum(chance * length_s for chance, length_s in lengths)
        for chance, length_s in lengths:
            for beside, likely in _counts(self.rate * length_s):
                weight = self.busy * chance * length_s / mean_s * likely / _PARTS
                own_s = self.pass_s(beside)
                outcomes += [(own_s + length_s * (part + 0.5) / _PARTS, weight) for part in range(_PARTS)]
        among_rounds_s = _quantile(outcomes, 0.95) + self.left_out_s
        if self.reading.most >= _ONE_AT_A_TIME:
            return max(self.first_s, among_rounds_s)
        # Prompts that are read one after the other wait as in any queue with one server.
        alone_s = self.pass_s(0)
        return max(among_rounds_s, alone_s + (self.first_s - alone_s) * _LN_20)


def _quantile(outcomes: list[tuple[float, float]], part: float) -> float:
    """Of values with their weights, which come to 1."""
    reached = 0.0
    for value, weight in sorted(outcomes):
        reached += weight
        if reached >= part:
            return value
    return max(outcomes)[0]


def _counts(mean: float, spread: float = 1.0) -> list[tuple[int, float]]:
    """Numbers with their chance, as far as they matter; their variance is `spread` times their mean.

    Poisson's for a spread of 1, else the negative binomial's.
    """
    if mean <= 0:
        return [(0, 1.0)]
    wide = 6 * (mean * spread) ** 0.5
    numbers = range(max(0, int(mean - wide)), int(mean + wide + 3 * spread) + 3)
    if spread < 1 + 1e-9:
        chances = [exp(number * log(mean) - mean - lgamma(number + 1)) for number in numbers]
    else:
        size = mean / (spread - 1)
        start = -lgamma(size) - size * log(spread)
        again = log(1 - 1 / spread)
        chances = [exp(start + lgamma(number + size) - lgamma(number + 1) + number * again) for number in numbers]
    whole = sum(chances)
    return [(number, chance / whole) for number, chance in zip(numbers, chances, strict=True)]
