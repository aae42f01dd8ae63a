"""Errors in Anthropic's format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import CircuitOpen, EngineOverloaded, InvalidRequest, Overloaded

if TYPE_CHECKING:
    from gateway.errors import GatewayError
    from gateway.protocol.anthropic.blocks import Json

OVERLOADED = 529
"""Anthropic's HTTP status for a service that is overloaded, where other APIs have 503."""
_IS_OVERLOAD = (CircuitOpen, EngineOverloaded, Overloaded)
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    417: "invalid_request_error",
    429: "rate_limit_error",
    431: "request_too_large",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
"""Anthropic's `error.type` by HTTP status."""
OTHER_ERROR = "api_error"
"""`error.type` of other statuses."""
THREAD_UNSUPPORTED = "thread_unsupported_request"
"""The `error_code` after which Anthropic's SDKs send the whole conversation, without `thread`."""


def anthropic_status(error: type[GatewayError] | GatewayError) -> int:
    """Return the HTTP status of an error in Anthropic's API."""
    kind = error if isinstance(error, type) else type(error)
    return OVERLOADED if issubclass(kind, _IS_OVERLOAD) else error.status


def anthropic_error(error: GatewayError, request_id: str, status: int | None = None) -> Json:
    """Return Anthropic's error object."""
    kind = ERROR_TYPES.get(status or anthropic_status(error), OTHER_ERROR)
    body: Json = {"type": kind, "message": error.message}
    if isinstance(error, InvalidRequest) and error.code == THREAD_UNSUPPORTED:
        body["details"] = {"error_code": THREAD_UNSUPPORTED}
    return {"type": "error", "error": body, "request_id": request_id}
