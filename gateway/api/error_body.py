"""Render errors as the error object of the API that was called, for replies and for streams."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING

import orjson
import structlog
from aiohttp import web
from structlog.contextvars import bound_contextvars

from gateway.api.headers import client_request_id, is_messages, name_reply
from gateway.api.keys import ADMISSION, ENDPOINTS, INFO, METRICS, REDIS, REJECTIONS, RequestInfo
from gateway.api.not_found import shown
from gateway.errors import BodyTooLarge, BodyTooSlow, GatewayError, InvalidRequest, MethodNotAllowed, NotFound
from gateway.protocol.anthropic.errors import anthropic_error, anthropic_status
from gateway.telemetry.logs import allow_content_in_logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.protocol.body import Json

log = structlog.get_logger()

_LONGEST_RETRY_S = 120
_IDS_AT_ONCE = 128
_random_digits: list[str] = []  # of the next ids
os.register_at_fork(after_in_child=_random_digits.clear)


def new_request_id(now_s: float | None = None) -> str:
    """Return `req_`, 8 hexadecimal digits of Unix seconds, and 16 random ones. Ids of receipts sort by time.

    `now_s` is the time by the clock of Redis; None: by that of this host, for requests without a receipt.
    """
    if not _random_digits:  # one system call for many requests
        _random_digits.extend(os.urandom(_IDS_AT_ONCE * 8).hex(" ", 8).split())
    return f"req_{int(time.time() if now_s is None else now_s):08x}{_random_digits.pop()}"


def error_body(error: GatewayError) -> Json:
    """Return OpenAI's error object."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def error_response(error: GatewayError, request_id: str, *, status: int | None = None, path: str = "") -> web.Response:
    """Return the reply for an error. On Anthropic's paths it has Anthropic's format, status and header of the id."""
    headers = {"x-request-id": request_id}
    if error.retry_after_s is not None:
        # Callers do not wait longer than this, whatever Retry-After the engine sent.
        retry_after_s = min(_LONGEST_RETRY_S, error.retry_after_s)
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(retry_after_s * 1000)))
    if error.retry is not None:
        headers["x-should-retry"] = "true" if error.retry else "false"
    if is_messages(path):
        headers["request-id"] = request_id
        status = status or anthropic_status(error)
        body = anthropic_error(error, request_id, status)
    else:
        status, body = status or error.status, error_body(error)
    return web.json_bytes_response(body, dumps=orjson.dumps, status=status, headers=headers)


@web.middleware
async def render_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Set the request's id, and render exceptions that are raised before the reply has begun."""
    allow_content_in_logs(allowed=False)  # until the caller is authenticated
    redis = request.app.get(REDIS)
    now_s = None if redis is None else redis.now()
    request[INFO] = info = RequestInfo(new_request_id(now_s), time.perf_counter())
    try:
        if (name := client_request_id(request)) is None:
            response = await handler(request)
        else:
            info.client_id = name
            with bound_contextvars(client_request_id=name):  # in every log line of the request
                response = await handler(request)
    except GatewayError as error:
        response = error_response(error, info.id, path=request.path)
        if not error.recorded:
            _count_rejection(request, response.status, error.label)
        if isinstance(error, BodyTooSlow) or request.content.exception() is not None:
            response.force_close()  # the rest of the body would be parsed as the next request
    except web.HTTPException as error:
        response, label = _http_error(request, error, info.id)
        _count_rejection(request, response.status, label)
    except ConnectionError:
        raise  # the caller has disconnected
    except Exception:
        log.exception("request_broke", id=info.id)
        response = error_response(internal_error(info.id), info.id, path=request.path)
    if not response.prepared:
        name_reply(request, info, response)
        if request.app[ADMISSION].draining:
            response.force_close()  # otherwise the caller's retry would reach this process again
    return response


def _count_rejection(request: web.Request, status: int, label: str) -> None:
    """Count a reply with an error that no receipt records."""
    app = request.app
    app[METRICS].refused.labels(label).inc()
    if (rejections := app.get(REJECTIONS)) is not None:
        rejections.count(status, label, request[INFO].tenant)


def internal_error(request_id: str) -> GatewayError:
    """Return the error for an unexpected exception. The log has the exception under this id; the reply does not."""
    return GatewayError(f"The gateway failed with an internal error. The log has the details of {request_id}.")


def _http_error(request: web.Request, error: web.HTTPException, request_id: str) -> tuple[web.Response, str]:
    """Return the reply for an error of aiohttp, and the label of the error."""

    def respond(refused: GatewayError, status: int | None = None) -> tuple[web.Response, str]:
        return error_response(refused, request_id, status=status, path=request.path), refused.label

    if isinstance(error, web.HTTPRequestEntityTooLarge):
        limit = request.app._client_max_size  # noqa: SLF001
        return respond(BodyTooLarge(f"The body is larger than the limit of {limit} bytes."))
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        refused = MethodNotAllowed(f"{request.method} is not allowed on {shown(request.path)}. Use {allowed}.")
        response, label = respond(refused)
        response.headers["Allow"] = allowed
        return response, label
    if not isinstance(error, web.HTTPNotFound):
        return respond(InvalidRequest(f"{error.reason}."), error.status)
    return respond(NotFound(request.app[ENDPOINTS].not_found(request.method, request.path)))
