"""Synthetic replies of GET /usage with more traffic than a test can send."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any


def figures(requests: int, cost: float, baseline: float) -> dict[str, Any]:
    """Return the figures of a row. Each stage takes twice as long as the one before."""
    stages = ("admission", "batch_wait", "teacher", "first_token", "handover", "total")
    spent = {
        name: {"count": requests, "mean": 2.0**index, "p50": 2.0**index, "p95": 3.0**index, "p99": 4.0**index}
        for index, name in enumerate(stages)
    }
    read = {"input": 40 * requests, "cached": 10 * requests, "output": 30 * requests, "cache_write": 0}
    failed = 0.02 * cost
    return {
        "requests": requests,
        "answers": requests,
        "disconnected": 0,
        "shadows": 0,
        "errors": {f"label_{index}": requests // 1000 * index for index in range(1, 9)},
        "unguided": {},
        "tokens": {"teacher": read, "student": read, "failed": read, "kept": 0, "answer": 1, "answer_by_teacher": 0},
        "teacher_token_share": 0.25,
        "batches": {"count": requests // 4, "mean_size": 4.0},
        "latency_ms": spent,
        "cost_usd": f"{cost:f}",
        "answers_usd": f"{cost - failed:f}",
        "disconnected_usd": "0",
        "failed_usd": f"{failed:f}",
        "baseline_usd": f"{baseline:f}",
        "savings_usd": f"{baseline - cost:f}",
        "savings_error_usd": f"{abs(baseline - cost) / 4:f}",
        "savings_about_zero": False,
        "savings_classes": {},
        "measuring_usd": "0",
        "baseline_estimated": requests // 3,
        "cost_share": cost / baseline if baseline else None,
    }


def by_tenant(count: int) -> dict[str, Any]:
    """Return rows of tenants by falling cost. Every tenth tenant costs more than the teacher alone."""
    rows = []
    for index in range(count):
        cost = 1e6 - index
        row = figures((count - index) * 9_999_999, cost, cost * (0.5 if index % 10 == 9 else 3))
        rows.append({"tenant": f"tenant-{index:03d}", **row})
    return {"object": "usage", "rows": rows, "total": figures(1, 1, 1)}


def over_time(hours: int) -> dict[str, Any]:
    """Return rows of the last hours. Some hours of each day have negative savings."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    starts = [now - timedelta(hours=back) for back in reversed(range(hours))]
    rows = [
        {
            "start": start.isoformat().replace("+00:00", "Z"),
            **figures(90_000 + 3_000 * start.hour, 40 + start.hour, 90 if start.hour % 12 > 3 else 30),
        }
        for start in starts
    ]
    total = figures(sum(row["requests"] for row in rows), 1234.5, 2345.6)
    return {"object": "usage", "rows": rows, "total": total}
