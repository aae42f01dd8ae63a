"""The admin API's usage of all tenants or of one, as JSON or CSV."""

from __future__ import annotations

import csv
from io import StringIO
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gateway.accounting.savings import CLASSES
from gateway.admin.replies import needs_redis
from gateway.api.keys import POLICIES, USAGE
from gateway.api.usage import DIMENSIONS, FILTERS, encoded, read_query
from gateway.config.yaml_messages import suggestion
from gateway.errors import InvalidRequest, NotFound
from gateway.usage.rollup import SumRow
from gateway.usage.span import rfc3339
from gateway.usage.tags import GROUPS, SUMS, TAG, TagSum
from gateway.usage.threads import with_pauses
from gateway.usage.usage import UNCLASSIFIED, escape_formula, figures, usage_header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.protocol.body import Json
    from gateway.usage.usage import UsageQuery, UsageResult

_FORMATS = ("json", "csv")
_ROLES = ("teacher", "student", "failed")
_MONEY = (
    *("cost_usd", "teacher_cost_usd", "student_cost_usd", "failed_cost_usd", "baseline_usd", "savings_usd"),
    *("savings_error_usd", "savings_about_zero", "measuring_usd", "baseline_estimated", "baseline_error_usd"),
    "cost_share",
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

    if TAG in query.by:
        return await _show_tags(request, query, format_name)

    def encode(usage: UsageResult) -> bytes:
        if usage.is_empty:
            check_tenant(request, query.only.get("tenant"))
        return as_csv(usage) if format_name == "csv" else encoded(usage)

    body = await reader.read(query, encode)
    return _download(body, query) if format_name == "csv" else _json(body)


async def _show_tags(request: web.Request, query: UsageQuery, format_name: str) -> web.Response:
    """Return sums by tag. They have no periods, and no total: a request with several tags counts for each."""
    if other := next((name for name in query.by if name not in GROUPS), None):
        raise InvalidRequest(f"'by': tag cannot be combined with {other}: use {', '.join(GROUPS[:-1])}.", param="by")
    if query.granularity is not None:
        raise InvalidRequest("'granularity' does not apply to tag: omit it.", param="granularity")

    def encode(sums: list[TagSum]) -> bytes:
        if not sums:
            check_tenant(request, query.only.get("tenant"))
        rows = (one.as_json(query.by) for one in with_pauses(sums))
        if format_name == "csv":
            return _tags_as_csv(query, rows)
        return b'%b,"rows":[%b]}\n' % (orjson.dumps(usage_header(query))[:-1], b",".join(map(orjson.dumps, rows)))

    body = await request.app[USAGE].read_tags(query, encode)
    return _download(body, query) if format_name == "csv" else _json(body)


def _tags_as_csv(query: UsageQuery, rows: Iterable[Json]) -> bytes:
    out, heads = StringIO(), TagSum(query.by, (0,) * len(SUMS)).as_json(query.by)
    writer = csv.writer(out)
    writer.writerow(["start", "end", *heads])
    times = [rfc3339(moment) for moment in query.span[:2]]
    for row in rows:
        names = [escape_formula(row[name]) for name in query.by]
        writer.writerow([*times, *names, *(value for name, value in row.items() if name not in query.by)])
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
        "errors": sum(fields["errors"].values()),
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
