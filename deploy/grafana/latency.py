"""Where the time of requests goes."""

from __future__ import annotations

from typing import Any

from deploy.grafana.panels import Choice, Dashboard, Panel, Query

_STAGES = ("admission", "batch_wait", "teacher", "first_token", "total")
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
    "How long requests wait, and for what. Quantiles are of histograms over all workers; tenants are not told apart.",
    (Choice("mode", "gkt_stage_seconds_count"),),
    (
        *(
            Panel(
                f"First token, {name}",
                "From the request's arrival until the first words of a stream can leave, over the chosen time.",
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
                "From the request's arrival to its receipt, over the chosen time.",
                "s",
                (Query(_quantile(part, "total", window="$__range")),),
                **_SMALL,
            )
            for part, name in ((0.5, "median"), (0.95, "95th percentile"), (0.99, "99th percentile"))
        ),
        "What callers wait for",
        Panel(
            "First token of streams",
            "The dashed lines are those of the tiles above; GktFirstTokenSlow alerts at the red one.",
            "s",
            _three("first_token"),
            width=12,
            **_SLOW,
        ),
        Panel("Whole answer", "Streams last until their last word.", "s", _three("total"), width=12),
        Panel(
            "First token by mode, 95th percentile",
            "A guided stream begins with the teacher's words, as it writes them.",
            "s",
            (Query(_quantile(0.95, "first_token", "mode"), "{{mode}}"),),
            width=12,
        ),
        Panel(
            "Whole answer by mode, 95th percentile",
            "Guided beside student says what guidance costs in time.",
            "s",
            (Query(_quantile(0.95, "total", "mode"), "{{mode}}"),),
            width=12,
        ),
        "Stages",
        Panel(
            "Mean time before the student is asked",
            "Admission, then the wait for the batch, then the teacher: they follow each other, so they stack. A stage "
            "counts where it happened.",
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
            "The slowest one in a hundred of each stage; they are not of the same requests, and do not add up.",
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
                    "A place in the process, and one round trip to Redis for limits and budgets.",
                ),
                ("batch_wait", "Wait for the batch", "From wanting guidance to the permit to call the teacher."),
                ("teacher", "Teacher", "From the teacher's call until its opening is here, or is waited for no more."),
            )
        ),
        Panel(
            "Whole answer, all of it",
            "How many answers took how long.",
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
            "The event loop is late, 99th percentile",
            "How much later than asked for a timer rings in the gateway itself. All requests of a worker wait as long.",
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
