"""GET /v1/receipts and GET /openapi.json"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import orjson
from aiohttp import ETag, web
from redis.exceptions import RedisError

from gateway.accounting.edge import GUIDANCE
from gateway.accounting.receipt import RECEIPT_ID, Receipt
from gateway.api.auth import authenticate
from gateway.api.keys import DOCUMENT, EDGE_ACCOUNTS, FEEDBACK_STORE, READS, RECEIPTS, REDIS
from gateway.errors import NotFound

if TYPE_CHECKING:
    from gateway.policy.book import Caller
    from gateway.protocol.body import Json


async def show_receipt(request: web.Request) -> web.Response:
    """GET /v1/receipts/{id}. The id is the x-request-id of a reply. A receipt of another tenant is a 404."""
    caller = await authenticate(request)
    with request.app[READS].hold(caller.policy.tenant, caller.policy.weight):
        return _json(await _receipt(request, caller))


async def openapi_json(request: web.Request) -> web.Response:
    """GET /openapi.json"""
    document = request.app[DOCUMENT]
    etags = request.if_none_match or ()
    if any(one.value in {document.etag, "*"} for one in etags):
        response = web.Response(status=304)
    else:
        response = web.Response(body=document.body, content_type="application/json")
    response.etag = ETag(document.etag)
    response.headers["Cache-Control"] = "no-cache"  # a client must revalidate by ETag
    return response


async def _receipt(request: web.Request, caller: Caller) -> Json:
    receipt_id = request.match_info["id"]
    found = None
    if RECEIPT_ID.fullmatch(receipt_id):
        found = await request.app[RECEIPTS].get(caller.policy.tenant, receipt_id)
    if found is None:
        raise NotFound(
            "There is no such receipt. Use the x-request-id of a reply. A stream's receipt is written at its end.",
            param="id",
        )
    receipt = Receipt.from_json(found)
    body = receipt.as_dict(show_cost=shows_cost(caller, receipt))
    if request.app[REDIS].up:  # the receipt may come from the usage database
        with suppress(RedisError, OSError):
            if (score := await request.app[FEEDBACK_STORE].score(receipt.tenant, receipt.id)) is not None:
                body["feedback"] = score
    if receipt.mode == GUIDANCE:
        body["edge"] = await request.app[EDGE_ACCOUNTS].state(receipt)
    return body


def shows_cost(caller: Caller, receipt: Receipt) -> bool:
    """Return whether the caller may see a receipt's cost: only if all routes of that name show it."""
    routes = caller.policy.routes_of.get(receipt.route, ())
    return bool(routes) and all(route.show_cost for _, route in routes)


def _json(body: object) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
