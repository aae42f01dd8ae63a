"""The headers of replies: OpenAI's own, and what the receipt tells."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from structlog.contextvars import bound_contextvars

from gateway.errors import InvalidRequest
from gateway.web.keys import CLIENT_REQUEST_ID, REQUEST_ID, STARTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

    from gateway.protocol import Json

API = "/v1/"
OPENAI_VERSION = "2020-10-01"
MAX_CLIENT_ID_CHARS = 512


@contextmanager
def named_by_caller(request: web.Request) -> Iterator[None]:
    """Let the caller's own name for the request, if it has one, stand in every log line inside the block.

    Raises InvalidRequest where the name is not one that OpenAI takes.
    """
    name = request.headers.get("X-Client-Request-Id")
    if not name or not request.path.startswith(API):
        yield
        return
    if not (name.isascii() and name.isprintable()) or len(name) > MAX_CLIENT_ID_CHARS:
        raise InvalidRequest(
            f"'X-Client-Request-Id': expected at most {MAX_CLIENT_ID_CHARS} printable characters of ASCII.",
            param="X-Client-Request-Id",
        )
    request[CLIENT_REQUEST_ID] = name
    with bound_contextvars(client_request_id=name):
        yield


async def name_reply(request: web.Request, response: web.StreamResponse) -> None:
    """What every reply says of itself, just before its head leaves; a stream's time is that until then."""
    request_id = request.get(REQUEST_ID)
    if request_id is None:
        return  # aiohttp's own answer, before the request was looked at
    headers = response.headers
    headers["x-request-id"] = request_id
    if (name := request.get(CLIENT_REQUEST_ID)) is not None:
        headers["x-client-request-id"] = name
    if request.path.startswith(API):
        headers["openai-version"] = OPENAI_VERSION
        headers["openai-processing-ms"] = str(round((time.perf_counter() - request[STARTED]) * 1000))


def fact_headers(facts: Json) -> dict[str, str]:
    """The facts of a receipt, or of one under way, as headers."""
    return {"x-gkt-" + name.replace("_", "-"): str(value) for name, value in facts.items()}
