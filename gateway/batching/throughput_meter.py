"""The metrics of one teacher's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from gateway.batching.ticket import SchedulerDecision, TeacherLimits
    from gateway.telemetry.metrics import Metrics

TicketEnd = Literal["expired", "withdrawn", "refused", "unreadable", "reclaimed"]


class ThroughputMeter:
    """Update the metrics of one teacher's queue."""

    def __init__(self, metrics: Metrics, teacher: str) -> None:
        self._metrics = metrics
        self._teacher = teacher
        for end in get_args(TicketEnd):
            # Create each series at start: Prometheus sees no increase in a series that appears later.
            metrics.tickets.labels(teacher, end)

    def count_ended(self, end: TicketEnd, count: int = 1) -> None:
        """Count tickets that ended without a permit."""
        self._metrics.tickets.labels(self._teacher, end).inc(count)

    def record(self, decision: SchedulerDecision, limits: TeacherLimits) -> None:
        """Record the batches, ended tickets and window of one exchange."""
        metrics, teacher = self._metrics, self._teacher
        for size in decision.opened:
            metrics.batch_size.labels(teacher).observe(size)
            metrics.batch_fill.labels(teacher).observe(size / min(limits.max_size, limits.max_in_flight))
        if decision.reclaimed:
            self.count_ended("reclaimed", decision.reclaimed)
        if decision.unreadable:
            self.count_ended("unreadable", decision.unreadable)
        if decision.window_s is not None:
            metrics.batch_window.labels(teacher).set(decision.window_s)

    def set_gauges(self, decision: SchedulerDecision, limits: TeacherLimits, *, oldest_s: float) -> None:
        """Set the gauges, once per heartbeat; `oldest_s` is the age of this process's oldest waiting ticket."""
        metrics, teacher = self._metrics, self._teacher
        metrics.queue_depth.labels(teacher).set(decision.waiting)
        metrics.queue_age.labels(teacher).set(oldest_s)
        metrics.teacher_in_flight.labels(teacher).set(decision.in_flight)
        metrics.teacher_cap.labels(teacher).set(limits.max_in_flight)
        if not decision.waiting and decision.window_s is None:
            metrics.batch_window.labels(teacher).set(0.0)
