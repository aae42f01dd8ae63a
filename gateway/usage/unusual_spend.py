"""Find tenants that spend unusually much: an hour is compared with the same hour of earlier days.

A tenant is judged by its own spend alone.
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from gateway.usage.rollup import SumRow
from gateway.usage.sums import SECONDS, Period
from gateway.usage.threads import with_pauses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.usage.queries import UsageQueries

HOUR_S, DAY_S = SECONDS["hour"], SECONDS["day"]
DAYS = 28
"""Number of earlier days that count."""
LEAST_DAYS, LEAST_WEEKS = 7, 3
"""Least number of known hours: on any weekday, and on the same weekday."""

_PICOS = 1e12


class UnusualSpend(NamedTuple):
    """The spend of a tenant in an unusual hour, and the usual spend, in picodollars."""

    tenant: str
    spent_pico: int
    usual_pico: int


def find_unusual(queries: UsageQueries, hour: int, factor: float, min_usd: float) -> list[UnusualSpend]:
    """Return the tenants that spent at least `min_usd` and more than `factor` times the usual spend in an hour.

    An earlier hour is known if the sums have a receipt of any tenant in it. Hours until the end of the tenant's first
    day are unknown. Unknown hours do not count as zeros.

    Args:
        queries: a read transaction. Call this function in a thread.
        hour: start of the hour in Unix seconds.
        factor: least ratio of the spend to the usual spend.
        min_usd: least spend in USD.
    """
    spent_now: Counter[str] = Counter()
    for row in with_pauses(queries.rows([Period("hour", hour)], None)):
        spent_now[row.dims.tenant] += SumRow.from_bytes(row.row).cost_pico
    spenders = {tenant: spent for tenant, spent in spent_now.items() if spent >= min_usd * _PICOS}
    same_hours = [Period("hour", hour - day * DAY_S) for day in range(1, DAYS + 1)] if spenders else []
    known = [period.start for period in queries.totals(same_hours)]
    today = hour // DAY_S * DAY_S
    days = range(today - (DAYS + 1) * DAY_S, today + 1, DAY_S)
    found = []
    for tenant, spent in spenders.items():
        first_day = queries.first_day(tenant, days) or today
        spent_at: Counter[int] = Counter()
        for row in with_pauses(queries.rows(same_hours, tenant)):
            spent_at[row.period.start] += SumRow.from_bytes(row.row).cost_pico
        usual = usual_spend({start: spent_at[start] for start in known if start >= first_day + DAY_S}, hour)
        if usual is not None and spent > factor * usual:
            found.append(UnusualSpend(tenant, spent, usual))
    return found


def usual_spend(earlier: Mapping[int, int], hour: int) -> int | None:
    """Return the usual spend of an hour in picodollars, or None if too few earlier hours are known.

    It is the median of the same hour on the same weekday. If fewer than `LEAST_WEEKS` of these hours are known, it is
    the median of the same hour on all days.

    Args:
        earlier: the spend in picodollars of the same hour on earlier days, by its start in Unix seconds.
        hour: start of the hour in Unix seconds.
    """
    same_weekday = [spent for start, spent in earlier.items() if (hour - start) % (7 * DAY_S) == 0]
    if len(same_weekday) >= LEAST_WEEKS:
        return round(median(same_weekday))
    return round(median(earlier.values())) if len(earlier) >= LEAST_DAYS else None
