"""All metrics of a process. The configuration bounds the label values; callers cannot add any.

A single process counts in memory. Several workers count in files of one folder, and each of them reports all workers.
"""

from __future__ import annotations

import asyncio
import math
import platform
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from gateway.runtime.fair_share import ANONYMOUS
from gateway.telemetry.engine_figures import figures_of
from gateway.telemetry.gauges import BudgetGauges, GuidanceOffGauge
from gateway.telemetry.metric_files import all_workers_registry, count_in_worker_files
from gateway.telemetry.series import OTHER, LabelSeries, SeriesLimit
from gateway.telemetry.usage_metrics import UsageMetrics
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gateway.telemetry.engine_figures import EngineFigures

_FILL_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_PUBLISH_INTERVAL_S = 0.25


prometheus.disable_created_metrics()  # avoid a second series for each counter


class Metrics:
    """The metrics of one process, on its own registry; `worker` is None for a single process.

    Use only the label values of tenants and routes that `series` returns: `max_tenants` have their own.
    """

    def __init__(
        self, worker: int | None = None, max_tenants: int = 1000, labels: Iterable[str] = (), max_values: int = 1000
    ) -> None:
        if worker is not None:
            count_in_worker_files(worker)
        self._shared = worker is not None
        self.worker = str(worker or 1)
        self.series, self.labels = SeriesLimit(max_tenants, reserved=(ANONYMOUS,)), tuple(labels)
        self.label_series = LabelSeries(max_values)
        if self._shared:
            # The files contain the series of this worker's previous process. Keep their label values.
            for family in all_workers_registry().collect():
                for sample in family.samples:
                    if "tenant" in sample.labels:
                        routes = [sample.labels["route"]] if "route" in sample.labels else []
                        self.series.name(sample.labels["tenant"], routes)
        self.registry = registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram, summary = partial(Histogram, registry=registry), partial(Summary, registry=registry)
        # Gauges by the way in which the values of several workers become one.
        newest, total = partial(gauge, multiprocess_mode="livemostrecent"), partial(gauge, multiprocess_mode="livesum")
        smallest, largest = partial(gauge, multiprocess_mode="livemin"), partial(gauge, multiprocess_mode="livemax")
        self.requests = counter(
            "gkt_requests",
            "Requests that ended, by status: ok, or the label of the error.",
            ("tenant", "route", "mode", "status"),
        )
        self.refused = counter(
            "gkt_refused", "Requests rejected before a receipt existed, by error label.", ("status",)
        )
        self.connections = total("gkt_connections", "Open connections, by listener (public, admin).", ("listener",))
        self.steps_delayed = counter(
            "gkt_steps_delayed", "Parts of requests that were delayed because the event loop was busy.", ("tenant",)
        )
        self.holdings_dropped = counter(
            "gkt_holdings_dropped",
            "Resources evicted in favor of other tenants: connections, unfinished_bodies, unread_replies.",
            ("resource",),
        )
        self.unguided = counter(
            "gkt_unguided",
            "Requests of guided routes that were answered without guidance, by reason. Shadows are not counted.",
            ("route", "reason"),
        )
        self.shadows = counter(
            "gkt_shadows", "Shadow requests by result: made, failed, refused, dropped, unguidable.", ("result",)
        )
        self.edge_closings = counter(
            "gkt_edge_closings",
            "Device reports by outcome: closed, closed_twice, unknown, too_many_tokens, expired, offline.",
            ("outcome",),
        )
        self.quality_samples = counter(
            "gkt_quality_samples",
            "Quality samples of guided answers by result: made, unscored, failed, refused, over_budget, dropped.",
            ("result",),
        )
        self.quality_agreement = summary(
            "gkt_quality_agreement",
            "Agreement of answers from 0 to 1, by pair (guided_teacher, student_teacher) and guidance length.",
            ("tenant", "route", "pair", "length"),
        )
        self.tokens = counter(
            "gkt_tokens",
            "Charged tokens by role (teacher, student, failed) and direction (input, cached, cache_write, output).",
            ("tenant", "role", "engine", "direction"),
        )
        self.cost_usd = counter("gkt_cost_usd", "Cost of requests.", ("tenant", "route"))
        of_label = ("tenant", "label", "value")
        self.label_requests = counter("gkt_label_requests", "Requests that ended, by value of a label.", of_label)
        self.label_cost_usd = counter("gkt_label_cost_usd", "Cost of requests, by value of a label.", of_label)
        self.class_cost_usd = counter(
            "gkt_class_cost_usd",
            "Cost of requests by savings class. failed: failed requests. measuring: shadows and quality samples.",
            ("tenant", "route", "savings_class"),
        )
        self.engine_cost_usd = counter(
            "gkt_engine_cost_usd",
            "Cost of engine calls by engine and role: teacher, student, failed.",
            ("engine", "role"),
        )
        self.engine_usage_errors = counter(
            "gkt_engine_usage_errors",
            "Calls whose reported usage is impossible for the sent and received text: too_high is charged up to the "
            "reservation, too_low at the gateway's own upper bound.",
            ("engine", "reason"),
        )
        self.engine_usage_missing = counter(
            "gkt_engine_usage_missing",
            "Calls of successful requests whose tokens the gateway counted, since the engine reported no usage.",
            ("engine",),
        )
        self.savings_usd = counter(
            "gkt_savings_usd",
            "Savings of the receipts that saved, by savings class. Saved: subtract gkt_losses_usd_total. Its parts: "
            "guided, student_by_policy, reported, failed, measuring, and losses of unguided answers.",
            ("tenant", "route", "savings_class"),
        )
        self.losses_usd = counter(
            "gkt_losses_usd",
            "Amounts by which receipts cost more than their baseline, by savings class. All of the cost of failed "
            "requests and of measuring.",
            ("tenant", "route", "savings_class"),
        )
        self.savings_error_usd = counter(
            "gkt_savings_error_usd", "Error bound of the savings that count.", ("tenant", "route", "savings_class")
        )
        self.savings_error_removed_usd = counter(
            "gkt_savings_error_removed_usd",
            "Part of gkt_savings_error_usd_total that measured baselines removed.",
            ("tenant", "route", "savings_class"),
        )
        self.stage_seconds = histogram(
            "gkt_stage_seconds",
            "Time by stage: admission, batch_wait, teacher, first_token, handover, total.",
            ("stage", "mode"),
            buckets=_STAGE_BUCKETS,
        )
        self.guidance = counter(
            "gkt_guidance",
            "Guidance by source: teacher (the request's own call), flight (an identical request's call), cache.",
            ("teacher", "source"),
        )
        self.batch_size = histogram(
            "gkt_batch_size", "Calls per batch, over the fleet.", ("teacher",), buckets=_BATCH_BUCKETS
        )
        self.batch_fill = histogram(
            "gkt_batch_fill", "Size of each batch as a share of the largest size.", ("teacher",), buckets=_FILL_BUCKETS
        )
        self.batch_window = newest(
            "gkt_batch_window_seconds", "Time that the next ticket waits for others.", ("teacher",)
        )
        self.tickets = counter(
            "gkt_tickets",
            "Tickets that ended without a permit: expired, withdrawn, refused, unreadable, reclaimed.",
            ("teacher", "end"),
        )
        self.queue_depth = newest("gkt_queue_depth", "Tickets that wait for a permit, over the fleet.", ("teacher",))
        self.queue_age = largest("gkt_queue_age_seconds", "Waiting time of this process's oldest ticket.", ("teacher",))
        self.teacher_in_flight = newest(
            "gkt_teacher_in_flight", "Teacher calls in flight, over the fleet.", ("teacher",)
        )
        self.teacher_cap = newest("gkt_teacher_cap", "Limit of teacher calls in flight.", ("teacher",))
        self.in_flight = total("gkt_in_flight", "Requests in flight, over all workers.")
        self.guidance_deadline = smallest(
            "gkt_guidance_deadline_seconds", "Shortest guidance deadline of the teacher's routes.", ("teacher",)
        )
        self.engine_in_flight = total(
            "gkt_engine_in_flight", "Engine calls in flight, in any role, over all workers.", ("engine",)
        )
        self.engine_waiting = total(
            "gkt_engine_waiting", "Engine calls that wait for a slot of a full engine, over all workers.", ("engine",)
        )
        self.engine_up = smallest(
            "gkt_engine_up", "1 when the engine answered the last probe of every worker.", ("engine",)
        )
        self.issuer_up = smallest(
            "gkt_issuer_up", "1 when every worker could read the keys of the issuer of tokens last time.", ("issuer",)
        )
        self.identity_tokens = counter(
            "gkt_identity_tokens",
            "Tokens by issuer and result: verified, or why they were rejected.",
            ("issuer", "result"),
        )
        self.engine_errors = counter(
            "gkt_engine_errors", "Failed calls by engine and error label.", ("engine", "label")
        )
        self.engine_breaker = largest(
            "gkt_engine_breaker",
            "State of the engine's circuit breaker for all tenants: 0 closed, 1 half-open, 2 open. The highest of all "
            "workers.",
            ("engine",),
        )
        self.engine_paused_tenants = largest(
            "gkt_engine_paused_tenants",
            "Tenants whose calls the engine's circuit breaker refuses after replies to them. The most of all workers.",
            ("engine",),
        )
        self.retries = counter(
            "gkt_retries", "Engine retries, by engine and by the label of the previous error.", ("engine", "label")
        )
        self.retries_refused = counter(
            "gkt_retries_refused",
            "Retries that a retry budget refused, by failed engine and budget: request or engine.",
            ("engine", "budget"),
        )
        self.streams_continued = counter(
            "gkt_streams_continued",
            "Calls that continued a broken stream, by engine and outcome: ok or failed.",
            ("engine", "outcome"),
        )
        self.redis_up = smallest(
            "gkt_redis_up", "1 while Redis is up for every worker; in a cluster, while all nodes and slots are."
        )
        self.receipts_waiting = total("gkt_receipts_waiting", "Receipts in memory that Redis has not stored yet.")
        self.receipts_lost = counter(
            "gkt_receipts_lost", "Receipts dropped because too many waited for Redis, or in Redis for a usage worker."
        )
        self.receipts_resent = counter(
            "gkt_receipts_resent", "Receipts sent again after a restart of Redis, which may have lost them."
        )
        self.spool_receipts = total("gkt_spool_receipts", "Receipts in the spools of all workers.")
        self.spool_bytes = total("gkt_spool_bytes", "Size of the spools of all workers.")
        self.spooled = counter("gkt_spooled", "Receipts written to a spool.")
        self.spool_failures = counter("gkt_spool_failures", "Writes to a spool that failed.")
        self.spool_replayed = counter(
            "gkt_spool_replayed",
            "Spooled receipts sent to Redis, by spool: own, or dead for a dead process's spool.",
            ("spool",),
        )
        self.usage = UsageMetrics(newest)
        self.stored_responses = counter(
            "gkt_stored_responses", "Responses to be stored, by result.", ("tenant", "result")
        )
        self.limited = counter(
            "gkt_limited",
            "Requests rejected by a limit of their tenant, key or label (requests, tokens, parallel, budget), or by "
            "their tenant's share of a full worker (concurrent_requests, concurrent_reads).",
            ("tenant", "limit"),
        )
        self.uncounted = counter(
            "gkt_uncounted",
            "Requests of tenants with limits or budgets that continued uncounted while Redis was down.",
            ("tenant",),
        )
        self.local_admissions = counter(
            "gkt_local_admissions",
            "Requests decided by a process's share of limits and budgets while Redis was down: admitted, or the"
            " exceeded limit (requests, tokens, parallel, budget).",
            ("tenant", "outcome"),
        )
        self.budget_events = counter(
            "gkt_budget_events",
            "Budgets that reached their soft limit (soft) or had no room for a request (hard).",
            ("tenant", "kind"),
        )
        self.spend_unusual = counter(
            "gkt_spend_unusual", "Reports of tenants with unusual spend, at most one a day for each tenant."
        )
        self.webhooks = counter("gkt_webhooks", "Events posted to the webhook, by outcome: ok, failed.", ("outcome",))
        self.spans = counter(
            "gkt_spans", "Trace spans by outcome: sent, failed (rejected by the collector), dropped.", ("outcome",)
        )
        self.intents_missed = counter("gkt_intents_missed", "Requests without a stored intent, since Redis was down.")
        self.intents_abandoned = counter(
            "gkt_intents_abandoned",
            "Requests of dead processes that this process settled at their reserved cost.",
            ("tenant",),
        )
        self.policy_reloads = counter(
            "gkt_policy_reloads", "Edits of the policies folder, by result: loaded, refused.", ("result",)
        )
        self.policy_stale = largest(
            "gkt_policy_stale", "1 while the policy files are invalid and some worker uses older ones."
        )
        self.config_reloads = counter(
            "gkt_config_reloads", "Edits of config.yaml, by result: loaded, refused.", ("result",)
        )
        self.config_stale = largest(
            "gkt_config_stale", "1 while config.yaml is invalid, so that an earlier version is in use."
        )
        self.policy_loaded = smallest(
            "gkt_policy_loaded_timestamp_seconds",
            "Time at which the current policies were loaded; the earliest of all workers.",
        )
        self.lines_left_out = counter(
            "gkt_log_requests_left_out", "Requests that were not logged because of log.requests.sample."
        )
        # prometheus_client's own process metrics cover only the worker that answers the scrape.
        self.loop_lag = histogram(
            "gkt_event_loop_lag_seconds",
            "Delay of a timer in the event loop, measured four times a second.",
            buckets=_LAG_BUCKETS,
        )
        self.resident = largest("gkt_process_resident_memory_bytes", "Resident memory of the process.", ("worker",))
        self.open_files = largest("gkt_process_open_fds", "Open files and connections of the process.", ("worker",))
        self.max_files = largest(
            "gkt_process_max_fds", "Limit of open files and connections of the process.", ("worker",)
        )
        self.loop_tasks = largest("gkt_process_tasks", "Tasks of the process's event loop.", ("worker",))
        self.started = largest(
            "gkt_process_start_timestamp_seconds", "Start time of the process in Unix seconds.", ("worker",)
        )
        self.cpu_seconds = counter("gkt_process_cpu_seconds", "User and system CPU time of the process.", ("worker",))
        self.build = largest(
            "gkt_build_info", "1. The labels state the gateway's version and the Python version.", ("version", "python")
        )
        self.build.labels(__version__, platform.python_version()).set(1)
        self._followed: list[tuple[Gauge, Callable[[], int]]] = []
        self._deadlines: Mapping[str, float] = {}
        self.budgets, self.guidance_off = BudgetGauges(), GuidanceOffGauge(self.series)
        self._of_fleet = (self.budgets, self.guidance_off)
        for collector in self._of_fleet:
            registry.register(collector)
        # Series used in alerts must exist at 0 first: Prometheus sees no increase in a new series.
        for metric, values in (
            (self.webhooks, ("ok", "failed")),
            (self.policy_reloads, ("loaded", "refused")),
            (self.config_reloads, ("loaded", "refused")),
            (self.quality_samples, ("made", "unscored", "failed", "refused", "over_budget", "dropped")),
            (self.spool_replayed, ("own", "dead")),
            (self.steps_delayed, (ANONYMOUS,)),
            (self.refused, ("overloaded",)),
        ):
            for value in values:
                metric.labels(value)

    def follow(self, gauge: Gauge, value: Callable[[], int]) -> None:
        """Publish a value that changes with each request, without a `set` for each change.

        A single process reads it when the metrics are read. Several workers need `publish`.
        """
        if self._shared:
            self._followed.append((gauge, value))
        else:
            gauge.set_function(value)

    async def publish(self) -> None:
        """Publish the values of `follow` for the other workers four times a second, until canceled."""
        while True:
            for gauge, value in self._followed:
                gauge.set(value())
            await asyncio.sleep(_PUBLISH_INTERVAL_S)

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

    def engine_figures(self) -> dict[str, EngineFigures]:
        """Return the figures of each engine over all workers. Takes milliseconds. Any thread may call it."""
        own = (self.engine_errors, self.engine_in_flight, self.engine_up, self.engine_breaker)
        return figures_of(all_workers_registry().collect() if self._shared else chain(*(one.collect() for one in own)))

    def render(self) -> bytes:
        """Return the Prometheus text format, over all workers. Takes milliseconds. Any thread may call it."""
        if not self._shared:
            return prometheus.generate_latest(self.registry)
        registry = all_workers_registry()
        for collector in self._of_fleet:
            registry.register(collector)
        return prometheus.generate_latest(registry)
