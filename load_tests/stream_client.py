"""Read many streams at low cost: a bare protocol for each, which counts events and measures gaps."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_EVENT = b"data: {"
_END = b"[DONE]"


class Stream(asyncio.Protocol):
    """A call and its stream.

    Attributes:
        events: number of received events.
        longest_s: longest time between two reads with events since `measure`, without the current gap.
        status: of the reply; 0 before its head.
        done: whether the stream ended properly.
        lost: whether the connection ended before that.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self._last: float | None = None
        self.events = 0
        self.longest_s = 0.0
        self.status = 0
        self.done = self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is no subclass of asyncio.Transport
        self._now = asyncio.get_running_loop().time
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.status:
            self.status = int(data.split(b" ", 2)[1])
        # A marker may be split over two reads. The tail is shorter than the marker, so no event is counted twice.
        seen = self._tail + data
        self._tail = seen[-(len(_EVENT) - 1) :]
        if came := seen.count(_EVENT):
            self.events += came
            now = self._now()
            if self._last is not None and now - self._last > self.longest_s:
                self.longest_s = now - self._last
            self._last = now
        if _END in seen:
            self.done = True

    def connection_lost(self, _: Exception | None) -> None:
        self.lost = not self.done

    def measure(self) -> None:
        """Reset the measured gaps."""
        self._last, self.longest_s = self._now(), 0.0

    def gap_s(self) -> float:
        """Return the longest gap since `measure`, including the current one."""
        return max(self.longest_s, self._now() - self._last) if self._last is not None else 0.0

    def close(self) -> None:
        self._transport.abort()


def request(url: str, model: str, headers: Mapping[str, str]) -> bytes:
    """Return a streaming chat completion as bytes."""
    address = urlsplit(url)
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "Tell me a story."}]})
    lines = [f"POST {address.path} HTTP/1.1", f"Host: {address.netloc}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", body]
    return "\r\n".join(lines).encode()


async def open_streams(url: str, request: bytes, count: int, per_second: float) -> list[Stream]:
    """Open streams one after the other, and wait until each has begun. Raise TimeoutError if one has not."""
    loop = asyncio.get_running_loop()
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 80
    streams: list[Stream] = []
    began = loop.time()
    for number in range(count):
        await asyncio.sleep(began + number / per_second - loop.time())
        _, stream = await loop.create_connection(lambda: Stream(request), host, port)
        streams.append(stream)
    async with asyncio.timeout(30):
        while not all(stream.events for stream in streams):
            if bad := next((stream for stream in streams if stream.status not in {0, 200}), None):
                raise ConnectionError(f"a stream got status {bad.status}")
            await asyncio.sleep(0.05)
    return streams
