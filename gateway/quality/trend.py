"""Judge whether the quality of guided answers holds: their agreement with the teacher's answers in two periods. Pure.

docs/reference/admin-api.md has the rule. Intervals are 95 % intervals of Student's t. Equal grades must not look
certain, so each variance includes two imaginary comparisons at a distance of 0.5 from the mean.
"""

from __future__ import annotations

import math
import operator
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from gateway.quality.comparison import MIN_SAMPLES, SCALE, t_quantile
from gateway.quality.outcome import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MAX_FALL = 0.1
"""Quality holds if the data exclude a fall of the agreement by this amount or more."""
_IMAGINARY = 2 * 0.5**2

Verdict: TypeAlias = Literal["holding", "falling", "not_measured"]
Reason: TypeAlias = Literal["switched_off", "below_bound", "change", "above_bound", "no_samples", "too_few"]


class RouteScope(NamedTuple):
    """A route and the kind of its comparisons. Agreements of different kinds cannot be compared."""

    tenant: str
    route: str
    compare: str


@dataclass(frozen=True, slots=True)
class AgreementSums:
    """Sums over `samples` agreements in units of 1/SCALE, and of their squares."""

    samples: int = 0
    total: int = 0
    squares: int = 0

    def __add__(self, other: AgreementSums) -> AgreementSums:
        return AgreementSums(*map(operator.add, astuple(self), astuple(other)))

    @property
    def is_enough(self) -> bool:
        """Return whether there are enough samples for an interval."""
        return self.samples >= MIN_SAMPLES

    @property
    def mean(self) -> float:
        return self.total / SCALE / self.samples

    @property
    def variance_of_mean(self) -> float:
        n, mean = self.samples, self.mean
        spread = max(0.0, self.squares / SCALE**2 - n * mean * mean)
        return (spread + _IMAGINARY) / (n + 1) / n

    def estimate(self) -> Estimate | None:
        """Return the mean agreement, without bounds below MIN_SAMPLES; None without samples."""
        if not self.samples:
            return None
        if not self.is_enough:
            return Estimate(self.mean)
        half_width = t_quantile(self.samples - 1) * math.sqrt(self.variance_of_mean)
        return Estimate(self.mean, max(0.0, self.mean - half_width), min(1.0, self.mean + half_width))


class Assessment(NamedTuple):
    """A verdict with its data. `bound` is None unless all measured routes have the same one."""

    verdict: Verdict
    reason: Reason
    now: AgreementSums
    before: AgreementSums
    change: Estimate | None
    bound: float | None


def change_of(now: Mapping[RouteScope, AgreementSums], before: Mapping[RouteScope, AgreementSums]) -> Estimate | None:
    """Return the mean change of the agreement over routes with enough samples in both periods; None without any.

    The weights are the samples of the later period, so another mix of routes is no change.
    """
    pairs = [(sums, before[scope]) for scope, sums in now.items() if scope in before]
    pairs = [(after, earlier) for after, earlier in pairs if after.is_enough and earlier.is_enough]
    weight = sum(after.samples for after, _ in pairs)
    if not weight:
        return None
    value = sum(after.samples * (after.mean - earlier.mean) for after, earlier in pairs) / weight
    variance = sum(after.samples**2 * (after.variance_of_mean + earlier.variance_of_mean) for after, earlier in pairs)
    degrees = sum(min(after.samples, earlier.samples) - 1 for after, earlier in pairs)
    half_width = t_quantile(degrees) * math.sqrt(variance) / weight
    return Estimate(value, value - half_width, value + half_width)


def assess(
    now: Mapping[RouteScope, AgreementSums],
    before: Mapping[RouteScope, AgreementSums],
    bound_of: Callable[[RouteScope], float | None],
    *,
    switched_off: bool,
) -> Assessment:
    """Return the verdict on these routes.

    Args:
        now: the agreements of the period by route.
        before: those of the previous period.
        bound_of: returns a route's `min_agreement`.
        switched_off: whether falling quality has switched off guidance of one of the routes.
    """
    whole, earlier = _sum(now.values()), _sum(before.values())
    change, bounds = change_of(now, before), [bound_of(scope) for scope in now]
    verdict, reason = _verdict(now, bounds, change, switched_off=switched_off)
    bound = bounds[0] if bounds and bounds.count(bounds[0]) == len(bounds) else None
    return Assessment(verdict, reason, whole, earlier, change, bound)


def _verdict(
    now: Mapping[RouteScope, AgreementSums],
    bounds: list[float | None],
    change: Estimate | None,
    *,
    switched_off: bool,
) -> tuple[Verdict, Reason]:
    if switched_off:
        return "falling", "switched_off"
    estimates = [sums.estimate() for sums in now.values()]
    bounded = [(one, bound) for one, bound in zip(estimates, bounds, strict=True) if one and bound is not None]
    if any(one.high is not None and one.high < bound for one, bound in bounded):
        return "falling", "below_bound"
    if change is not None and change.high is not None and change.high < 0:
        return "falling", "change"
    if change is not None and change.low is not None and change.low > -MAX_FALL:
        return "holding", "change"
    if (
        estimates
        and len(bounded) == len(estimates)
        and all(one.low is not None and one.low > bound for one, bound in bounded)
    ):
        return "holding", "above_bound"
    return "not_measured", "too_few" if estimates else "no_samples"


def _sum(sums: Iterable[AgreementSums]) -> AgreementSums:
    whole = AgreementSums()
    for one in sums:
        whole += one
    return whole
