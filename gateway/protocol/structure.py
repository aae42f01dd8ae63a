"""Bound the structure of a JSON document by its bytes, before it is decoded.

`orjson.loads` holds the interpreter lock, and each list or object is work for every later step. The bytes are read in
pieces by C functions, so other threads run between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from gateway.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 254
"""Deepest JSON that orjson can encode. Deeper JSON could be decoded and never sent."""

MAX_VALUES = 100_000
"""Largest number of JSON values in one body: list entries, fields, lists and objects together.

10,000 messages with a tool call each have 90,000. orjson decodes this number in at most 10 ms.
"""

INLINE_VALUES = 10_000
"""A document with fewer values than this is decoded on the event loop."""
INLINE_BYTES = 256_000
"""A document of at most this size is decoded on the event loop."""

_ENCODED_INLINE_CHARS = 200_000
_ENTRY_CHARS = 40
_FRAGMENT = orjson.Fragment  # contains JSON that was too large to be decoded
_CHUNK_BYTES = 1 << 17
_SCANNED_BYTES = 2_000_000  # encoded in a few milliseconds


def is_light(raw: bytes) -> bool:
    """Return whether decoding a document takes a few milliseconds at most."""
    if len(raw) <= INLINE_VALUES:
        return True
    return len(raw) <= INLINE_BYTES and _brackets(raw) + raw.count(b",") <= INLINE_VALUES


def check_values(raw: bytes) -> int:
    """Reject a document with too many values by InvalidRequest. Return an upper bound of its opening brackets."""
    if len(raw) < MAX_VALUES:  # it has at most one value per byte
        return _brackets(raw)
    brackets, values = count_values(raw, MAX_VALUES)
    if values > MAX_VALUES:
        raise InvalidRequest(
            f"The body holds more than {MAX_VALUES} JSON values, the limit. Send fewer list entries and fields."
        )
    return brackets


def count_values(raw: bytes, limit: int) -> tuple[int, int]:
    """Return upper bounds of the brackets and of the values of a document. Counting stops above `limit` values.

    The bytes are first counted including text, which gives an upper bound. Only a document above the limit, or one that
    takes long to encode again, is read in full. Invalid JSON is left to the decoder.
    """
    brackets, values = _bounds(raw, limit)
    if values < limit and (brackets <= MAX_DEPTH or len(raw) <= _SCANNED_BYTES):
        return brackets, values
    values, brackets = 1, 0
    for outside in _outside_strings(raw):
        brackets += (opened := _brackets(outside))
        values += opened + outside.count(b",")
        if values > limit:
            break
    return brackets, values


def is_large(value: object) -> bool:
    """Return whether encoding a value as JSON takes more than about a millisecond."""
    room = _ENCODED_INLINE_CHARS
    pending: list[Any] = [(value,)]
    for one in pending:  # grows meanwhile
        room -= _ENTRY_CHARS * len(one)
        is_object = type(one) is dict
        if is_object:
            room -= len("".join(one))
        if room < 0:
            return True
        for entry in one.values() if is_object else one:
            kind = type(entry)
            if kind is str:
                room -= len(entry)
            elif kind is dict or kind is list or kind is tuple:
                pending.append(entry)
            elif kind is _FRAGMENT:
                return True
    return room < 0


def escape_safe_chunks(raw: bytes) -> Iterator[bytes]:
    """Split a document into pieces of bounded size, never between a backslash and the byte that it escapes."""
    start = 0
    while start < len(raw):
        end = start + _CHUNK_BYTES
        chunk = raw[start:end]
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2:
            end += 1
            chunk = raw[start:end]
        yield chunk
        start = end


def _brackets(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{")


def _bounds(raw: bytes, limit: int) -> tuple[int, int]:
    """Return upper bounds of the brackets and of the values, text included. Stop at `limit` values.

    One call for a large document would hold the interpreter lock for 20 ms.
    """
    brackets = commas = 0
    for start in range(0, len(raw), _CHUNK_BYTES):
        end = start + _CHUNK_BYTES
        brackets += raw.count(b"[", start, end) + raw.count(b"{", start, end)
        commas += raw.count(b",", start, end)
        if brackets + commas >= limit:
            break
    return brackets, brackets + commas


def _outside_strings(raw: bytes) -> Iterator[bytes]:
    inside = 0
    for chunk in escape_safe_chunks(raw):
        parts = chunk.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[inside::2])
        inside = (inside + len(parts) - 1) % 2
