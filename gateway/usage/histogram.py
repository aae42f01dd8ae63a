"""Latency histograms that can be added over any times, tenants and processes. Pure.

Each bucket is 10 % wider than the bucket before it, so a quantile has an error of at most 5 %. Sums and counts are
exact. Every process and version uses the same buckets, because their histograms are added.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from itertools import accumulate, repeat
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The upper bounds of buckets in whole microseconds: each is 10 %, and at least 1, above the bound before it. Integer
# arithmetic gives the same bounds on every platform, unlike logarithms.
_BOUNDS = [*accumulate(repeat(None, 256), lambda last, _: last + max(1, last // 10), initial=1)]


class Histogram(msgspec.Struct, frozen=True):
    """Number and sum of times in microseconds, and number of times by bucket number, without empty buckets."""

    count: int
    sum_us: int
    buckets: dict[int, int]

    def quantiles_us(self, fractions: Sequence[float]) -> list[float | None]:
        """Return quantiles in microseconds, or None for each if the histogram is empty. A fraction is 0 to 1."""
        if self.count <= 0:
            return [None] * len(fractions)
        numbers = sorted(self.buckets)
        cumulative = [*accumulate(map(self.buckets.__getitem__, numbers))]
        ranks = (max(1, -int(-fraction * self.count // 1)) for fraction in fractions)
        # Damaged sums may have fewer times in buckets than `count`: then the last bucket is used.
        last = len(numbers) - 1
        return [middle_us(numbers[min(bisect_left(cumulative, rank), last)] if numbers else 0) for rank in ranks]

    @property
    def mean_us(self) -> float | None:
        """Return the exact mean, or None if the histogram is empty."""
        return self.sum_us / self.count if self.count > 0 else None


MAX_BUCKET = len(_BOUNDS)
bucket_of: Callable[[int], int] = partial(bisect_left, _BOUNDS)
"""Return the number of the bucket that counts a time in microseconds; 0 to `MAX_BUCKET`."""


def middle_us(bucket: int) -> float:
    """Return the time that represents a bucket: equal relative distances to both bounds (their harmonic mean)."""
    if bucket == 0:
        return float(_BOUNDS[0])
    low, high = _BOUNDS[bucket - 1], _BOUNDS[min(bucket, len(_BOUNDS) - 1)]
    return float(high) if high - low <= 1 else 2 * low * high / (low + high)
