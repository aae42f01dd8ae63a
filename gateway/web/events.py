"""A reply in server-sent events: how it begins, how an event is written, and what if nobody reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gateway.watchdog import Watchdog
from gateway.web.connection import SERVER
from gateway.web.headers import fact_headers

if TYPE_CHECKING:
    from gateway.ledger.draft import Draft
    from gateway.protocol import Json

_READS_WITHIN_S = 30.0

DONE = b"data: [DONE]\n\n"
"""The last event of a stream that was not cut short."""


async def begin(request: web.Request, draft: Draft) -> web.StreamResponse:
    """The head of the reply, with what is known of the answer by now."""
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
            "Server": SERVER,
            **fact_headers(draft.facts()),
        }
    )
    await response.prepare(request)
    return response


async def send(response: web.StreamResponse, data: bytes, reading: Watchdog) -> None:
    """Write what `reading` then watches being read."""
    reading.watch(asyncio.get_running_loop().time() + _READS_WITHIN_S)
    await response.write(data)
    reading.rest()


def reads(request: web.Request) -> Watchdog:
    """Watches whether the caller reads. One who does not is hung up on, which ends the handler."""

    def hang_up() -> None:
        if request.transport is not None:
            request.transport.abort()

    return Watchdog(hang_up)


def event(part: Json) -> bytes:
    """One event without a name."""
    return b"data: " + orjson.dumps(part) + b"\n\n"
