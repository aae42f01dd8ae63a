"""A connection of a listener: limits on its request heads, bodies and replies, and its tenant.

aiohttp sends some replies without the middleware. They get the gateway's error format and `Server` header here.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from gateway.api.direct_reply import DirectReply
from gateway.api.error_body import error_response, new_request_id
from gateway.errors import GatewayError, HeadTooLarge, HeadTooSlow, InvalidRequest, Overloaded
from gateway.runtime.fair_share import ANONYMOUS, ANONYMOUS_WEIGHT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine

    from aiohttp import StreamReader
    from aiohttp.http_parser import RawRequestMessage
    from prometheus_client import Counter, Gauge

    from gateway.api.disconnects import DetachedHandlers
    from gateway.api.loop_scheduler import LoopScheduler
    from gateway.policy.schema import TenantPolicy
    from gateway.runtime.fair_share import BoundedHoldings, Holdings

SERVER = "gkt-gateway"
"""Value of the `Server` header, in place of the versions of Python and aiohttp. A stream sets it with its head."""

MAX_LINE_BYTES = 8190
MAX_HEADERS = 128
# Bounds a head of many lines that are each within MAX_LINE_BYTES.
MAX_HEAD_BYTES = 65_536

_TOO_LARGE = f"The request's head is larger than the limit of {MAX_HEAD_BYTES} bytes."
_EXPECTATION_FAILED = 417


class ListenerTimes(NamedTuple):
    """Limits in seconds after which a request ends that makes too little progress."""

    head_within_s: float = 10.0  # from the first byte of a request's head to its last
    body_within_s: float = 30.0  # from the head of a request to the last byte of its body
    body_interval_s: float = 5.0  # has a minimum number of bytes, for a body that does not arrive at once
    read_within_s: float = 30.0  # with a full write buffer of the transport (64 KiB), before the caller is disconnected


class ListenerState(NamedTuple):
    """State that the connections of one listener share."""

    times: ListenerTimes
    scheduler: LoopScheduler | None  # divides the event loop's time between tenants; None: it is not divided
    detached: DetachedHandlers
    by_tenant: Holdings[Connection]  # open connections; the capacity is the maximum of all tenants
    open_connections: Gauge
    unfinished_bodies: BoundedHoldings  # bodies that arrive or wait to be decoded
    unfinished_bytes: BoundedHoldings  # of these bodies
    unread_replies: BoundedHoldings  # replies that their callers do not read
    rejected: Callable[[int, str], None]  # counts a reply with an error, by HTTP status and error label
    dropped: Counter  # holdings dropped for another tenant, by kind


class Connection(web.RequestHandler):
    """A connection of the gateway's listener. `tenant` is that of the last request's key; else `ANONYMOUS`."""

    __slots__ = ("_authenticated", "_counts_body", "_drop_body", "_had_late_body", "_head_bytes", "_head_due",
                 "_lingers", "_newest_body", "_parked", "_reads_on", "_shared", "_took_turn",
                 "_unread_due", "tenant", "times", "weight")  # fmt: skip

    def __init__(self, server: web.Server, shared: ListenerState, **options: Any) -> None:
        super().__init__(server, **options)
        self._shared, self.times = shared, shared.times
        self.tenant, self.weight = ANONYMOUS, ANONYMOUS_WEIGHT
        self._authenticated = self._took_turn = self._lingers = False  # of the current request
        self._counts_body = self._reads_on = False
        self._parked: asyncio.Future[None] | None = None
        self._drop_body: Callable[[], object] | None = None
        self._unread_due: asyncio.TimerHandle | None = None
        self._head_due: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # since the last request was parsed
        self._newest_body: StreamReader = EMPTY_PAYLOAD  # of the current request or of a queued one
        self._had_late_body = False  # a body came later than its head. The parser may hold data without a pause then.

    @property
    def waits(self) -> bool:
        """Return whether the connection is idle: no complete head has arrived since the last reply."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def idle_s(self) -> float:
        """Return for how many seconds the connection has been idle."""
        if not self.waits:
            return 0.0
        return self._loop.time() - (self._next_keepalive_close_time - self._keepalive_timeout)

    def authenticated(self, policy: TenantPolicy) -> None:
        """Attribute the connection to the tenant of the current request's key."""
        self._authenticated = True
        if policy.tenant != self.tenant:
            self._set_tenant(policy.tenant, policy.weight)

    def _set_tenant(self, tenant: str, weight: float) -> None:
        if self._shared.by_tenant.remove(self.tenant, self):
            self._shared.by_tenant.add(tenant, weight, self)
        self.tenant, self.weight = tenant, weight

    def step(self, cost: float = 1.0) -> asyncio.Future[None] | None:
        """Request the next step for the current request; see LoopScheduler.enter."""
        self._took_turn = True
        scheduler = self._shared.scheduler
        return None if scheduler is None else scheduler.enter(self.tenant, self.weight, cost)

    def contended(self) -> bool:
        """Return whether several tenants use the event loop."""
        scheduler = self._shared.scheduler
        return scheduler is not None and scheduler.contended

    def next_step(self) -> Awaitable[None] | None:
        """Request the next step of a request that continues if the wait is too long. Return None if it is now."""
        return None if (step := self.step()) is None else _await_patiently(step)

    async def park(self, step: asyncio.Future[None]) -> None:
        """Wait for a step without reading. Raises Overloaded after a long wait, or if a tenant needs the connection."""
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

        `drop` ends the request. It is called when the limit on all bodies is reached or another tenant needs the
        connection. A second call of `expect_body` replaces it. `size` are the body's bytes that are not counted yet.
        """
        self._drop_body = drop
        if not self._counts_body:
            self._counts_body = True
            self._shared.unfinished_bodies.hold(self.tenant, self.weight, self._end_body)
            self.body_grew(size)

    def body_grew(self, size: int) -> None:
        """Count `size` more bytes of the body until `body_ended`."""
        if size:
            self._shared.unfinished_bytes.hold(self.tenant, self.weight, self._end_body, size)

    def body_arrived(self) -> None:
        """Forget `drop`: the body arrived or failed. It is counted until `body_ended`."""
        self._drop_body = None

    def body_ended(self) -> None:
        """Stop counting the body. Called when its decoding starts or the request fails."""
        self._drop_body = None
        if self._counts_body:
            self._counts_body = False
            self._shared.unfinished_bytes.release(self.tenant, self._end_body)
            self._shared.unfinished_bodies.release(self.tenant, self._end_body)

    def _end_body(self) -> None:
        if self._end_request():
            self._shared.dropped.labels("unfinished_bodies").inc()

    def _end_request(self) -> bool:
        """End a request that waits for a step or for its body; return whether there was one."""
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
        """Count an unread reply, and schedule the disconnection. Called when the transport's buffer is full."""
        super().pause_writing()
        self._unread_due = self._loop.call_later(self.times.read_within_s, self._abort)
        self._shared.unread_replies.hold(self.tenant, self.weight, self._drop_reply)

    def resume_writing(self) -> None:
        """Stop counting the unread reply. Called when the transport's buffer has room."""
        super().resume_writing()
        self._end_unread_reply()

    def _drop_reply(self) -> None:
        self._shared.dropped.labels("unread_replies").inc()
        self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _end_unread_reply(self) -> None:
        if self._unread_due is not None:
            self._unread_due.cancel()
            self._unread_due = None
            self._shared.unread_replies.release(self.tenant, self._drop_reply)

    def close_early(self) -> bool:
        """Close the connection if no handler runs on it; return whether it closes."""
        if self.waits or (self._lingers and not self._request_in_progress and not self._messages):
            self.force_close()
            return True
        return self._end_request()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Resume the parser and the transport, unless nothing was paused, as for a body that came with its head."""
        if self._reading_paused or self._buffer_paused or self._had_late_body:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        if self._close:
            return
        messages, in_head = self._messages, self._newest_body.is_eof()
        queued = len(messages)
        super().data_received(data)
        if len(messages) > queued:
            if self._head_bytes:
                self._end_head()
            self._newest_body = messages[-1][1]
            if not self._newest_body.is_eof():
                self._had_late_body = True
            self._check_heads(queued)
        elif in_head and data:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.reject(HeadTooLarge(_TOO_LARGE))
            elif self.waits and self._head_due is None:
                self._head_due = self._loop.call_later(self.times.head_within_s, self._on_head_timeout)

    def _check_heads(self, queued: int) -> None:
        """Replace the first invalid head after `queued` checked messages, and all later messages, by an error."""
        messages = self._messages
        for index in range(queued, len(messages)):
            message = messages[index][0]
            if not isinstance(message, _ErrInfo) and (problem := _problem_of(message)) is not None:
                while len(messages) > index:
                    messages.pop()
                self.reject(problem)
                return

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end_head()
        self._end_unread_reply()
        self.reads_on()
        super().connection_lost(exc)

    def reads_on(self) -> bool:
        """Return whether the handler continues for a limited time after its caller disconnected.

        aiohttp cancels `_task_handler` when the connection is lost. `DetachedHandlers` cancels it at the time limit.
        """
        request, task = self._current_request, self._task_handler
        if not self._reads_on and request is not None and task is not None:
            self._reads_on = self._shared.detached.begin(request, task)
            self._task_handler = None if self._reads_on else task
        return self._reads_on

    def reject(self, error: GatewayError) -> None:
        """Queue an error reply, read nothing more, and close the connection after the reply."""
        self._end_head()
        self._messages.append((_ErrInfo(status=error.status, exc=error, message=error.message), EMPTY_PAYLOAD))
        self._close = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end_head(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
        self._head_bytes = 0

    def _on_head_timeout(self) -> None:
        self._head_due = None
        if self.waits:
            within_s = self.times.head_within_s
            self.reject(HeadTooSlow(f"The request's head did not arrive within {within_s:g} s."))

    def handle_error(self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None,
                     message: str | None = None) -> web.StreamResponse:  # fmt: skip
        """Reply to a request that cannot be parsed, or whose handler failed. aiohttp's reply could quote a key."""
        super().handle_error(request, status, exc, message)  # logs the error
        error = _parse_error(exc) if status < 500 else GatewayError("The gateway failed with an internal error.")
        if isinstance(exc, GatewayError):
            error = exc
        response = error_response(error, new_request_id(), path=request.path)
        self._shared.rejected(response.status, error.label)
        response.force_close()
        return response

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Finish a reply. aiohttp calls this method for every reply; for a stream after its head."""
        if resp.status == _EXPECTATION_FAILED:  # faster than isinstance with an abstract class
            error = InvalidRequest("The header Expect must be '100-continue'.")
            resp = error_response(error, new_request_id(), status=_EXPECTATION_FAILED, path=request.path)
        resp.headers["Server"] = SERVER
        self._lingers = not request.content.is_eof()
        took_turn, self._took_turn = self._took_turn, False
        if not self._authenticated and self.tenant != ANONYMOUS:
            self._set_tenant(ANONYMOUS, ANONYMOUS_WEIGHT)
        self._authenticated = False
        if not took_turn and (step := self.step()) is not None:
            return self._finish_after(step, request, resp, start_time)
        self._took_turn = False
        if type(resp) is DirectReply and not self._upgraded and not self._logging_enabled and resp.can_send(request):
            transport = self.transport
            if transport is not None and not transport.is_closing():
                return self._finish_direct(transport, resp)
        return super().finish_response(request, resp, start_time)

    async def _finish_direct(self, transport: asyncio.Transport, reply: DirectReply) -> tuple[web.StreamResponse, bool]:
        reply.send(transport)
        try:
            if self._paused and self.transport is not None:
                await self._drain_helper()
        except ConnectionError:
            return reply, True
        return reply, False

    async def _finish_after(
        self, step: asyncio.Future[None], request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Reply to a request that had no step yet, because it was rejected or needed no body."""
        self._took_turn = False
        with suppress(Overloaded):  # sending the finished reply costs less than an error
            await self.park(step)
        return await super().finish_response(request, resp, start_time)


