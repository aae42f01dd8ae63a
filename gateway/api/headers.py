"""Headers of replies: those of OpenAI's API, and the facts of the receipt."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING

from gateway.api.keys import ALLOWANCE, CLIENT_REQUEST_ID, REQUEST_ID, STARTED
from gateway.errors import InvalidRequest

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.protocol.body import Json

API = "/v1/"
OPENAI_VERSION = "2020-10-01"
MAX_CLIENT_ID_CHARS = 512


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
    request[CLIENT_REQUEST_ID] = name
    return name


def name_reply(request: web.Request, response: web.StreamResponse) -> None:
    """Set the headers that every reply has. Call it just before the head is sent.

    `openai-processing-ms` of a stream is the time until its head.
    """
    request_id = request.get(REQUEST_ID)
    if request_id is None:
        return  # aiohttp replied before the middleware ran
    headers = response.headers
    headers["x-request-id"] = request_id
    if (name := request.get(CLIENT_REQUEST_ID)) is not None:
        headers["x-client-request-id"] = name
    if request.path.startswith(API):
        headers["openai-version"] = OPENAI_VERSION
        headers["openai-processing-ms"] = str(round((time.perf_counter() - request[STARTED]) * 1000))
    if (allowance := request.get(ALLOWANCE)) is not None:
        for name, left in (("requests", allowance.requests), ("tokens", allowance.tokens)):
            if left is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(left.limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(left.left)
                headers[f"x-ratelimit-reset-{name}"] = openai_duration(left.reset_us)


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
    return {_fact_header(name): str(value) for name, value in facts.items()}


@cache
def _fact_header(name: str) -> str:
    return "x-gkt-" + name.replace("_", "-")
