"""Measure false alarms and missed rises of the alert on unusual spend (gateway/usage/spend_limits.py).

    PYTHONPATH=. python load_tests/spend_alarms.py --help

Each kind of tenant has series of hourly spend. The requests of an hour follow a daily and weekly profile, times noise
that neighboring hours share. The cost of a request is log-normal, or has a heavy tail. `agents` are made of sessions:
an agent that starts keeps calling for hours, with prompts that grow. The worker's rule judges each hour with the four
weeks before it. An alarm counts once until its calm end. For the rises, all hours of a day are multiplied. A day counts
if it has an hour with `min_usd`, and is found if one of its hours is above the limit.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from gateway.usage.spend_limits import HOUR_S, WEEKS, SpendRule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WEEK = 168
_HISTORY = WEEKS * _WEEK + 1
_PICOS = 1e12
_CALM_HOURS = 3
_FACTORS = (1.5, 2.0, 3.0, 5.0)
_MANY = 300  # requests of an hour from which their sum is drawn at once


class Tenant(NamedTuple):
    """A kind of tenant.

    Attributes:
        profile: the mean requests of an hour, given its number since a Monday at 0:00 UTC.
        usd: the median cost of a request.
        noise: the standard deviation of the logarithm of an hour's level.
        growth: the growth of the level in a week.
        heavy: whether the cost of a request has a heavy tail.
    """

    name: str
    profile: Callable[[int], float]
    usd: float
    noise: float
    growth: float = 0.0
    heavy: bool = False


def _office(hour: int, peak: float) -> float:
    weekday = hour // 24 % 7
    return peak * (0.02 + math.exp(-(((hour % 24 - 14) / 4.5) ** 2))) * (1 if weekday < 5 else 0.08)


def _consumer(hour: int, peak: float) -> float:
    return peak * (0.25 + 0.75 * math.exp(-(((hour % 24 - 20) / 5) ** 2)) + 0.2 * (hour // 24 % 7 >= 5))


def _nightly(hour: int, peak: float) -> float:
    return peak * (0.02 + (hour % 24 == 3 and hour // 24 % 7 < 6))


TENANTS = (
    Tenant("office hours", lambda hour: _office(hour, 2_000), 0.02, 0.25),
    Tenant("office hours, few requests", lambda hour: _office(hour, 200), 0.02, 0.3),
    Tenant("office hours, 10 % growth a week", lambda hour: _office(hour, 2_000), 0.02, 0.25, growth=0.1),
    Tenant("office hours, erratic", lambda hour: _office(hour, 500), 0.05, 0.6),
    Tenant("consumers", lambda hour: _consumer(hour, 3_000), 0.01, 0.2),
    Tenant("consumers, 5 % growth a week", lambda hour: _consumer(hour, 3_000), 0.01, 0.35, growth=0.05),
    Tenant("all hours alike", lambda _: 500.0, 0.02, 0.15),
    Tenant("all hours alike, heavy tail", lambda _: 50.0, 0.2, 0.3, heavy=True),
    Tenant("a batch each night", lambda hour: _nightly(hour, 3_000), 0.02, 0.2),
)


def _poisson(dice: random.Random, mean: float) -> int:
    if mean > 60:
        return max(0, round(dice.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, dice.random()
    while product > limit:
        count, product = count + 1, product * dice.random()
    return count


def _cost(dice: random.Random, tenant: Tenant, requests: int) -> float:
    if tenant.heavy:
        return sum(tenant.usd * dice.paretovariate(1.6) for _ in range(requests))
    if requests < _MANY:
        return sum(tenant.usd * dice.lognormvariate(0, 1) for _ in range(requests))
    return requests * tenant.usd * math.exp(0.5) * dice.gauss(1, 1.3 / math.sqrt(requests))


def series_of(tenant: Tenant, weeks: int, dice: random.Random) -> list[float]:
    """Return the spend of each hour in USD."""
    spend, level = [], 0.0
    for hour in range(weeks * _WEEK):
        level = 0.6 * level + 0.8 * dice.gauss(0, 1)
        mean = tenant.profile(hour) * math.exp(tenant.noise * level) * (1 + tenant.growth) ** (hour / _WEEK)
        spend.append(_cost(dice, tenant, _poisson(dice, mean)))
    return spend


def irregular(weeks: int, dice: random.Random) -> list[float]:
    """Return the spend of a tenant with batches of different sizes, one in twenty hours."""
    return [16 * dice.lognormvariate(0, 0.7) * (dice.random() < 0.05) for _ in range(weeks * _WEEK)]


def agents(weeks: int, dice: random.Random) -> list[float]:
    """Return the spend of agents: sessions that start in office hours, last for hours, and have growing prompts."""
    spend = [0.0] * (weeks * _WEEK)
    for hour in range(len(spend)):
        for _ in range(_poisson(dice, _office(hour, 12))):
            turns, tokens, at = (
                min(2_000, round(dice.lognormvariate(3.5, 1))),
                dice.lognormvariate(8.5, 0.7),
                float(hour),
            )
            for _ in range(turns):
                at += dice.expovariate(40)
                if int(at) >= len(spend):
                    break
                written = dice.lognormvariate(5.5, 0.8)
                spend[int(at)] += (0.3 * tokens + 12 * written) * 1e-6  # most of a prompt is in the cache
                tokens = min(180_000.0, tokens + written + dice.lognormvariate(6, 1))
    return spend


class Judged(NamedTuple):
    """Judged hours with their alarms, and days of which each hour was raised, with the found ones by factor."""

    hours: int
    alarms: int
    days: int
    found: dict[float, int]


def judge(rule: SpendRule, spend: Sequence[float]) -> Judged:
    """Judge each hour of a series after its first two weeks, and the same days with raised spend."""
    cost = [round(_PICOS * usd) for usd in spend]
    alarms, calm = 0, _CALM_HOURS  # no alarm is active
    found_days: dict[float, set[int]] = {factor: set() for factor in _FACTORS}
    spent_days = {hour // 24 for hour in range(2 * _WEEK, len(spend)) if spend[hour] >= rule.min_usd}
    for hour in range(2 * _WEEK, len(spend)):
        if calm >= _CALM_HOURS and spend[hour] * max(_FACTORS) < rule.min_usd:
            continue
        earlier = {at * HOUR_S: cost[at] for at in range(max(0, hour - _HISTORY), hour)}
        limit = rule.limit(earlier, hour * HOUR_S)
        if limit is None:
            continue
        if cost[hour] > limit.limit_pico:
            alarms += calm >= _CALM_HOURS
            calm = 0
        elif calm < _CALM_HOURS:
            calm = calm + 1 if cost[hour] <= limit.calm_pico else 0
        for factor, days in found_days.items():
            if factor * cost[hour] > limit.limit_pico:
                days.add(hour // 24)
    found = {factor: len(days & spent_days) for factor, days in found_days.items()}
    return Judged(len(spend) - 2 * _WEEK, alarms, len(spent_days), found)


def main(
    series: Annotated[int, typer.Option(help="Series of each kind of tenant.")] = 20,
    weeks: Annotated[int, typer.Option(help="Weeks of each series. The first two are not judged.")] = 12,
    min_usd: float = 5.0,
    factor: float = 1.5,
    seed: int = 7,
) -> None:
    """Print a table of alarms in a series and week, and of the found rises."""
    rule, dice = SpendRule(min_usd, factor, 14 * 86_400), random.Random(seed)
    kinds: list[tuple[str, Callable[[int, random.Random], list[float]]]] = [
        *((one.name, lambda weeks, dice, one=one: series_of(one, weeks, dice)) for one in TENANTS),
        ("irregular batches", irregular),
        ("agents", agents),
    ]
    print(f"| tenant | USD/h | alarms a week | {' | '.join(f'day x{one:g} found' for one in _FACTORS)} |")
    print(f"|---|{'---|' * (2 + len(_FACTORS))}")
    judged = []
    for name, generate in kinds:
        usd, ones = 0.0, []
        for _ in range(series):
            spend = generate(weeks, dice)
            usd += sum(spend) / len(spend) / series
            ones.append(judge(rule, spend))
        days = max(1, sum(one.days for one in ones))
        shares = " | ".join(f"{100 * sum(one.found[factor] for one in ones) / days:.0f} %" for factor in _FACTORS)
        per_week = sum(one.alarms for one in ones) * _WEEK / sum(one.hours for one in ones)
        print(f"| {name} | {usd:.1f} | {per_week:.3f} | {shares} |", flush=True)
        judged += ones
    alarms, hours = sum(one.alarms for one in judged), sum(one.hours for one in judged)
    print(f"\n{alarms} alarms in {hours / _WEEK:.0f} weeks of a tenant")


if __name__ == "__main__":
    typer.run(main)
