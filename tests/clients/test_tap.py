"""The counting proxy, tested with a plain client: it records exactly the sent bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from aiohttp import web

from tests.clients.tap import Tap
from tests.fakes import served

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENTS = b"data: one\n\n" + b"data: two\n\n" * 100_000


async def _echo(request: web.Request) -> web.Response:
    body = await request.read()
    return web.Response(body=body, status=201, headers={"X-Length": str(len(body))})


async def _events(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=EVENTS, content_type="text/event-stream")


@pytest.fixture
def tap() -> Iterator[Tap]:
    app = web.Application(client_max_size=10_000_000)
    app.router.add_post("/echo", _echo)
    app.router.add_post("/events", _events)
    with served(app) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with Tap((host, int(port)), cuts=frozenset({"cut"}), withholds=frozenset({"slow"})).running() as tap:
            yield tap


def test_calls_on_one_connection_are_counted_separately_and_forwarded_unchanged(tap: Tap) -> None:
    """Short and long bodies, in order, each with its reply's head."""
    bodies = [{"model": "m", "n": 1}, {"model": "m", "text": "x" * 1_000_000}, {"model": "m", "n": 3}]
    with httpx.Client(base_url=tap.url) as client:
        answers = [client.post("/echo", json=body, headers={"X-Mark": "here"}) for body in bodies]
    assert [answer.json() for answer in answers] == bodies
    assert [call.json for call in tap.calls] == bodies
    assert {(call.method, call.path, call.status, call.headers["x-mark"]) for call in tap.calls} == {
        ("POST", "/echo", 201, "here")
    }
    assert [call.reply_headers["x-length"] for call in tap.calls] == [str(len(call.body)) for call in tap.calls]


def test_a_wire_that_is_to_be_cut_is_cut_in_the_middle(tap: Tap) -> None:
    """The client detects that its reply has no end. The reply of another model has one."""
    with httpx.Client(base_url=tap.url) as client:
        assert client.post("/events", json={"model": "whole"}).content == EVENTS
        with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
            client.post("/events", json={"model": "cut"})
    assert [call.status for call in tap.calls] == [200, 200]


def test_a_byte_that_is_withheld_does_not_arrive(tap: Tap) -> None:
    """The server waits for the byte."""
    with httpx.Client(base_url=tap.url, timeout=1.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/echo", json={"model": "slow"})
    assert [(call.json["model"], call.status) for call in tap.calls] == [("slow", None)]
