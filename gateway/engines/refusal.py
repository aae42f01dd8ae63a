"""An engine that answers with a status other than 200: what it says, and which of our errors that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from gateway.errors import EngineError, EngineFailed, EngineOverloaded, EngineProtocolError, EngineRejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.protocol.body import Json

_MAX_ERROR_CHARS = 500

# The fixed beginnings of TGI's messages, and the error_type of each (TGI 3.3.7, router/src/infer/mod.rs). The error
# event of a chat stream has no error_type, and its http_status_code is 422 for every error. TGI spells "vatiable".
_TGI_MESSAGES = (
    ("Input validation error:", "validation"),
    ("Template error:", "template_error"),
    ("Missing template vatiable:", "missing_template_variable"),
    ("Tool error:", "tool_error"),
    ("Model is overloaded", "overloaded"),
    ("Request failed during generation:", "generation"),
    ("Incomplete generation stream", "incomplete_generation_stream"),
    ("Incomplete generation", "incomplete_generation"),
    ("Stream event serialization error", "stream_serialization_error"),
)
# The status that stands for an engine's own word for an error under HTTP 200: in TGI's words, and in those of OpenAI,
# Anthropic and vLLM. TGI's words take precedence over a status in the error object.
_TGI_STATUS = {
    "validation": HTTPStatus.UNPROCESSABLE_ENTITY,
    "template_error": HTTPStatus.UNPROCESSABLE_ENTITY,
    "missing_template_variable": HTTPStatus.UNPROCESSABLE_ENTITY,
    "tool_error": HTTPStatus.UNPROCESSABLE_ENTITY,
    "overloaded": HTTPStatus.TOO_MANY_REQUESTS,
    "generation": HTTPStatus.FAILED_DEPENDENCY,
    "incomplete_generation": HTTPStatus.INTERNAL_SERVER_ERROR,
    "incomplete_generation_stream": HTTPStatus.INTERNAL_SERVER_ERROR,
    "stream_serialization_error": HTTPStatus.INTERNAL_SERVER_ERROR,
}
_STATUS_OF_TYPE = {
    "BadRequestError": HTTPStatus.BAD_REQUEST,
    "context_length_exceeded": HTTPStatus.BAD_REQUEST,
    "invalid_request_error": HTTPStatus.BAD_REQUEST,
    "overloaded_error": HTTPStatus.TOO_MANY_REQUESTS,
    "rate_limit_error": HTTPStatus.TOO_MANY_REQUESTS,
    "rate_limit_exceeded": HTTPStatus.TOO_MANY_REQUESTS,
}
# TGI may report this after it has generated: the tokens that it wrote are not a tool call.
_AFTER_GENERATION = frozenset({"tool_error"})
_STATUSES = range(400, 600)

BLAMES_CREDENTIALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""Statuses whose words are not passed on: they could quote the key that was sent."""


@dataclass(frozen=True, slots=True)
class ReportedError:
    """What an engine says went wrong: one line of at most 500 characters, its own word for the kind, and a status.

    Attributes:
        status: the HTTP status that the error object names, where it names one.
    """

    text: str = ""
    reason: str | None = None
    status: int | None = None


def hidden_in(base_url: str | None, api_key: str | None) -> list[str]:
    """What an engine's own words may hold and a caller may not see."""
    address = urlsplit(base_url or "")
    host = address.hostname or ""
    # A host of one word, such as "small", is a word that messages may need.
    telling = host if "." in host or ":" in host else None
    return [text for text in (api_key, (base_url or "").rstrip("/"), address.netloc, telling) if text]


