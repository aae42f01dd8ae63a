"""Outcomes of requests, by callers or by quality samples, and the comparison of a route's variants by them. Pure."""

from __future__ import annotations

import math
import operator
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from gateway.quality.comparison import SCALE, t_quantile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FEEDBACK = "feedback"
"""The source of outcomes that callers report. Those of quality samples have the name of the comparison."""
MIN_UNITS = 10
"""The fewest conversations or callers with an outcome for an interval."""
HIGHER, LOWER, UNDECIDED, TOO_FEW = "higher", "lower", "no difference shown", "too few outcomes"


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one request in units of 1/SCALE, where 1 is the best.

    `id` is the request's, and `created` its arrival in Unix seconds. `variant` and `unit` are those of its receipt's
    `split`, or empty.
    """

    id: str
    created: int
    tenant: str
    route: str
    variant: str
    unit: str
    source: str
    score: Annotated[int, msgspec.Meta(ge=0, le=SCALE)]

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Outcome:
        """Decode an outcome. Raises msgspec.MsgspecError where `raw` is not an outcome."""
        return msgspec.json.decode(raw, type=cls)


class Estimate(NamedTuple):
    """A mean or a difference with its 95 % confidence interval; no bounds with fewer than MIN_UNITS units."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class OutcomeSums:
    """Sums over the outcomes of one variant, from its units: the conversations or callers that keep a variant.

    Outcomes of one unit depend on each other, so intervals count units and not outcomes. Scores are in units of
    1/SCALE. The last three are sums over units of the squared number of outcomes, its product with the score, and the
    squared score.
    """

    units: int = 0
    outcomes: int = 0
    score: int = 0
    outcomes_squared: float = 0.0
    products: float = 0.0
    score_squared: float = 0.0

    def __add__(self, other: OutcomeSums) -> OutcomeSums:
        return OutcomeSums(*map(operator.add, astuple(self), astuple(other)))

    @property
    def mean(self) -> float | None:
        """Return the mean score, from 0 to 1; None without outcomes."""
        return self.score / SCALE / self.outcomes if self.outcomes else None

    def _adjusted(self) -> tuple[float, float, int]:
        """Return a mean, its variance and the degrees of freedom, after adding a unit of score 0 and one of score 1.

        These two keep an interval from having no width where all scores are equal (Agresti and Caffo, 2000). The
        variance is that of a ratio of sums over units.
        """
        each, units = self.outcomes / self.units, self.units + 2
        count, score = self.outcomes + 2 * each, self.score / SCALE + each
        mean = score / count
        squares = (
            self.score_squared / SCALE**2
            + each**2
            - 2 * mean * (self.products / SCALE + each**2)
            + mean**2 * (self.outcomes_squared + 2 * each**2)
        )
        return mean, max(0.0, squares) * units / (units - 1) / count**2, units - 1

    def estimate(self) -> Estimate | None:
        """Return the mean score with its interval; None without outcomes."""
        if (value := self.mean) is None:
            return None
        if self.units < MIN_UNITS:
            return Estimate(value)
        mean, variance, degrees = self._adjusted()
        half_width = t_quantile(degrees) * math.sqrt(variance)
        return Estimate(value, max(0.0, mean - half_width), min(1.0, mean + half_width))

    def difference(self, first: OutcomeSums) -> Estimate | None:
        """Return the mean score minus that of the first variant; None without outcomes of both."""
        own, others = self.mean, first.mean
        if own is None or others is None:
            return None
        if min(self.units, first.units) < MIN_UNITS:
            return Estimate(own - others)
        mean, variance, degrees = self._adjusted()
        first_mean, first_variance, first_degrees = first._adjusted()
        half_width = t_quantile(min(degrees, first_degrees)) * math.sqrt(variance + first_variance)
        difference = mean - first_mean
        return Estimate(own - others, max(-1.0, difference - half_width), min(1.0, difference + half_width))


def verdict(difference: Estimate | None) -> str:
    """Return in words what a difference to the first variant shows."""
    if difference is None or difference.low is None or difference.high is None:
        return TOO_FEW
    return HIGHER if difference.low > 0 else LOWER if difference.high < 0 else UNDECIDED


def compare_variants(
    names: Sequence[str], sums: Mapping[tuple[str, str], OutcomeSums]
) -> dict[str, list[dict[str, Any]]]:
    """Return for each variant, by name, the mean outcome of each source and the difference to the first variant.

    `sums` has the outcomes by variant and source.
    """
    sources = sorted({source for _, source in sums}, key=lambda source: (source != FEEDBACK, source))
    compared: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for name, source in ((name, source) for name in names for source in sources):
        own = sums.get((name, source), OutcomeSums())
        row: dict[str, Any] = {"source": source, "outcomes": own.outcomes, "units": own.units, "mean": None}
        if (estimate := own.estimate()) is not None:
            row["mean"] = _rounded(estimate)
        if name != names[0]:
            difference = own.difference(sums.get((names[0], source), OutcomeSums()))
            row["difference"] = None if difference is None else _rounded(difference)
            row["verdict"] = verdict(difference)
        compared[name].append(row)
    return compared


def _rounded(estimate: Estimate) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 6) for name, value in estimate._asdict().items()}
