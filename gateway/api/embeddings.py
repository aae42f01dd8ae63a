"""POST /v1/embeddings"""

from __future__ import annotations

from aiohttp import web

from gateway.api.auth import authenticate
from gateway.api.completions import new_context
from gateway.api.connection import SERVER
from gateway.api.decoding import read_parsed
from gateway.api.events import reads, require_caller, send
from gateway.api.headers import fact_headers, name_reply
from gateway.api.keys import ADMISSION, EMBEDDINGS
from gateway.protocol.embeddings import parse_embeddings

_PART_BYTES = 1 << 18


async def embeddings(request: web.Request) -> web.StreamResponse:
    """POST /v1/embeddings"""
    caller = authenticate(request)
    parsed = await read_parsed(request, caller, parse_embeddings)
    context = new_context(request, caller)
    async with request.app[ADMISSION].cancel_on_drain():
        vectors = await request.app[EMBEDDINGS].answer(context, parsed)
    require_caller(context.state)
    headers = fact_headers(vectors.receipt.facts(show_cost=vectors.show_cost))
    if len(vectors.body) <= _PART_BYTES:
        return web.Response(body=vectors.body, content_type="application/json", headers=headers)
    return await _in_parts(request, vectors.body, headers)


async def _in_parts(request: web.Request, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
    """Send a large reply in parts, as the caller reads them. One large write would block the event loop."""
    response = web.StreamResponse(headers={**headers, "Content-Type": "application/json", "Server": SERVER})
    response.content_length = len(body)
    name_reply(request, response)
    await response.prepare(request)
    with reads(request) as reading:
        for start in range(0, len(body), _PART_BYTES):
            await send(response, body[start : start + _PART_BYTES], reading)
    await response.write_eof()
    return response
