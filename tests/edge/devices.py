"""What stands on a device: a student's server that remembers what it was asked."""

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
"""Where nobody listens."""
ASKED: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": QUESTION}]}


@dataclass
class Device:
    """A student's address, and the bodies that it was asked with, by path."""

    url: str = ""
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def answers(self) -> list[dict[str, Any]]:
        """What it was asked beside the probes: those are not streamed."""
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
    """A device with one of the toy servers."""
    return device(server.routes())


def client(gateway: str, student: Device, queue: Path, **more: Any) -> EdgeClient:
    """A client of both, which takes what the first server lists."""
    return EdgeClient(gateway, key=KEY, student=UrlStudent(f"{student.url}/v1"), queue=queue, **more)


def text(chunks: list[dict[str, Any]], by: str | None = None) -> str:
    """What the chunks say, all of it or what the teacher or the student says."""
    said = [chunk for chunk in chunks if by is None or chunk["gkt"].get("by") == by]
    return "".join(choice["delta"].get("content") or "" for chunk in said for choice in chunk["choices"])


def facts(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What the end of an answer says of it."""
    return next(chunk["gkt"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"])
