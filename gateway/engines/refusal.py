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

from gateway.errors import EngineError, EngineFailed, EngineGarbled, EngineOverloaded, EngineRejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.protocol import Json

_MAX_ERROR_CHARS = 500

# TGI's error_type for what it answers with 429 and 422 where it can.
_TGI_OVERLOADED = "overloaded"
_TGI_VALIDATION = frozenset({"validation", "template_error", "missing_template_variable", "tool_error"})

BLAMES_CREDENTIALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
"""Statuses whose words are not passed on: they could quote the key that was sent."""


@dataclass(frozen=True, slots=True)
class SaidError:
    """What an engine says went wrong: one line of at most 500 characters, and its own word for the kind."""

    text: str = ""
    reason: str | None = None


def hidden_in(base_url: str | None, api_key: str | None) -> list[str]:
    """What an engine's own words may hold and a caller may not see."""
    address = urlsplit(base_url or "")
    host = address.hostname or ""
    # A host of one word, such as "small", is a word that messages may need.
    telling = host if "." in host or ":" in host else None
    return [text for text in (api_key, (base_url or "").rstrip("/"), address.netloc, telling) if text]


def said_error(raw: bytes | Json, hidden: Sequence[str] = ()) -> SaidError:
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
            return SaidError() if text.startswith("<") else SaidError(_one_line(text, hidden))
    reasons: list[Any] = []
    if isinstance(body, dict):
        reasons.append(body.get("error_type"))
        body = body.get("error", body.get("message", body.get("detail", "")))
    if isinstance(body, dict):
        reasons += [body.get("code"), body.get("type")]
        body = body.get("message", "")
    reason = next((reason for reason in reasons if reason and isinstance(reason, str)), None)
    return SaidError(_one_line(body, hidden) if isinstance(body, str) else "", reason)


def refusal(engine: str, status: int, said: SaidError, retry_after: str | None) -> EngineError:
    """The error that a status stands for. `retry_after` is the header as it came."""
    error = _by_status(engine, status, said, retry_after)
    error.reason, error.said = said.reason, said.text
    error.heard = not isinstance(error, EngineOverloaded | EngineRejected)
    return error


def reported(engine: str, said: SaidError, how: str) -> EngineError:
    """The error that an engine tells of under HTTP 200, as TGI's streams do with all of theirs."""
    message = f"Engine '{engine}' {how}" + (f": {said.text}" if said.text else ".")
    error: EngineError
    if said.reason == _TGI_OVERLOADED:
        error = EngineOverloaded(message, engine=engine)
    elif said.reason in _TGI_VALIDATION:
        error = EngineRejected(message, engine=engine, status_sent=HTTPStatus.UNPROCESSABLE_ENTITY)
    else:
        error = EngineFailed(message, engine=engine)
    error.reason, error.said = said.reason, said.text
    error.heard = isinstance(error, EngineFailed)
    return error


def _by_status(engine: str, status: int, said: SaidError, retry_after: str | None) -> EngineError:
    message = f"Engine '{engine}' answered {status}" + (f": {said.text}" if said.text else ".")
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return EngineOverloaded(message, engine=engine, retry_after_s=_retry_after_s(retry_after))
    if status in BLAMES_CREDENTIALS:
        message = f"Engine '{engine}' refused the gateway's credentials ({status})."
        return EngineRejected(message, engine=engine, status_sent=status)
    # 424 is TGI's word for a model that failed.
    if status == HTTPStatus.FAILED_DEPENDENCY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineFailed(message, engine=engine)
    if status >= HTTPStatus.BAD_REQUEST:
        return EngineRejected(message, engine=engine, status_sent=status)
    return EngineGarbled(f"{message} Redirects and empty replies are not followed.", engine=engine)


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
