"""Reads the errors that engines report, and converts them to EngineErrors."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from gateway.engines.replies import short_name
from gateway.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.protocol.body import Json

_MAX_ERROR_CHARS = 500

# The fixed prefixes of TGI's messages, and the error_type and HTTP status of each (TGI 3.3.7, router/src/infer/mod.rs).
# The error event of a chat stream has no error_type, and its http_status_code is 422 for every error. TGI spells
# "vatiable".
_TGI_ERRORS = (
    ("Input validation error:", "validation", HTTPStatus.UNPROCESSABLE_ENTITY),
    ("Template error:", "template_error", HTTPStatus.UNPROCESSABLE_ENTITY),
    ("Missing template vatiable:", "missing_template_variable", HTTPStatus.UNPROCESSABLE_ENTITY),
    ("Tool error:", "tool_error", HTTPStatus.UNPROCESSABLE_ENTITY),
    ("Model is overloaded", "overloaded", HTTPStatus.TOO_MANY_REQUESTS),
    ("Request failed during generation:", "generation", HTTPStatus.FAILED_DEPENDENCY),
    ("Incomplete generation stream", "incomplete_generation_stream", HTTPStatus.INTERNAL_SERVER_ERROR),
    ("Incomplete generation", "incomplete_generation", HTTPStatus.INTERNAL_SERVER_ERROR),
    ("Stream event serialization error", "stream_serialization_error", HTTPStatus.INTERNAL_SERVER_ERROR),
)
_TGI_STATUS = {kind: status for _, kind, status in _TGI_ERRORS}  # takes precedence over a status in the error object
# The HTTP status for an error type of OpenAI, Anthropic and vLLM under HTTP 200.
_STATUS_OF_TYPE = {
    "BadRequestError": HTTPStatus.BAD_REQUEST,
    "content_filter": HTTPStatus.BAD_REQUEST,
    "content_policy_violation": HTTPStatus.BAD_REQUEST,
    "context_length_exceeded": HTTPStatus.BAD_REQUEST,
    "invalid_request_error": HTTPStatus.BAD_REQUEST,
    "overloaded_error": HTTPStatus.TOO_MANY_REQUESTS,
    "rate_limit_error": HTTPStatus.TOO_MANY_REQUESTS,
    "rate_limit_exceeded": HTTPStatus.TOO_MANY_REQUESTS,
}
# TGI may report this after generation, when the generated text is not a tool call.
_AFTER_GENERATION = frozenset({"tool_error"})
_STATUSES = range(400, 600)

# A name that a client can compare. Text, such as a quotation of the prompt, has other characters.
_CODE = re.compile(r"[a-z][a-z0-9_]{1,63}")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]]{0,99}")
CONTEXT_EXCEEDED = "context_length_exceeded"
"""OpenAI's code for a request that exceeds the model's context."""
_LLAMA_CPP_CONTEXT = "exceed_context_size_error"  # the error type of llama.cpp
# Messages of engines without a code: vLLM and SGLang, TGI.
_CONTEXT_TEXT = re.compile(
    r"maximum (?:context|model) length (?:is|of|\() ?\d|longer than the model's context length \(\d"
    r"|max_(?:completion_)?tokens=\d+ cannot be greater than max_model_len"
    r"|`inputs` (?:tokens \+ `max_new_tokens` must be <=|must have less than) \d"
)

BLAMES_CREDENTIALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""Statuses with a text that is not forwarded, since it may quote the key."""


class ReportedError(NamedTuple):
    """An error as the engine reports it."""

    text: str = ""  # one line of at most 500 characters
    reason: str | None = None  # the engine's error type, such as TGI's error_type
    status: int | None = None  # the HTTP status in the error object; None: it contains none
    code: str | None = None  # OpenAI's code
    param: str | None = None  # the field that the engine rejects


def hidden_in(base_url: str | None, api_key: str | None) -> list[str]:
    """Return the secrets that an engine's text may contain and replies must not: its key, URL and host."""
    address = urlsplit(base_url or "")
    host = address.hostname or ""
    # A host of one word, such as "small", may be an ordinary word of the text.
    full_host = host if "." in host or ":" in host else None
    return [text for text in (api_key, (base_url or "").rstrip("/"), address.netloc, full_host) if text]


