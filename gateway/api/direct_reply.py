"""The usual JSON reply, sent in one step: the bytes of aiohttp, without its ten coroutines for each reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_writer import _serialize_headers

if TYPE_CHECKING:
    import asyncio

_STATUS_LINE = "HTTP/1.1 200 OK"
_JOINED_BYTES = 16_384  # a copy of a longer body takes longer than a second buffer


class DirectReply(web.Response):
    """A JSON body with status 200 for a POST request. Set nothing but headers and `force_close`."""

    def __init__(self, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(body=body, content_type="application/json", headers=headers)
        self._bytes = body

    def can_send(self, request: web.BaseRequest) -> bool:
        """Return whether `send` sends what aiohttp would send: the request is of HTTP/1.1 and keeps its connection."""
        return self._keep_alive is None and request.keep_alive and request.version == HttpVersion11

    def send(self, transport: asyncio.Transport) -> None:
        """Write the whole reply. Call it in place of `prepare` and `write_eof`."""
        headers = self._headers
        headers["Content-Length"] = str(len(self._bytes))
        headers["Date"] = rfc822_formatted_time()
        head = _serialize_headers(_STATUS_LINE, headers)
        if len(self._bytes) < _JOINED_BYTES:
            transport.write(head + self._bytes)
        else:
            transport.writelines((head, self._bytes))
        self._keep_alive = self._eof_sent = True
