"""Authentication of the admin listener by the admin key, the session of a browser, or a token of the issuer.

POST, GET and DELETE /session exchange the admin key for a session cookie, read the session, and end it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog
from aiohttp import web

from gateway.admin.login_throttle import ATTEMPTS
from gateway.admin.oidc import OIDC
from gateway.admin.replies import json_reply, time_shown
from gateway.admin.roles import KEY_HOLDER, OPERATOR, Role, required_roles
from gateway.admin.session import SESSIONS, WRONG_KEY, comes_from_here
from gateway.api.auth import bearer, shows_key
from gateway.api.body import read_body
from gateway.api.error_body import error_response
from gateway.api.keys import INFO
from gateway.errors import AdminKeyUnset, CrossOrigin, InvalidRequest, NotAuthenticated, RoleRequired, StoreUnavailable
from gateway.keys.identity.token import TokenRejected, looks_like_jwt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from aiohttp.typedefs import Middleware

    from gateway.admin.oidc import OidcProvider
    from gateway.admin.roles import Operator
    from gateway.admin.session import Session, Sessions

log = structlog.get_logger()

_SAFE = frozenset({"GET", "HEAD"})
_NOT_ENDED = (
    "This browser is logged out. Redis is unavailable, so other processes accept a copy of the cookie until the "
    "session expires. Change admin.key to end all sessions."
)


def authorize(
    sessions: Sessions,
    open_to_all: Iterable[web.RouteDef],
    routes_by_role: Mapping[Role, Iterable[web.RouteDef]],
    oidc: OidcProvider | None = None,
) -> Middleware:
    """Return a middleware that requires the admin key, a session or a token for every route outside `open_to_all`.

    The middleware compares handlers that the router found, not paths or hosts that the request names. A route outside
    `routes_by_role` needs the role ADMIN: a new route is therefore closed by default. With a session, methods that
    change something also need a page of this listener as their origin.
    """
    open_handlers = frozenset(route.handler for route in open_to_all)
    roles = required_roles(routes_by_role)

    @web.middleware
    async def checked(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        found = request.match_info
        if found.http_exception is not None or found.handler in open_handlers:
            return await handler(request)
        operator, session = await _authenticate(request, sessions, oidc)
        needed = roles.get(found.handler, Role.ADMIN)
        if operator.role < needed:
            raise RoleRequired(
                f"This needs the role {needed.label}. {operator.name} has the role {operator.role.label}: "
                "admin.oidc.roles in config.yaml assigns roles."
            )
        request[OPERATOR] = operator
        response = await handler(request)
        renewed = sessions.renewed(session) if session is not None else None
        if renewed is not None and not response.prepared:
            sessions.set_cookie(request, response, renewed)
        return response

    return checked


async def _authenticate(
    request: web.Request, sessions: Sessions, oidc: OidcProvider | None
) -> tuple[Operator, Session | None]:
    """Return the sender of a request, and the session if the request has one.

    Raises AdminKeyUnset, NotAuthenticated, and CrossOrigin if a session would change something from a page of another
    origin.
    """
    if not sessions.key_set and oidc is None:
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
        return session.operator, session
    credential = bearer(request)
    if sessions.is_key(credential):
        return KEY_HOLDER, None
    if oidc is not None and looks_like_jwt(credential):
        try:
            return await oidc.operator_of(credential), None
        except TokenRejected as error:
            log.warning("admin_token_rejected", reason=error.reason, remote=request.remote)
            raise
    log.warning("admin_key_wrong", remote=request.remote)
    raise NotAuthenticated(WRONG_KEY)


class _Login(msgspec.Struct, forbid_unknown_fields=True):
    key: str


async def log_in(request: web.Request) -> web.Response:
    """POST /session: `{"key": ...}`."""
    sessions, attempts = request.app[SESSIONS], request.app[ATTEMPTS]
    if any(name in request.headers for name in ("Origin", "Sec-Fetch-Site")) and not comes_from_here(request):
        raise CrossOrigin("Only a page of this listener may log in. Open its /login.")
    remote = request.remote or ""
    if not sessions.key_set:
        raise AdminKeyUnset("This gateway has no admin key. Set admin.key in config.yaml and restart the gateway.")
    if not sessions.is_key(_key_in(await read_body(request))):
        attempts.admit(remote)
        log.warning("admin_login_failed", method="key", remote=request.remote)
        await attempts.fail(remote)
        raise NotAuthenticated(WRONG_KEY)
    session = sessions.begin()
    log.info("admin_login", method="key", actor=session.operator.actor, remote=request.remote)
    response = json_reply(_shown(request, session))
    sessions.set_cookie(request, response, session)
    return response


async def show_session(request: web.Request) -> web.Response:
    """GET /session: the state of the browser's session. The status is 200 with and without a session."""
    return json_reply(_shown(request, await request.app[SESSIONS].of(request)))


async def log_out(request: web.Request) -> web.Response:
    """DELETE /session: end the session. Every process then rejects its cookie.

    The reply is 200 with `logout_url` if the browser should also log out at the issuer, else 204.
    """
    if not comes_from_here(request):
        raise CrossOrigin("Only a page of this listener may log out.")
    sessions = request.app[SESSIONS]
    session = await sessions.of(request)
    response: web.Response = web.Response(status=204, headers={"Cache-Control": "no-store"})
    if session is not None:
        if not await sessions.end(session.id):
            response = error_response(StoreUnavailable(_NOT_ENDED), request[INFO].id)
        elif session.subject is not None and (url := await _logout_url(request)) is not None:
            response = json_reply({"object": "logout", "logout_url": url})
        log.info("admin_logout", actor=session.operator.actor, remote=request.remote)
    sessions.delete_cookie(request, response)
    return response


async def _logout_url(request: web.Request) -> str | None:
    oidc = request.app.get(OIDC)
    return None if oidc is None else await oidc.logout_url()


def _key_in(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Login).key
    except (msgspec.DecodeError, ValueError):  # the error itself may quote the key
        raise InvalidRequest('The body must be {"key": "the admin key"}.', param="key") from None


def _shown(request: web.Request, session: Session | None) -> Mapping[str, object]:
    oidc = request.app.get(OIDC)
    return {
        "object": "session",
        "active": session is not None,
        "who": session.name if session is not None else None,
        "role": session.role.label if session is not None else None,
        "until": time_shown(session.until) if session is not None else None,
        "key_set": request.app[SESSIONS].key_set,
        "oidc": None if oidc is None else {"name": oidc.title, "url": oidc.login_url},
    }
