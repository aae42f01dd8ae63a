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
    from collections.abc import Iterable, Mapping

HOUR_S = 3_600
WEEK_S = 168 * HOUR_S
WEEKS = 4
"""Number of previous weeks that count."""

_NEIGHBORS = (-HOUR_S, 0, HOUR_S)
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

        `history` has the spend in picodollars by the start of earlier hours, since the first request. It has zeros, and
        no value for hours without data.
        """
        known = {start: cost for start, cost in history.items() if hour - WEEKS * WEEK_S - HOUR_S <= start < hour}
        if not known or hour - min(known) < self.min_history_s:
            return None
        offset = self.min_usd
        levels = {start: log(offset + cost / _PICOS) for start, cost in known.items()}
        center = _center(levels, hour)
        if center is None:
            return None
        recent = [levels[start] for step in _NEIGHBORS if (start := hour - WEEK_S + step) in levels]
        center = max(center, median(recent)) if recent else center
        width = max(log(self.factor), _MARGIN * _spread(levels))

        def pico(level: float) -> int:
            return round((exp(level) - offset) * _PICOS)

        expected = pico(center)
        limit = max(pico(center + width), expected + round(offset * _PICOS))
        return SpendLimit(expected, limit, max(pico(center + _CALM * width), expected + round(offset * _PICOS / 2)))


def _center(levels: Mapping[int, float], hour: int) -> float | None:
    """Return the usual level of an hour of the week, from other weeks. None: there are too few values.

    The neighbors make the median of few weeks steadier. A peak of one hour is in the median of that hour alone.
    """
    samples: list[float] = []
    same: list[float] = []
    for week in range(-WEEKS, WEEKS + 1):
        if week:
            at = hour + week * WEEK_S
            samples += [level for step in _NEIGHBORS if (level := levels.get(at + step)) is not None]
            if (level := levels.get(at)) is not None:
                same.append(level)
    if len(samples) < _MIN_SAMPLES:
        return None
    center = median(samples)
    return max(center, median(same)) if len(same) >= _MIN_SAME else center


def _spread(levels: Mapping[int, float]) -> float:
    """Return how far the hours rise above the same hour of other weeks, except for the rarest."""
    rises = []
    for start, level in levels.items():
        center = _center(levels, start)
        if center is not None:
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
