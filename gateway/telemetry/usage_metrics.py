"""Gauges of usage workers and of the outboxes in Redis, over the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Gauge


class UsageMetrics:
    """The gauges. `newest` creates a gauge whose last written value counts, of whichever worker."""

    def __init__(self, newest: Callable[..., Gauge]) -> None:
        self.up = newest("gkt_usage_up", "1 while a usage worker writes receipts to the database, over the fleet.")
        self.lag = newest(
            "gkt_usage_lag_seconds",
            "Age of the oldest receipt in Redis that is not in the usage database yet, over the fleet.",
        )
        self.waiting = newest(
            "gkt_usage_waiting", "Receipts in Redis that are not in the usage database yet, over the fleet."
        )
        self.replica_lag = newest(
            "gkt_usage_replica_lag_seconds",
            "Age of the newest transaction in the read replica of the usage database, 0 if it has everything. Grows "
            "while the usage worker cannot reach the replica.",
        )
        self.receipts = newest(
            "gkt_usage_receipts",
            "Receipts processed by usage workers over the fleet, by result: inserted, replaced (an abandoned one), "
            "known, unreadable, missed, deleted. A counter stored in Redis.",
            ("result",),
        )
        self.clock_skew = newest(
            "gkt_clock_skew_seconds",
            "How far the clock of this host is ahead of Redis' clock, which times receipts and usage; 0 below 1 s.",
        )
        self.buffered = newest("gkt_receipts_buffered", "Receipts in the outboxes in Redis, over the fleet.")
