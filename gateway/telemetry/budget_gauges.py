"""Gauges of the tenants' budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class BudgetFigures(NamedTuple):
    """A tenant's budget with its raise, the spent amount, and the unspent and unreserved amount, in USD.

    The values are floats: they are meant for graphs, not for bills.
    """

    limit_usd: float
    spent_usd: float
    left_usd: float


class BudgetGauges(Collector):
    """The budgets that this process read last. Redis counts them, so they are not summed over workers.

    A plain gauge would keep the series of a budget that was removed.
    """

    def __init__(self) -> None:
        self._figures: Mapping[str, BudgetFigures] = {}

    def set(self, figures: Mapping[str, BudgetFigures]) -> None:
        """Replace the budgets, by tenant."""
        self._figures = dict(figures)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges. prometheus_client calls this in the thread that renders."""
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
