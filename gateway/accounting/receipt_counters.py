"""Count receipts in the metrics of a process.

Each request increments about ten counters. `Counter.inc` and `Histogram.observe` take twice as long as adding to their
values, and looking up a labeled counter takes as long again. So each counter is looked up once and kept as a function
that adds. The number of label values is bounded (telemetry/series.py), and so is the number of these functions.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from gateway.accounting.edge import student_of
from gateway.accounting.receipt import class_of, savings_of
from gateway.accounting.savings import DISCONNECTED, GUIDED, MEASURING, TEACHER
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.accounting.receipt import EngineShare, Receipt, Timings
    from gateway.telemetry.metrics import Metrics

    _Add: TypeAlias = Callable[[float], None]

_MAX_ROUTES = 10_000
_OTHERS_SERIES = frozenset({DISCONNECTED, MEASURING, TEACHER})
"""Classes whose receipts save nothing, or correct the savings of guided answers."""


class _OfRoute(Record, frozen=True):
    """The label values of a tenant's route, and its counters for receipts of one savings class."""

    tenant: str
    route: str
    savings_class: str
    cost: _Add
    savings: _Add
    losses: _Add
    error: _Add
    error_removed: _Add


class _OfEngine(Record, frozen=True):
    """The counters of an engine's calls in one role for one tenant."""

    cost: _Add
    fresh_input: _Add
    cached_input: _Add
    cache_write: _Add
    output: _Add


