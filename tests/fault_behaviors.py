"""The faults of an engine: each function plays one fault for one call, over the `Wire` of tests/fault_engine.py."""

from __future__ import annotations

import gzip
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import orjson

from tests.fault_engine import SECRET, chunked, event, head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.fault_engine import Json, Play, Wire


def streamed(packets: Callable[[list[bytes]], Iterable[bytes]], **headers: str) -> Play:
    """Return a play whose stream consists of packets made of the events' data. Whole replies have no fault."""

    async def play(wire: Wire) -> None:
        if wire.streamed:
            await wire.stream(packets(wire.events()), **headers)
        else:
            await wire.answer()

    return play


def _half(wire: Wire) -> bytes:
    """Return the first half of the reply, as it is sent."""
    if wire.streamed:
        events = wire.events()
        return b"".join(map(event, events[: len(events) // 2]))
    whole = wire.whole()
    return whole[: len(whole) // 2]


async def nothing(wire: Wire) -> None:
    await wire.answer()


# Connections.


async def reset_before_head(wire: Wire) -> None:
    await wire.reset()


async def reset_after_head(wire: Wire) -> None:
    await wire.begin()
    await wire.reset()


async def reset_between(wire: Wire) -> None:
    await wire.begin()
    await wire.send(chunked(_half(wire)))
    await wire.reset()


async def reset_inside_chunk(wire: Wire) -> None:
    await wire.begin()
    half = _half(wire)
    await wire.send(chunked(half + half)[: len(half)])
    await wire.reset()


async def closed_before_head(wire: Wire) -> None:
    wire.hang_up()


async def closed_halfway(wire: Wire) -> None:
    await wire.begin()
    await wire.send(chunked(_half(wire)))
    wire.hang_up()


async def ends_halfway(wire: Wire) -> None:
    await wire.begin()
    await wire.send(chunked(_half(wire)), b"0\r\n\r\n")


async def head_alone(wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 200")
    wire.hang_up()


async def not_http(wire: Wire) -> None:
    await wire.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    wire.hang_up()


# Silence.


async def stall_before_head(wire: Wire) -> None:
    await wire.stall()


async def stall_before_token(wire: Wire) -> None:
    await wire.begin()
    await wire.stall()


async def stall_between(wire: Wire) -> None:
    await wire.begin()
    await wire.send(chunked(_half(wire)))
    await wire.stall()


async def stall_after_last(wire: Wire) -> None:
    """Send all in one packet. On a busy machine a pause between two packets would be a second stall."""
    await wire.begin()
    payload = b"".join(event(data) for data in wire.events() if data != b"[DONE]") if wire.streamed else wire.whole()
    await wire.send(chunked(payload))
    await wire.stall()


# What is sent well, but cut and framed in odd ways.


async def split_character(wire: Wire) -> None:
    if wire.streamed:
        whole = b"".join(map(event, wire.events()))
        await wire.stream(_cut(whole, *_inside_characters(whole)))
    else:
        body = wire.whole()
        await wire.begin(**{name.replace("-", "_"): value for name, value in wire.counts.items()})
        await wire.send(*map(chunked, _cut(body, *_inside_characters(body))), b"0\r\n\r\n")


def _inside_characters(raw: bytes) -> list[int]:
    return [at for at in range(len(raw)) if raw[at] & 0b1100_0000 == 0b1000_0000]


def _cut(raw: bytes, *cuts: int) -> list[bytes]:
    edges = [0, *cuts, len(raw)]
    return [raw[start:end] for start, end in pairwise(edges) if start < end]


def split_field(events: list[bytes]) -> Iterable[bytes]:
    """Cut inside `data:`, after it, inside the data, and between the two line ends."""
    for data in map(event, events):
        yield from _cut(data, 2, 5, 6, len(data) // 2, len(data) - 1)


def in_pairs(events: list[bytes]) -> Iterable[bytes]:
    framed = list(map(event, events))
    for at in range(0, len(framed), 2):
        yield b"".join(framed[at : at + 2])


def all_at_once(events: list[bytes]) -> Iterable[bytes]:
    yield b"".join(map(event, events))


def crlf(events: list[bytes]) -> Iterable[bytes]:
    for data in events:
        yield from _cut(b"data: " + data + b"\r\n\r\n", 7)


def split_crlf(events: list[bytes]) -> Iterable[bytes]:
    for data in events:
        yield from (b"data: " + data + b"\r", b"\n\r", b"\n")


def without_space(events: list[bytes]) -> Iterable[bytes]:
    return (b"data:" + data + b"\n\n" for data in events)


def commented(events: list[bytes]) -> Iterable[bytes]:
    """Add comments and other fields. TGI sends `:` every 15 s, OpenRouter sends `: OPENROUTER PROCESSING`."""
    for number, data in enumerate(events):
        yield b": OPENROUTER PROCESSING\n\n:\n\n"
        yield b"event: message\nid: %d\nretry: 3000\n" % number + event(data)


def with_mark(events: list[bytes]) -> Iterable[bytes]:
    _, first, *rest = map(event, events)  # the first one says nothing
    return [b"\xef\xbb\xbf" + first, *rest]


def without_last(events: list[bytes]) -> Iterable[bytes]:
    return map(event, events[:-1])


def unended(events: list[bytes]) -> Iterable[bytes]:
    """Omit the blank line after the last event, and [DONE]."""
    *before, last = list(map(event, events[:-1]))
    return [*before, last.rstrip(b"\n")]


def unfinished(events: list[bytes]) -> Iterable[bytes]:
    return (event(_with(data, finish_reason=None)) for data in events)


def cut_off(events: list[bytes]) -> Iterable[bytes]:
    return list(unfinished(events))[:-1]


def _with(data: bytes, **fields: Any) -> bytes:
    """Return an event with other fields in its choices."""
    if data == b"[DONE]":
        return data
    chunk = orjson.loads(data)
    for choice in chunk.get("choices", ()):
        choice.update(fields)
    return orjson.dumps(chunk)


def changing(events: list[bytes]) -> Iterable[bytes]:
    """Change id, model and time between chunks; two consecutive chunks share an id."""
    for number, data in enumerate(events):
        if data == b"[DONE]":
            yield event(data)
        else:
            head = {"id": f"theirs-{number // 2}", "model": f"model-{number}", "created": number}
            yield event(orjson.dumps({**orjson.loads(data), **head}))


async def broken_chunks(wire: Wire) -> None:
    await wire.begin()
    await wire.send(chunked(_half(wire)))
    await wire.is_read()
    await wire.send(b"not a size\r\n")
    await wire.stall()


async def early_hints(wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n")
    await wire.answer()


async def other_heads(wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n")
    await wire.answer()


async def gzipped(wire: Wire) -> None:
    counts = {name.replace("-", "_"): value for name, value in wire.counts.items()}
    if not wire.streamed:
        await wire.reply(gzip.compress(wire.whole()), content_encoding="gzip", **counts)
        return
    packer = zlib.compressobj(wbits=31)
    await wire.begin(content_encoding="gzip")
    for data in wire.events():
        packed = packer.compress(event(data)) + packer.flush(zlib.Z_SYNC_FLUSH)
        await wire.send(chunked(packed))
    await wire.send(chunked(packer.flush()), b"0\r\n\r\n")


async def gzip_in_name(wire: Wire) -> None:
    packets = list(map(event, wire.events())) if wire.streamed else [wire.whole()]
    await wire.begin(content_encoding="gzip")
    await wire.send(*map(chunked, packets), b"0\r\n\r\n")


async def unknown_encoding(wire: Wire) -> None:
    await wire.begin(content_encoding="br")  # Python 3.14 decodes zstd
    await wire.send(chunked(b"\x0b\x14\x80" + b"\0" * 40), b"0\r\n\r\n")


# Errors that the engine tells of.


def answers(status: int, body: Json | bytes, **headers: str) -> Play:
    async def play(wire: Wire) -> None:
        raw = orjson.dumps(_telling(body, wire)) if isinstance(body, dict) else body
        await wire.reply(raw, status, **headers)

    return play


def rejects(status: int, body: Json) -> Play:
    """Return a play that rejects a call. TGI has sent 200 before it reads a streamed call, so it sends an error event.

    The event of a chat has no error type, and its status is 422 for every error.
    """
    whole = answers(status, body)
    in_stream = fails_with({"error": {"message": body["error"], "http_status_code": 422}}, done=True)

    async def play(wire: Wire) -> None:
        await (in_stream if wire.protocol == "tgi" and wire.streamed else whole)(wire)

    return play


def _telling(template: Json, wire: Wire) -> Json:
    """Return an error body with the engine's address and key in it, which no caller may see."""
    text = orjson.dumps(template).decode()
    payload: Json = orjson.loads(text.replace("WHERE", wire.address).replace("KEY", SECRET))
    return payload


def fails_with(template: Json, *, after: int = 0, done: bool = False) -> Play:
    """Return a play that sends an error event under HTTP 200 after `after` events.

    A whole reply has the error as its body.
    """

    async def play(wire: Wire) -> None:
        payload = orjson.dumps(_telling(template, wire))
        if wire.streamed:
            last = [event(b"[DONE]")] if done else []
            await wire.stream([*map(event, wire.events()[:after]), event(payload), *last])
        else:
            await wire.reply(payload)

    return play


HTML = b"<html><body>502 Bad Gateway, upstream 10.0.0.7:8080</body></html>"
OPENAI_ERROR: Json = {
    "error": {"message": "boom at WHERE with KEY", "type": "server_error", "param": None, "code": "server_error"}
}
VLLM_ERROR: Json = {
    "error": {"object": "error", "message": "boom at WHERE", "type": "InternalServerError", "param": None, "code": 500}
}
TGI_ERROR: Json = {"error": "Request failed during generation: boom at WHERE", "error_type": "generation"}
TGI_CHAT_ERROR: Json = {"error": {"message": "Request failed during generation: boom", "http_status_code": 422}}
TGI_VALIDATION_ERROR: Json = {"error": "Input validation error: inputs too long", "error_type": "validation"}
TOO_MUCH: Json = {"error": "Model is overloaded", "error_type": "overloaded"}


async def quota_date(wire: Wire) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    await wire.reply(orjson.dumps(TOO_MUCH), 429, retry_after=until)


async def redirects(wire: Wire) -> None:
    await wire.send(head(307, location=f"{wire.address}/elsewhere", content_length="0"))


# Replies with an unexpected size.


async def endless_line(wire: Wire) -> None:
    await wire.begin()
    await wire.many_bytes(b"data: " if wire.streamed else b'{"choices": [{"message": {"content": "', 50)


async def endless_lines(wire: Wire) -> None:
    await wire.begin()
    for _ in range(50):
        await wire.send(chunked(b"data:\n" * (1_000_000 // 6)))


@cache
def _packed(megabytes: int) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(b" " * 1_000_000) for _ in range(megabytes)) + packer.flush()


async def bomb(wire: Wire) -> None:
    packed = _packed(50)
    kind = "text/event-stream" if wire.streamed else "application/json"
    await wire.reply(packed, content_type=kind, content_encoding="gzip")


async def longer_than_it_is(wire: Wire) -> None:
    """Send fewer bytes than Content-Length and close the connection."""
    body = b"".join(map(event, wire.events()[:-1])) if wire.streamed else wire.whole()
    kind = "text/event-stream" if wire.streamed else "application/json"
    await wire.reply(body, content_type=kind, content_length=str(len(body) + 100))
    wire.hang_up()


async def longer_and_waits(wire: Wire) -> None:
    body = b"".join(map(event, wire.events()[:-1])) if wire.streamed else wire.whole()
    kind = "text/event-stream" if wire.streamed else "application/json"
    await wire.reply(body, content_type=kind, content_length=str(len(body) + 100))
    await wire.stall()


async def shorter_than_it_is(wire: Wire) -> None:
    body = b"".join(map(event, wire.events())) if wire.streamed else wire.whole()
    kind = "text/event-stream" if wire.streamed else "application/json"
    await wire.reply(body, content_type=kind, content_length=str(len(body) // 2))


# Tokens that are not counted.


def counting(usage: Any) -> Play:
    async def play(wire: Wire) -> None:
        wire.usage = usage
        await wire.answer()

    return play


ZERO = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
