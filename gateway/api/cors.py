"""Cross-origin resource sharing (CORS): lets scripts of web pages of other origins call a listener.

The protocol is that of the Fetch standard (https://fetch.spec.whatwg.org/#http-cors-protocol). Its credentials, such as
cookies, are never allowed: a page sends a key in a header.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.api.direct_reply import DirectReply
from gateway.config.cors import ANY_ORIGIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from multidict import CIMultiDict

    from gateway.config.cors import CorsSettings

_MAX_AGE_S = "600"  # the time for which browsers may keep the answer to a preflight request
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*", re.ASCII)


def allow_origins(app: web.Application, settings: CorsSettings | None) -> None:
    """Let pages of the origins call the application. Without settings, its replies and their cost do not change."""
    if settings is not None:
        cors = _Cors(settings)
        app.middlewares.append(cors.middleware)
        app.on_response_prepare.append(cors.on_prepare)


class _Cors:
    """Answers preflight requests, and adds the headers to all replies, errors included.

    aiohttp calls `on_prepare` for every reply that it sends, so also for streams. It does not send a `DirectReply`,
    which therefore gets its headers from the middleware. A request whose head is rejected has no origin, and its reply
    no such headers.
    """

    def __init__(self, settings: CorsSettings) -> None:
        self._origins = None if ANY_ORIGIN in settings.origins else frozenset(settings.origins)
        self._request_headers = None if settings.headers is None else ", ".join(settings.headers)

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.method == "OPTIONS" and (preflight := self._preflight(request)) is not None:
            return preflight
        response = await handler(request)
        if type(response) is DirectReply:
            self._add_headers(request, response.headers)
        return response

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        if type(response) is not DirectReply:
            self._add_headers(request, response.headers)

    def _allows(self, request: web.Request) -> bool:
        return self._origins is None or request.headers.get("Origin") in self._origins

    def _add_headers(self, request: web.Request, headers: CIMultiDict[str]) -> None:
        if self._origins is not None:
            vary = headers.get("Vary")
            headers["Vary"] = "Origin" if vary is None else f"{vary}, Origin"
        if self._allows(request):
            headers["Access-Control-Allow-Origin"] = ANY_ORIGIN if self._origins is None else request.headers["Origin"]
            headers["Access-Control-Expose-Headers"] = "*"

    def _preflight(self, request: web.Request) -> web.Response | None:
        """Return the reply to the preflight request for an existing path. None: the request is no such request."""
        sent, unsupported = request.headers, request.match_info.http_exception
        if "Origin" not in sent or "Access-Control-Request-Method" not in sent or not self._allows(request):
            return None
        if not isinstance(unsupported, web.HTTPMethodNotAllowed):
            return None
        headers = {
            "Access-Control-Allow-Methods": ", ".join(sorted(unsupported.allowed_methods)),
            "Access-Control-Max-Age": _MAX_AGE_S,
            "Vary": "Access-Control-Request-Headers",
        }
        names = sent.get("Access-Control-Request-Headers", "")
        if _HEADER_NAMES.fullmatch(names):
            headers["Access-Control-Allow-Headers"] = names if self._request_headers is None else self._request_headers
        return web.Response(status=204, headers=headers)
