"""Connections: how many there may be, how long a request's head may take and how large it may be.

And what aiohttp answers by itself, before or past the middleware, in the gateway's words and under its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from gateway.errors import GatewayError, HeadTooLarge, HeadTooSlow, InvalidRequest, Overloaded
from gateway.web.error_body import error_response, new_request_id

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from aiohttp.http_parser import RawRequestMessage

    from gateway.metrics import Metrics

SERVER = "gkt-gateway"
"""The header `Server`, in the place of Python's and aiohttp's versions. A stream sets it where it begins."""

MAX_LINE_BYTES = 8190
MAX_HEADERS = 128
# Many long lines are none too long by themselves. What has not been read as a request yet counts.
MAX_HEAD_BYTES = 65_536
HEAD_WITHIN_S = 10.0
# Load balancers keep connections for up to 600 s, and want to be the ones who hang up.
IDLE_S = 620.0

_LOOKS_AT = 64  # connections, for one that may go
_EXPECTATION_FAILED = 417
_HEAD_TOO_LARGE = f"The request's head is larger than {MAX_HEAD_BYTES} bytes, the limit here."
_UNREADABLE = "The request is not HTTP, or not as RFC 9112 wants it."
_NO_SUCH_EXPECT = "Of the header Expect only '100-continue' is known."


class Runner(web.AppRunner):
    """An AppRunner whose connections are `_Connection`s.

    Args:
        listener: names it in the metric.
        max_connections: open at once. For one more an idle one is closed; where there is none, it is refused.
        head_within_s: from the first byte of a request's head to its last.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        metrics: Metrics,
        listener: str,
        max_connections: int,
        head_within_s: float = HEAD_WITHIN_S,
        **options: Any,
    ) -> None:
        super().__init__(
            app,
            keepalive_timeout=IDLE_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            **options,
        )
        self._metrics = metrics
        self._listener = listener
        self._max_connections = max_connections
        self._head_within_s = head_within_s

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            made._kwargs,  # noqa: SLF001
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            metrics=self._metrics,
            listener=self._listener,
            max_connections=self._max_connections,
            head_within_s=self._head_within_s,
        )


class _Server(web.Server):
    def __init__(
        self,
        handler: Any,
        options: dict[str, Any],
        *,
        metrics: Metrics,
        listener: str,
        max_connections: int,
        head_within_s: float,
        request_factory: Any,
        handler_cancellation: bool,
    ) -> None:
        super().__init__(handler, request_factory=request_factory, handler_cancellation=handler_cancellation, **options)
        self.refused = metrics.refused
        self.head_within_s = head_within_s
        self._open = metrics.connections.labels(listener)
        self._max_connections = max_connections

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._open.inc()
        if len(self._connections) > self._max_connections and not self._hang_up_on_one():
            assert isinstance(handler, _Connection)
            handler.refuse(Overloaded(f"There are {self._max_connections} connections already. Try again soon."))

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._open.dec()

    def _hang_up_on_one(self) -> bool:
        """End one that has no request under way, of those that were here first. False where there is none.

        So whoever only holds connections open shuts nobody out.
        """
        for _ in range(min(_LOOKS_AT, len(self._connections) - 1)):
            handler, transport = next(iter(self._connections.items()))
            assert isinstance(handler, _Connection)
            if handler.waits:
                handler.force_close()
                return True
            del self._connections[handler]  # to the end of the row
            self._connections[handler] = transport
        return False


class _Connection(web.RequestHandler):
    __slots__ = ("_head_bytes", "_head_due", "_server")

    def __init__(self, server: _Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._head_due: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    @property
    def waits(self) -> bool:
        """Whether there is no request: the next head has not come, or not all of it."""
        return self._waiter is not None and not self._waiter.done()

    def data_received(self, data: bytes) -> None:
        received = self._head_bytes + len(data)
        queued = len(self._messages)
        super().data_received(data)
        if received > MAX_HEAD_BYTES:
            self._check_new_heads(queued)
        if self.waits and data:
            self._head_bytes = received
            if self._head_bytes > MAX_HEAD_BYTES:
                self.refuse(HeadTooLarge(_HEAD_TOO_LARGE))
            elif self._head_due is None:
                self._head_due = self._loop.call_later(self._server.head_within_s, self._head_is_late)
        elif self._head_due is not None:
            self._head_is_done()

    def _check_new_heads(self, queued: int) -> None:
        """Replace the first head over the limit, and all that follows it, by the error.

        Args:
            queued: how many messages were checked before.
        """
        for place, (message, _) in enumerate(list(self._messages)[queued:], start=queued):
            if not isinstance(message, _ErrInfo) and _size_bytes(message) > MAX_HEAD_BYTES:
                while len(self._messages) > place:
                    self._messages.pop()
                self.refuse(HeadTooLarge(_HEAD_TOO_LARGE))
                return

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_is_done()
        super().connection_lost(exc)

    def refuse(self, error: GatewayError) -> None:
        """Answer the error in the place of a request, read nothing more, and hang up."""
        self._head_is_done()
        self._messages.append((_ErrInfo(status=error.status, exc=error, message=error.message), EMPTY_PAYLOAD))
        self._close = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _head_is_done(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
        self._head_bytes = 0

    def _head_is_late(self) -> None:
        self._head_due = None
        if self.waits:
            within_s = self._server.head_within_s
            self.refuse(HeadTooSlow(f"The request's head did not arrive within {within_s:g} s."))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A request that cannot be parsed, or a handler that broke. aiohttp would quote the line: a key, perhaps."""
        super().handle_error(request, status, exc, message)  # what it logs, and when it gives up
        error = _read_as(exc) if status < 500 else GatewayError("The gateway made a mistake.")
        if isinstance(exc, GatewayError):
            error = exc
        self._server.refused.labels(error.label).inc()
        response = error_response(error, new_request_id())
        response.force_close()
        return response

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Every reply comes by here; only a stream's head has left by then."""
        if resp.status == _EXPECTATION_FAILED:  # isinstance asks an abstract class: half a microsecond
            resp = error_response(InvalidRequest(_NO_SUCH_EXPECT), new_request_id(), status=_EXPECTATION_FAILED)
        resp.headers["Server"] = SERVER
        return super().finish_response(request, resp, start_time)


def _size_bytes(head: RawRequestMessage) -> int:
    """Return the size of a head as RFC 9112 writes it."""
    line = len(head.method) + len(head.path) + len("  HTTP/1.1\r\n")
    return line + sum(len(name) + len(value) + len(": \r\n") for name, value in head.raw_headers)


def _read_as(exc: BaseException | None) -> GatewayError:
    """What was wrong with a head, without a word of it."""
    if isinstance(exc, LineTooLong):
        return HeadTooLarge(
            f"The request line or a header is longer than {MAX_LINE_BYTES} bytes, the limit here. "
            "What is long belongs into the body."
        )
    if exc is not None and exc.args == ("Too many headers received",):
        return HeadTooLarge(f"The request has more than {MAX_HEADERS} headers, the limit here.")
    return InvalidRequest(_UNREADABLE)
