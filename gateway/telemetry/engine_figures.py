"""Figures of each engine over all workers, from their metrics: for the dashboard, which any worker may answer. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

BREAKER_STATES = ("closed", "half_open", "open")
"""The states of a circuit breaker, by the value of its metric."""


@dataclass(slots=True)
class EngineFigures:
    """Figures of one engine.

    Attributes:
        failed_calls: failed calls by error label.
        in_flight: calls in flight, in any role.
        is_down: whether the last probe of some worker failed.
        breaker: the highest state of all workers.
    """

    failed_calls: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    is_down: bool = False
    breaker: str = BREAKER_STATES[0]


def figures_of(families: Iterable[Metric]) -> dict[str, EngineFigures]:
    """Return the figures by engine, from merged metrics."""
    figures: dict[str, EngineFigures] = defaultdict(EngineFigures)
    for sample in (sample for family in families for sample in family.samples):
        match sample.name:
            case "gkt_engine_errors_total" if sample.value:
                figures[sample.labels["engine"]].failed_calls[sample.labels["label"]] = int(sample.value)
            case "gkt_engine_in_flight":
                figures[sample.labels["engine"]].in_flight = int(sample.value)
            case "gkt_engine_up":
                figures[sample.labels["engine"]].is_down = sample.value == 0
            case "gkt_engine_breaker":
                figures[sample.labels["engine"]].breaker = BREAKER_STATES[int(sample.value)]
    return figures
