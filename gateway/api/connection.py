"""Connections of a listener: their number per tenant, and limits on the time and size of request heads.

Replies that aiohttp sends without the middleware get the gateway's error format and `Server` header here.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from gateway.api.error_body import error_response, new_request_id
from gateway.api.head import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_LINE_BYTES,
    head_too_large,
    parse_error,
    problem_of,
)
from gateway.api.reading_on import DetachedHandlers
from gateway.errors import GatewayError, HeadTooSlow, InvalidRequest, Overloaded
from gateway.runtime.fair_share import ANONYMOUS, ANONYMOUS_WEIGHT, BoundedHoldings, Holdings

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from aiohttp import StreamReader

    from gateway.api.loop_scheduler import LoopScheduler
    from gateway.policy.schema import TenantPolicy
    from gateway.telemetry.metrics import Metrics

SERVER = "gkt-gateway"
"""The header `Server`, instead of the versions of Python and aiohttp. A stream sets it with its head."""

HEAD_WITHIN_S = 10.0
# Load balancers keep connections for up to 600 s, and should be the side that closes them.
IDLE_S = 620.0

READ_WITHIN_S = 30.0
"""A caller is disconnected after the transport's buffer of 64 KiB was full for this time."""

# Parts of max_connections: bodies that arrive or wait to be decoded, and replies that their callers do not read.
_UNFINISHED_PART = 4
_UNREAD_PART = 16
# The most bytes of such bodies.
_UNFINISHED_BYTES = 256_000_000

# Where there are too many connections: how many tenants, and connections of each, are checked for one to close.
_TENANTS_CHECKED = 4
_CONNECTIONS_CHECKED = 64
_EXPECTATION_FAILED = 417
_NO_SUCH_EXPECT = "The header Expect must be '100-continue'."


