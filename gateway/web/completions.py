"""Steps 1 and 7 of the path: a request's bytes in, its reply out."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import orjson
import structlog
from aiohttp import web

from gateway.completion import Visit
from gateway.errors import GatewayError
from gateway.ledger.draft import Draft
from gateway.protocol import parse_chat, parse_text_completion
from gateway.web.auth import authenticate
from gateway.web.body import read_body
from gateway.web.error_body import error_body, internal_error
from gateway.web.events import DONE, begin, event, reads, send
from gateway.web.headers import fact_headers
from gateway.web.keys import ADMISSION, ALLOWANCE, COMPLETIONS, REQUEST_ID, STARTED

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.policy.book import Caller
    from gateway.protocol import CompletionRequest, Json
    from gateway.watchdog import Watchdog

log = structlog.get_logger()


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    caller = authenticate(request)
    return await _answered(request, caller, parse_chat(await read_body(request)))


async def text_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    caller = authenticate(request)
    return await _answered(request, caller, parse_text_completion(await read_body(request)))


async def _answered(request: web.Request, caller: Caller, asked: CompletionRequest) -> web.StreamResponse:
    visit = Visit(request[REQUEST_ID], caller, int(time.time()), request[STARTED], request.headers)
    request[ALLOWANCE] = visit.allowance
    path = request.app[COMPLETIONS]
    if asked.stream:
        with reads(request) as reading:
            return await _as_events(request, path.stream(visit, asked), reading)
    async with request.app[ADMISSION].until_cut():
        answer = await path.answer(visit, asked)
    return web.Response(
        body=orjson.dumps(answer.body),
        content_type="application/json",
        headers=fact_headers(answer.receipt.facts(show_cost=answer.show_cost)),
    )


async def _as_events(
    request: web.Request, parts: AsyncGenerator[Draft | list[Json], None], reading: Watchdog
) -> web.StreamResponse:
    """Send the parts as server-sent events. Once a reply has begun, an error is its last event: no [DONE] follows."""
    response: web.StreamResponse | None = None
    async with aclosing(parts):
        try:
            async with request.app[ADMISSION].until_cut():
                async for part in parts:
                    if isinstance(part, Draft):
                        response = await begin(request, part)
                    else:
                        assert response is not None, "the path yields the draft first"
                        await send(response, b"".join(map(event, part)), reading)
        except ConnectionError:
            raise  # the caller is gone: there is nobody to tell
        except Exception as error:
            if response is None:
                raise
            if not isinstance(error, GatewayError):
                log.exception("stream_broke", id=request[REQUEST_ID])
                error = internal_error(request[REQUEST_ID])
            await send(response, event(error_body(error)), reading)
        else:
            assert response is not None, "the path yields the draft first"
            await send(response, DONE, reading)
    await response.write_eof()
    return response
