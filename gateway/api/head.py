"""Size limits of request heads, and the errors for rejected heads."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from aiohttp.http_exceptions import LineTooLong

from gateway.errors import GatewayError, HeadTooLarge, InvalidRequest

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

MAX_LINE_BYTES = 8190
MAX_HEADERS = 128
# Bounds a head of many lines that are each within MAX_LINE_BYTES.
MAX_HEAD_BYTES = 65_536

_TOO_LARGE = f"The request's head is larger than the limit of {MAX_HEAD_BYTES} bytes."
_ONLY_CHUNKED = "Transfer-Encoding can only be 'chunked'. Name a compression in Content-Encoding."
_UNREADABLE = "The request is not valid HTTP (RFC 9112)."


def head_too_large() -> HeadTooLarge:
    """Return the error for a head above MAX_HEAD_BYTES."""
    return HeadTooLarge(_TOO_LARGE)


def problem_of(head: RawRequestMessage) -> GatewayError | None:
    """Return the error for a head that aiohttp accepts and the gateway refuses; None for any other."""
    if _size_bytes(head) > MAX_HEAD_BYTES:
        return head_too_large()
    # aiohttp accepts any coding before `chunked` and does not decode it.
    if head.chunked and head.headers.get("Transfer-Encoding", "").strip().lower() != "chunked":
        return InvalidRequest(_ONLY_CHUNKED)
    return None


def parse_error(exc: BaseException | None) -> GatewayError:
    """Return the error for a head that aiohttp rejected. The error quotes nothing: the line may contain a key."""
    if isinstance(exc, LineTooLong):
        return HeadTooLarge(
            f"The request line or a header is longer than the limit of {MAX_LINE_BYTES} bytes. "
            "Send long values in the body."
        )
    if exc is not None and exc.args == ("Too many headers received",):
        return HeadTooLarge(f"The request has more than {MAX_HEADERS} headers, which is the limit.")
    return InvalidRequest(_UNREADABLE)


def _size_bytes(head: RawRequestMessage) -> int:
    """Return the size of a head as RFC 9112 writes it."""
    line = len(head.method) + len(head.path) + len("  HTTP/1.1\r\n")
    return line + sum(map(len, chain.from_iterable(head.raw_headers))) + len(": \r\n") * len(head.raw_headers)
