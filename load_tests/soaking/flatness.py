"""Decide whether a measure stayed flat, from its samples and their times. Pure.

A process grows during its warm-up, and jumps during faults. The rule is robust against both:

1. Omit the warm-up.
2. Group the samples into blocks, and use the median of each block.
3. Compute the Theil-Sen slope, the median of the slopes between all pairs of blocks, with its 95 % interval.

Up to 29 % of outlier blocks do not change the slope. A measure rises if the lower end of the interval, multiplied by
the judged time, is more than the allowed rise.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

Samples: TypeAlias = "Sequence[tuple[float, float]]"
"""Pairs of seconds since the start and value, in the order of time."""

MOST_BLOCKS = 120
FEWEST_BLOCKS = 8
_CONFIDENCE = 0.95
_END_PART = 5


@dataclass(frozen=True, slots=True)
class Measure:
    """A sampled measure, and its allowed rise over the judged time.

    Attributes:
        scale: divisor of a value for its display in `unit`.
        part: allowed rise as a part of the first median.
        plus: additional allowed rise, in the unit of the values.
        settles_s: time until the measure can be flat, such as the retention time of stored items.
    """

    name: str
    unit: str
    scale: float
    part: float
    plus: float
    settles_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Trend:
    """The trend of a measure. Values are in the measure's unit.

    Attributes:
        of: the process or server.
        first, last: medians of the first and the last fifth of the judged time.
        rise: slope multiplied by the judged time.
        least_rise: rise at the lower end of the slope's interval.
        allowed: upper bound of `least_rise`.
        judged_s: the judged time; 0 if it is too short for a result.
    """

    measure: Measure
    of: str
    first: float
    last: float
    rise: float
    least_rise: float
    allowed: float
    judged_s: float

    @property
    def holds(self) -> bool:
        return not self.judged_s or self.least_rise <= self.allowed


def trend(measure: Measure, of: str, samples: Samples, warm_up_s: float) -> Trend:
    """Judge a measure from the end of the warm-up or from its `settles_s`, whichever is later."""
    since = max(warm_up_s, measure.settles_s)
    blocks = _blocks([(at, value) for at, value in samples if at >= since])
    if len(blocks) < FEWEST_BLOCKS:
        value = blocks[-1][1] if blocks else samples[-1][1] if samples else 0.0
        return Trend(measure, of, value, value, 0.0, 0.0, 0.0, 0.0)
    times, values = zip(*blocks, strict=True)
    slope, _, low, _ = stats.theilslopes(values, times, _CONFIDENCE)
    judged_s = times[-1] - times[0]
    end = max(1, len(values) // _END_PART)
    first, last = statistics.median(values[:end]), statistics.median(values[-end:])
    allowed = first * measure.part + measure.plus
    return Trend(measure, of, first, last, float(slope) * judged_s, float(low) * judged_s, allowed, judged_s)


def _blocks(samples: Samples) -> list[tuple[float, float]]:
    """Return at most `MOST_BLOCKS` blocks of equal size: medians of times and of values."""
    size = -(-len(samples) // MOST_BLOCKS) or 1
    cut = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [(statistics.median(at for at, _ in one), statistics.median(value for _, value in one)) for one in cut]
