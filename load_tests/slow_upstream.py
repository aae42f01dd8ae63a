"""An engine with slow streams and low cost: it sends one event on each open stream per interval.

    python load_tests/slow_upstream.py --port 9000

All streams share one event loop and one clock. POST /pace {"interval_ms": 250} sets the interval of all streams. POST
/end ends them. GET /sent returns the number of sent events. A stream whose reader is too slow is skipped, so no data
accumulates. A request with `max_tokens`, such as a teacher's, gets that many tokens at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import dataclass, field
from typing import cast

import uvloop

# An interval is divided into slices with a part of the streams each, so that events are spread over the interval.
_SLICES = 25


def _event(choices: list[object], **more: object) -> bytes:
    body = {"id": "chatcmpl-slow", "object": "chat.completion.chunk", "created": 1700000000, "model": "static"}
    return f"data: {json.dumps({**body, 'choices': choices, **more}, separators=(',', ':'))}\n\n".encode()


def _choice(delta: object, finish: str | None = None) -> list[object]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_FIRST = _framed(_event(_choice({"role": "assistant", "content": ""})))
_TOKEN, _TEACHER_TOKEN = _framed(_event(_choice({"content": " word"}))), _framed(_event(_choice({"content": " hint"})))


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 24, "completion_tokens": tokens, "total_tokens": 24 + tokens}


def _last(finish: str, tokens: int) -> bytes:
    events = _event(_choice({}, finish)) + _event([], usage=_usage(tokens)) + b"data: [DONE]\n\n"
    return _framed(events) + b"0\r\n\r\n"


# The answer to the gateway's probe for continuation of the alphabet.
_ANSWER = {
    "id": "chatcmpl-slow",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "static",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": " o p q"}, "finish_reason": "stop"}],
    "usage": _usage(4),
}
_ABOUT = {"object": "list", "data": [{"id": "static", "object": "model"}], "model_id": "static"}


@dataclass
class Clock:
    """State shared by all streams."""

    interval_s: float = 0.25
    slices: list[set[UpstreamConnection]] = field(default_factory=lambda: [set() for _ in range(_SLICES)])
    joined: int = 0
    sent: int = 0

    def add(self, stream: UpstreamConnection) -> set[UpstreamConnection]:
        self.joined += 1
        members = self.slices[self.joined % _SLICES]
        members.add(stream)
        return members

    def end(self) -> None:
        for members in self.slices:
            for stream in list(members):
                stream.finish()

    async def run(self) -> None:
        """Run forever. If the machine is too slow for the interval, missed events are dropped."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            for members in self.slices:
                due = max(due + self.interval_s / _SLICES, loop.time() - self.interval_s)
                await asyncio.sleep(due - loop.time())
                for stream in members:
                    self.sent += stream.token()


class UpstreamConnection(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._received = b""
        self._slice: set[UpstreamConnection] | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is no subclass of asyncio.Transport

    def connection_lost(self, _: Exception | None) -> None:
        self._leave()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        size = lengths[0] if lengths else 0
        if blank and len(rest) >= size:
            self._received = rest[size:]
            self._answer(head.split(b" ", 2)[1].decode(), rest[:size])

    def token(self) -> bool:
        """Send one event unless the reader is behind. Return whether it was sent."""
        if self._paused:
            return False
        self._transport.write(_TOKEN)
        return True

    def finish(self) -> None:
        self._leave()
        self._transport.write(_last("stop", 240))

    def _answer(self, path: str, body: bytes) -> None:
        request = json.loads(body) if body else {}
        if path == "/pace":
            self._clock.interval_s = request["interval_ms"] / 1000
        elif path == "/end":
            self._clock.end()
        elif request.get("stream") and (count := request.get("max_tokens")):
            self._transport.write(_HEAD + _FIRST + _TEACHER_TOKEN * count + _last("length", count))
            return
        elif request.get("stream"):
            self._transport.write(_HEAD + _FIRST)
            self._slice = self._clock.add(self)
            return
        reply = {"sent": self._clock.sent} if path == "/sent" else _ANSWER if "messages" in request else _ABOUT
        raw = json.dumps(reply).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(raw)
        self._transport.write(head + raw)

    def _leave(self) -> None:
        if self._slice is not None:
            self._slice.discard(self)
            self._slice = None


async def serve(port: int) -> None:
    clock = Clock()
    await asyncio.get_running_loop().create_server(lambda: UpstreamConnection(clock), "127.0.0.1", port, backlog=1024)
    await clock.run()


def main() -> None:
    flags = argparse.ArgumentParser(description="A slow and cheap stream of events on 127.0.0.1.")
    flags.add_argument("--port", type=int, required=True)
    uvloop.run(serve(flags.parse_args().port))


if __name__ == "__main__":
    main()
