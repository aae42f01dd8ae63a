"""The Responses API."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.api.auth import authenticate
from gateway.api.completions import answered
from gateway.api.decoding import read_parsed
from gateway.api.keys import COMPLETIONS, INFO
from gateway.errors import PreviousResponseNotFound
from gateway.protocol.responses.events import ResponseWriter
from gateway.protocol.responses.request import parse_responses

if TYPE_CHECKING:
    from aiohttp import web


async def responses(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses"""
    caller, completions = authenticate(request), request.app[COMPLETIONS]
    parsed = await read_parsed(request, caller, parse_responses)
    if (previous := parsed.previous_response_id) is not None:
        raise PreviousResponseNotFound(
            f"Previous response with id '{previous}' not found: no responses are stored. Send the whole conversation "
            "in 'input'.",
            param="previous_response_id",
        )
    writer = ResponseWriter(parsed, request[INFO].id, int(time.time()))
    return await answered(request, completions, caller, parsed.chat(), writer)
