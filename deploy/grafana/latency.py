"""The dashboard of latencies by stage."""

from __future__ import annotations

from typing import Any

from deploy.grafana.panels import Choice, Dashboard, Panel, Query

_STAGES = ("admission", "batch_wait", "teacher", "first_token", "handover", "total")
_SMALL: dict[str, Any] = {"kind": "stat", "width": 4, "height": 4}
_SLOW: dict[str, Any] = {"warn": 2, "bad": 10}


def _quantile(quantile: float, stage: str, by: str = "", window: str = "$__rate_interval") -> str:
    labels = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({quantile}, sum by ({labels}) "
        f'(rate(gkt_stage_seconds_bucket{{stage=~"{stage}", mode=~"$mode"}}[{window}])))'
    )


def _three(stage: str) -> tuple[Query, ...]:
    return tuple(Query(_quantile(part, stage), name) for part, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")))


LATENCY = Dashboard(
    "gkt-latency",
    "GKT: latency by stage",
    "Waiting times of requests by stage. Quantiles are computed from histograms of all workers and tenants.",
    (Choice("mode", "gkt_stage_seconds_count"),),
    (
        *(
            Panel(
                f"First token, {name}",
                "From the request's arrival to the first text of a stream, in the selected time.",
                "s",
                (Query(_quantile(part, "first_token", window="$__range")),),
                **_SMALL,
                **_SLOW,
            )
            for part, name in ((0.5, "median"), (0.95, "95th percentile"), (0.99, "99th percentile"))
        ),
        *(
            Panel(
                f"Whole answer, {name}",
                "From the request's arrival to its receipt, in the selected time.",
                "s",
                (Query(_quantile(part, "total", window="$__range")),),
                **_SMALL,
            )
            for part, name in ((0.5, "median"), (0.95, "95th percentile"), (0.99, "99th percentile"))
        ),
        "Waiting times of callers",
        Panel(
            "First token of streams",
            "The dashed lines are the thresholds of the tiles above. GktFirstTokenSlow fires at the red one.",
            "s",
            _three("first_token"),
            width=12,
            **_SLOW,
        ),
        Panel("Whole answer", "Streams are measured to their end.", "s", _three("total"), width=12),
        Panel(
            "First token by mode, 95th percentile",
            "A guided stream begins with the teacher's streamed text.",
            "s",
            (Query(_quantile(0.95, "first_token", "mode"), "{{mode}}"),),
            width=12,
        ),
        Panel(
            "Whole answer by mode, 95th percentile",
            "The difference between guided and student is the latency of guidance.",
            "s",
            (Query(_quantile(0.95, "total", "mode"), "{{mode}}"),),
            width=12,
        ),
        "Stages",
        Panel(
            "Mean time before the student call",
            "Admission, wait for the batch, and the teacher are consecutive, so they are stacked. A stage counts "
            "only if it happened.",
            "s",
            (
                Query(
                    "sum by (stage) (rate(gkt_stage_seconds_sum"
                    '{stage=~"admission|batch_wait|teacher", mode=~"$mode"}[$__rate_interval])) / '
                    "sum by (stage) (rate(gkt_stage_seconds_count"
                    '{stage=~"admission|batch_wait|teacher", mode=~"$mode"}[$__rate_interval]))',
                    "{{stage}}",
                ),
            ),
            width=12,
            stacked=True,
        ),
        Panel(
            "All stages, 99th percentile",
            "The 99th percentiles of stages belong to different requests, so they do not add up.",
            "s",
            (Query(_quantile(0.99, "|".join(_STAGES), "stage"), "{{stage}}"),),
            width=12,
        ),
        *(
            Panel(title, what, "s", _three(stage))
            for stage, title, what in (
                (
                    "admission",
                    "Admission",
                    "A slot in the process, and one round trip to Redis for limits and budgets.",
                ),
                ("batch_wait", "Wait for the batch", "From wanting guidance to the permit to call the teacher."),
                ("teacher", "Teacher", "From the teacher's call to its guidance or its timeout."),
                ("handover", "Hand-over", "From the complete guidance to the student's first token of a stream."),
            )
        ),
        Panel(
            "Whole answer, distribution",
            "Number of answers by duration.",
            "s",
            (
                Query(
                    'sum by (le) (increase(gkt_stage_seconds_bucket{stage="total", mode=~"$mode"}[$__rate_interval]))',
                    "{{le}}",
                ),
            ),
            kind="heatmap",
            width=12,
        ),
        Panel(
            "Event loop lag, 99th percentile",
            "Delay of a timer in the gateway. All requests of a worker are delayed equally.",
            "s",
            (
                Query(
                    "histogram_quantile(0.99, sum by (le, instance) "
                    "(rate(gkt_event_loop_lag_seconds_bucket[$__rate_interval])))",
                    "{{instance}}",
                ),
            ),
            width=12,
            warn=0.05,
            bad=0.1,
        ),
    ),
)
