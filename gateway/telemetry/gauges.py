"""Gauges of values that Redis has for the whole fleet. Each process reports what it read last.

They are not summed over workers. A plain gauge would keep the series of a value that was removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gateway.telemetry.series import SeriesLimit


class BudgetFigures(NamedTuple):
    """A tenant's budget with its raise, the spent amount, and the unspent and unreserved amount, in USD.

    The values are floats: they are meant for graphs, not for bills.
    """

    limit_usd: float
    spent_usd: float
    left_usd: float


class BudgetGauges(Collector):
    """The budgets that this process read last."""

    def __init__(self) -> None:
        self._figures: Mapping[str, BudgetFigures] = {}

    def set(self, figures: Mapping[str, BudgetFigures]) -> None:
        """Replace the budgets, by tenant."""
        self._figures = dict(figures)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges, in the thread that renders."""
        budgets = self._figures  # the event loop may replace the attribute meanwhile
        for field, text in (
            ("limit_usd", "Budget of a tenant, including a raise."),
            ("spent_usd", "Spent part of a tenant's budget."),
            ("left_usd", "Part of a tenant's budget that is neither spent nor reserved."),
        ):
            family = GaugeMetricFamily(f"gkt_budget_{field}", text, labels=("tenant",))
            for tenant, figures in budgets.items():
                family.add_metric((tenant,), getattr(figures, field))
            yield family


ALL = "(all)"
"""The label value of a switch for all tenants, or for all routes of a tenant."""
OFF_BY = ("operator", "quality")


class GuidanceOffGauge(Collector):
    """The scopes whose guidance is switched off. Tenants and routes without series of their own share one."""

    def __init__(self, series: SeriesLimit) -> None:
        self._series = series
        self._off: frozenset[tuple[str, str, str]] = frozenset()

    def set(self, scopes: Iterable[tuple[str | None, str | None, str]]) -> None:
        """Replace the scopes: tenant, route and one of OFF_BY. None: all tenants, or all routes of the tenant."""
        self._off = frozenset(
            (
                ALL if tenant is None else self._series.tenant(tenant),
                ALL if tenant is None or route is None else self._series.route(tenant, route),
                by,
            )
            for tenant, route, by in scopes
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauge, in the thread that renders."""
        off = self._off
        text = "1 while guidance is switched off for the tenant and route, by who did it: operator or quality."
        family = GaugeMetricFamily("gkt_guidance_off", text, labels=("tenant", "route", "by"))
        for by in OFF_BY:  # an alert needs the series before the first switch
            family.add_metric((ALL, ALL, by), float((ALL, ALL, by) in off))
        for labels in sorted(off):
            if labels[:2] != (ALL, ALL):
                family.add_metric(labels, 1.0)
        yield family
