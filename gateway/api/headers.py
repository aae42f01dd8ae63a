"""Headers of replies: those of the API that was called, and the facts of the receipt."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.api.keys import ADMISSION
from gateway.errors import InvalidRequest

if TYPE_CHECKING:
    from aiohttp import web
    from multidict import CIMultiDict

    from gateway.accounting.verdict import LimitRemainder
    from gateway.api.keys import RequestInfo
    from gateway.protocol.body import Json

API = "/v1/"
MESSAGES = "/v1/messages"
OPENAI_VERSION = "2020-10-01"
MAX_CLIENT_ID_CHARS = 512
_REQUEST_LIMIT = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
_TOKEN_LIMIT = ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")


def is_messages(path: str) -> bool:
    """Return whether a path belongs to Anthropic's API."""
    return path.startswith(MESSAGES) and path[len(MESSAGES) :][:1] in ("", "/")


def client_request_id(request: web.Request) -> str | None:
    """Return the caller's X-Client-Request-Id, if any. Raises InvalidRequest for values that OpenAI rejects."""
    name = request.headers.get("X-Client-Request-Id")
    if not name or not request.path.startswith(API):
        return None
    if not (name.isascii() and name.isprintable()) or len(name) > MAX_CLIENT_ID_CHARS:
        raise InvalidRequest(
            f"'X-Client-Request-Id': expected at most {MAX_CLIENT_ID_CHARS} printable characters of ASCII.",
            param="X-Client-Request-Id",
        )
    return name


def name_reply(request: web.Request, info: RequestInfo, response: web.StreamResponse) -> None:
    """Set the headers that every reply has. Call it just before the head is sent.

    In a process that another one replaces, the reply closes its connection.
    `openai-processing-ms` of a stream is the time until its head.
    """
    if request.app[ADMISSION].retiring:
        response.force_close()
    headers = response.headers
    headers["x-request-id"] = info.id
    if info.client_id is not None:
        headers["x-client-request-id"] = info.client_id
    if (path := request.path).startswith(API):
        if path.startswith(MESSAGES) and is_messages(path):
            _name_message(info, headers)
            return
        headers["openai-version"] = OPENAI_VERSION
        headers["openai-processing-ms"] = str(round((time.perf_counter() - info.started) * 1000))
    if (allowance := info.allowance) is not None:
        if allowance.requests is not None:
            _set_limit(headers, _REQUEST_LIMIT, allowance.requests)
        if allowance.tokens is not None:
            _set_limit(headers, _TOKEN_LIMIT, allowance.tokens)


def _name_message(info: RequestInfo, headers: CIMultiDict[str]) -> None:
    """Set Anthropic's headers."""
    headers["request-id"] = info.id
    if (allowance := info.allowance) is None:
        return
    for kind, left in (("requests", allowance.requests), ("tokens", allowance.tokens)):
        if left is not None:
            resets = datetime.fromtimestamp(time.time() + left.reset_us / 1_000_000, UTC)
            headers[f"anthropic-ratelimit-{kind}-limit"] = str(left.limit)
            headers[f"anthropic-ratelimit-{kind}-remaining"] = str(left.left)
            headers[f"anthropic-ratelimit-{kind}-reset"] = resets.strftime("%Y-%m-%dT%H:%M:%SZ")


def _set_limit(headers: CIMultiDict[str], names: tuple[str, str, str], left: LimitRemainder) -> None:
    limit, remaining, reset = names
    headers[limit] = str(left.limit)
    headers[remaining] = str(left.left)
    headers[reset] = openai_duration(left.reset_us)


def openai_duration(microseconds: int) -> str:
    """Return a duration in OpenAI's format, rounded up: 250ms, 6.5s, 1m0s."""
    ms = -(-microseconds // 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds


def fact_headers(facts: Json) -> dict[str, str]:
    """Return the facts of a receipt or of a receipt builder as headers."""
    names = _FACT_HEADERS
    return {names[name]: str(value) for name, value in facts.items()}


class _FactHeaders(dict[str, str]):
    """The header of each fact, by the name of the fact."""

    def __missing__(self, name: str) -> str:
        header = self[name] = "x-gkt-" + name.replace("_", "-")
        return header


_FACT_HEADERS = _FactHeaders()
