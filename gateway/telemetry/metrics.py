"""All metrics of a process. The configuration bounds the label values; callers cannot add any.

A single process counts in memory. Several workers count in files of one folder, and each of them reports all workers.
"""

from __future__ import annotations

import math
import platform
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from gateway.runtime.fair_share import ANONYMOUS
from gateway.telemetry.budget_gauges import BudgetGauges
from gateway.telemetry.metric_files import all_workers_registry, count_in_worker_files
from gateway.telemetry.request_metrics import RequestMetrics
from gateway.telemetry.series import OTHER, SeriesLimit
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

_FILL_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


disable_created_metrics()  # avoid a second series for each counter


class Metrics(RequestMetrics):
    """The metrics of one process, on its own registry.

    Args:
        worker: the number of this worker; None for a single process.
        max_tenants: the number of tenants with their own series.

    Attributes:
        series: returns the label values for tenants and routes. No other values may be used.
        worker: the label value for this process.
    """

    def __init__(self, worker: int | None = None, max_tenants: int = 1000) -> None:
        if worker is not None:
            count_in_worker_files(worker)
        self._shared = worker is not None
        self.worker = str(worker or 1)
        self.series = SeriesLimit(max_tenants, reserved=(ANONYMOUS,))
        if self._shared:
            # The files contain the series of this worker's previous process. Keep their label values.
            for family in all_workers_registry().collect():
                for sample in family.samples:
                    if "tenant" in sample.labels:
                        routes = [sample.labels["route"]] if "route" in sample.labels else []
                        self.series.name(sample.labels["tenant"], routes)
        self.registry = registry = CollectorRegistry()
        super().__init__(registry)
        self.batch_size = Histogram(
            "gkt_batch_size",
            "Calls per batch, over the fleet.",
            ("teacher",),
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self.batch_fill = Histogram(
            "gkt_batch_fill",
            "Size of each batch as a share of the largest size.",
            ("teacher",),
            buckets=_FILL_BUCKETS,
            registry=registry,
        )
        self.batch_window = Gauge(
            "gkt_batch_window_seconds",
            "Time that the next ticket waits for others.",
            ("teacher",),
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.tickets = Counter(
            "gkt_tickets",
            "Tickets that ended without a permit: expired, withdrawn, refused, unreadable, reclaimed.",
            ("teacher", "end"),
            registry=registry,
        )
        self.queue_depth = Gauge(
            "gkt_queue_depth",
            "Tickets that wait for a permit, over the fleet.",
            ("teacher",),
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.queue_age = Gauge(
            "gkt_queue_age_seconds",
            "Waiting time of this process's oldest ticket.",
            ("teacher",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.teacher_in_flight = Gauge(
            "gkt_teacher_in_flight",
            "Teacher calls in flight, over the fleet.",
            ("teacher",),
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.teacher_cap = Gauge(
            "gkt_teacher_cap",
            "Limit of teacher calls in flight.",
            ("teacher",),
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.in_flight = Gauge(
            "gkt_in_flight", "Requests in flight, over all workers.", registry=registry, multiprocess_mode="livesum"
        )
        self.guidance_deadline = Gauge(
            "gkt_guidance_deadline_seconds",
            "Shortest guidance deadline of the teacher's routes.",
            ("teacher",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.engine_in_flight = Gauge(
            "gkt_engine_in_flight",
            "Engine calls in flight, in any role, over all workers.",
            ("engine",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.engine_up = Gauge(
            "gkt_engine_up",
            "1 when the engine answered the last probe of every worker.",
            ("engine",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.engine_errors = Counter(
            "gkt_engine_errors", "Failed calls by engine and error label.", ("engine", "label"), registry=registry
        )
        self.engine_breaker = Gauge(
            "gkt_engine_breaker",
            "State of the engine's circuit breaker: 0 closed, 1 half-open, 2 open. The highest of all workers.",
            ("engine",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.retries = Counter(
            "gkt_retries",
            "Engine retries, by engine and by the label of the previous error.",
            ("engine", "label"),
            registry=registry,
        )
        self.retries_refused = Counter(
            "gkt_retries_refused",
            "Retries that a retry budget refused, by failed engine and budget: request or engine.",
            ("engine", "budget"),
            registry=registry,
        )
        self.redis_up = Gauge(
            "gkt_redis_up", "1 while Redis is up for every worker.", registry=registry, multiprocess_mode="livemin"
        )
        self.receipts_waiting = Gauge(
            "gkt_receipts_waiting",
            "Receipts in memory that Redis has not stored yet.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.receipts_lost = Counter(
            "gkt_receipts_lost",
            "Receipts dropped because too many waited for Redis, or in Redis for a usage worker.",
            registry=registry,
        )
        self.receipts_resent = Counter(
            "gkt_receipts_resent",
            "Receipts sent again after a restart of Redis, which may have lost them.",
            registry=registry,
        )
        self.spool_receipts = Gauge(
            "gkt_spool_receipts",
            "Receipts in the spools of all workers.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.spool_bytes = Gauge(
            "gkt_spool_bytes", "Size of the spools of all workers.", registry=registry, multiprocess_mode="livesum"
        )
        self.spooled = Counter("gkt_spooled", "Receipts written to a spool.", registry=registry)
        self.spool_failures = Counter("gkt_spool_failures", "Writes to a spool that failed.", registry=registry)
        self.spool_replayed = Counter(
            "gkt_spool_replayed",
            "Spooled receipts sent to Redis, by spool: own, or dead for a dead process's spool.",
            ("spool",),
            registry=registry,
        )
        self.usage_up = Gauge(
            "gkt_usage_up",
            "1 while a usage worker writes receipts to the database, over the fleet.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.usage_lag = Gauge(
            "gkt_usage_lag_seconds",
            "Age of the oldest receipt in Redis that is not in the usage database yet, over the fleet.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.usage_waiting = Gauge(
            "gkt_usage_waiting",
            "Receipts in Redis that are not in the usage database yet, over the fleet.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.usage_receipts = Gauge(
            "gkt_usage_receipts",
            "Receipts processed by usage workers over the fleet, by result: inserted, replaced (an abandoned one), "
            "known, unreadable, missed, imported, deleted. A counter stored in Redis.",
            ("result",),
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.receipts_buffered = Gauge(
            "gkt_receipts_buffered",
            "Receipts in the outboxes in Redis, over the fleet.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.limited = Counter(
            "gkt_limited",
            "Requests rejected by a limit of their tenant or key (requests, tokens, parallel, budget), or by their "
            "tenant's share of a full worker (concurrent_requests, concurrent_reads).",
            ("tenant", "limit"),
            registry=registry,
        )
        self.uncounted = Counter(
            "gkt_uncounted",
            "Requests of tenants with limits or budgets that continued uncounted while Redis was down.",
            ("tenant",),
            registry=registry,
        )
        self.local_admissions = Counter(
            "gkt_local_admissions",
            "Requests decided by a process's share of limits and budgets while Redis was down: admitted, or the"
            " exceeded limit (requests, tokens, parallel, budget).",
            ("tenant", "outcome"),
            registry=registry,
        )
        self.budget_events = Counter(
            "gkt_budget_events",
            "Budgets that reached their soft limit (soft) or had no room for a request (hard).",
            ("tenant", "kind"),
            registry=registry,
        )
        self.webhooks = Counter(
            "gkt_webhooks", "Events posted to the webhook, by outcome: ok, failed.", ("outcome",), registry=registry
        )
        self.spans = Counter(
            "gkt_spans",
            "Trace spans by outcome: sent, failed (rejected by the collector), dropped.",
            ("outcome",),
            registry=registry,
        )
        self.intents_missed = Counter(
            "gkt_intents_missed", "Requests without a stored intent, since Redis was down.", registry=registry
        )
        self.intents_abandoned = Counter(
            "gkt_intents_abandoned",
            "Requests of dead processes that this process settled at their reserved cost.",
            ("tenant",),
            registry=registry,
        )
        self.policy_reloads = Counter(
            "gkt_policy_reloads",
            "Edits of the policies folder, by result: loaded, refused.",
            ("result",),
            registry=registry,
        )
        self.policy_stale = Gauge(
            "gkt_policy_stale",
            "1 while the policy files are invalid and some worker uses older ones.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.config_stale = Gauge(
            "gkt_config_stale",
            "1 while config.yaml differs from the configuration of some worker.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.policy_loaded = Gauge(
            "gkt_policy_loaded_timestamp_seconds",
            "Time at which the current policies were loaded; the earliest of all workers.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.lines_left_out = Counter(
            "gkt_log_requests_left_out",
            "Requests that were not logged because of log.requests.sample.",
            registry=registry,
        )

        # prometheus_client's own process metrics cover only the worker that answers the scrape.
        self.loop_lag = Histogram(
            "gkt_event_loop_lag_seconds",
            "Delay of a timer in the event loop, measured four times a second.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self.resident = self._worker_gauge("gkt_process_resident_memory_bytes", "Resident memory of the process.")
        self.open_files = self._worker_gauge("gkt_process_open_fds", "Open files and connections of the process.")
        self.max_files = self._worker_gauge(
            "gkt_process_max_fds", "Limit of open files and connections of the process."
        )
        self.loop_tasks = self._worker_gauge("gkt_process_tasks", "Tasks of the process's event loop.")
        self.started = self._worker_gauge(
            "gkt_process_start_timestamp_seconds", "Start time of the process in Unix seconds."
        )
        self.cpu_seconds = Counter(
            "gkt_process_cpu_seconds", "User and system CPU time of the process.", ("worker",), registry=registry
        )
        self.build = Gauge(
            "gkt_build_info",
            "1. The labels state the gateway's version and the Python version.",
            ("version", "python"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.build.labels(__version__, platform.python_version()).set(1)
        self._deadlines: Mapping[str, float] = {}
        self.budgets = BudgetGauges()
        registry.register(self.budgets)
        # Series used in alerts must exist at 0 first: Prometheus sees no increase in a new series.
        for outcome in ("ok", "failed"):
            self.webhooks.labels(outcome)
        for result in ("loaded", "refused"):
            self.policy_reloads.labels(result)
        for result in ("made", "unscored", "failed", "refused", "over_budget", "dropped"):
            self.quality_samples.labels(result)
        for spool in ("own", "dead"):
            self.spool_replayed.labels(spool)
        self.steps_delayed.labels(ANONYMOUS)
        self.refused.labels("overloaded")

    def _worker_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ("worker",), registry=self.registry, multiprocess_mode="livemax")

    def set_deadlines(self, shortest_s: Mapping[str, float]) -> None:
        """Set the shortest deadlines by teacher. A teacher that is no longer listed gets an infinite deadline."""
        for teacher in self._deadlines.keys() - shortest_s.keys():
            self.guidance_deadline.labels(teacher).set(math.inf)
        for teacher, deadline_s in shortest_s.items():
            self.guidance_deadline.labels(teacher).set(deadline_s)
        self._deadlines = {**self._deadlines, **shortest_s}

    def has_own_series(self, tenant: str) -> bool:
        """Return whether a tenant has its own series."""
        return self.series.tenant(tenant) != OTHER

    def render(self) -> bytes:
        """Return the Prometheus text format, over all workers. Takes milliseconds. Any thread may call it."""
        if not self._shared:
            return generate_latest(self.registry)
        registry = all_workers_registry()
        registry.register(self.budgets)
        return generate_latest(registry)