class Runner(web.AppRunner):
    """An AppRunner whose connections are `_Connection`s.

    Args:
        listener: names it in the metric.
        max_connections: open at once. For one more, one without a running request is closed, of the tenant that has
            most for its weight; where there is none, the new one is refused.
        scheduler: divides the event loop's time between tenants; None: requests are answered as they arrive.
        max_reading_on: handlers that may go on at once although their callers disconnected.
        head_within_s: from the first byte of a request's head to its last.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        metrics: Metrics,
        listener: str,
        max_connections: int,
        scheduler: LoopScheduler | None = None,
        max_reading_on: int = 0,
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
        self._scheduler = scheduler
        self._max_reading_on = max_reading_on
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
            scheduler=self._scheduler,
            max_reading_on=self._max_reading_on,
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
        scheduler: LoopScheduler | None,
        max_reading_on: int,
        head_within_s: float,
        request_factory: Any,
        handler_cancellation: bool,
    ) -> None:
        super().__init__(handler, request_factory=request_factory, handler_cancellation=handler_cancellation, **options)
        self.refused = metrics.refused
        self.head_within_s = head_within_s
        self.reading_on = DetachedHandlers(max_reading_on)
        self._open = metrics.connections.labels(listener)
        self._max_connections = max_connections
        self.scheduler = scheduler
        self.by_tenant: Holdings[_Connection] = Holdings(max_connections)
        self.unfinished_bodies = BoundedHoldings(max(1, max_connections // _UNFINISHED_PART))
        self.unfinished_bytes = BoundedHoldings(_UNFINISHED_BYTES)
        self.unread_replies = BoundedHoldings(max(1, max_connections // _UNREAD_PART))
        self.dropped = metrics.holdings_dropped

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._open.inc()
        assert isinstance(handler, _Connection)
        self.by_tenant.add(handler.tenant, handler.weight, handler)
        if len(self.by_tenant) > self._max_connections and not self._close_one(handler):
            handler.refuse(Overloaded(f"There are {self._max_connections} connections already. Try again soon."))

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        assert isinstance(handler, _Connection)
        if self.by_tenant.remove(handler.tenant, handler):
            self._open.dec()

    def _close_one(self, newest: _Connection) -> bool:
        """Close a connection without a running request, of a tenant that holds many; return whether there was one.

        So no tenant, and no crowd without keys, shuts others out by holding connections.
        """
        for tenant in self.by_tenant.share.heaviest(_TENANTS_CHECKED):
            for connection in list(islice(self.by_tenant.of(tenant), _CONNECTIONS_CHECKED)):
                if connection is not newest and connection.close_early():
                    self.dropped.labels("connections").inc()
                    return True
                self.by_tenant.move_to_end(tenant, connection)
        return False


class _Connection(web.RequestHandler):
    """A connection of the gateway's listener.

    Attributes:
        tenant, weight: of the key of the last request.
    """

    __slots__ = (
        "_authenticated",
        "_counts_body",
        "_drop_body",
        "_head_bytes",
        "_head_due",
        "_lingers",
        "_newest_body",
        "_parked",
        "_reads_on",
        "_server",
        "_took_turn",
        "_unread_due",
        "tenant",
        "weight",
    )

    def __init__(self, server: _Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self.tenant, self.weight = ANONYMOUS, ANONYMOUS_WEIGHT
        self._authenticated = self._took_turn = self._lingers = False  # of the request under way
        self._parked: asyncio.Future[None] | None = None
        self._counts_body = False
        self._drop_body: Callable[[], object] | None = None
        self._unread_due: asyncio.TimerHandle | None = None
        self._head_due: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # since the newest request ended
        self._newest_body: StreamReader = EMPTY_PAYLOAD  # it may be the running request's, or one's behind it
        self._reads_on = False

    @property
    def waits(self) -> bool:
        """Return whether the connection has no request: the next head has not arrived completely."""
        return self._waiter is not None and not self._waiter.done()

    def authenticated(self, policy: TenantPolicy) -> None:
        """Attribute the connection to the tenant whose key the current request has."""
        self._authenticated = True
        if policy.tenant != self.tenant:
            self._belongs_to(policy.tenant, policy.weight)

    def _belongs_to(self, tenant: str, weight: float) -> None:
        if self._server.by_tenant.remove(self.tenant, self):
            self._server.by_tenant.add(tenant, weight, self)
        self.tenant, self.weight = tenant, weight

    def step(self, cost: float = 1.0) -> asyncio.Future[None] | None:
        """Ask for the next step of the request under way; see LoopScheduler.enter."""
        self._took_turn = True
        scheduler = self._server.scheduler
        return None if scheduler is None else scheduler.enter(self.tenant, self.weight, cost)

    def contended(self) -> bool:
        """Return whether several tenants use the event loop."""
        scheduler = self._server.scheduler
        return scheduler is not None and scheduler.contended

    async def next_step(self) -> None:
        """Wait for the next step of a request that goes on in any case, however long the wait is."""
        if (step := self.step()) is not None:
            with suppress(Overloaded):
                await step

    async def park(self, step: asyncio.Future[None]) -> None:
        """Wait for a step and read nothing meanwhile, so that what the caller sends waits in its socket.

        Raises Overloaded when the wait took too long, or another tenant needs the connection.
        """
        self._parked = step
        self._pause_transport_reading()
        try:
            await step
        finally:
            self._parked = None
            if not (self._reading_paused or self._buffer_paused):
                self._resume_transport_reading()

    def expect_body(self, drop: Callable[[], object], size: int = 0) -> None:
        """Count the request's body until `body_ended`: while it arrives, and while it waits to be decoded.

        Args:
            drop: ends the request. It is called where the bodies of all requests are too many, or a connection is
                needed. A second call replaces it.
            size: bytes of the body, where it is not counted yet.
        """
        self._drop_body = drop
        if not self._counts_body:
            self._counts_body = True
            self._server.unfinished_bodies.hold(self.tenant, self.weight, self._end_body)
            self.body_grew(size)

    def body_grew(self, size: int) -> None:
        """Count so many more bytes of the body until `body_ended`."""
        if size:
            self._server.unfinished_bytes.hold(self.tenant, self.weight, self._end_body, size)

    def body_arrived(self) -> None:
        """Forget `drop`: the body arrived or failed. The body still counts while it waits for the next step."""
        self._drop_body = None

    def body_ended(self) -> None:
        """Stop counting the body: it is being decoded, or the request failed."""
        self._drop_body = None
        if self._counts_body:
            self._counts_body = False
            self._server.unfinished_bytes.release(self.tenant, self._end_body)
            self._server.unfinished_bodies.release(self.tenant, self._end_body)

    def _end_body(self) -> None:
        if self._end_request():
            self._server.dropped.labels("unfinished_bodies").inc()

    def _end_request(self) -> bool:
        """End a request that waits for its step, or whose body arrives or waits; return whether it ends."""
        if self._parked is not None and not self._parked.done():
            self._parked.set_exception(Overloaded("Other requests need this connection. Try again soon."))
        elif self._drop_body is not None:
            drop, self._drop_body = self._drop_body, None
            drop()
        else:
            return False
        self._close = True
        return True

    def pause_writing(self) -> None:
        """Count an unread reply when the transport's buffer is full, and disconnect a caller that does not read it."""
        super().pause_writing()
        self._unread_due = self._loop.call_later(READ_WITHIN_S, self._abort)
        self._server.unread_replies.hold(self.tenant, self.weight, self._drop_reply)

    def resume_writing(self) -> None:
        """Stop counting the unread reply: the transport's buffer has room."""
        super().resume_writing()
        self._reply_was_read()

    def _drop_reply(self) -> None:
        self._server.dropped.labels("unread_replies").inc()
        self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _reply_was_read(self) -> None:
        if self._unread_due is not None:
            self._unread_due.cancel()
            self._unread_due = None
            self._server.unread_replies.release(self.tenant, self._drop_reply)

    def close_early(self) -> bool:
        """End the connection where no request runs on it; return whether it ends."""
        if self.waits or (self._lingers and not self._request_in_progress and not self._messages):
            self.force_close()
            return True
        return self._end_request()

    def data_received(self, data: bytes) -> None:
        if self._close:
            return
        queued, in_head = len(self._messages), self._newest_body.is_eof()
        super().data_received(data)
        if len(self._messages) > queued:
            self._head_is_done()
            self._newest_body = self._messages[-1][1]
            self._check_heads(queued)
        elif in_head and data:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.refuse(head_too_large())
            elif self.waits and self._head_due is None:
                self._head_due = self._loop.call_later(self._server.head_within_s, self._head_is_late)

    def _check_heads(self, queued: int) -> None:
        """Replace the first head that is refused, and all that follows it, by the error.

        Args:
            queued: how many messages were checked before.
        """
        for place, (message, _) in enumerate(list(self._messages)[queued:], start=queued):
            if not isinstance(message, _ErrInfo) and (problem := problem_of(message)) is not None:
                while len(self._messages) > place:
                    self._messages.pop()
                self.refuse(problem)
                return

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_is_done()
        self._reply_was_read()
        self.reads_on()
        super().connection_lost(exc)

    def reads_on(self) -> bool:
        """Return whether the handler goes on although its caller disconnected, for a time that is bounded.

        aiohttp cancels `_task_handler` when the connection is lost; here it is cancelled when that time is over.
        """
        request, task = self._current_request, self._task_handler
        if not self._reads_on and request is not None and task is not None:
            self._reads_on = self._server.reading_on.begin(request, task)
            self._task_handler = None if self._reads_on else task
        return self._reads_on

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
        """Reply to a request that cannot be parsed, or whose handler failed. aiohttp's reply could quote a key."""
        super().handle_error(request, status, exc, message)  # for its log and its checks
        error = parse_error(exc) if status < 500 else GatewayError("The gateway failed with an internal error.")
        if isinstance(exc, GatewayError):
            error = exc
        self._server.refused.labels(error.label).inc()
        response = error_response(error, new_request_id())
        response.force_close()
        return response

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Finish a reply. aiohttp calls this method for every reply, after the head of a stream."""
        if resp.status == _EXPECTATION_FAILED:  # faster than isinstance with an abstract class
            resp = error_response(InvalidRequest(_NO_SUCH_EXPECT), new_request_id(), status=_EXPECTATION_FAILED)
        resp.headers["Server"] = SERVER
        self._lingers = not request.content.is_eof()
        took_turn, self._took_turn = self._took_turn, False
        if not self._authenticated and self.tenant != ANONYMOUS:
            self._belongs_to(ANONYMOUS, ANONYMOUS_WEIGHT)
        self._authenticated = False
        if not took_turn and (step := self.step()) is not None:
            return self._finish_after(step, request, resp, start_time)
        self._took_turn = False
        return super().finish_response(request, resp, start_time)

    async def _finish_after(
        self, step: asyncio.Future[None], request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Reply to a request that has had no step yet: it was rejected, or needed no body."""
        self._took_turn = False
        with suppress(Overloaded):  # sending the finished reply costs less than an error
            await self.park(step)
        return await super().finish_response(request, resp, start_time)


def connection_of(request: web.BaseRequest) -> _Connection | None:
    """Return the request's connection; None where the listener is not the gateway's, as in tests of handlers."""
    connection = request.protocol
    return connection if isinstance(connection, _Connection) else None
