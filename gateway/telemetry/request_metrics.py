"""The metrics of requests: outcomes, costs, savings, tokens, stage times and quality."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class RequestMetrics:
    """Register the metrics of requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "gkt_requests",
            "Requests that ended, by status: ok, or the label of the error.",
            ("tenant", "route", "mode", "status"),
            registry=registry,
        )
        self.refused = Counter(
            "gkt_refused", "Requests rejected before a receipt existed, by error label.", ("status",), registry=registry
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
            "Parts of requests that were delayed because the event loop was busy.",
            ("tenant",),
            registry=registry,
        )
        self.holdings_dropped = Counter(
            "gkt_holdings_dropped",
            "Resources evicted in favor of other tenants: connections, unfinished_bodies, unread_replies.",
            ("resource",),
            registry=registry,
        )
        self.unguided = Counter(
            "gkt_unguided",
            "Requests of guided routes that were answered without guidance, by reason. Shadows are not counted.",
            ("route", "reason"),
            registry=registry,
        )
        self.shadows = Counter(
            "gkt_shadows",
            "Shadow requests by result: made, failed, refused, dropped, unguidable.",
            ("result",),
            registry=registry,
        )
        self.edge_closings = Counter(
            "gkt_edge_closings",
            "Device reports by outcome: closed, closed_twice, unknown, too_many_tokens, expired, offline.",
            ("outcome",),
            registry=registry,
        )
        self.quality_samples = Counter(
            "gkt_quality_samples",
            "Quality samples of guided answers by result: made, unscored, failed, refused, over_budget, dropped.",
            ("result",),
            registry=registry,
        )
        self.quality_agreement = Summary(
            "gkt_quality_agreement",
            "Agreement of answers from 0 to 1, by pair (guided_teacher, student_teacher) and guidance length.",
            ("tenant", "route", "pair", "length"),
            registry=registry,
        )
        self.tokens = Counter(
            "gkt_tokens",
            "Charged tokens by role (teacher, student, failed) and direction (input, cached, cache_write, output).",
            ("tenant", "role", "engine", "direction"),
            registry=registry,
        )
        self.cost_usd = Counter("gkt_cost_usd", "Cost of requests.", ("tenant", "route"), registry=registry)
        self.class_cost_usd = Counter(
            "gkt_class_cost_usd",
            "Cost of requests by savings class. measuring: shadows, quality samples and confidence probes.",
            ("tenant", "route", "savings_class"),
            registry=registry,
        )
        self.engine_cost_usd = Counter(
            "gkt_engine_cost_usd",
            "Cost of engine calls by engine and role: teacher, student, failed.",
            ("engine", "role"),
            registry=registry,
        )
        self.engine_usage_errors = Counter(
            "gkt_engine_usage_errors",
            "Calls whose reported usage is impossible: too_high or too_low for the sent and received text. They are "
            "charged by the gateway's own bound.",
            ("engine", "reason"),
            registry=registry,
        )
        self.baseline_usd = Counter(
            "gkt_baseline_usd",
            "Cost of the baseline model alone for the same answers.",
            ("tenant", "route"),
            registry=registry,
        )
        self.savings_usd, self.losses_usd, self.savings_error_usd, self.savings_error_removed_usd = (
            Counter(name, text, ("tenant", "route"), registry=registry)
            for name, text in (
                ("gkt_savings_usd", "Savings of the receipts that saved. Subtract gkt_losses_usd_total."),
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
            "Guidance by source: teacher (the request's own call), flight (an identical request's call), cache.",
            ("teacher", "source"),
            registry=registry,
        )
