"""The admin API's usage of all tenants or of one, as JSON or CSV."""

from __future__ import annotations

import csv
from io import StringIO
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.accounting.savings import CLASSES
from gateway.admin.replies import needs_redis
from gateway.api.keys import POLICIES, USAGE
from gateway.api.usage import DIMENSIONS, FILTERS, check_dimensions, encoded, encoded_sums, read_query
from gateway.config.yaml_messages import suggestion
from gateway.errors import InvalidRequest, NotFound
from gateway.usage.receipt_sums import SUMS, TAG, ReceiptSum, needs_receipt_sums
from gateway.usage.rollup import SumRow
from gateway.usage.span import rfc3339
from gateway.usage.sums import SECONDS
from gateway.usage.threads import with_pauses
from gateway.usage.usage import UNCLASSIFIED, escape_formula, figures

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.usage.usage import UsageQuery, UsageResult

_FORMATS = ("json", "csv")
_ROLES = ("teacher", "student", "failed")
_MONEY = (
    *("cost_usd", "answers_usd", "disconnected_usd", "failed_usd", "measuring_usd"),
    *("teacher_cost_usd", "student_cost_usd", "replaced_cost_usd", "baseline_usd", "savings_usd"),
    *("savings_error_usd", "savings_about_zero", "baseline_estimated", "cost_share"),
)
_CLASS_SUMS = ("requests", "cost_usd", "baseline_usd", "savings_usd")
_LATENCIES = ("total", "first_token", "teacher", "batch_wait", "admission")
_QUANTILES = ("p50", "p95", "p99")


@needs_redis
async def show_usage(request: web.Request) -> web.Response:
    """GET /usage: sums of receipts, grouped by the dimensions in `by`, as JSON or CSV."""
    reader = request.app[USAGE]
    dimensions, filters = ("tenant", *DIMENSIONS, TAG), ("tenant", *FILTERS)
    query = read_query(request, reader.retention, dimensions=dimensions, filters=filters, more=("format",))
    format_name = request.query.get("format", "json")
    if format_name not in _FORMATS:
        close = suggestion(format_name, _FORMATS)
        raise InvalidRequest(f"'format' must be {' or '.join(_FORMATS)}.{close}", param="format")

    if needs_receipt_sums(query):
        return await _show_receipt_sums(request, query, format_name)

    def encode(usage: UsageResult) -> bytes:
        if usage.is_empty:
            check_tenant(request, query.only.get("tenant"))
        return as_csv(usage) if format_name == "csv" else encoded(usage)

    body = await reader.read(query, encode)
    return _download(body, query) if format_name == "csv" else _json(body)


async def _show_receipt_sums(request: web.Request, query: UsageQuery, format_name: str) -> web.Response:
    """Return sums by tags and labels. Those by tag have no total: a request with several tags counts for each."""
    check_dimensions(query)

    def encode(sums: list[ReceiptSum]) -> bytes:
        if not sums:
            check_tenant(request, query.only.get("tenant"))
        return _sums_as_csv(query, sums) if format_name == "csv" else encoded_sums(query, sums)

    body = await request.app[USAGE].read_receipt_sums(query, encode)
    return _download(body, query) if format_name == "csv" else _json(body)


def _sums_as_csv(query: UsageQuery, sums: Iterable[ReceiptSum]) -> bytes:
    out, heads = StringIO(), ReceiptSum(query.by, (0,) * len(SUMS)).as_json(query.by)
    writer = csv.writer(out)
    writer.writerow(["start", "end", *heads])
    for one in with_pauses(sums):
        bounds: tuple[int, int] = query.span[:2]
        if one.start is not None and query.granularity is not None:
            bounds = one.start, one.start + SECONDS[query.granularity]
        figures = one.as_json(query.by)
        names = [escape_formula(name) for name in one.names]
        writer.writerow([*map(rfc3339, bounds), *names, *(figures[name] for name in heads if name not in query.by)])
    return out.getvalue().encode()


def check_tenant(request: web.Request, tenant: str | None) -> None:
    """Raise NotFound if an empty result is due to a tenant that does not exist."""
    book = request.app[POLICIES].policy_set
    if tenant is not None and book.policy_of(tenant) is None:
        close = suggestion(tenant, [one.tenant for one in book.policies])
        raise NotFound(f"No policy file defines tenant '{tenant[:64]}', and it has no usage.{close}", param="tenant")


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})


def _download(body: bytes, query: UsageQuery) -> web.Response:
    days = "_".join(rfc3339(moment)[:10] for moment in query.span[:2])
    return web.Response(
        body=body,
        content_type="text/csv",
        charset="utf-8",
        headers={"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="usage_{days}.csv"'},
    )


def as_csv(usage: UsageResult) -> bytes:
    """Return CSV (RFC 4180) in UTF-8, with a header and without a total. Call it in a thread: rows may be many."""
    out = StringIO()
    writer = csv.writer(out)
    writer.writerow(["start", "end", *usage.by, *columns(SumRow())])
    for group, row in with_pauses(usage.rows()):
        times = [rfc3339(moment) for moment in usage.bounds(group)]
        writer.writerow([*times, *(escape_formula(name) for name in group.names), *columns(row).values()])
    return out.getvalue().encode()


def columns(row: SumRow) -> dict[str, object]:
    """Return the cells of a row after its time and names, by column."""
    fields = figures(row)
    tokens, batches, latency = fields["tokens"], fields["batches"], fields["latency_ms"]
    classes, names = fields["savings_classes"], (*CLASSES, UNCLASSIFIED)
    cells = {
        "requests": fields["requests"],
        "answers": fields["answers"],
        "errors": sum(fields["errors"].values()),
        "disconnected": fields["disconnected"],
        "shadows": fields["shadows"],
        "unguided": sum(fields["unguided"].values()),
        **{f"{role}_{kind}_tokens": tokens[role][kind] for role in _ROLES for kind in ("input", "cached", "output")},
        **{f"{name}_tokens": tokens[name] for name in ("kept", "answer", "answer_by_teacher")},
        "teacher_token_share": fields["teacher_token_share"],
        **{name: fields[name] for name in _MONEY},
        **{f"class_{name}_{part}": classes.get(name, {}).get(part, 0) for name in names for part in _CLASS_SUMS},
        "batches": batches["count"],
        "mean_batch_size": batches["mean_size"],
        **{f"{stage}_{part}_ms": latency[stage][part] for stage in _LATENCIES for part in _QUANTILES},
        **{f"{role}_cache_write_tokens": tokens[role]["cache_write"] for role in _ROLES},
        **{f"handover_{part}_ms": latency["handover"][part] for part in _QUANTILES},
    }
    return {name: str(cell).lower() if isinstance(cell, bool) else cell for name, cell in cells.items()}
