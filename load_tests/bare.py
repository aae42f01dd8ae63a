"""Serve a bare pass-through: the upper bound of aiohttp, uvloop and orjson without any further work.

    python load_tests/bare.py --port 9000 --json http://127.0.0.1:9001 --stream http://127.0.0.1:9002

It decodes each request, forwards it over one session, decodes the reply and encodes it again. It forwards the bytes of
a stream as they arrive. It has no keys, limits or errors of its own. compare.py gives all figures relative to it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import aiohttp
import orjson
import uvloop
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JSON = {"Content-Type": "application/json"}


def application(json_base: str, stream_base: str, slow_base: str) -> web.Application:
    session: aiohttp.ClientSession

    async def sessions(_: web.Application) -> AsyncIterator[None]:
        nonlocal session
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=JSON) as session:
            yield

    async def chat(request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        base = slow_base if body.get("model") == "slow" else stream_base if body.get("stream") else json_base
        async with session.post(f"{base}/v1/chat/completions", data=orjson.dumps(body)) as reply:
            if not body.get("stream"):
                answer = orjson.loads(await reply.read())
                return web.Response(status=reply.status, body=orjson.dumps(answer), headers=JSON)
            streamed = web.StreamResponse(status=reply.status, headers={"Content-Type": "text/event-stream"})
            await streamed.prepare(request)
            async for received in reply.content.iter_any():
                await streamed.write(received)
            await streamed.write_eof()
            return streamed

    app = web.Application(client_max_size=8_000_000)  # as large as the gateway's own default
    app.cleanup_ctx.append(sessions)
    app.router.add_post("/v1/chat/completions", chat)
    return app


def main() -> None:
    flags = argparse.ArgumentParser(description="A bare pass-through on 127.0.0.1.")
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--json", required=True, help="base URL of the upstream that answers in JSON")
    flags.add_argument("--stream", required=True, help="base URL of the upstream that answers with a stream")
    flags.add_argument("--slow", default="", help="base URL of the upstream of the model 'slow'; --stream without it")
    given = flags.parse_args()
    uvloop.install()
    app = application(given.json, given.stream, given.slow or given.stream)
    web.run_app(app, host="127.0.0.1", port=given.port, access_log=None, print=lambda *_: None)


if __name__ == "__main__":
    main()
