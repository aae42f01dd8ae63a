"""How long things took, as counts by size: histograms that can be added, over any times, tenants and processes. Pure.

A bucket is a tenth wider than the one before, so what is read off lies within 5 % of what was measured. Sums and counts
are exact. Which time belongs to which bucket is the same in every process and version: they are added.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from itertools import accumulate, repeat
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RELATIVE_ERROR = 0.05
"""What is read off a histogram is off by no more than this part of it."""

# The upper bounds, in whole microseconds: each at least one more, and a tenth more, than the last. Python's integers
# are the same everywhere, which logarithms are not.
_BOUNDS = [*accumulate(repeat(None, 256), lambda last, _: last + max(1, last // 10), initial=1)]


class Histogram(msgspec.Struct, frozen=True):
    """Times, by bucket.

    Attributes:
        count: how many.
        sum_us: all of them together, in microseconds.
        buckets: how many by the number of the bucket; those that have none are not there.
    """

    count: int
    sum_us: int
    buckets: dict[int, int]

    def quantile_us(self, part: float) -> float | None:
        """The time that this part of all did not take longer than; None where nothing was counted."""
        return self.quantiles_us([part])[0]

    def quantiles_us(self, parts: Sequence[float]) -> list[float | None]:
        """Return several quantiles, in one pass."""
        if self.count <= 0:
            return [None] * len(parts)
        places = sorted(self.buckets)
        seen = [*accumulate(map(self.buckets.__getitem__, places))]
        ranks = (max(1, -int(-part * self.count // 1)) for part in parts)
        # Without buckets, or where they hold fewer than `count`, the last place counts.
        return [middle_us(places[min(bisect_left(seen, rank), len(places) - 1)] if places else 0) for rank in ranks]

    @property
    def mean_us(self) -> float | None:
        """The mean, exactly; None where nothing was counted."""
        return self.sum_us / self.count if self.count > 0 else None


MAX_BUCKET = len(_BOUNDS)
bucket_of: Callable[[int], int] = partial(bisect_left, _BOUNDS)
"""Return the number of the bucket that counts a time in microseconds; 0 to `MAX_BUCKET`."""


def middle_us(place: int) -> float:
    """What a time in a bucket is taken to be."""
    if place == 0:
        return float(_BOUNDS[0])
    low, high = _BOUNDS[place - 1], _BOUNDS[min(place, len(_BOUNDS) - 1)]
    # The one that is equally far from both ends, as parts of them; whole microseconds at the lower end.
    return float(high) if high - low <= 1 else 2 * low * high / (low + high)
