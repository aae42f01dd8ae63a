"""Fake engines for tests that provoke a fault or observe requests. Each fake is a real server on a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from aiohttp import web

from tests import fake_texts
from tests.fake_texts import begin_events, event

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FakeEngine", "Handler", "begin_events", "chunk", "embedded", "event", "recording_proxy", "reply", "says",
           "served"]  # fmt: skip

Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


@contextmanager
def served(app: web.Application, port: int = 0) -> Iterator[str]:
    """Run an aiohttp application on a thread of its own; yield its base URL. Port 0 is a free one."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    where: list[str] = []
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        where.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        started.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield where[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)


class FakeEngine:
    """A student or teacher. It answers each call by `behave` and keeps the received requests.

    It serves the side routes of both protocols, so that a gateway considers it up.
    """

    ROUTES = ("/v1/chat/completions", "/v1/completions", "/generate", "/generate_stream")

    def __init__(self, behave: Handler, embed: Handler | None = None, *, owned_by: str | None = None) -> None:
        """Create the engine.

        `owned_by` is the `owned_by` field of /models, from which the gateway reads the engine's kind.
        """
        self.behave = behave
        self.owned_by = owned_by
        self.embed = embed or _embeds
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled = threading.Event()
        self.url = ""

    async def _behave(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(self.behave, request)

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(self.embed, request)

    async def _answer(self, behave: Handler, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = orjson.loads(await request.read())
        self.requests.append(body)
        self.paths.append(request.path)
        self.headers.append(dict(request.headers))
        try:
            return await behave(request, body)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _models(self, _: web.Request) -> web.Response:
        owner = {} if self.owned_by is None else {"owned_by": self.owned_by}
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model", **owner}]})

    def add_routes(self, app: web.Application) -> None:
        """Add the routes of a subclass."""

    @contextmanager
    def running(self, port: int = 0) -> Iterator[FakeEngine]:
        app = web.Application(client_max_size=16 << 20)
        for route in self.ROUTES:
            app.router.add_post(route, self._behave)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/info", _info)
        self.add_routes(app)
        with served(app, port) as self.url:
            yield self


async def _embeds(_: web.Request, body: dict[str, Any]) -> web.Response:
    """Return a vector for each input, in the requested encoding."""
    several = isinstance(body["input"], list) and not isinstance(body["input"][0], int)
    raw = embedded(len(body["input"]) if several else 1, body.get("encoding_format"))
    return web.Response(body=raw, content_type="application/json")


def embedded(vectors: int, encoding: str | None = None) -> bytes:
    """Return OpenAI's embeddings reply. Its numbers have forms that other JSON writers would change."""
    numbers = b'"AACAPwAAAAA="' if encoding == "base64" else b"[1e-05, 0.50]"
    data = b", ".join(
        b'{"object": "embedding", "index": %d, "embedding": %s}' % (index, numbers) for index in range(vectors)
    )
    usage = b'{"prompt_tokens": %d, "total_tokens": %d}' % (5 * vectors, 5 * vectors)
    return b'{"object": "list", "data": [' + data + b'], "model": "fake", "usage": ' + usage + b"}"


async def _info(_: web.Request) -> web.Response:
    return web.json_response({"model_id": "fake", "max_concurrent_requests": 128, "max_stop_sequences": 4})


def reply(text: str, finish: str = "stop", usage: dict[str, int] | None = None) -> dict[str, Any]:
    """Return an OpenAI completion. Usage defaults to 10 prompt tokens and one token for each word of the text."""
    counted = {"prompt_tokens": 10, "completion_tokens": len(text.split())}
    return {
        "id": "fake-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": counted if usage is None else usage,
    }


def says(text: str, finish: str = "stop") -> Handler:
    """Return a handler that always replies with `text`, whole or streamed word by word, in the shape of the called
    route.
    """

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if request.path != "/v1/chat/completions":
            return await fake_texts.text_reply(request, body, text, finish)
        scored = bool(body.get("logprobs"))
        if not body.get("stream"):
            answer = reply(text, finish)
            if scored:
                answer["choices"][0]["logprobs"] = _likelihoods(fake_texts.words(text))
            return web.json_response(answer)
        response = await begin_events(request)
        for word in fake_texts.words(text):
            part = chunk({"content": word})
            if scored:
                part["choices"][0]["logprobs"] = _likelihoods([word])
            await response.write(event(part))
        await response.write(event(chunk({}, finish)))
        await response.write(event({**chunk({}), "choices": [], "usage": reply(text)["usage"]}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    return behave


def _likelihoods(words: list[str]) -> dict[str, Any]:
    """Return `logprobs` of a chat's choice."""
    return {"content": [{"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": []} for word in words]}


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "fake-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


@contextmanager
def recording_proxy(upstream: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a proxy before a real engine; yield its URL and the list of the JSON bodies that it forwarded, in order."""
    bodies: list[dict[str, Any]] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        if raw:
            bodies.append(orjson.loads(raw))
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method, upstream + request.path, data=raw or None, headers={"Content-Type": "application/json"}
            ) as answer,
        ):
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for received in answer.content.iter_any():
                await response.write(received)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    with served(app) as url:
        yield url, bodies
