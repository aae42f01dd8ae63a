"""Request bodies with the maximum CPU time for their size."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 8_000_000
"""The default of `max_body`."""

UNITS: dict[str, bytes] = {
    "lists": b"[]",
    "objects": b"{}",
    "objects in objects": b'{"a":{}}',
    "nested": b"[" * 200 + b"]" * 200,
    "nested objects": b'{"a":' * 200 + b"1" + b"}" * 200,
    "empty strings": b'""',
    "strings": b'"abc"',
    "digits": b"1",
    "short ids": b"300",
    "ids": b"128000",
    "lists of ids": b"[128000,7,91234]",
    "fractions": b"0.12345678901234567",
    "exponents": b"1e300",
    "beyond floats": b"1e999999",
    "long integers": b"9" * 4300,
    "nulls": b"null",
    "messages": b'{"role":"user","content":""}',
    "silent messages": b'{"role":"assistant","content":null}',
    "messages in parts": b'{"role":"user","content":[{"type":"text","text":""},{"type":"image_url"}]}',
    "tools": b'{"type":"function","function":{"name":"f","parameters":{}}}',
    "parts": b'{"type":"text","text":"a"}',
    "long parts": b'{"type":"text","text":"' + b"a" * 200 + b'"}',
    "pictures": b'{"type":"image_url","image_url":{"url":"data:,"}}',
}
"""Entries of a list."""

LISTS_OF_IDS: dict[str, bytes] = {
    f"lists of {count} ids": b"[" + b",".join([b"300"] * count) + b"]" for count in (970, 19_000, 990_000, 1_900_000)
}
"""Long entries of a list. The last has more ids than a body may have."""

TEXTS: dict[str, bytes] = {
    "prose": b"Birds, bees and [some] {other} things: ",
    "escaped code": b'def f(a):\\n\\treturn {\\"a\\": [a, 1]}\\n',
    "line ends": b"\\n",
    "quotes": b'\\"',
    "backslashes": b"\\\\",
    "escapes": b"\\u00e9",
    "pairs": b"\\ud83d\\ude00",
    "lone surrogates": b"\\ud83d",
    "letters beyond ASCII": "日本語".encode(),
    "emoji": "😀".encode(),
    "spaces": b" ",
    "base64": b"QUJD",
}
"""Contents of a string."""

PLACES = ("x", "messages", "prompt", "input", "tools", "stop", "metadata", "logit_bias", "response_format", "content")
"""Fields that may hold a unit: `content` is that of a message."""


def list_body(least: dict[str, bytes], place: str, unit: bytes, size: int) -> bytes:
    """Return a body of a given size in which a field is a list of units."""
    count = max(1, (size - 200) // (len(unit) + 1))
    return _body(least, place, b"[" + b",".join([unit] * count) + b"]")


def names_body(least: dict[str, bytes], place: str, name_bytes: int, size: int) -> bytes:
    """Return a body of a given size in which a field is an object with names of a given length."""
    count = max(1, (size - 200) // (name_bytes + 5))
    pairs = b",".join(b'"%0*d":1' % (name_bytes, index) for index in range(count))
    return _body(least, place, b"{" + pairs + b"}")


def text_body(least: dict[str, bytes], place: str, text: bytes, size: int) -> bytes:
    """Return a body of a given size in which a field is a string."""
    return _body(least, place, b'"' + text * max(1, (size - 200) // len(text)) + b'"')


def _body(least: dict[str, bytes], place: str, value: bytes) -> bytes:
    fields = dict(least)
    if place == "content":
        fields["messages"] = b'[{"role":"user","content":' + value + b"}]"
    else:
        fields[place] = value
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), field) for name, field in fields.items()) + b"}"


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": lambda raw: raw,
    "gzip": lambda raw: gzip.compress(raw, 1),
    "deflate": lambda raw: zlib.compress(raw, 1),
}
"""The content encodings that the gateway reads."""
