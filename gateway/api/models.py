"""GET /v1/models and GET /v1/models/{model}, in the shapes that clients of OpenAI, Anthropic and Codex read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gateway.api.auth import authenticate
from gateway.errors import InvalidRequest, ModelNotFound
from gateway.policy.routing import models_of, routes_for
from gateway.usage.span import rfc3339
from gateway.version import STARTED

if TYPE_CHECKING:
    from gateway.protocol.body import Json

ANTHROPIC_VERSION = "anthropic-version"
DEFAULT_PAGE, MAX_PAGE = 20, 1000
"""Anthropic's default and maximum of `limit`."""


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models

    A request with Anthropic's version header gets a page in Anthropic's shape, and all others get OpenAI's list. Codex
    sends its version, and fails to decode a list without its own `models`. The array is empty: the gateway does not
    know the prompt and the tools that Codex expects there, and Codex then uses its own.
    """
    names = models_of(await authenticate(request))
    if ANTHROPIC_VERSION in request.headers:
        return _json(_page(request, names))
    body: Json = {"object": "list", "data": [_model(name) for name in names]}
    return _json(body if "client_version" not in request.query else {**body, "models": []})


async def show_model(request: web.Request) -> web.Response:
    """GET /v1/models/{model}"""
    caller = await authenticate(request)
    name = request.match_info["model"]
    if not routes_for(caller, name):
        raise ModelNotFound(f"There is no model '{name}' for this key.", param="model")
    return _json(_anthropic_model(name) if ANTHROPIC_VERSION in request.headers else _model(name))


def _page(request: web.Request, names: list[str]) -> Json:
    """Return the models after `after_id` or before `before_id`, at most `limit`. Raises RequestErrors."""
    limit, start, end = _limit(request), 0, len(names)
    if (after := request.query.get("after_id")) is not None:
        start = _index(names, "after_id", after) + 1
    if (before := request.query.get("before_id")) is not None:
        end = _index(names, "before_id", before)
    backwards = before is not None and after is None
    page = names[start:end][-limit:] if backwards else names[start:end][:limit]
    return {
        "data": [_anthropic_model(name) for name in page],
        "has_more": end - start > limit,
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(DEFAULT_PAGE))
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_PAGE):
        raise InvalidRequest(f"'limit': expected an integer from 1 to {MAX_PAGE}.", param="limit")
    return int(text)


def _index(names: list[str], param: str, name: str) -> int:
    if name not in names:
        raise ModelNotFound(f"'{param}': there is no model '{name}' for this key.", param=param)
    return names.index(name)


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "gkt-gateway"}


def _anthropic_model(name: str) -> Json:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": rfc3339(STARTED),
        "max_input_tokens": None,
        "max_tokens": None,
        "capabilities": None,
    }


def _json(body: Json) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
