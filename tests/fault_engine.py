"""An engine on a raw socket that controls every byte and every packet of its replies.

It supports OpenAI's and TGI's protocol, whole and streamed. `tests/faults.py` defines the faults.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from gateway.protocol.capabilities.continuation import PROBE_PREFIX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Json = dict[str, Any]
    Play = Callable[["Wire"], Awaitable[None]]

# As tokens are: no space between two other characters.
PIECES = ("The", " sky—is", " 青い光", " scatters", " most🌈", " and", " so.")
TEXT = "".join(PIECES)
COUNTED = {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}
GUIDANCE_TOKENS = 7
MISSING: Any = object()
SECRET = "sk-of-the-engine"
"""The key that the engine is called with; it quotes it, and its address, wherever it says what went wrong."""

GUIDED = frozenset({"guided-stream", "guided-stream-of-two", "second-guided"})
"""Calls of students that get guidance."""
CONTINUING = GUIDED | {"student-stream", "stream-of-two", "json-of-two", "second"}
"""Calls of students that continue their own text, or that of another student, after a broken stream."""
_READ_WITHIN_S = 1.0
_APART_S = 0.001  # long enough for two packets not to be read as one, unless the machine is busy
_MEGABYTE = 1_000_000


@dataclass
class Wire:
    """A call, with methods to answer it byte by byte. `call` names its kind."""

    protocol: str
    path: str
    body: Json
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    usage: Any = field(default_factory=lambda: COUNTED)
    over: bool = False  # nothing more goes over this connection
    call: str = ""

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream")) or self.path == "/generate_stream"

    @property
    def pieces(self) -> tuple[str, ...]:
        """The tokens of the answer, less those with which the request ends. Guidance is not one of them."""
        last = (self.body.get("messages") or [{}])[-1]
        if last.get("role") != "assistant" or self.call not in CONTINUING:
            return PIECES
        begun = last["content"].removeprefix(TEXT) if self.call in GUIDED else last["content"]
        return PIECES[next(count for count in range(len(PIECES) + 1) if "".join(PIECES[:count]) == begun) :]

    @property
    def address(self) -> str:
        """The engine's own URL. Callers must never see it."""
        host, port = self.writer.get_extra_info("sockname")[:2]
        return f"http://{host}:{port}"

    @property
    def finish(self) -> str:
        """The finish reason. Guidance ends at the token limit, as a teacher's does."""
        return "length" if self.body.get("max_tokens") == GUIDANCE_TOKENS else "stop"

    # What an engine without fault says.

    def whole(self) -> bytes:
        """Return the body of a reply that is not streamed."""
        if self.path == "/generate":
            details = {"finish_reason": "length", "generated_tokens": 7, "seed": None, "prefill": [], "tokens": []}
            return orjson.dumps({"generated_text": TEXT, "details": details})
        choice: Json = {"message": {"role": "assistant", "content": TEXT}}
        if self.path.endswith("/completions") and not self.path.endswith("/chat/completions"):
            choice = {"text": TEXT}
        reply: Json = {"id": "theirs-1", "object": "chat.completion", "created": 1, "model": "org/model"}
        reply["choices"] = [{"index": 0, **choice, "logprobs": None, "finish_reason": self.finish}]
        if self.usage is not MISSING:
            reply["usage"] = self.usage
        return orjson.dumps(reply)

    def events(self) -> list[bytes]:
        """Return the data of each event of a streamed reply. Chats end with usage and [DONE]."""
        if self.path == "/generate_stream":
            return [orjson.dumps(token) for token in _tokens()]
        first: Json = {"role": "assistant", "content": ""}
        # TGI names the role in every delta, and OpenAI in the first alone.
        role: Json = {"role": "assistant"} if self.protocol == "tgi" else {}
        deltas = [first, *({**role, "content": piece} for piece in self.pieces)]
        end = {**role, "content": ""} if role else {}
        chunks = [_chunk([_choice(delta)]) for delta in deltas] + [_chunk([_choice(end, self.finish)])]
        if self.usage is not MISSING:
            chunks.append({**_chunk([]), "usage": self.usage})
        return [orjson.dumps(chunk) for chunk in chunks] + [b"[DONE]"]

    @property
    def counts(self) -> dict[str, str]:
        """The headers in which TGI reports token counts."""
        if self.protocol != "tgi" or not isinstance(self.usage, dict):
            return {}
        return {"x-prompt-tokens": str(self.usage["prompt_tokens"]),
                "x-generated-tokens": str(self.usage["completion_tokens"])}  # fmt: skip

    # How it is sent.

    async def is_read(self) -> None:
        """Wait until the gateway has read the sent bytes, also on a busy machine. A later fault then follows them."""
        await asyncio.sleep(_READ_WITHIN_S)

    async def send(self, *packets: bytes) -> None:
        """Send each packet on its own."""
        for packet in packets:
            self.writer.write(packet)
            await self.writer.drain()
            await asyncio.sleep(_APART_S)

    async def begin(self, status: int = 200, **headers: str) -> None:
        """Send the head of a reply whose body comes in chunks."""
        kind = "text/event-stream" if self.streamed else "application/json"
        await self.send(head(status, **{"content_type": kind, "transfer_encoding": "chunked"} | headers))

    async def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        """Send a reply in one piece."""
        defaults = {"content_type": "application/json", "content_length": str(len(body))}
        await self.send(head(status, **defaults | headers) + body)

    async def answer(self) -> None:
        """Answer without a fault."""
        if self.streamed:
            await self.stream(event(data) for data in self.events())
        else:
            counts = {name.replace("-", "_"): value for name, value in self.counts.items()}
            await self.reply(self.whole(), **counts)

    async def stream(self, packets: Any, **headers: str) -> None:
        """Send a whole stream, each part as a chunk and a packet of its own."""
        await self.begin(**headers)
        for packet in packets:
            await self.send(chunked(packet))
        await self.send(b"0\r\n\r\n")

    async def many_bytes(self, before: bytes, megabytes: int) -> None:
        """Send a chunk without end, as far as the gateway reads it."""
        await self.send(chunked(before))
        for _ in range(megabytes):
            await self.send(chunked(b"a" * _MEGABYTE))

    async def reset(self) -> None:
        """Reset the connection (RST)."""
        await self.is_read()
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()
        self.over = True

    async def stall(self) -> None:
        """Send nothing more until the gateway closes the connection."""
        self.over = True
        await self.reader.read()

    def hang_up(self) -> None:
        self.over = True


