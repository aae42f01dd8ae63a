"""Repair or locate text in a request body that is not valid Unicode."""

from __future__ import annotations

import re

from gateway.protocol.structure import escape_safe_chunks

BOM = b"\xef\xbb\xbf"
"""The byte order mark that some editors and clients write before UTF-8."""

# An escaped backslash. A zero byte occurs in no JSON document.
_BACKSLASH, _MARK = b"\\\\", b"\0\0"
_LOW = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LONE = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_IS_HIGH = re.compile(_HIGH)
_ESCAPE_BYTES = 6


def replace_lone_surrogates(raw: bytes) -> bytes:
    """Replace each escaped surrogate without its other half by U+FFFD, as UTF-8 decoders do.

    A client that cuts text between UTF-16 units sends such escapes. UTF-8, which engines read, cannot encode them.
    """
    repaired: list[bytes] = []
    held = b""
    for chunk in escape_safe_chunks(raw):
        text = held + chunk.replace(_BACKSLASH, _MARK)
        # Do not cut an escape or a pair of them.
        cut = text.rfind(b"\\", max(0, len(text) - _ESCAPE_BYTES + 1))
        cut = len(text) if cut < 0 else cut
        if _IS_HIGH.match(text, max(0, cut - _ESCAPE_BYTES), cut):
            cut -= _ESCAPE_BYTES
        repaired.append(_repaired(text[:cut]))
        held = text[cut:]
    return b"".join((*repaired, _repaired(held)))


def _repaired(text: bytes) -> bytes:
    return _LONE.sub(rb"\\ufffd", text).replace(_MARK, _BACKSLASH)


def locate_invalid_utf8(raw: bytes) -> str | None:
    """Return the position of the first byte that is not UTF-8, as text; None if there is none."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        at = error.start
        line = raw.count(b"\n", 0, at) + 1
        column = at - raw.rfind(b"\n", 0, at)
        return f"byte 0x{raw[at]:02x} at line {line}, byte {column}"
    return None
