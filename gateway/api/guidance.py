"""For devices that run the student themselves: POST /v1/guidance, and what they report afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gateway.api.auth import authenticate
from gateway.api.completions import answered
from gateway.api.decoding import read_parsed
from gateway.api.keys import EDGE_ACCOUNTS, HANDOVER
from gateway.api.lookups import shows_cost
from gateway.errors import EdgeVersion
from gateway.protocol.chat import parse_chat
from gateway.protocol.edge import (
    MAX_VERSION,
    MIN_VERSION,
    VERSION_HEADER,
    parse_edge_usage,
    parse_offline_usage,
)

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt
    from gateway.policy.book import Caller

_MOST_DIGITS = 9


async def guidance(request: web.Request) -> web.StreamResponse:
    """POST /v1/guidance"""
    caller = _device(request)
    asked, path = await read_parsed(request, caller, parse_chat), request.app[HANDOVER]
    return await answered(request, path, caller, asked)


async def guidance_usage(request: web.Request) -> web.Response:
    """POST /v1/guidance/{receipt}/usage. Another tenant's is not found."""
    caller = _device(request)
    usage = await read_parsed(request, caller, parse_edge_usage)
    accounts = request.app[EDGE_ACCOUNTS]
    return _reply(caller, await accounts.close(caller, request.match_info["receipt"], usage))


async def offline_usage(request: web.Request) -> web.Response:
    """POST /v1/guidance/usage"""
    caller = _device(request)
    report = await read_parsed(request, caller, parse_offline_usage)
    return _reply(caller, await request.app[EDGE_ACCOUNTS].add_offline(caller, report))


def _device(request: web.Request) -> Caller:
    """Whose device it is. Raises NotAuthenticated, and EdgeVersion where its client is too old, or too new, for us."""
    caller = authenticate(request)
    said = request.headers.get(VERSION_HEADER)
    if said is None:
        return caller
    spoken = f"version {MIN_VERSION}" if MIN_VERSION == MAX_VERSION else f"versions {MIN_VERSION} to {MAX_VERSION}"
    if not (said.isascii() and said.isdigit() and len(said) <= _MOST_DIGITS):
        raise EdgeVersion(
            f"'{VERSION_HEADER}': expected a whole number. This gateway speaks {spoken}.", param=VERSION_HEADER
        )
    version = int(said)
    if not MIN_VERSION <= version <= MAX_VERSION:
        which = "Update the client" if version < MIN_VERSION else "Update the gateway, or use an older client"
        raise EdgeVersion(
            f"'{VERSION_HEADER}': the client speaks version {version} of the edge protocol, and this gateway "
            f"{spoken}. {which}.",
            param=VERSION_HEADER,
        )
    return caller


def _reply(caller: Caller, receipt: Receipt) -> web.Response:
    told = receipt.as_dict(show_cost=shows_cost(caller, receipt))
    return web.Response(body=orjson.dumps(told), content_type="application/json")