async def _await_patiently(step: asyncio.Future[None]) -> None:
    with suppress(Overloaded):
        await step


def _problem_of(head: RawRequestMessage) -> GatewayError | None:
    """Return the error for a head that aiohttp accepts and the gateway refuses; None for any other."""
    line = len(head.method) + len(head.path) + len("  HTTP/1.1\r\n")
    headers = sum(map(len, chain.from_iterable(head.raw_headers))) + len(": \r\n") * len(head.raw_headers)
    if line + headers > MAX_HEAD_BYTES:
        return HeadTooLarge(_TOO_LARGE)
    # aiohttp accepts any coding before `chunked` and does not decode it.
    if head.chunked and head.headers.get("Transfer-Encoding", "").strip().lower() != "chunked":
        return InvalidRequest("Transfer-Encoding can only be 'chunked'. Name a compression in Content-Encoding.")
    return None


def _parse_error(exc: BaseException | None) -> GatewayError:
    """Return the error for a head that aiohttp rejected. The error quotes nothing: the line may contain a key."""
    if isinstance(exc, LineTooLong):
        return HeadTooLarge(
            f"The request line or a header is longer than the limit of {MAX_LINE_BYTES} bytes. "
            "Send long values in the body."
        )
    if exc is not None and exc.args == ("Too many headers received",):
        return HeadTooLarge(f"The request has more than {MAX_HEADERS} headers, which is the limit.")
    return InvalidRequest("The request is not valid HTTP (RFC 9112).")


def connection_of(request: web.BaseRequest) -> Connection:
    """Return the request's connection. Only the server of `Runner` receives requests."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection
