"""Decide whether a measure stayed flat, from its samples and their times. Pure.

A process grows while it warms up, and jumps while a fault is on. So the beginning is left out, samples are gathered
into blocks of which the median counts, and the slope is Theil and Sen's: the median of the slopes between all pairs of
blocks, which up to 29 % of them cannot turn. Its interval of 95 % says how sure it is. A measure rises when even the
lower end of that, over all of the time that is judged, comes to more than is allowed.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

Samples: TypeAlias = "Sequence[tuple[float, float]]"
"""Seconds since the start, and the value then; in the order of time."""

MOST_BLOCKS = 120
FEWEST_BLOCKS = 8
_CONFIDENCE = 0.95
_END_PART = 5


@dataclass(frozen=True, slots=True)
class Measure:
    """A sampled measure, and its allowed rise over the judged time.

    Attributes:
        scale: what a value is divided by to be shown in `unit`.
        part: of the first median, the part by which it may rise,
        plus: and as much on top, in the value's own unit.
        settles_s: it cannot be flat earlier, such as what is kept for a minute before the first minute is over.
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
        of: whose it is.
        first, last: medians of the first and the last fifth of the time that is judged.
        rise: the slope times that time,
        least_rise: and that at the lower end of the slope's interval.
        allowed: what `least_rise` may be.
        judged_s: the time; 0 where there was too little to judge, and nothing is said.
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
    """Judge one measure from the end of the warm-up on, or from when it can be flat, if that is later."""
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
    """At most `MOST_BLOCKS`, each with as many samples: the medians of its times and of its values."""
    size = -(-len(samples) // MOST_BLOCKS) or 1
    cut = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [(statistics.median(at for at, _ in one), statistics.median(value for _, value in one)) for one in cut]
