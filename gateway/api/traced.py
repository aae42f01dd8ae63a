"""Middleware that records a span for each API request. It is installed only if tracing is enabled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from structlog.contextvars import bound_contextvars

from gateway.api.headers import API
from gateway.api.keys import INFO
from gateway.errors import GatewayError
from gateway.telemetry import semconv as names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Middleware

    from gateway.telemetry.tracing import Tracing

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_OPERATIONS = {
    "/v1/chat/completions": names.CHAT,
    "/v1/responses": names.CHAT,
    "/v1/messages": names.CHAT,
    "/v1/completions": names.TEXT,
    "/v1/embeddings": names.EMBEDDINGS,
    "/v1/guidance": names.CHAT,
}


def traced(tracing: Tracing) -> Middleware:
    """Return the middleware. It runs inside the middleware that renders errors, so it sees exceptions.

    Spans contain the matched route, never the path or query of the caller.
    """

    @web.middleware
    async def as_span(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        if resource is None or not resource.canonical.startswith(API):
            return await handler(request)
        route = resource.canonical
        attributes = {names.HTTP_METHOD: request.method, names.HTTP_ROUTE: route, names.URL_SCHEME: request.scheme}
        if (operation := _OPERATIONS.get(route)) is not None:
            attributes |= {names.OPERATION: operation, names.PROVIDER: names.GATEWAY}
        with tracing.request(f"{request.method} {route}", request.headers, request[INFO].started, attributes) as trace:
            try:
                with bound_contextvars(**({} if trace.id is None else {"trace_id": trace.id})):
                    response = await handler(request)
            except BaseException as error:
                trace.replied(*_status_and_reason(error))
                raise
            trace.replied(response.status, None)
            return response

    return as_span


def _status_and_reason(error: BaseException) -> tuple[int | None, str]:
    match error:
        case GatewayError():
            return error.status, error.label
        case web.HTTPException():
            return error.status, str(error.status)
        case Exception() if not isinstance(error, ConnectionError):
            return 500, "internal"
    return None, "client_gone"  # or a shutdown, which the receipt records
