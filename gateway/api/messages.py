"""POST /v1/messages and POST /v1/messages/count_tokens"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gateway.api.auth import authenticate
from gateway.api.completions import answered
from gateway.api.decoding import read_parsed
from gateway.api.keys import COMPLETIONS, INFO, READS, TOKEN_COUNTER
from gateway.capabilities.anthropic import MessagesFields, answering
from gateway.policy.caller_fields import check_caller_fields
from gateway.policy.routing import find_route
from gateway.protocol.anthropic.events import MessagesWriter
from gateway.protocol.anthropic.request import check_header, parse_count_tokens, parse_messages

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

    from gateway.policy.book import Caller
    from gateway.protocol.chat import ChatRequest

_COUNT_LIMIT_S = 2.0  # of the count before the first event of a stream
_FORWARDED = ("anthropic-version", "anthropic-beta")


async def messages(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages"""
    caller, completions = await authenticate(request), request.app[COMPLETIONS]
    headers = _forwarded(request.headers)
    parsed = await read_parsed(request, caller, parse_messages)
    fields = MessagesFields(headers, parsed.passed, is_marked=parsed.is_marked, foreign_tool=parsed.foreign_tool)
    writer = MessagesWriter(request[INFO].id, parsed.chat.stop, shows_thinking=parsed.shows_thinking)

    async def count_input() -> None:
        writer.input_tokens = await _input_tokens(request, caller, parsed.chat)

    with answering(fields):
        return await answered(request, completions, caller, parsed.chat, writer, count_input)


async def _input_tokens(request: web.Request, caller: Caller, chat: ChatRequest) -> int:
    """Return the tokens of an admitted request's prompt as `count_tokens` does; 0 if the count takes too long."""
    try:
        async with asyncio.timeout(_COUNT_LIMIT_S):
            route = await find_route(caller, chat, request.headers)
            return await request.app[TOKEN_COUNTER].count(caller.policy.tenant, chat, route)
    except TimeoutError:
        return 0


async def count_tokens(request: web.Request) -> web.Response:
    """POST /v1/messages/count_tokens. The request counts against no limit."""
    caller = await authenticate(request)
    chat = (await read_parsed(request, caller, parse_count_tokens)).chat
    check_caller_fields(caller.policy.caller_fields, chat)
    counted = await _counted(request, caller, chat)
    return web.Response(body=orjson.dumps({"input_tokens": counted}), content_type="application/json")


async def _counted(request: web.Request, caller: Caller, chat: ChatRequest) -> int:
    """Return the tokens of a prompt. The tenant's slot is held until the thread ends, also after a disconnect."""
    tenant = caller.policy.tenant
    with request.app[READS].hold(tenant, caller.policy.weight):
        route = await find_route(caller, chat, request.headers)
        return await request.app[TOKEN_COUNTER].count(tenant, chat, route)


def _forwarded(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    """Return the headers for Anthropic's models."""
    found = {}
    for name in _FORWARDED:
        if name in headers:
            found[name] = value = ",".join(headers.getall(name))
            check_header(name, value)
    return found
