"""Every metric, in one list. Labels are bounded by the configuration, and never what callers send.

One process alone counts in its memory. Several workers count in files of one folder, and each of them answers for all.
"""

from __future__ import annotations

import math
import platform
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.runtime.fair_share import ANONYMOUS
from gateway.telemetry.metric_files import count_in_files, of_all_workers
from gateway.telemetry.series import OTHER, SeriesLimit
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_FILL_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


disable_created_metrics()  # a second series for each counter, which nobody reads


class BudgetFigures(NamedTuple):
    """A tenant's budget: what may be spent (a raise included), what is, and what is neither spent nor reserved.

    Floats: for a graph, not for a bill.
    """

    limit_usd: float
    spent_usd: float
    left_usd: float


class BudgetGauges(Collector):
    """What this process last saw of the tenants' budgets. Redis counts them, so they need no sum over workers.

    A plain gauge would go on telling of a budget that is taken away: its series could not be.
    """

    def __init__(self) -> None:
        self._seen: Mapping[str, BudgetFigures] = {}

    def show(self, seen: Mapping[str, BudgetFigures]) -> None:
        """From now on tell of these, and of no others."""
        self._seen = dict(seen)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For prometheus_client, in whatever thread renders."""
        seen = self._seen  # the loop may put another one in its place meanwhile
        for field, what in (
            ("limit_usd", "What a tenant's budget lets it spend, raises included."),
            ("spent_usd", "What is spent of a tenant's budget."),
            ("left_usd", "What is neither spent nor reserved of a tenant's budget."),
        ):
            family = GaugeMetricFamily(f"gkt_budget_{field}", what, labels=("tenant",))
            for tenant, figures in seen.items():
                family.add_metric((tenant,), getattr(figures, field))
            yield family


class Metrics:
    """One process's metrics, on a registry of their own.

    Args:
        worker: the number of this process among the workers; None when it is alone.
        max_tenants: how many tenants have series of their own.

    Attributes:
        series: whose label stands for a tenant and a route; nobody else's may.
        worker: the label that stands for this process.
    """

    def __init__(self, worker: int | None = None, max_tenants: int = 1000) -> None:
        if worker is not None:
            count_in_files(worker)
        self._shared = worker is not None
        self.worker = str(worker or 1)
        self.series = SeriesLimit(max_tenants, reserved=(ANONYMOUS,))
        if self._shared:
            # What the one before it counted stays in its files, so it has its place already.
            for family in of_all_workers().collect():
                for sample in family.samples:
                    if "tenant" in sample.labels:
                        routes = [sample.labels["route"]] if "route" in sample.labels else []
                        self.series.name(sample.labels["tenant"], routes)
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "gkt_requests",
            "Requests that ended, by outcome: ok, or the label of what went wrong.",
            ("tenant", "route", "mode", "status"),
            registry=registry,
        )
        self.refused = Counter(
            "gkt_refused", "Requests refused before they had a receipt, by error label.", ("status",), registry=registry
        )
        self.connections = Gauge(
            "gkt_connections",
            "Open connections, by listener (public, admin).",
            ("listener",),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.steps_delayed = Counter(
            "gkt_steps_delayed",
            "Parts of requests that waited for a turn in the event loop, because it was busy.",
            ("tenant",),
            registry=registry,
        )
        self.holdings_dropped = Counter(
            "gkt_holdings_dropped",
            "What was ended early for other tenants' sake: connections, unfinished_bodies, unread_replies.",
            ("resource",),
            registry=registry,
        )
        self.unguided = Counter(
            "gkt_unguided",
            "Requests of guided routes that were answered without guidance, by reason; shadows answer none.",
            ("route", "reason"),
            registry=registry,
        )
        self.shadows = Counter(
            "gkt_shadows",
            "Shadows of requests by what became of them: made, failed, refused, dropped, unguidable.",
            ("result",),
            registry=registry,
        )
        self.edge_closings = Counter(
            "gkt_edge_closings",
            "What devices reported of answers that they finished, by what became of it: closed, closed_twice, unknown, "
            "too_many_tokens, expired, offline.",
            ("outcome",),
            registry=registry,
        )
        self.quality_samples = Counter(
            "gkt_quality_samples",
            "Guided answers of the quality guard's sample by what became of them: made, unscored, failed, refused, "
            "over_budget, dropped.",
            ("result",),
            registry=registry,
        )
        self.quality_agreement = Summary(
            "gkt_quality_agreement",
            "How far answers agree, from 0 to 1, by pair (guided_teacher, student_teacher) and the guidance's length.",
            ("tenant", "route", "pair", "length"),
            registry=registry,
        )
        self.tokens = Counter(
            "gkt_tokens",
            "Tokens as the engines counted them, by role (teacher, student, failed) and direction (input, cached, "
            "cache_write, output).",
            ("tenant", "role", "engine", "direction"),
            registry=registry,
        )
        self.cost_usd = Counter("gkt_cost_usd", "What the answers cost.", ("tenant", "route"), registry=registry)
        self.class_cost_usd = Counter(
            "gkt_class_cost_usd",
            "The same by savings class; measuring: of shadows, quality samples and confidence probes.",
            ("tenant", "route", "savings_class"),
            registry=registry,
        )
        self.engine_cost_usd = Counter(
            "gkt_engine_cost_usd",
            "The same by engine and role: teacher, student, failed.",
            ("engine", "role"),
            registry=registry,
        )
        self.engine_usage_errors = Counter(
            "gkt_engine_usage_errors",
            "Calls whose usage, as the engine reported it, is impossible: too_high or too_low for what was sent and "
            "received. They are charged by the gateway's own bound.",
            ("engine", "reason"),
            registry=registry,
        )
        self.baseline_usd = Counter(
            "gkt_baseline_usd",
            "What the baseline model alone would have cost for the same answers.",
            ("tenant", "route"),
            registry=registry,
        )
        self.savings_usd, self.losses_usd, self.savings_error_usd, self.savings_error_removed_usd = (
            Counter(name, text, ("tenant", "route"), registry=registry)
            for name, text in (
                ("gkt_savings_usd", "Savings that count, of receipts that saved. Subtract gkt_losses_usd_total."),
                ("gkt_losses_usd", "Amounts by which receipts that count cost more than their baseline."),
                ("gkt_savings_error_usd", "Error bound of the savings that count."),
                (
                    "gkt_savings_error_removed_usd",
                    "Part of gkt_savings_error_usd_total that measured baselines removed.",
                ),
            )
        )
        self.stage_seconds = Histogram(
            "gkt_stage_seconds",
            "Time by stage: admission, batch_wait, teacher, first_token, total.",
            ("stage", "mode"),
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self.guidance = Counter(
            "gkt_guidance",
            "Openings by where they came from: teacher (its own call), flight (that of an identical request), cache.",
            ("teacher", "source"),
            registry=registry,
        )
        self.batch_size = Histogram(
            "gkt_batch_size",
            "Calls over the fleet in each batch that opened.",
            ("teacher",),
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self.batch_fill = Histogram(
            "gkt_batch_fill",
            "Size of each batch that opened, as a part of the largest.",
            ("teacher",),
            buckets=_FILL_BUCKETS,
            registry=registry,
        )
        self.batch_window = Gauge(
            "gkt_batch_window_seconds",
            "How long the next ticket waits for others.",
            ("teacher",),
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.tickets = Counter(
            "gkt_tickets",
            "Tickets that ended without a turn: expired, withdrawn, refused, unreadable, reclaimed.",
            ("teacher", "end"),
            registry=registry,
        )
        self.queue_depth = Gauge(
            "gkt_queue_depth",
            "Tickets that wait for a turn, over the fleet.",
            ("teacher",),
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.queue_age = Gauge(
            "gkt_queue_age_seconds",
            "How long this process's oldest ticket waits.",
            ("teacher",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.teacher_in_flight = Gauge(
            "gkt_teacher_in_flight",
            "Calls to the teacher under way, over the fleet.",
            ("teacher",),
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.teacher_cap = Gauge(
            "gkt_teacher_cap",
            "Calls to the teacher that may be under way.",
            ("teacher",),
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.in_flight = Gauge(
            "gkt_in_flight", "Requests held, by all workers.", registry=registry, multiprocess_mode="livesum"
        )
        self.guidance_deadline = Gauge(
            "gkt_guidance_deadline_seconds",
            "The shortest deadline of the routes that this teacher guides.",
            ("teacher",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.engine_in_flight = Gauge(
            "gkt_engine_in_flight",
            "Calls to the engine under way, in any role, by all workers.",
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
            "Whether an engine is called: 0 yes, 1 one call is on trial, 2 no. The worst of all workers.",
            ("engine",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.retries = Counter(
            "gkt_retries",
            "Calls made anew after one that failed, by engine asked and by the label of what failed before.",
            ("engine", "label"),
            registry=registry,
        )
        self.retries_refused = Counter(
            "gkt_retries_refused",
            "Retries that a budget refused, by the engine that failed and by whose budget it was: request or engine.",
            ("engine", "budget"),
            registry=registry,
        )
        self.redis_up = Gauge(
            "gkt_redis_up", "1 while Redis answers every worker.", registry=registry, multiprocess_mode="livemin"
        )
        self.receipts_waiting = Gauge(
            "gkt_receipts_waiting",
            "Receipts kept in memory until Redis takes them.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.receipts_lost = Counter(
            "gkt_receipts_lost",
            "Receipts dropped because too many were waiting for Redis, or in Redis for a usage worker.",
            registry=registry,
        )
        self.receipts_resent = Counter(
            "gkt_receipts_resent",
            "Receipts told again to a Redis that was started anew, in case it had forgotten them.",
            registry=registry,
        )
        self.spool_receipts = Gauge(
            "gkt_spool_receipts",
            "Receipts in the spools of these processes.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.spool_bytes = Gauge(
            "gkt_spool_bytes", "Size of the spools of these processes.", registry=registry, multiprocess_mode="livesum"
        )
        self.spooled = Counter("gkt_spooled", "Receipts written to a spool.", registry=registry)
        self.spool_failures = Counter("gkt_spool_failures", "Writes to a spool that failed.", registry=registry)
        self.spool_replayed = Counter(
            "gkt_spool_replayed",
            "Receipts of spools that were told to Redis, by whose spool it was: own, dead.",
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
            "Receipts that usage workers handled, by result, over the fleet; a counter that Redis holds.",
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
            "Requests refused for a limit of their tenant or key, or for its share of a full worker.",
            ("tenant", "limit"),
            registry=registry,
        )
        self.uncounted = Counter(
            "gkt_uncounted",
            "Requests of tenants with limits or budgets that went on uncounted, since Redis was away.",
            ("tenant",),
            registry=registry,
        )
        self.local_admissions = Counter(
            "gkt_local_admissions",
            "Requests decided by the local part of limits and budgets, since Redis was away. Outcome: admitted, or the"
            " limit that refused: requests, tokens, parallel, budget.",
            ("tenant", "outcome"),
            registry=registry,
        )
        self.budget_events = Counter(
            "gkt_budget_events",
            "Budgets that came to their soft line (soft), or had no room for a request (hard).",
            ("tenant", "kind"),
            registry=registry,
        )
        self.webhooks = Counter(
            "gkt_webhooks", "Events posted to the webhook, by outcome: ok, failed.", ("outcome",), registry=registry
        )
        self.spans = Counter(
            "gkt_spans",
            "Spans of traces, by what became of them: sent, failed (the collector did not take them), dropped.",
            ("outcome",),
            registry=registry,
        )
        self.intents_missed = Counter(
            "gkt_intents_missed", "Requests whose intent could not be kept: Redis was away.", registry=registry
        )
        self.intents_abandoned = Counter(
            "gkt_intents_abandoned",
            "Requests of processes that died, settled here at what was reserved.",
            ("tenant",),
            registry=registry,
        )
        self.policy_reloads = Counter(
            "gkt_policy_reloads",
            "Edits of the policies folder that a worker saw, by result: loaded, refused.",
            ("result",),
            registry=registry,
        )
        self.policy_stale = Gauge(
            "gkt_policy_stale",
            "1 while the policy files cannot be used as they are, and older ones hold in some worker.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.config_stale = Gauge(
            "gkt_config_stale",
            "1 while config.yaml says something else than what some worker runs with.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.policy_loaded = Gauge(
            "gkt_policy_loaded_timestamp_seconds",
            "When the policies that hold were loaded; of several workers, by the one that loaded first.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.lines_left_out = Counter(
            "gkt_log_requests_left_out",
            "Requests without a line in the log, as log.requests.sample wants it.",
            registry=registry,
        )

        # What prometheus_client tells of a process by itself is that of the one worker that happens to answer.
        self.loop_lag = Histogram(
            "gkt_event_loop_lag_seconds",
            "How much later than asked for the event loop let a timer ring, looked at four times a second.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self.resident = self._of_worker("gkt_process_resident_memory_bytes", "Memory of the process that is resident.")
        self.open_files = self._of_worker("gkt_process_open_fds", "Files and connections that the process has open.")
        self.max_files = self._of_worker("gkt_process_max_fds", "How many it may have open.")
        self.loop_tasks = self._of_worker("gkt_process_tasks", "Tasks of the process's event loop that have not ended.")
        self.started = self._of_worker(
            "gkt_process_start_timestamp_seconds", "When the process began to serve, in Unix seconds."
        )
        self.cpu_seconds = Counter(
            "gkt_process_cpu_seconds", "Processor time, user's and system's.", ("worker",), registry=registry
        )
        self.build = Gauge(
            "gkt_build_info",
            "1; the labels say which version runs, and on which Python.",
            ("version", "python"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.build.labels(__version__, platform.python_version()).set(1)
        self._deadlines: Mapping[str, float] = {}
        self.budgets = BudgetGauges()
        registry.register(self.budgets)
        # What may be alerted on must be there at 0 before it grows: Prometheus sees no growth in what appears.
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

    def _of_worker(self, name: str, what: str) -> Gauge:
        return Gauge(name, what, ("worker",), registry=self.registry, multiprocess_mode="livemax")

    def show_deadlines(self, shortest_s: Mapping[str, float]) -> None:
        """By teacher. Of one that is not named, and was before, there is none: as good as infinite."""
        for teacher in self._deadlines.keys() - shortest_s.keys():
            self.guidance_deadline.labels(teacher).set(math.inf)
        for teacher, deadline_s in shortest_s.items():
            self.guidance_deadline.labels(teacher).set(deadline_s)
        self._deadlines = {**self._deadlines, **shortest_s}

    def has_name(self, tenant: str) -> bool:
        """Whether a tenant has series of its own."""
        return self.series.tenant(tenant) != OTHER

    def render(self) -> bytes:
        """The Prometheus text format, summed over the workers. Takes milliseconds; any thread may call it."""
        if not self._shared:
            return generate_latest(self.registry)
        everybody = of_all_workers()
        everybody.register(self.budgets)
        return generate_latest(everybody)