def said_error(raw: bytes | Json, hidden: Sequence[str] = ()) -> ReportedError:
    """Read any of the error bodies engines use: OpenAI's, TGI's, FastAPI's `detail`, plain text.

    Texts in `hidden` are left out of what it says.
    """
    body: Any = raw
    if isinstance(raw, bytes):
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            text = raw.decode("utf-8", "replace").strip()
            # A proxy's error page is noise to a caller.
            return ReportedError() if text.startswith("<") else ReportedError(_one_line(text, hidden))
    reasons: list[Any] = []
    statuses: list[Any] = []
    if isinstance(body, dict):
        reasons.append(body.get("error_type"))
        body = body.get("error", body.get("message", body.get("detail", "")))
    if isinstance(body, dict):
        reasons += [body.get("code"), body.get("type")]
        statuses = [body.get("http_status_code"), body.get("code")]
        body = body.get("message", "")
    reason = next((reason for reason in reasons if reason and isinstance(reason, str)), None)
    status = next((one for one in statuses if isinstance(one, int) and one in _STATUSES), None)
    text = body if isinstance(body, str) else ""
    return ReportedError(_one_line(text, hidden), reason or _tgi_type(text), status)


def _tgi_type(text: str) -> str | None:
    """TGI's error_type for one of its messages; None for a message of another server."""
    return next((kind for start, kind in _TGI_MESSAGES if text.startswith(start)), None)


def refusal(engine: str, status: int, said: ReportedError, retry_after: str | None) -> EngineError:
    """The error that a status stands for. `retry_after` is the header as it came."""
    return _told(_by_status(engine, status, said, retry_after), said)


def reported(engine: str, said: ReportedError, how: str) -> EngineError:
    """The error that an engine reports under HTTP 200, as all streams do once they have begun.

    `how` is the predicate of its message, unless the engine refuses the request.
    """
    status = _status_of(said)
    if status in BLAMES_CREDENTIALS:
        return _by_status(engine, status, ReportedError(), None)
    error = _by_status(engine, status, said, None)
    if isinstance(error, EngineRejected):
        how = "refused the request"
    error.message = f"Engine '{engine}' {how}" + (f": {said.text}" if said.text else ".")
    error.args = (error.message,)
    return _told(error, said)


def _status_of(said: ReportedError) -> int:
    """The HTTP status that stands for an error under HTTP 200; 500 where the engine names none."""
    reason = said.reason or ""
    for status in (_TGI_STATUS.get(reason), said.status, _STATUS_OF_TYPE.get(reason)):
        if status is not None:
            return status
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _told(error: EngineError, said: ReportedError) -> EngineError:
    """Put the engine's own words on the error, and whether the engine may have generated before it failed."""
    error.reason, error.said = said.reason, said.text
    error.heard = not isinstance(error, EngineOverloaded | EngineRejected) or said.reason in _AFTER_GENERATION
    return error


def _by_status(engine: str, status: int, said: ReportedError, retry_after: str | None) -> EngineError:
    message = f"Engine '{engine}' answered {status}" + (f": {said.text}" if said.text else ".")
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return EngineOverloaded(message, engine=engine, retry_after_s=_retry_after_s(retry_after))
    if status in BLAMES_CREDENTIALS:
        message = f"Engine '{engine}' refused the gateway's credentials ({status})."
        return EngineRejected(message, engine=engine, status_sent=status)
    # 424 is TGI's word for a model that failed.
    if status == HTTPStatus.FAILED_DEPENDENCY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineFailed(message, engine=engine, status_sent=status)
    if status >= HTTPStatus.BAD_REQUEST:
        return EngineRejected(message, engine=engine, status_sent=status)
    return EngineProtocolError(f"{message} Redirects and empty replies are not followed.", engine=engine)


def _one_line(text: str, hidden: Sequence[str]) -> str:
    for one in hidden:
        text = text.replace(one, "(hidden)")
    return " ".join(text.split())[:_MAX_ERROR_CHARS]


def _retry_after_s(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number or an HTTP date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _until(value)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _until(date: str) -> float:
    """Seconds until an HTTP date; NaN when it is none."""
    try:
        when = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return math.nan
    # A zone of -0000 is UTC too, and says not to know where it stands.
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return (when - datetime.now(UTC)).total_seconds()
