"""Who may ask the admin listener for more than probes, metrics and pages: who shows the admin key, or has a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway.admin.session import comes_from_here
from gateway.api.auth import bearer, shows_key
from gateway.errors import AdminKeyUnset, CrossOrigin, NotAuthenticated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiohttp.typedefs import Middleware

    from gateway.admin.session import Session, Sessions


log = structlog.get_logger()


_SAFE = frozenset({"GET", "HEAD"})


def needs_key(sessions: Sessions, open_to_all: Iterable[web.RouteDef]) -> Middleware:
    """A middleware that lets a request through to `open_to_all`, and to any other route only with the admin key.

    It goes by the handler that the router has found, never by what the request says of its path or its host. So a
    route that nobody thought of needs the key. In its place goes the cookie of a session, and to change something then
    the page that asks must be of this listener.
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
            sessions.hand_out(request, response, renewed)
        return response

    return checked


async def _check(request: web.Request, sessions: Sessions) -> Session | None:
    """The session that the request is in; None if it shows the key itself."""
    if not sessions.key_set:
        raise AdminKeyUnset(
            "This needs the admin key, and this gateway has none. Set admin.key in config.yaml, for example to "
            "env:GKT_ADMIN_KEY, and start it again."
        )
    if not shows_key(request) and sessions.cookie in request.cookies:
        session = await sessions.of(request)
        if session is None:
            raise NotAuthenticated("The session has ended. Log in again.")
        if request.method not in _SAFE and not comes_from_here(request):
            raise CrossOrigin("A session changes things from a page of this listener only. Elsewhere send the key.")
        return session
    if not sessions.is_key(bearer(request)):
        log.warning("admin_key_wrong", remote=request.remote)
        raise NotAuthenticated("This is not the admin key: admin.key of config.yaml. Callers' keys do not hold here.")
    return None
