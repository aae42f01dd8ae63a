"""Requests of each flood, as bytes."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

FLOOD_KEY, VICTIM_KEY = "gk-flood", "gk-victim"
_MAX_BYTES = 8_000_000 - 1000  # of the default of server.max_body
_PROMPT_BYTES = 64_000
_DEPTH = 200
_ESCAPES = (_MAX_BYTES - 200) // len("\\u00e9")

# whole: callers read each reply and send the next request. unread: they read only the first bytes of a reply.
# unfinished: they send half of a body.
Manner = Literal["whole", "unread", "unfinished"]


@dataclass(frozen=True)
class Flood:
    """A flood of requests.

    Attributes:
        callers: concurrent connections.
        hostile_body: whether it is measured without being part of the acceptance.
    """

    name: str
    what: str
    callers: int
    body: Callable[[], bytes]
    manner: Manner = "whole"
    key: str = FLOOD_KEY
    gzipped: bool = False
    hostile_body: bool = False

    def request(self, url: str) -> bytes:
        """Return one request, with half of the body if the flood is `unfinished`."""
        address = urlsplit(url)
        body = gzip.compress(self.body(), 9) if self.gzipped else self.body()
        lines = [f"POST {address.path} HTTP/1.1", f"Host: {address.netloc}", "Content-Type: application/json"]
        lines += [f"Authorization: Bearer {self.key}", f"Content-Length: {len(body)}"]
        lines += ["Content-Encoding: gzip"] if self.gzipped else []
        head = "\r\n".join([*lines, "", ""]).encode()
        return head + (body[: len(body) // 2] if self.manner == "unfinished" else body)


def chat(model: str, *, prompt: str = "Why is the sky blue?", stream: bool = False) -> bytes:
    """Return a small chat completion's body."""
    messages = [{"role": "user", "content": prompt}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 50, "stream": stream}).encode()


def _with(value: bytes) -> bytes:
    """Return a chat completion's body with a field that no engine knows."""
    return chat("json")[:-1] + b', "x": ' + value + b"}"


def _filled(unit: bytes) -> bytes:
    return _with(b"[" + b",".join([unit] * (_MAX_BYTES // (len(unit) + 1))) + b"]")


def _hostile(name: str, what: str, unit: bytes, *, gzipped: bool = False) -> Flood:
    return Flood(name, what, 4, lambda: _filled(unit), gzipped=gzipped, hostile_body=True)


TOGETHER = "all together"
"""All floods of one tenant that are part of the acceptance, at the same time."""

FLOODS = (
    Flood("JSON", "200 callers, JSON answers", 200, lambda: chat("json")),
    Flood("SSE", "200 callers, streams of 23 events", 200, lambda: chat("stream", stream=True)),
    Flood(
        "unread streams", "1,200 endless streams that nobody reads", 1200, lambda: chat("slow", stream=True), "unread"
    ),
    Flood("unfinished bodies", "4,500 bodies of which half arrives", 4500, lambda: chat("json"), "unfinished"),
    Flood(
        "gzip",
        "200 callers, compressed bodies of 64 kB",
        200,
        lambda: chat("json", prompt="sky " * (_PROMPT_BYTES // 4)),
        gzipped=True,
    ),
    Flood("rejected", "200 callers with a wrong key", 200, lambda: chat("json"), key="gk-wrong"),
    _hostile("nested lists", "4 callers, 8 MB of [],[],...", b"[]"),
    _hostile("nested lists, gzip", "4 callers, the same in 8 kB", b"[]", gzipped=True),
    _hostile("deep nesting", "4 callers, 8 MB of lists 200 deep", b"[" * _DEPTH + b"]" * _DEPTH),
    Flood(
        "escapes",
        "4 callers, 8 MB of escaped text, accepted",
        4,
        lambda: chat("json", prompt="é" * _ESCAPES),
        hostile_body=True,
    ),
    _hostile("small nodes", "4 callers, 8 MB of objects, numbers and texts", b'{"a":1},"b",2'),
)


def named(name: str) -> tuple[Flood, ...]:
    """Return the flood of that name, or all floods of `TOGETHER`."""
    return tuple(flood for flood in FLOODS if flood.name == name or (name == TOGETHER and not flood.hostile_body))