class ReceiptCounters:
    """Count receipts, and the times of their stages."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._routes: dict[tuple[str, str, str], _OfRoute] = {}
        self._adder, self._observer, self._of_engine = cache(_adder), cache(_observer), cache(self._find_engine)

    def count(self, receipt: Receipt) -> None:
        """Count a request with its cost, savings and tokens."""
        metrics, adder = self._metrics, self._adder
        key = receipt.tenant, receipt.route, class_of(receipt)
        of = self._routes.get(key) or self._find_route(*key)
        tenant, teacher, student = of.tenant, receipt.teacher, receipt.student
        if receipt.edge_of is None:  # the guidance request of an edge report has been counted already
            adder(metrics.requests, tenant, of.route, receipt.mode, receipt.status)(1)
            # Shadows have their own mode and return no answer, so a failed shadow is no unguided request.
            if receipt.unguided is not None and receipt.shadow_of is None:
                adder(metrics.unguided, metrics.series.route_alone(receipt.route), receipt.unguided)(1)
        if metrics.labels and receipt.labels:
            self._count_labels(receipt, tenant)
        self._count_savings(receipt, of)
        if teacher is not None and not teacher.shared:
            self._count_share(tenant, "teacher", teacher)
        if student is not None and not student.shared:
            self._count_share(tenant, "student", student_of(receipt) or student)
        if receipt.warmup is not None:
            self._count_share(tenant, "student", receipt.warmup)
        for attempt in receipt.attempts:
            if attempt.share is not None:
                self._count_share(tenant, "failed", attempt.share)
        if receipt.estimated and receipt.status == "ok" and receipt.edge_of is None:
            self._count_missing_usage(teacher, student)
        if receipt.guidance is not None and teacher is not None:
            adder(metrics.guidance, teacher.model, teacher.shared or "teacher")(1)

    def _count_labels(self, receipt: Receipt, tenant: str) -> None:
        metrics = self._metrics
        for name in metrics.labels:
            if (value := receipt.labels.get(name)) is not None:
                series = tenant, name, metrics.label_series.value(tenant, name, value)
                if receipt.edge_of is None:
                    self._adder(metrics.label_requests, *series)(1)
                self._adder(metrics.label_cost_usd, *series)(float(receipt.cost_usd))

    def _count_missing_usage(self, *shares: EngineShare | None) -> None:
        for share in shares:
            if share is not None and share.estimated and not share.shared and not share.usage_error:
                self._adder(self._metrics.engine_usage_missing, share.model)(1)

    def count_stages(self, timings: Timings, mode: str) -> None:
        """Count the times of the stages of a request."""
        for stage, spent_ms in (
            ("admission", timings.admission_ms),
            ("batch_wait", timings.batch_wait_ms),
            ("teacher", timings.teacher_ms),
            ("first_token", timings.first_token_ms),
            ("handover", timings.handover_ms),
            ("total", timings.total_ms),
        ):
            if spent_ms is not None:
                self._observer(self._metrics.stage_seconds, stage, mode)(spent_ms / 1000)

    def _find_route(self, tenant: str, route: str, savings_class: str) -> _OfRoute:
        metrics, series = self._metrics, self._metrics.series
        labels = series.tenant(tenant), series.route(tenant, route)
        errors = metrics.savings_error_usd, metrics.savings_error_removed_usd
        by_class = metrics.savings_usd, metrics.losses_usd, *errors
        for counter in by_class:
            self._adder(counter, *labels, GUIDED)  # a query that subtracts one from another needs a series of each
        counted = GUIDED if savings_class in _OTHERS_SERIES else savings_class  # without series that stay at 0
        if len(self._routes) >= _MAX_ROUTES:
            self._routes.clear()
        of = self._routes[tenant, route, savings_class] = _OfRoute(
            *labels,
            savings_class,
            self._adder(metrics.cost_usd, *labels),
            *[self._adder(counter, *labels, counted) for counter in by_class],
        )
        return of

    def _find_engine(self, tenant: str, role: str, model: str) -> _OfEngine:
        directions = ("input", "cached", "cache_write", "output")
        tokens = [self._adder(self._metrics.tokens, tenant, role, model, direction) for direction in directions]
        return _OfEngine(self._adder(self._metrics.engine_cost_usd, model, role), *tokens)

    def _count_savings(self, receipt: Receipt, of: _OfRoute) -> None:
        metrics, adder, cost = self._metrics, self._adder, float(receipt.cost_usd)
        of.cost(cost)
        savings, of_class = savings_of(receipt), of.savings_class
        if savings.measuring_usd:
            adder(metrics.class_cost_usd, of.tenant, of.route, MEASURING)(float(savings.measuring_usd))
            adder(metrics.losses_usd, of.tenant, of.route, MEASURING)(float(savings.measuring_usd))
            cost = float(receipt.cost_usd - savings.measuring_usd)
        if of_class != MEASURING:
            adder(metrics.class_cost_usd, of.tenant, of.route, of_class)(cost)
        # A counter cannot decrease, so each signed amount has two counters.
        if usd := float(savings.answer_usd):
            of.savings(usd) if usd > 0 else of.losses(-usd)
        if savings.error_usd:
            usd = float(savings.error_usd)
            of.error(usd) if usd > 0 else of.error_removed(-usd)

    def _count_share(self, tenant: str, role: str, share: EngineShare) -> None:
        of = self._of_engine(tenant, role, share.model)
        of.cost(float(share.cost_usd))
        if share.usage_error:
            self._adder(self._metrics.engine_usage_errors, share.model, share.usage_error)(1)
        of.fresh_input(share.fresh_input_tokens)
        if share.cached_input_tokens:
            of.cached_input(share.cached_input_tokens)
        if share.cache_write_input_tokens:
            of.cache_write(share.cache_write_input_tokens)
        of.output(share.output_tokens)


def _adder(metric: Any, *labels: str) -> _Add:
    """Return the function that adds to a counter."""
    add: _Add = metric.labels(*labels)._value.inc  # noqa: SLF001
    return add


def _observer(metric: Any, *labels: str) -> _Add:
    """Return the function that adds an observation to a histogram."""
    histogram = metric.labels(*labels)
    bounds, add = histogram._upper_bounds, histogram._sum.inc  # noqa: SLF001
    buckets = [bucket.inc for bucket in histogram._buckets]  # noqa: SLF001

    def observe(value: float) -> None:
        add(value)
        buckets[bisect_left(bounds, value)](1)

    return observe
