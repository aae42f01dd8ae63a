"""Receipts are counted through the values of prometheus_client's metrics, with the same result as its own methods."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

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


def test_calls_without_reported_usage_are_counted_by_engine() -> None:
    """Failed requests do not count: an engine that fails often reports nothing."""
    metrics, receipt = Metrics(), closed(guided())
    counters = ReceiptCounters(metrics)
    assert receipt.student is not None
    missing = replace(receipt, estimated=True, student=replace(receipt.student, estimated=True))
    rejected = replace(missing, student=replace(missing.student, usage_error="too_low"))
    cached = replace(missing, student=replace(missing.student, shared="cache"))
    failed = replace(missing, status="engine_timeout", savings_class=None)
    for one in (receipt, missing, missing, rejected, cached, failed):
        counters.count(one)
    assert samples(metrics, "gkt_engine_usage_missing_total") == {
        ("gkt_engine_usage_missing_total", (("engine", "small"),)): 2
    }


def test_savings_are_counted_by_class_and_a_route_has_all_series_of_guidance() -> None:
    """A query that subtracts one series from another has no result where one of them is missing."""
    metrics = Metrics()
    counters, guided_receipt = ReceiptCounters(metrics), closed(guided())
    student = replace(guided_receipt, route="short", mode="student", unguided="budget", savings_class=None)
    failed = replace(guided_receipt, route="broken", status="engine_timeout", savings_class=None)
    left = replace(guided_receipt, route="left", status="client_gone", savings_class=None)
    for receipt in (guided_receipt, student, failed, left):
        counters.count(receipt)
    saved = {
        (dict(labels)["route"], dict(labels)["savings_class"]): value
        for (_, labels), value in samples(metrics, "gkt_savings_usd_total").items()
    }
    usd = pytest.approx(float(guided_receipt.savings_usd))
    assert saved == {
        ("chat", "guided"): usd,
        ("short", "guided"): 0,
        ("short", "student_by_policy"): usd,
        ("broken", "guided"): 0,
        ("broken", "failed"): 0,
        ("left", "guided"): 0,
    }
    lost = {"tenant": "acme", "route": "broken", "savings_class": "failed"}
    assert metrics.registry.get_sample_value("gkt_losses_usd_total", lost) == float(failed.cost_usd)
    for name in ("gkt_losses_usd", "gkt_savings_error_usd", "gkt_savings_error_removed_usd"):
        of_guidance = {"tenant": "acme", "route": "short", "savings_class": "guided"}
        assert metrics.registry.get_sample_value(f"{name}_total", of_guidance) == 0


def test_listed_labels_are_counted_by_value_up_to_the_limit() -> None:
    metrics = Metrics(labels=("team", "app"), max_values=2)
    counters, receipt = ReceiptCounters(metrics), closed(guided())
    for team in ("a", "b", "a", "c", "d"):
        counters.count(replace(receipt, stored_labels={"team": team, "environment": "prod"}))
    counters.count(receipt)  # without labels
    value = metrics.registry.get_sample_value
    found = {
        team: value("gkt_label_requests_total", {"tenant": "acme", "label": "team", "value": team})
        for team in ("a", "b", "c", "(other)")
    }
    assert found == {"a": 2, "b": 1, "c": None, "(other)": 2}
    cost = value("gkt_label_cost_usd_total", {"tenant": "acme", "label": "team", "value": "a"})
    assert cost == pytest.approx(2 * float(receipt.cost_usd))
    assert not samples(Metrics(), "gkt_label_requests_total")
