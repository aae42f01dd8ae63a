"""Limits of hourly spend from the previous weeks, and usual shares of estimated usage. Pure.

The limit of an hour follows the same hour of the previous weeks and its neighbors, so that weekly patterns raise no
alert. Spend is compared by ratio. A series whose hours often differ from its weeks before gets a wider limit.
docs/design/accounting.md has the rates of false alarms.
"""

from __future__ import annotations

from math import exp, log
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

HOUR_S = 3_600
WEEK_S = 168 * HOUR_S
WEEKS = 4
"""Number of previous weeks that count."""

_WEEK = 168
_HOURS = WEEKS * _WEEK + 1
_MIN_SAMPLES, _MIN_SAME = 4, 2
_RARE = 0.995  # the part of the hours that stays below the spread
_MARGIN = 1.75  # between the spread and the limit, in logarithms
_CALM = 0.5  # the part of the distance to the limit, in logarithms, below which an hour is calm
_PICOS = 1e12
_MIN_HOURS_OF_SHARE, _MIN_REQUESTS_OF_SHARE = 24, 5


class SpendLimit(NamedTuple):
    """The limit of one hour in picodollars. Below `calm_pico`, an hour counts toward the end of an anomaly."""

    expected_pico: int
    limit_pico: int
    calm_pico: int


class SpendRule(NamedTuple):
    """Settings of limits.

    Args:
        min_usd: least amount above the expected spend of an hour.
        factor: least ratio of the spend to the expected spend.
        min_history_s: time since the first request without which there is no limit.
    """

    min_usd: float
    factor: float
    min_history_s: float

    def limit(self, history: Mapping[int, int], hour: int) -> SpendLimit | None:
        """Return the limit of the hour that starts at `hour`, in Unix seconds. None: the history is too short.

        `history` has the spend in picodollars by the start of earlier hours, since the first request. Hours without
        requests have zeros, and hours without data have no value. Takes milliseconds: call it in a thread.
        """
        known = {start: cost for start, cost in history.items() if hour - _HOURS * HOUR_S <= start < hour}
        if not known or hour - min(known) < self.min_history_s:
            return None
        levels = self._levels(known, hour)
        level = _expected(levels)
        return None if level is None else self._around(level, _MARGIN * _spread(levels[:-1]))

    def least(self, near: Mapping[int, int], hour: int) -> SpendLimit:
        """Return a limit that `limit` never falls below, from the spend in picodollars at `neighbors(hour)`.

        A missing hour counts as zero. The result is quick to compute.
        """
        level = _expected(self._levels({start: near.get(start, 0) for start in neighbors(hour)}, hour))
        return self._around(log(self.min_usd) if level is None else level, 0.0)

    def _levels(self, costs: Mapping[int, int], hour: int) -> list[float | None]:
        """Return the logarithms of the spend by hour, up to `hour` itself, which has none."""
        levels: list[float | None] = [None] * (_HOURS + 1)
        first = hour - _HOURS * HOUR_S
        for start, cost in costs.items():
            levels[(start - first) // HOUR_S] = log(self.min_usd + cost / _PICOS)
        return levels

    def _around(self, level: float, spread: float) -> SpendLimit:
        """Return the limit of an hour with this usual level."""
        width, offset = max(log(self.factor), spread), self.min_usd

        def pico(level: float) -> int:
            return round((exp(level) - offset) * _PICOS)

        expected = pico(level)
        limit = max(pico(level + width), expected + round(offset * _PICOS))
        return SpendLimit(expected, limit, max(pico(level + _CALM * width), expected + round(offset * _PICOS / 2)))


def neighbors(hour: int) -> list[int]:
    """Return the hours that decide the usual level of an hour.

    Each previous week has three: the same hour, the hour before and the hour after.
    """
    return [hour - week * WEEK_S + step for week in range(1, WEEKS + 1) for step in (-HOUR_S, 0, HOUR_S)]


def _expected(levels: Sequence[float | None]) -> float | None:
    """Return the usual level of the last hour. None: there are too few values."""
    hour = len(levels) - 1
    center = _Column(levels, hour % _WEEK).center(hour)
    if center is None:
        return None
    recent = [level for level in levels[hour - _WEEK - 1 : hour - _WEEK + 2] if level is not None]
    return max(center, median(recent)) if recent else center


class _Column:
    """The levels of one hour of the week in all weeks, and of the hours before and after it."""

    def __init__(self, levels: Sequence[float | None], first: int) -> None:
        # One week beyond both ends: an hour there may have a neighbor within.
        hours = range(first - _WEEK, len(levels) + 1, _WEEK)
        self.same = {hour: levels[hour] for hour in hours if 0 <= hour < len(levels)}
        self._near = {
            hour: [level for level in levels[max(0, hour - 1) : max(0, hour + 2)] if level is not None]
            for hour in hours
        }

    def center(self, hour: int) -> float | None:
        """Return the usual level of an hour, from the other weeks. None: there are too few values.

        The neighbors make the median of few weeks steadier. A peak of one hour is in the median of that hour alone.
        """
        samples = [level for other, near in self._near.items() if other != hour for level in near]
        if len(samples) < _MIN_SAMPLES:
            return None
        same = [level for other, level in self.same.items() if other != hour and level is not None]
        center = median(samples)
        return max(center, median(same)) if len(same) >= _MIN_SAME else center


def _spread(levels: Sequence[float | None]) -> float:
    """Return how far the hours rise above the same hour of other weeks, except for the rarest."""
    rises = []
    for first in range(_WEEK):
        column = _Column(levels, first)
        for hour, level in column.same.items():
            if level is not None and (center := column.center(hour)) is not None:
                rises.append(level - center)
    if not rises:
        return 0.0
    rises.sort()
    return max(0.0, rises[int(_RARE * (len(rises) - 1))])


def usual_share(hours: Iterable[tuple[int, int]]) -> float | None:
    """Return the median share of estimated usage, given requests and estimates of hours. None: there are too few hours.

    Hours with few requests do not count.
    """
    shares = [estimated / requests for requests, estimated in hours if requests >= _MIN_REQUESTS_OF_SHARE]
    return median(shares) if len(shares) >= _MIN_HOURS_OF_SHARE else None
