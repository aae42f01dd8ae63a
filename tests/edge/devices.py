"""A device: a student's server that records its requests."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from gateway.edge import EdgeClient, UrlStudent
from tests.edge.fake_gateway import KEY
from tests.engines.toy_servers import QUESTION
from tests.fakes import served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engines.fake_server import Handler
    from tests.engines.toy_servers import ToyServer

NOBODY = "http://127.0.0.1:9"
"""An address without a server."""
ASKED: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": QUESTION}]}


@dataclass
class Device:
    """A student's address, and its request bodies by path."""

    url: str = ""
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def answers(self) -> list[dict[str, Any]]:
        """Return the requests without the probes, which are not streamed."""
        return [body for _, body in self.bodies if body.get("stream")]


@contextmanager
def device(routes: dict[str, Handler]) -> Iterator[Device]:
    """Serve a student's routes."""
    found = Device()

    async def answer(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        found.bodies.append((request.path, orjson.loads(raw) if raw else {}))
        handler = routes.get(request.path)
        return await handler(request) if handler is not None else web.Response(status=404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    with served(app) as found.url:
        yield found


def toy(server: ToyServer) -> Any:
    """Start a device with one of the toy servers."""
    return device(server.routes())


def client(gateway: str, student: Device, queue: Path, **more: Any) -> EdgeClient:
    """Return a client of both, with the first model that the server lists."""
    return EdgeClient(gateway, key=KEY, student=UrlStudent(f"{student.url}/v1"), queue=queue, **more)


def text(chunks: list[dict[str, Any]], by: str | None = None) -> str:
    """Return the text of the chunks: all of it, or that of the teacher or the student."""
    selected = [chunk for chunk in chunks if by is None or chunk["gkt"].get("by") == by]
    return "".join(choice["delta"].get("content") or "" for chunk in selected for choice in chunk["choices"])


def facts(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the facts at the end of an answer."""
    return next(chunk["gkt"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"])
