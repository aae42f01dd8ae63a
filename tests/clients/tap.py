"""A counting proxy between a client and the gateway: it forwards bytes unchanged and records each call."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Call:
    """A request on the wire and the head of its reply. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    at_s: float
    body: bytes = b""
    status: int | None = None
    reply_headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> dict[str, Any]:
        """The body; empty if there is none or if it is incomplete."""
        try:
            read = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}
        assert isinstance(read, dict)
        return read

    def asks(self, question: str) -> bool:
        """Return whether the last message or item, the raw prompt or the text to embed is `question`."""
        body = self.json
        turns = body.get("messages") or body.get("input")
        if not turns or isinstance(turns, str):
            return question in (body.get("prompt"), body.get("input"))
        if isinstance(turns[-1], str):
            return turns[-1] == question
        return turns[-1].get("content") in (
            question,
            [{"type": "text", "text": question}],
            [{"type": "input_text", "text": question}],
        )


class Tap:
    """Listen on a port of its own and forward all bytes to `upstream` (host, port), from a thread.

    Replies to calls of a model in `cuts` end after their first event without a last chunk, as if a proxy was stopped.
    The last byte of a call of a model in `withholds` is not forwarded.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        *,
        cuts: frozenset[str] = frozenset(),
        withholds: frozenset[str] = frozenset(),
    ) -> None:
        self._upstream = upstream
        self._cuts = cuts
        self._withholds = withholds
        self.calls: list[Call] = []
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[Tap]:
        started = threading.Event()
        loop = asyncio.new_event_loop()
        ended = asyncio.Event()

        async def listen() -> None:
            async with await asyncio.start_server(self._pass_on, "127.0.0.1", 0) as server:
                self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                started.set()
                await ended.wait()
                left = asyncio.all_tasks() - {asyncio.current_task()}
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

        thread = threading.Thread(target=lambda: (loop.run_until_complete(listen()), loop.close()), daemon=True)
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(timeout=10)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        seen = _Seen(self.calls)

        def on_request(data: bytes) -> tuple[bytes, bool]:
            seen.on_request(data)
            return data[:-1] if seen.model in self._withholds else data, True

        def answered(data: bytes) -> tuple[bytes, bool]:
            seen.answered(data)
            return data, not (seen.model in self._cuts and b"data: " in data)

        ways = [
            asyncio.create_task(_pump(reader, up_writer, on_request)),  # noqa: TID251
            asyncio.create_task(_pump(up_reader, writer, answered)),  # noqa: TID251
        ]
        try:
            # A client that has closed, or a gateway that has: either ends both ways.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            results = await asyncio.gather(*ways, return_exceptions=True)
            for one in (writer, up_writer):
                one.close()
        for result in results:
            if isinstance(result, AssertionError):
                raise result


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, transform: Callable[[bytes], tuple[bytes, bool]]
) -> None:
    """Pass bytes on as `look` hands them back, until the end, or until it says False."""
    try:
        while data := await reader.read(65536):
            data, continues = transform(data)
            writer.write(data)
            await writer.drain()
            if not continues:
                return
    except ConnectionError:
        return


class _Seen:
    """The calls of one connection, one after the other: HTTP/1.1 without pipelining."""

    def __init__(self, all_calls: list[Call]) -> None:
        self._all_calls = all_calls
        self.calls: list[Call] = []
        self._request = self._answer = b""
        self._body_left = 0

    @property
    def model(self) -> str | None:
        """The model of the last call, once its body is complete."""
        return self.calls[-1].json.get("model") if self.calls and not self._body_left else None

    def on_request(self, data: bytes) -> None:
        self._request += data
        while self._request:
            if self._body_left:
                body, self._request = self._request[: self._body_left], self._request[self._body_left :]
                self.calls[-1].body += body
                self._body_left -= len(body)
            elif b"\r\n\r\n" in self._request:
                head, _, self._request = self._request.partition(b"\r\n\r\n")
                self._begin(head)
            else:
                return

    def _begin(self, head: bytes) -> None:
        line, headers = _parse(head)
        assert "transfer-encoding" not in headers, "a body in chunks: this tap does not read those"
        method, path, _ = line.split(" ")
        call = Call(method, path, headers, time.monotonic())
        self._body_left = int(headers.get("content-length", 0))
        self._answer = b""
        self.calls.append(call)
        self._all_calls.append(call)

    def answered(self, data: bytes) -> None:
        call = self.calls[-1]
        if call.status is not None:
            return
        self._answer += data
        if b"\r\n\r\n" in self._answer:
            line, call.reply_headers = _parse(self._answer.partition(b"\r\n\r\n")[0])
            call.status = int(line.split(" ")[1])


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    line, *rest = head.decode("latin-1").split("\r\n")
    pairs = (text.partition(":") for text in rest)
    return line, {name.lower(): value.strip() for name, _, value in pairs}
