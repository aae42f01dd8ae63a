"""GET /receipts and GET /receipts/{id}: search the receipts in the usage database, with the shadows of each request."""

from __future__ import annotations

import asyncio
import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from gateway.accounting.receipt import Receipt
from gateway.admin.bodies import number_of, only_query
from gateway.admin.period import filters_of
from gateway.admin.replies import needs_redis, time_shown
from gateway.admin.usage import check_tenant
from gateway.api.keys import REDIS, USAGE_DATABASE
from gateway.api.usage import label_filter
from gateway.config.yaml_messages import suggestion
from gateway.errors import InvalidRequest, NotFound
from gateway.usage.receipt_sums import LABEL
from gateway.usage.search import ReceiptSearch
from gateway.usage.span import requested_range
from gateway.usage.usage import MODES

if TYPE_CHECKING:
    from gateway.usage.search import FoundReceipt, SearchPage

_PAGE, _MAX_PAGE = 50, 500
_ID = re.compile(r"[a-z]{3,8}_[0-9a-f]{16,40}(?:-[a-z]{1,16}){0,3}", re.ASCII)
_PICOS = Decimal("1E12")
_MAX_USD = Decimal(1_000_000)


@needs_redis
async def list_receipts(request: web.Request) -> web.Response:
    """GET /receipts: a page of receipts that match the query, the newest first."""
    filters = filters_of(request, "mode", "status", "unguided", "min_cost", "max_cost", "label", "limit", "before")
    limit = number_of(request, "limit", default=_PAGE, maximum=_MAX_PAGE)
    where = _search_of(request, filters)
    page = await request.app[USAGE_DATABASE].search(where, limit, request.query.get("before") or None)
    if not page.scanned:
        check_tenant(request, where.tenant)
    return _json(await asyncio.to_thread(_listed, page, where))


async def show_receipt(request: web.Request) -> web.Response:
    """GET /receipts/{id}: a receipt with its shadows."""
    only_query(request, "tenant")
    id_, tenant = request.match_info["id"], request.query.get("tenant") or None
    found = await request.app[USAGE_DATABASE].receipt(id_, tenant) if _ID.fullmatch(id_) else None
    if found is None:
        raise NotFound(
            f"The usage database has no receipt '{id_[:64]}'. A receipt is written about a second after its request, "
            "and deleted after usage.keep.",
            param="id",
        )
    return _json(orjson.dumps(_plain(found), option=orjson.OPT_APPEND_NEWLINE))


def _search_of(request: web.Request, filters: dict[str, str]) -> ReceiptSearch:
    query = request.query
    since: float | None = None
    until: float | None = None
    if query.get("since") or query.get("until"):
        now = request.app[REDIS].now()
        requested = requested_range(query.get("since") or "1970-01-01", query.get("until", ""), now)
        since = requested.since if query.get("since") else None
        until = requested.until if query.get("until") else None
    mode = query.get("mode") or None
    if mode is not None and mode not in MODES:
        raise InvalidRequest(f"'mode' must be one of {', '.join(MODES)}.{suggestion(mode, MODES)}", param="mode")
    return ReceiptSearch(
        since,
        until,
        filters.get("tenant"),
        filters.get("route"),
        filters.get("key"),
        mode=mode,
        status=query.get("status") or None,
        unguided=query.get("unguided") or None,
        min_pico=_pico(request, "min_cost"),
        max_pico=_pico(request, "max_cost"),
        label=_label(query.get("label", "")),
    )


def _label(text: str) -> tuple[str, str] | None:
    return (
        next(((name.removeprefix(LABEL), value) for name, value in label_filter(text).items()), None) if text else None
    )


def _pico(request: web.Request, name: str) -> int | None:
    """Return an amount of the query in picodollars. Raises InvalidRequest."""
    text = request.query.get(name)
    if not text:
        return None
    try:
        usd = Decimal(text)
    except InvalidOperation:
        usd = Decimal(-1)
    if not (usd.is_finite() and 0 <= usd <= _MAX_USD):
        raise InvalidRequest(f"'{name}': expected an amount in USD from 0 to {_MAX_USD:,}, like 0.002.", param=name)
    return int(usd * _PICOS)


def _listed(page: SearchPage, where: ReceiptSearch) -> bytes:
    body = {
        "object": "list",
        "data": [_plain(one) for one in page.found],
        "since": time_shown(where.since),
        "until": time_shown(where.until),
        "scanned": page.scanned,
        "next": page.following,
    }
    return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)


def _plain(found: FoundReceipt) -> dict[str, Any]:
    shadows = [Receipt.from_json(raw).as_dict() for raw in found.shadows]
    return {**Receipt.from_json(found.receipt).as_dict(), "shadows": shadows}


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
