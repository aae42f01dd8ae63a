"""Steps 1 and 7 of the path: a request's bytes in, its reply out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from aiohttp import web

from gateway.api.auth import authenticate
from gateway.api.connection import connection_of
from gateway.api.decoding import read_parsed
from gateway.api.events import as_events, reads, require_caller
from gateway.api.headers import fact_headers
from gateway.api.keys import ADMISSION, ALLOWANCE, COMPLETIONS, OPENED, REQUEST_ID, STARTED
from gateway.engines.reply_json import encoded
from gateway.pipeline.completion import RequestContext
from gateway.protocol.chat import ChatRequest, parse_chat
from gateway.protocol.text import TextRequest, parse_text_completion

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.pipeline.completion import Answer
    from gateway.policy.book import Caller
    from gateway.protocol.body import Json

_Asked = TypeVar("_Asked", bound=ChatRequest | TextRequest)
_Asked_contra = TypeVar("_Asked_contra", bound=ChatRequest | TextRequest, contravariant=True)


class CompletionPipeline(Protocol[_Asked_contra]):
    """What makes a reply of a checked request, whole or in parts."""

    async def answer(self, visit: RequestContext, asked: _Asked_contra, /) -> Answer: ...

    def stream(
        self, visit: RequestContext, asked: _Asked_contra, /
    ) -> AsyncGenerator[ReceiptBuilder | list[Json], None]: ...


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    caller, completions = authenticate(request), request.app[COMPLETIONS]
    return await answered(request, completions, caller, await read_parsed(request, caller, parse_chat))


async def text_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    caller, completions = authenticate(request), request.app[COMPLETIONS]
    return await answered(request, completions, caller, await read_parsed(request, caller, parse_text_completion))


async def answered(
    request: web.Request, path: CompletionPipeline[_Asked], caller: Caller, asked: _Asked
) -> web.StreamResponse:
    """What comes of a checked request, whole or as events. Raises GatewayErrors."""
    visit = RequestContext(
        request[REQUEST_ID],
        caller,
        int(time.time()),
        request[STARTED],
        request.headers,
        steps=connection_of(request),
    )
    request[ALLOWANCE] = visit.allowance
    request[OPENED] = visit.state
    if asked.stream:
        with reads(request) as reading:
            return await as_events(request, path.stream(visit, asked), reading)
    async with request.app[ADMISSION].cancel_on_drain():
        answer = await path.answer(visit, asked)
    require_caller(visit.state)
    return web.Response(
        body=await encoded(answer.body),
        content_type="application/json",
        headers=fact_headers(answer.receipt.facts(show_cost=answer.show_cost)),
    )