def head(status: int = 200, **headers: str) -> bytes:
    """Return the head of a reply. The parameter `content_type` sets Content-Type."""
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _chunk(choices: list[Json]) -> Json:
    return {"id": "theirs-1", "object": "chat.completion.chunk", "created": 1, "model": "org/model",
            "choices": choices}  # fmt: skip


def _choice(delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _tokens() -> Iterator[Json]:
    for index, piece in enumerate(PIECES, 1):
        last = index == len(PIECES)
        yield {
            "index": index,
            "token": {"id": index, "text": piece, "logprob": -0.1, "special": False},
            "top_tokens": [],
            "generated_text": TEXT if last else None,
            "details": {"finish_reason": "length", "generated_tokens": 7, "seed": None, "input_length": 10}
            if last
            else None,
        }


@dataclass
class FaultEngine:
    """Play the fault in the request's URL: /{protocol}/{fault}/{call}/..., where `call` is the kind of call.

    Attributes:
        requests: received bodies by `protocol/fault/call`, without probes.
        repaired: `protocol/fault/call` that answer without a fault from now on.
        unexpected_paths: unexpected request paths.
    """

    plays: dict[str, Play]
    requests: dict[str, list[Json]] = field(default_factory=lambda: defaultdict(list))
    repaired: set[str] = field(default_factory=set)
    unexpected_paths: list[str] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[FaultEngine]:
        """Listen on a free port, on a thread of its own."""
        loop = asyncio.new_event_loop()
        started = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            started.set()
            with suppress(asyncio.CancelledError):
                await server.serve_forever()

        async def end() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        def run() -> None:
            asyncio.set_event_loop(loop)
            serving = loop.create_task(serve())
            loop.run_forever()
            loop.run_until_complete(end())
            assert serving.done()
            loop.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=10)

    def base(self, case_path: str) -> str:
        """Return the `api_base` of `protocol/fault/call`."""
        return f"{self.url}/{case_path}" + ("/v1" if case_path.startswith("openai/") else "")

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answered(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether another may follow on the connection."""
        request_head = await reader.readuntil(b"\r\n\r\n")
        target = request_head.split(b" ", 2)[1].decode()
        size = re.search(rb"content-length: *([0-9]+)", request_head.lower())
        raw = await reader.readexactly(int(size[1]) if size else 0)
        _, protocol, fault, call, *rest = [*target.split("/"), "", "", ""]
        case_path, path = f"{protocol}/{fault}/{call}", "/" + "/".join(filter(None, rest))
        body: Json = orjson.loads(raw) if raw else {}
        wire = Wire(protocol, path, body, reader, writer, call=call)
        if (aside := _aside(path, body)) is not None:
            # Closed, so that a call never goes out over a connection that a probe made.
            await wire.reply(orjson.dumps(aside), connection="close")
            return False
        if fault not in self.plays:
            self.unexpected_paths.append(target)
            await wire.reply(b"{}", 404)
            return True
        self.requests[case_path].append(body)
        if case_path in self.repaired:
            await wire.answer()
        else:
            await self.plays[fault](wire)
        return not wire.over


def _aside(path: str, body: Json) -> Json | None:
    """Return the reply to a call that the gateway makes before it considers an engine up: models, limits, continuation
    probe.
    """
    if path.endswith("/models"):
        return {"object": "list", "data": [{"id": "org/model", "object": "model"}]}
    if path == "/info":
        return {"model_id": "org/model", "max_concurrent_requests": 128, "max_stop_sequences": 4}
    messages = body.get("messages") or [{}]
    if messages[-1].get("content") == PROBE_PREFIX:
        message = {"role": "assistant", "content": " o p q"}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}
    return None


@contextmanager
def refusing() -> Iterator[str]:
    """Yield a URL at which every connection is refused: the port is bound and nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
