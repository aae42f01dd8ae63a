"""What the metrics say of one teacher's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from gateway.batching.ticket import SchedulerDecision, TeacherLimits
    from gateway.telemetry.metrics import Metrics


End = Literal["expired", "withdrawn", "refused", "unreadable", "reclaimed"]


class ThroughputMeter:
    def __init__(self, metrics: Metrics, teacher: str) -> None:
        self._metrics = metrics
        self._teacher = teacher
        for end in get_args(End):
            # Told from the start: Prometheus sees no growth in a series that appears.
            metrics.tickets.labels(teacher, end)

    def ended(self, end: End, many: int = 1) -> None:
        """Tickets that ended without a turn."""
        self._metrics.tickets.labels(self._teacher, end).inc(many)

    def count(self, decision: SchedulerDecision, limits: TeacherLimits) -> None:
        """What one exchange did, and the window it went by: the next one may go by another."""
        metrics, teacher = self._metrics, self._teacher
        for size in decision.opened:
            metrics.batch_size.labels(teacher).observe(size)
            metrics.batch_fill.labels(teacher).observe(size / min(limits.max_size, limits.max_in_flight))
        if decision.reclaimed:
            self.ended("reclaimed", decision.reclaimed)
        if decision.broken:
            self.ended("unreadable", decision.broken)
        if decision.window_s is not None:
            metrics.batch_window.labels(teacher).set(decision.window_s)

    def show(self, decision: SchedulerDecision, limits: TeacherLimits, *, oldest_s: float) -> None:
        """How things stand, once a heartbeat; `oldest_s` is the age of this process's oldest ticket."""
        metrics, teacher = self._metrics, self._teacher
        metrics.queue_depth.labels(teacher).set(decision.waiting)
        metrics.queue_age.labels(teacher).set(oldest_s)
        metrics.teacher_in_flight.labels(teacher).set(decision.in_flight)
        metrics.teacher_cap.labels(teacher).set(limits.max_in_flight)
        if not decision.waiting and decision.window_s is None:
            metrics.batch_window.labels(teacher).set(0.0)
