"""Steps 1 and 7 of the path: a request's bytes in, its reply out."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import orjson
import structlog
from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.completion import Visit
from gateway.errors import BodyTooSlow, GatewayError, InvalidRequest
from gateway.ledger.draft import Draft
from gateway.protocol import parse_chat
from gateway.watchdog import Watchdog
from gateway.web.auth import authenticate
from gateway.web.connection import SERVER
from gateway.web.error_body import error_body, internal_error
from gateway.web.keys import ADMISSION, COMPLETIONS, REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.protocol import Json

log = structlog.get_logger()

_BODY_WITHIN_S = 30.0
_READS_WITHIN_S = 30.0


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    started = time.perf_counter()
    caller = authenticate(request)
    chat = parse_chat(await _read(request))
    visit = Visit(request[REQUEST_ID], caller, created=int(time.time()), started=started)
    path = request.app[COMPLETIONS]
    if chat.stream:
        with _reads(request) as reading:
            return await _as_events(request, path.stream(visit, chat), reading)
    async with request.app[ADMISSION].until_cut():
        answer = await path.answer(visit, chat)
    return web.Response(
        body=orjson.dumps(answer.body),
        content_type="application/json",
        headers=_headers(visit.id, answer.receipt.facts(show_cost=answer.show_cost)),
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
                        response = await _begin(request, part)
                    else:
                        assert response is not None, "the path yields the draft first"
                        await _send(response, b"".join(map(_event, part)), reading)
        except ConnectionError:
            raise  # the caller is gone: there is nobody to tell
        except Exception as error:
            if response is None:
                raise
            if not isinstance(error, GatewayError):
                log.exception("stream_broke", id=request[REQUEST_ID])
                error = internal_error(request[REQUEST_ID])
            await _send(response, _event(error_body(error)), reading)
        else:
            assert response is not None, "the path yields the draft first"
            await _send(response, b"data: [DONE]\n\n", reading)
    await response.write_eof()
    return response


async def _read(request: web.Request) -> bytes:
    """The body. Raises BodyTooSlow and InvalidRequest; a body over the bound is aiohttp's to refuse."""
    try:
        if request.content.is_eof():
            return await request.read()  # all of it came with the head, as short bodies do
        async with asyncio.timeout(_BODY_WITHIN_S):
            return await request.read()
    except TimeoutError:
        raise BodyTooSlow(f"The body did not arrive within {_BODY_WITHIN_S:g} s.") from None
    except (ClientPayloadError, HttpProcessingError, web.RequestPayloadError):
        raise InvalidRequest("The body cannot be read: its encoding or its length is wrong.") from None


async def _send(response: web.StreamResponse, data: bytes, reading: Watchdog) -> None:
    reading.watch(asyncio.get_running_loop().time() + _READS_WITHIN_S)
    await response.write(data)
    reading.rest()


def _reads(request: web.Request) -> Watchdog:
    """Watches whether the caller reads. One who does not is hung up on, which ends the handler."""

    def hang_up() -> None:
        if request.transport is not None:
            request.transport.abort()

    return Watchdog(hang_up)


async def _begin(request: web.Request, draft: Draft) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
            "Server": SERVER,
            **_headers(draft.id, draft.facts()),
        }
    )
    await response.prepare(request)
    return response


def _headers(request_id: str, facts: Json) -> dict[str, str]:
    headers = {"x-request-id": request_id}
    for name, value in facts.items():
        headers["x-gkt-" + name.replace("_", "-")] = str(value)
    return headers


def _event(part: Json) -> bytes:
    return b"data: " + orjson.dumps(part) + b"\n\n"
