"""Metrics of a teacher's queue."""

from __future__ import annotations

from gateway.batching.throughput_meter import ThroughputMeter
from gateway.telemetry.metrics import Metrics


def test_all_outcome_series_exist_from_the_start() -> None:
    """Prometheus sees no growth in a series that appears."""
    metrics = Metrics()
    ThroughputMeter(metrics, "big")
    ends = {"expired", "withdrawn", "refused", "unreadable", "reclaimed"}
    for end in ends:
        assert metrics.registry.get_sample_value("gkt_tickets_total", {"teacher": "big", "end": end}) == 0
