"""POST /v1/messages and POST /v1/messages/count_tokens"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gateway.api.auth import authenticate
from gateway.api.completions import answered
from gateway.api.decoding import read_parsed
from gateway.api.keys import COMPLETIONS, INFO, READS, TOKEN_COUNTER
from gateway.errors import GatewayError
from gateway.policy.caller_fields import check_caller_fields
from gateway.policy.routing import find_route
from gateway.protocol.anthropic.events import MessagesWriter
from gateway.protocol.anthropic.request import check_header, parse_count_tokens, parse_messages
from gateway.protocol.capabilities.anthropic import MessagesFields, answering

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from multidict import CIMultiDictProxy

    from gateway.policy.book import Caller
    from gateway.protocol.chat import ChatRequest

_COUNT_WAIT_S = 0.1  # for the count, before the first event of a stream
_FORWARDED = ("anthropic-version", "anthropic-beta")


async def messages(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages"""
    caller, completions = await authenticate(request), request.app[COMPLETIONS]
    headers = _forwarded(request.headers)
    parsed = await read_parsed(request, caller, parse_messages)
    fields = MessagesFields(headers, parsed.passed, is_marked=parsed.is_marked, foreign_tool=parsed.foreign_tool)
    writer = MessagesWriter(request[INFO].id, parsed.chat.stop, shows_thinking=parsed.shows_thinking)

    if not parsed.chat.stream:
        with answering(fields):
            return await answered(request, completions, caller, parsed.chat, writer)
    with answering(fields), _counting(request, caller, parsed.chat) as input_tokens:

        async def count_input() -> None:
            writer.input_tokens = await input_tokens()

        return await answered(request, completions, caller, parsed.chat, writer, count_input)


@contextmanager
def _counting(request: web.Request, caller: Caller, chat: ChatRequest) -> Iterator[Callable[[], Awaitable[int]]]:
    """Count the tokens of a prompt as `count_tokens` does, until the block ends.

    The result returns the count, or 0 if it takes too long.
    """
    loop = asyncio.get_running_loop()
    counting = loop.create_task(_input_tokens(request, caller, chat), name="count-input")

    async def counted() -> int:
        await asyncio.wait([counting], timeout=_COUNT_WAIT_S)
        return counting.result() if counting.done() else 0

    try:
        yield counted
    finally:
        counting.cancel()


async def _input_tokens(request: web.Request, caller: Caller, chat: ChatRequest) -> int:
    try:
        route = await find_route(caller, chat, request.headers)
        return await request.app[TOKEN_COUNTER].count(caller.policy.tenant, chat, route)
    except GatewayError:
        return 0  # the request itself fails with it


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
