"""POST /v1/guidance for devices that run the student themselves, and the usage reports of these devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gateway.api.auth import authenticate
from gateway.api.completions import answered
from gateway.api.decoding import read_parsed
from gateway.api.keys import EDGE_ACCOUNTS, ENGINES, HANDOVER
from gateway.api.lookups import shows_cost
from gateway.errors import EdgeVersion
from gateway.protocol.chat import parse_chat
from gateway.protocol.edge import MAX_VERSION, MIN_VERSION, VERSION_HEADER, parse_edge_usage, parse_offline_usage

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt
    from gateway.policy.book import Caller

_MAX_DIGITS = 9


async def guidance(request: web.Request) -> web.StreamResponse:
    """POST /v1/guidance"""
    caller = await _device(request)
    chat, pipeline = await read_parsed(request, caller, parse_chat), request.app[HANDOVER]
    return await answered(request, pipeline, caller, chat)


async def guidance_usage(request: web.Request) -> web.Response:
    """POST /v1/guidance/{receipt}/usage. A receipt of another tenant is a 404."""
    caller = await _device(request)
    usage = await read_parsed(request, caller, parse_edge_usage)
    accounts = request.app[EDGE_ACCOUNTS]
    return _reply(caller, await accounts.close(caller, request.match_info["receipt"], usage, request.app[ENGINES]))


async def offline_usage(request: web.Request) -> web.Response:
    """POST /v1/guidance/usage"""
    caller = await _device(request)
    report = await read_parsed(request, caller, parse_offline_usage)
    accounts = request.app[EDGE_ACCOUNTS]
    return _reply(caller, await accounts.add_offline(caller, report, request.app[ENGINES], request.headers))


async def _device(request: web.Request) -> Caller:
    """Return the caller of a device. Raises NotAuthenticated, or EdgeVersion if the client's version is unsupported."""
    caller = await authenticate(request)
    text = request.headers.get(VERSION_HEADER)
    if text is None:
        return caller
    supported = f"version {MIN_VERSION}" if MIN_VERSION == MAX_VERSION else f"versions {MIN_VERSION} to {MAX_VERSION}"
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise EdgeVersion(
            f"'{VERSION_HEADER}': expected a whole number. This gateway supports {supported}.", param=VERSION_HEADER
        )
    version = int(text)
    if not MIN_VERSION <= version <= MAX_VERSION:
        action = "Update the client" if version < MIN_VERSION else "Update the gateway, or use an older client"
        raise EdgeVersion(
            f"'{VERSION_HEADER}': the client has version {version} of the edge protocol, and this gateway "
            f"supports {supported}. {action}.",
            param=VERSION_HEADER,
        )
    return caller


def _reply(caller: Caller, receipt: Receipt) -> web.Response:
    body = receipt.as_dict(show_cost=shows_cost(caller, receipt))
    return web.Response(body=orjson.dumps(body), content_type="application/json")