def read_error(raw: bytes | Json, hidden: Sequence[str] = ()) -> ReportedError:
    """Read an error body: OpenAI's, TGI's, FastAPI's `detail`, or plain text. Replace each `hidden` text."""
    body: Any = raw
    if isinstance(raw, bytes):
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            text = raw.decode("utf-8", "replace").strip()
            # An HTML page of a proxy is of no use to callers.
            return ReportedError() if text.startswith("<") else ReportedError(_one_line(text, hidden))
    reasons: list[Any] = []
    statuses: list[Any] = []
    named: Json = {}
    if isinstance(body, dict):
        reasons.append(body.get("error_type"))
        named = body
        body = body.get("error", body.get("message", body.get("detail", "")))
    if isinstance(body, dict):
        named = body
        reasons += [body.get("code"), body.get("type")]
        statuses = [body.get("http_status_code"), body.get("code")]
        body = body.get("message", "")
    reason = next((short_name(reason) for reason in reasons if reason and isinstance(reason, str)), None)
    status = next((one for one in statuses if isinstance(one, int) and one in _STATUSES), None)
    text = body if isinstance(body, str) else ""
    tgi_type = next((kind for start, kind, _ in _TGI_ERRORS if text.startswith(start)), None)
    code = _name(named.get("code"), _CODE, hidden)
    kinds = reason, named.get("type")
    if code is None and (CONTEXT_EXCEEDED in kinds or _LLAMA_CPP_CONTEXT in kinds or _CONTEXT_TEXT.search(text)):
        code = CONTEXT_EXCEEDED
    param = _name(named.get("param"), _FIELD, hidden)
    return ReportedError(_one_line(text, hidden), reason or tgi_type, status, code, param)


def refusal(engine: str, status: int, report: ReportedError, retry_after: str | None) -> EngineError:
    """Return the error for a reply with a status other than 200. `retry_after` is the unparsed header."""
    return _with_report(_by_status(engine, status, report, retry_after), report)


def reported(engine: str, report: ReportedError, predicate: str) -> EngineError:
    """Return the error for a report under HTTP 200. `predicate` is the verb phrase of its message, if not rejected."""
    reason = report.reason or ""
    status = _TGI_STATUS.get(reason) or report.status or _STATUS_OF_TYPE.get(reason) or 500
    if status in BLAMES_CREDENTIALS:
        return _by_status(engine, status, ReportedError(), None)
    error = _by_status(engine, status, report, None)
    if isinstance(error, EngineRejected):
        predicate = "rejected the request"
    error.message = f"Engine '{engine}' {predicate}" + (f": {report.text}" if report.text else ".")
    error.args = (error.message,)
    error = _with_report(error, report)
    # A filter may end a generation that has begun.
    error.may_have_run = error.may_have_run or (isinstance(error, EngineRejected) and error.is_filtered)
    return error


def _with_report(error: EngineError, report: ReportedError) -> EngineError:
    """Set the engine's text on the error, and whether the engine may have generated before it failed."""
    error.reason, error.engine_text = report.reason, report.text
    error.engine_code, error.engine_param = report.code, report.param
    error.may_have_run = not isinstance(error, EngineOverloaded | EngineRejected) or report.reason in _AFTER_GENERATION
    return error


def _by_status(engine: str, status: int, report: ReportedError, retry_after: str | None) -> EngineError:
    message = f"Engine '{engine}' answered {status}" + (f": {report.text}" if report.text else ".")
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return EngineOverloaded(message, engine=engine, retry_after_s=_retry_after_s(retry_after))
    if status in BLAMES_CREDENTIALS:
        message = f"Engine '{engine}' rejected the gateway's credentials ({status}). Check the model's api_key."
        return EngineRejected(message, engine=engine, status_sent=status)
    # TGI answers 424 when the model failed.
    if status == HTTPStatus.FAILED_DEPENDENCY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineFailed(message, engine=engine, status_sent=status)
    if status >= HTTPStatus.BAD_REQUEST:
        return EngineRejected(message, engine=engine, status_sent=status)
    return EngineProtocolError(f"{message} Only status 200 is accepted; redirects are not followed.", engine=engine)


def _name(value: Any, pattern: re.Pattern[str], hidden: Sequence[str]) -> str | None:
    """Return a code or a field of an error object; None if it is missing, or may be another text."""
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        return None
    return None if any(one in value for one in hidden) else value


def _one_line(text: str, hidden: Sequence[str]) -> str:
    for one in hidden:
        text = text.replace(one, "(hidden)")
    return " ".join(text.split())[:_MAX_ERROR_CHARS]


def _retry_after_s(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or an HTTP date; None if it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _until(value)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _until(date: str) -> float:
    """Return the seconds until an HTTP date; NaN if it is invalid."""
    try:
        when = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return math.nan
    # A zone of -0000 means UTC with an unknown local zone.
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return (when - datetime.now(UTC)).total_seconds()
