"""What waits for teachers, and how full their batches are."""

from __future__ import annotations

from typing import Any

from deploy.grafana.panels import Choice, Dashboard, Panel, Query

_OF = '{teacher=~"$teacher"}'
_SMALL: dict[str, Any] = {"kind": "stat", "width": 6, "height": 4}

BATCHER = Dashboard(
    "gkt-batcher",
    "GKT: the batcher",
    "Calls to teachers go out in batches that all replicas fill. What Redis knows of the whole fleet is told by every "
    "replica, so the largest one counts, not the sum.",
    (Choice("teacher", "gkt_teacher_cap"),),
    (
        Panel(
            "Waiting now",
            "Tickets without a permit, over the fleet.",
            "short",
            (Query(f"sum(max by (teacher) (gkt_queue_depth{_OF}))"),),
            **_SMALL,
        ),
        Panel(
            "Mean batch",
            "Calls in a batch, over the chosen time.",
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
            "Size of batches as a part of the largest there may be. An idle teacher takes small ones at once: low is "
            "bad only while requests wait.",
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
            "Guidance that cost no call",
            "Openings shared with an identical request under way, or kept from an earlier one.",
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
            "Tickets that wait for a permit, over the fleet.",
            "short",
            (Query(f"max by (teacher) (gkt_queue_depth{_OF})", "{{teacher}}"),),
        ),
        Panel(
            "Oldest ticket",
            "Beside the shortest guidance.deadline of the teacher's routes: at it, answers go unguided.",
            "s",
            (
                Query(f"max by (teacher) (gkt_queue_age_seconds{_OF})", "{{teacher}}"),
                Query(f"min by (teacher) (gkt_guidance_deadline_seconds{_OF})", "{{teacher}}, deadline"),
            ),
        ),
        Panel(
            "Wait for the batch",
            "From wanting guidance to the permit, of all teachers together.",
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
            "In flight, and how many may be",
            "Calls under way over the fleet. At the cap the teacher is the bottleneck.",
            "short",
            (
                Query(f"max by (teacher) (gkt_teacher_in_flight{_OF})", "{{teacher}}"),
                Query(f"max by (teacher) (gkt_teacher_cap{_OF})", "{{teacher}}, cap"),
            ),
        ),
        Panel(
            "Tickets that ended without a turn, per second",
            "expired: the deadline came. withdrawn: the caller left. refused: the queue was full. reclaimed: the "
            "process was gone. unreadable: what Redis kept made no sense.",
            "short",
            (Query(f"sum by (teacher, end) (rate(gkt_tickets_total{_OF}[$__rate_interval]))", "{{teacher}} {{end}}"),),
        ),
        Panel(
            "Unguided, per second",
            "Answers of guided routes that went without guidance, by reason.",
            "reqps",
            (Query("sum by (reason) (rate(gkt_unguided_total[$__rate_interval]))", "{{reason}}"),),
            stacked=True,
        ),
        "Batches",
        Panel(
            "Batches per second",
            "Opened by whichever process came first.",
            "short",
            (Query(f"sum by (teacher) (rate(gkt_batch_size_count{_OF}[$__rate_interval]))", "{{teacher}}"),),
        ),
        Panel(
            "Size of a batch",
            "Calls over the fleet: the mean, and the largest one in twenty.",
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
            "Its size as a part of the largest there may be.",
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
            "How long the next ticket waits for others at most. Zero while nothing waits, or the teacher has room.",
            "s",
            (Query(f"max by (teacher) (gkt_batch_window_seconds{_OF})", "{{teacher}}"),),
            width=12,
        ),
        Panel(
            "Openings per second, by where they came from",
            "teacher: a call of its own. flight: that of an identical request. cache: kept from an earlier one.",
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
