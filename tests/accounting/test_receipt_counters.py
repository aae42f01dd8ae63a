"""Receipts are counted through the values of prometheus_client's metrics, with the same result as its own methods."""

from __future__ import annotations

import math

import pytest

from gateway.accounting.receipt import Timings
from gateway.accounting.receipt_counters import ReceiptCounters
from gateway.telemetry.metrics import Metrics
from tests.accounting.receipt_builders import closed, guided

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.5, 60, 120)


def samples(metrics: Metrics, name: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name.startswith(name)
    }


@pytest.mark.parametrize("bound_s", BOUNDS_S)
def test_a_time_at_a_bound_of_a_bucket_is_observed_as_by_the_library(bound_s: float) -> None:
    ours, library = Metrics(), Metrics()
    counters = ReceiptCounters(ours)
    for spent_s in (0.0, bound_s, math.nextafter(bound_s, 0), math.nextafter(bound_s, 999), 999.0):
        spent_ms = spent_s * 1000
        counters.count_stages(Timings(spent_ms), "student")
        library.stage_seconds.labels("total", "student").observe(spent_ms / 1000)
    found = samples(ours, "gkt_stage_seconds")
    assert found == samples(library, "gkt_stage_seconds")
    assert found["gkt_stage_seconds_count", (("mode", "student"), ("stage", "total"))] == 5


def test_a_receipt_is_counted_once_for_each_call() -> None:
    metrics, receipt = Metrics(), closed(guided())
    counters = ReceiptCounters(metrics)
    for _ in range(3):
        counters.count(receipt)
    value = metrics.registry.get_sample_value
    where = {"tenant": "acme", "route": "chat"}
    assert value("gkt_requests_total", {**where, "mode": "guided", "status": "ok"}) == 3
    assert value("gkt_cost_usd_total", where) == pytest.approx(3 * float(receipt.cost_usd))
    assert receipt.student is not None
    written = {"tenant": "acme", "role": "student", "engine": "small", "direction": "output"}
    assert value("gkt_tokens_total", written) == 3 * receipt.student.output_tokens
