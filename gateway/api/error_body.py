"""The one place that turns errors into what callers see: OpenAI's error object, on a status or in a stream."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING

import orjson
import structlog
from aiohttp import web
from structlog.contextvars import bound_contextvars

from gateway.api.headers import callers_own_id, name_reply
from gateway.api.keys import ADMISSION, METRICS, REQUEST_ID, STARTED, TRY
from gateway.errors import BodyTooLarge, BodyTooSlow, GatewayError, InvalidRequest, MethodNotAllowed, NotFound
from gateway.telemetry.logs import allow_content_in_logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.protocol.body import Json

log = structlog.get_logger()

_NOT_FOUND = 404
_LONGEST_RETRY_S = 120
_MOST_OF_A_PATH = 100


def new_request_id() -> str:
    """Return `req_`, the time in Unix seconds as 8 hexadecimal digits, and 16 random ones.

    So the ids of receipts are in the order of time, and a database appends them.
    """
    return f"req_{int(time.time()):08x}{os.urandom(8).hex()}"


def error_body(error: GatewayError) -> Json:
    """OpenAI's error envelope."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def error_response(error: GatewayError, request_id: str, *, status: int | None = None) -> web.Response:
    headers = {"x-request-id": request_id}
    if error.retry_after_s is not None:
        # Whatever an engine asked for, a caller who waits longer than this has gone.
        retry_after_s = min(_LONGEST_RETRY_S, error.retry_after_s)
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(retry_after_s * 1000)))
    if error.retry is not None:
        headers["x-should-retry"] = "true" if error.retry else "false"
    return web.Response(
        body=orjson.dumps(error_body(error)),
        status=status or error.status,
        content_type="application/json",
        headers=headers,
    )


@web.middleware
async def errors_as_openai(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give the request its id, and render whatever is raised before a reply has begun."""
    allow_content_in_logs(allowed=False)  # until it is known who asks
    request[REQUEST_ID] = request_id = new_request_id()
    request[STARTED] = time.perf_counter()
    response = await _answer(request, handler, request_id)
    if not response.prepared:
        name_reply(request, response)
        if request.app[ADMISSION].draining:
            response.force_close()  # on a connection that is kept alive the caller's next try would come here again
    return response


async def _answer(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]], request_id: str
) -> web.StreamResponse:
    try:
        if (name := callers_own_id(request)) is None:
            return await handler(request)
        with bound_contextvars(client_request_id=name):  # in every log line about the request
            return await handler(request)
    except GatewayError as error:
        if not error.recorded:
            request.app[METRICS].refused.labels(error.label).inc()
        response = error_response(error, request_id)
        if isinstance(error, BodyTooSlow) or request.content.exception() is not None:
            response.force_close()  # what still comes of the body would be taken for the next request
        return response
    except web.HTTPException as error:
        return _http_error(request, error, request_id)
    except ConnectionError:
        raise  # the caller is gone: there is nobody to answer
    except Exception:
        log.exception("request_broke", id=request_id)
        return error_response(internal_error(request_id), request_id)


def internal_error(request_id: str) -> GatewayError:
    """For a mistake of our own: what it was stands in the log under this id, not in the reply."""
    return GatewayError(f"The gateway made a mistake. It is logged as {request_id}.")


def _http_error(request: web.Request, error: web.HTTPException, request_id: str) -> web.Response:
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        limit = request.app._client_max_size  # noqa: SLF001
        return error_response(BodyTooLarge(f"The body is larger than {limit} bytes, the limit here."), request_id)
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        refused = MethodNotAllowed(f"{request.method} is not allowed on {_shown(request)}. Use {allowed}.")
        response = error_response(refused, request_id)
        response.headers["Allow"] = allowed
        return response
    if error.status != _NOT_FOUND:
        return error_response(InvalidRequest(f"{error.reason}."), request_id, status=error.status)
    return error_response(
        NotFound(f"There is no {request.method} {_shown(request)} here. Try {request.app[TRY]}."),
        request_id,
        status=error.status,
    )


def _shown(request: web.Request) -> str:
    path = request.path
    return path if len(path) <= _MOST_OF_A_PATH else path[:_MOST_OF_A_PATH] + "..."
