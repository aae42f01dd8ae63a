"""Errors in Anthropic's format."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.errors import CircuitOpen, EngineError, EngineOverloaded, InvalidRequest, Overloaded

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


_CONTEXT_EXCEEDED = "context_length_exceeded"
# The context in the messages of vLLM, SGLang, llama.cpp, TGI and OpenAI.
_MAXIMUM = re.compile(
    r"(?:(?:context|model) (?:length|size)(?: is| of)?|max_model_len ?=|must be <=|must have less than)"
    r"\D{0,12}?(\d{1,10})\b"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"(?<![\w.-])\d{1,10}(?!\.?\w)")


def anthropic_status(error: type[GatewayError] | GatewayError) -> int:
    """Return the HTTP status of an error in Anthropic's API."""
    kind = error if isinstance(error, type) else type(error)
    return OVERLOADED if issubclass(kind, _IS_OVERLOAD) else error.status


def anthropic_error(error: GatewayError, request_id: str, status: int | None = None) -> Json:
    """Return Anthropic's error object."""
    kind = ERROR_TYPES.get(status or anthropic_status(error), OTHER_ERROR)
    body: Json = {"type": kind, "message": error.message}
    if isinstance(error, InvalidRequest) and error.code == _CONTEXT_EXCEEDED:
        body["message"] = _too_long(error)
    if isinstance(error, InvalidRequest) and error.code == THREAD_UNSUPPORTED:
        body["details"] = {"error_code": THREAD_UNSUPPORTED}
    return {"type": "error", "error": body, "request_id": request_id}


def _too_long(error: InvalidRequest) -> str:
    """Return Anthropic's message for a request that exceeds the context, after which clients shorten their history.

    An engine may report the total, its parts, or only its context. The tokens are then the sum, or a lower bound.
    """
    cause = error.__cause__
    text = cause.engine_text if isinstance(cause, EngineError) and cause.engine_text else error.message
    if "prompt is too long:" in text:
        return text
    text = _THOUSANDS.sub("", text)
    if (found := _MAXIMUM.search(text)) is None:
        return f"prompt is too long: {error.message}"
    maximum = int(found[1])
    others = [number for one in _NUMBER.finditer(text) if (number := int(one[0])) != maximum]
    largest = max(others, default=0)
    tokens = largest if largest > maximum else max(maximum + 1, sum(set(others)))
    return f"prompt is too long: {tokens} tokens > {maximum} maximum"
