"""Authentication of the admin listener: the admin key, or the session of a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway.admin.session import WRONG_KEY, comes_from_here
from gateway.api.auth import bearer, shows_key
from gateway.errors import AdminKeyUnset, CrossOrigin, NotAuthenticated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiohttp.typedefs import Middleware

    from gateway.admin.session import Session, Sessions


log = structlog.get_logger()


_SAFE = frozenset({"GET", "HEAD"})


def needs_key(sessions: Sessions, open_to_all: Iterable[web.RouteDef]) -> Middleware:
    """Return a middleware that requires the admin key or a session for every route outside `open_to_all`.

    The middleware compares handlers that the router found, not paths or hosts that the request names. A new route
    therefore needs the key by default. With a session, methods that change something also need a page of this listener
    as their origin.
    """
    open_handlers = frozenset(route.handler for route in open_to_all)

    @web.middleware
    async def checked(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        found = request.match_info
        if found.http_exception is not None or found.handler in open_handlers:
            return await handler(request)
        session = await _check(request, sessions)
        response = await handler(request)
        renewed = sessions.renewed(session) if session is not None else None
        if renewed is not None and not response.prepared:
            sessions.set_cookie(request, response, renewed)
        return response

    return checked


async def _check(request: web.Request, sessions: Sessions) -> Session | None:
    """Return the request's session, or None if the request carries the admin key itself.

    Raises:
        AdminKeyUnset: config.yaml sets no admin key.
        NotAuthenticated: the key is wrong, or the session has ended.
        CrossOrigin: a session would change something from a page of another origin.
    """
    if not sessions.key_set:
        raise AdminKeyUnset(
            "This route needs the admin key, and this gateway has none. Set admin.key in config.yaml, for example to "
            "env:GKT_ADMIN_KEY, and restart the gateway."
        )
    if not shows_key(request) and sessions.cookie in request.cookies:
        session = await sessions.of(request)
        if session is None:
            raise NotAuthenticated("The session has ended. Log in again.")
        if request.method not in _SAFE and not comes_from_here(request):
            raise CrossOrigin(
                "A session can change something only from a page of this listener. Send the admin key instead."
            )
        return session
    if not sessions.is_key(bearer(request)):
        log.warning("admin_key_wrong", remote=request.remote)
        raise NotAuthenticated(WRONG_KEY)
    return None
