"""POST /v1/embeddings: its bytes in, its reply out."""

from __future__ import annotations

import time

from aiohttp import web

from gateway.completion import Visit
from gateway.protocol import parse_embeddings
from gateway.web.auth import authenticate
from gateway.web.decoding import read_parsed
from gateway.web.events import require_caller
from gateway.web.headers import fact_headers
from gateway.web.keys import ADMISSION, ALLOWANCE, EMBEDDINGS, OPENED, REQUEST_ID, STARTED


async def embeddings(request: web.Request) -> web.Response:
    """POST /v1/embeddings"""
    caller = authenticate(request)
    asked = await read_parsed(request, caller, parse_embeddings)
    visit = Visit(request[REQUEST_ID], caller, int(time.time()), request[STARTED], request.headers)
    request[ALLOWANCE] = visit.allowance
    request[OPENED] = visit.opened
    async with request.app[ADMISSION].until_cut():
        vectors = await request.app[EMBEDDINGS].answer(visit, asked)
    require_caller(visit.opened)
    return web.Response(
        body=vectors.body,
        content_type="application/json",
        headers=fact_headers(vectors.receipt.facts(show_cost=vectors.show_cost)),
    )
