"""The dashboard of waiting requests and batches."""

from __future__ import annotations

from typing import Any

from deploy.grafana.panels import Choice, Dashboard, Panel, Query

_OF = '{teacher=~"$teacher"}'
_SMALL: dict[str, Any] = {"kind": "stat", "width": 6, "height": 4}

BATCHER = Dashboard(
    "gkt-batcher",
    "GKT: the batcher",
    "Calls to teachers are sent in batches, which all replicas share. Every replica reports the state of "
    "the whole fleet from Redis, so panels use the maximum and not the sum.",
    (Choice("teacher", "gkt_teacher_cap"),),
    (
        Panel(
            "Waiting now",
            "Tickets without a permit, in the whole fleet.",
            "short",
            (Query(f"sum(max by (teacher) (gkt_queue_depth{_OF}))"),),
            **_SMALL,
        ),
        Panel(
            "Mean batch",
            "Calls per batch in the selected time.",
            "short",
            (
                Query(
                    f"sum(increase(gkt_batch_size_sum{_OF}[$__range])) / "
                    f"sum(increase(gkt_batch_size_count{_OF}[$__range]))"
                ),
            ),
            **_SMALL,
        ),
        Panel(
            "Mean fill",
            "Batch size divided by the maximum. An idle teacher gets small batches at once, so a low fill matters"
            " only while requests wait.",
            "percentunit",
            (
                Query(
                    f"sum(increase(gkt_batch_fill_sum{_OF}[$__range])) / "
                    f"sum(increase(gkt_batch_fill_count{_OF}[$__range]))"
                ),
            ),
            most=1,
            **_SMALL,
        ),
        Panel(
            "Guidance without a call",
            "Guidance shared with an identical request in flight, or from the cache.",
            "percentunit",
            (
                Query(
                    f'1 - sum(increase(gkt_guidance_total{{teacher=~"$teacher", source="teacher"}}[$__range])) / '
                    f"sum(increase(gkt_guidance_total{_OF}[$__range]))"
                ),
            ),
            most=1,
            **_SMALL,
        ),
        "Queue",
        Panel(
            "Waiting",
            "Tickets that wait for a permit, in the whole fleet.",
            "short",
            (Query(f"max by (teacher) (gkt_queue_depth{_OF})", "{{teacher}}"),),
        ),
        Panel(
            "Oldest ticket",
            "Compared with the shortest guidance.deadline of the teacher's routes. At the deadline, answers have "
            "no guidance.",
            "s",
            (
                Query(f"max by (teacher) (gkt_queue_age_seconds{_OF})", "{{teacher}}"),
                Query(f"min by (teacher) (gkt_guidance_deadline_seconds{_OF})", "{{teacher}}, deadline"),
            ),
        ),
        Panel(
            "Wait for the batch",
            "From the guidance request to the permit, for all teachers together.",
            "s",
            tuple(
                Query(
                    f"histogram_quantile({part}, sum by (le) "
                    '(rate(gkt_stage_seconds_bucket{stage="batch_wait"}[$__rate_interval])))',
                    name,
                )
                for part, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
            ),
        ),
        Panel(
            "Calls in flight and their limit",
            "Calls in flight in the whole fleet. At the limit, the teacher is the bottleneck.",
            "short",
            (
                Query(f"max by (teacher) (gkt_teacher_in_flight{_OF})", "{{teacher}}"),
                Query(f"max by (teacher) (gkt_teacher_cap{_OF})", "{{teacher}}, cap"),
            ),
        ),
        Panel(
            "Tickets without a permit at their end, per second",
            "expired: deadline. withdrawn: client disconnect. refused: full queue. reclaimed: dead process. "
            "unreadable: invalid data in Redis.",
            "short",
            (Query(f"sum by (teacher, end) (rate(gkt_tickets_total{_OF}[$__rate_interval]))", "{{teacher}} {{end}}"),),
        ),
        Panel(
            "Unguided, per second",
            "Unguided answers of guided routes, by reason.",
            "reqps",
            (Query("sum by (reason) (rate(gkt_unguided_total[$__rate_interval]))", "{{reason}}"),),
            stacked=True,
        ),
        "Batches",
        Panel(
            "Batches per second",
            "Each batch is opened by one of the processes.",
            "short",
            (Query(f"sum by (teacher) (rate(gkt_batch_size_count{_OF}[$__rate_interval]))", "{{teacher}}"),),
        ),
        Panel(
            "Size of a batch",
            "Calls per batch in the whole fleet: mean and 95th percentile.",
            "short",
            (
                Query(
                    f"sum by (teacher) (rate(gkt_batch_size_sum{_OF}[$__rate_interval])) / "
                    f"sum by (teacher) (rate(gkt_batch_size_count{_OF}[$__rate_interval]))",
                    "{{teacher}}, mean",
                ),
                Query(
                    "histogram_quantile(0.95, sum by (le, teacher) "
                    f"(rate(gkt_batch_size_bucket{_OF}[$__rate_interval])))",
                    "{{teacher}}, p95",
                ),
            ),
        ),
        Panel(
            "Fill of a batch",
            "Batch size divided by the maximum.",
            "percentunit",
            (
                Query(
                    f"sum by (teacher) (rate(gkt_batch_fill_sum{_OF}[$__rate_interval])) / "
                    f"sum by (teacher) (rate(gkt_batch_fill_count{_OF}[$__rate_interval]))",
                    "{{teacher}}",
                ),
            ),
            most=1,
        ),
        Panel(
            "Window",
            "Maximum wait of the next ticket for others. Zero while no ticket waits or the teacher has capacity.",
            "s",
            (Query(f"max by (teacher) (gkt_batch_window_seconds{_OF})", "{{teacher}}"),),
            width=12,
        ),
        Panel(
            "Guidance per second, by source",
            "teacher: its own call. flight: the call of an identical request. cache: the cache of greedy guidance.",
            "short",
            (
                Query(
                    f"sum by (teacher, source) (rate(gkt_guidance_total{_OF}[$__rate_interval]))",
                    "{{teacher}} {{source}}",
                ),
            ),
            width=12,
            stacked=True,
        ),
    ),
)
