"""The Responses API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.api.auth import authenticate
from gateway.api.completions import answered
from gateway.api.decoding import read_parsed
from gateway.api.keys import COMPLETIONS, INFO, REDIS, STORED_RESPONSES
from gateway.api.stored_responses import StoringReply, with_stored_input
from gateway.errors import InvalidRequest
from gateway.protocol.responses.events import ResponseWriter
from gateway.protocol.responses.request import caller_field, parse_responses

if TYPE_CHECKING:
    from aiohttp import web


async def responses(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses"""
    caller, completions = await authenticate(request), request.app[COMPLETIONS]
    parsed = await read_parsed(request, caller, parse_responses)
    if parsed.needs_stored:
        parsed = await with_stored_input(request, caller, parsed)
    stores = parsed.store and caller.policy.stored_responses is not None
    writer = ResponseWriter(parsed, request[INFO].id, int(request.app[REDIS].now()), stored=stores)
    chat = parsed.chat()
    try:
        if not stores:
            return await answered(request, completions, caller, chat, writer)
        storing = StoringReply(completions, writer, request.app[STORED_RESPONSES], caller.policy, parsed.items)
        return await answered(request, storing, caller, chat, storing)
    except InvalidRequest as error:
        error.param = caller_field(error.param)
        raise
