"""Usage as CSV, for spreadsheets.

A name that a spreadsheet would read as a formula gets a leading apostrophe. Amounts are plain numbers.
"""

from __future__ import annotations

import csv
from io import StringIO
from typing import TYPE_CHECKING

from gateway.accounting.savings import CLASSES
from gateway.usage.rests import with_pauses
from gateway.usage.span import rfc3339
from gateway.usage.usage import UNCLASSIFIED, figures

if TYPE_CHECKING:
    from gateway.usage.rollup import SumRow
    from gateway.usage.usage import UsageResult

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_ROLES = ("teacher", "student", "failed")
_KINDS = ("input", "cached", "output")
_MONEY = (
    "cost_usd",
    "teacher_cost_usd",
    "student_cost_usd",
    "failed_cost_usd",
    "baseline_usd",
    "savings_usd",
    "savings_error_usd",
    "savings_about_zero",
    "measuring_usd",
    "baseline_estimated",
    "baseline_error_usd",
    "cost_share",
)
_CLASSES = (*CLASSES, UNCLASSIFIED)
_CLASS_SUMS = ("requests", "cost_usd", "baseline_usd", "savings_usd")
_LATENCIES = ("total", "first_token", "teacher", "batch_wait", "admission")
COLUMNS = (
    "requests",
    "errors",
    "unguided",
    *(f"{role}_{kind}_tokens" for role in _ROLES for kind in _KINDS),
    "kept_tokens",
    "answer_tokens",
    "answer_by_teacher_tokens",
    "teacher_token_share",
    *_MONEY,
    *(f"class_{name}_{part}" for name in _CLASSES for part in _CLASS_SUMS),
    "batches",
    "mean_batch_size",
    *(f"{stage}_{part}_ms" for stage in _LATENCIES for part in ("p50", "p95", "p99")),
    *(f"{role}_cache_write_tokens" for role in _ROLES),
)
"""The columns after the time and the names."""


def as_csv(usage: UsageResult) -> bytes:
    """Return lines of RFC 4180 in UTF-8, with a header and without a total. Call it in a thread: rows may be many."""
    out = StringIO()
    writer = csv.writer(out)
    writer.writerow(["start", "end", *usage.by, *COLUMNS])
    for group, row in with_pauses(usage.rows()):
        times = [rfc3339(moment) for moment in usage.bounds(group)]
        writer.writerow([*times, *(safe(name) for name in group.names), *_cells(row)])
    return out.getvalue().encode()


def safe(name: str) -> str:
    """Return the name, escaped if a spreadsheet would read it as a formula."""
    return f"'{name}" if name.startswith(_FORMULA) else name


def _cell(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def _cells(row: SumRow) -> list[object]:
    fields = figures(row)
    tokens, batches, latency = fields["tokens"], fields["batches"], fields["latency_ms"]
    return [
        fields["requests"],
        sum(fields["errors"].values()),
        sum(fields["unguided"].values()),
        *(tokens[role][kind] for role in _ROLES for kind in _KINDS),
        tokens["kept"],
        tokens["answer"],
        tokens["answer_by_teacher"],
        fields["teacher_token_share"],
        *(_cell(fields[name]) for name in _MONEY),
        *(fields["savings_classes"].get(name, {}).get(part, 0) for name in _CLASSES for part in _CLASS_SUMS),
        batches["count"],
        batches["mean_size"],
        *(latency[stage][part] for stage in _LATENCIES for part in ("p50", "p95", "p99")),
        *(tokens[role]["cache_write"] for role in _ROLES),
    ]
