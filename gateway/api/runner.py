"""The HTTP server of a listener: limits on its connections, by tenant."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.api.connection import MAX_HEADERS, MAX_LINE_BYTES, Connection, ListenerState, ListenerTimes
from gateway.api.disconnects import DetachedHandlers
from gateway.api.keys import REJECTIONS
from gateway.errors import Overloaded
from gateway.runtime.fair_share import BoundedHoldings, Holdings

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Handler

    from gateway.api.loop_scheduler import LoopScheduler
    from gateway.telemetry.metrics import Metrics

# Load balancers keep connections for up to 600 s, and should be the side that closes them.
IDLE_S = 620.0

# Divisors of max_connections: limits on bodies that arrive or wait to be decoded, and on unread replies.
_UNFINISHED_PART = 4
_UNREAD_PART = 16

# When the limit on connections is reached: number of tenants, and connections of each, to check for one to close.
_TENANTS_CHECKED = 4
_CONNECTIONS_CHECKED = 64


class Runner(web.AppRunner):
    """An AppRunner that bounds connections, heads, bodies and unread replies; see `ListenerState`.

    For one more than `max_connections`, an idle connection is closed, of the tenant that has most for its weight.
    Without an idle one the new connection is rejected. `max_detached` bounds the handlers that continue after their
    callers disconnected. `times` bounds the duration of heads, bodies and unread replies. `unfinished_bytes` bounds
    bodies that arrive or wait to be decoded. `listener` is the listener's label in the metric of connections.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        metrics: Metrics,
        listener: str,
        max_connections: int,
        scheduler: LoopScheduler | None = None,
        max_detached: int = 0,
        times: ListenerTimes = ListenerTimes(),
        unfinished_bytes: int = 256_000_000,
        **options: Any,
    ) -> None:
        options |= {"max_line_size": MAX_LINE_BYTES, "max_field_size": MAX_LINE_BYTES, "max_headers": MAX_HEADERS}
        super().__init__(app, keepalive_timeout=IDLE_S, **options)
        rejections = app.get(REJECTIONS)

        def count_rejection(status: int, label: str) -> None:
            metrics.refused.labels(label).inc()
            if rejections is not None:
                rejections.count(status, label)

        self._shared = ListenerState(
            times=times,
            scheduler=scheduler,
            detached=DetachedHandlers(max_detached),
            by_tenant=Holdings(max_connections),
            open_connections=metrics.connections.labels(listener),
            unfinished_bodies=BoundedHoldings(max(1, max_connections // _UNFINISHED_PART)),
            unfinished_bytes=BoundedHoldings(unfinished_bytes),
            unread_replies=BoundedHoldings(max(1, max_connections // _UNREAD_PART)),
            rejected=count_rejection,
            dropped=metrics.holdings_dropped,
        )

    @property
    def open_connections(self) -> int:
        """The number of open connections."""
        return len(self._shared.by_tenant)

    @property
    def has_requests(self) -> bool:
        """Return whether a connection has a request."""
        return any(not connection.waits for connection in self._connections())

    def close_idle(self, idle_s: float) -> None:
        """Close the connections that have been idle for `idle_s` seconds."""
        for connection in self._connections():
            if connection.waits and connection.idle_s >= idle_s:
                connection.force_close()

    def _connections(self) -> list[Connection]:
        assert self.server is not None
        return [one for one in self.server.connections if isinstance(one, Connection)]

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            _direct_handler(self.app),
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            shared=self._shared,
            **server._kwargs,  # noqa: SLF001
        )


def _direct_handler(app: web.Application) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Return the application's handler of requests, which finds routes with a fixed path by one lookup.

    This saves three coroutines of aiohttp: its router, its resource, and its middleware for nested applications.
    """
    direct: dict[tuple[str, str], tuple[web.UrlMappingMatchInfo, Handler]] = {}
    for route in app.router.routes():
        if isinstance(route.resource, web.PlainResource):
            match = web.UrlMappingMatchInfo({}, route)
            match.add_app(app)
            match.freeze()
            handler: Handler = route.handler
            for middleware in reversed(app.middlewares):
                handler = partial(middleware, handler=handler)
            direct.setdefault((route.method, route.resource.canonical), (match, handler))

    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        assert isinstance(request, web.Request)
        found = direct.get((request.method, request.rel_url.path_safe))
        if found is None or "Expect" in request.headers:
            return app._handle(request)  # noqa: SLF001
        request._match_info, handler = found  # noqa: SLF001
        return handler(request)

    return handle


class _Server(web.Server):
    def __init__(self, handler: Any, *, shared: ListenerState, **options: Any) -> None:
        super().__init__(handler, **options)
        self._shared = shared

    def __call__(self) -> web.RequestHandler:
        return Connection(self, self._shared, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._shared.open_connections.inc()
        assert isinstance(handler, Connection)
        by_tenant = self._shared.by_tenant
        by_tenant.add(handler.tenant, handler.weight, handler)
        if len(by_tenant) > by_tenant.capacity and not self._close_one(handler):
            handler.reject(Overloaded(f"There are {by_tenant.capacity} connections already. Try again soon."))

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        assert isinstance(handler, Connection)
        if self._shared.by_tenant.remove(handler.tenant, handler):
            self._shared.open_connections.dec()

    def _close_one(self, newest: Connection) -> bool:
        """Close an idle connection of a tenant that holds many; return whether there was one.

        Neither a tenant nor callers without keys can thus shut others out by holding connections.
        """
        by_tenant = self._shared.by_tenant
        for tenant in by_tenant.share.heaviest(_TENANTS_CHECKED):
            for connection in list(islice(by_tenant.of(tenant), _CONNECTIONS_CHECKED)):
                if connection is not newest and connection.close_early():
                    self._shared.dropped.labels("connections").inc()
                    return True
                by_tenant.move_to_end(tenant, connection)
        return False
