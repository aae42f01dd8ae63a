"""An engine that quotes the key and the prompt of each call in every kind of failure."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from tests.fake_texts import text_reply
from tests.fakes import begin_events, chunk, event, says

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAY = re.compile(r"PLAY:([a-z0-9-]+)")
_TENANT = re.compile(r"TENANT:([a-z]+)")


def engine(answer: Callable[[str, str], str], role: str) -> Callable[[web.Request, Any], Any]:
    """Return an engine that plays the failure named by `PLAY:` in the prompt for its role, else answers.

    answer: (tenant, role) -> its text.
    """

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = orjson.dumps(body).decode()
        tenant = found[1] if (found := _TENANT.search(text)) else "nobody"
        play = found[1] if (found := _PLAY.search(text)) else ""
        quote = f"{request.headers.get('Authorization')} {request.headers.get('x-api-key')} asked {text}"
        if play.startswith(role + "-"):
            return await PLAYS[play.removeprefix(role + "-")](request, quote)
        words = answer(tenant, role)
        finish = "length" if role == "teacher" else "stop"
        if request.path != "/v1/chat/completions":
            return await text_reply(request, body, words, finish)
        return await says(words, finish)(request, body)

    return behave


def _answers(status: int, *, kind: str = "application/json", form: str = "{}", **headers: str) -> Any:
    async def play(_: web.Request, quote: str) -> web.StreamResponse:
        body = orjson.dumps({"error": {"message": quote, "type": "x", "code": quote}})
        if kind != "application/json":
            body = form.format(quote).encode()
        return web.Response(status=status, body=body, content_type=kind, headers=headers)

    return play


async def _reason(_: web.Request, quote: str) -> web.StreamResponse:
    return web.Response(status=500, reason=quote.replace("\n", " ")[:500], headers={"X-Said": quote[:500]})


async def _error_event(request: web.Request, quote: str) -> web.StreamResponse:
    response = await begin_events(request)
    await response.write(event(chunk({"content": "It"})))
    await response.write(event({"error": {"message": quote, "type": "x"}}))
    await response.write_eof()
    return response


async def _redirect(_: web.Request, quote: str) -> web.StreamResponse:
    there = re.sub(r"[^A-Za-z0-9]", "-", quote)[:600]
    return web.Response(status=307, text=quote, headers={"Location": f"http://127.0.0.1:9/{there}?key={there}"})


async def _not_json(_: web.Request, quote: str) -> web.StreamResponse:
    return web.Response(text='{"choices": [' + quote, content_type="application/json")


async def _wrong_shape(_: web.Request, quote: str) -> web.StreamResponse:
    return web.json_response({"choices": [{"index": quote, "message": quote, "finish_reason": quote}], "usage": quote})


def _raw(form: str) -> Any:
    async def play(request: web.Request, quote: str) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(form.format(quote.replace("\r", "").replace("\n", "")[:2000]).encode())
        request.transport.close()
        return web.Response()

    return play


async def _reset(request: web.Request, _: str) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _reset_midway(request: web.Request, _: str) -> web.StreamResponse:
    response = await begin_events(request)
    await response.write(event(chunk({"content": "It is"})))
    assert request.transport is not None
    request.transport.abort()
    return response


async def _stall(_: web.Request, __: str) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


PLAYS: dict[str, Any] = {
    "key-refused": _answers(401),
    "forbidden": _answers(403),
    "no-such-model": _answers(404),
    "blames-400": _answers(400),
    "blames-422": _answers(422),
    "overloaded": _answers(429, **{"Retry-After": "0"}),
    "failed": _answers(500),
    "failed-in-words": _answers(500, kind="text/plain", form="{}"),
    "page": _answers(502, kind="text/html", form="<html><h1>{}</h1></html>"),
    "page-200": _answers(200, kind="text/html", form="<html><h1>{}</h1></html>"),
    "error-200": _answers(200),
    "reason": _reason,
    "error-event": _error_event,
    "redirect": _redirect,
    "not-json": _not_json,
    "wrong-shape": _wrong_shape,
    "not-http": _raw("{}\r\n\r\n"),
    "bad-header": _raw("HTTP/1.1 200 OK\r\nX\x01: {}\r\n\r\n"),
    "bad-length": _raw("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n"),
    "reset": _reset,
    "reset-midway": _reset_midway,
    "stalls": _stall,
}
