"""Authentication of the admin listener by the admin key, or by the session of a browser.

POST, GET and DELETE /session exchange the admin key for a session cookie, read the session, and end it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import structlog
from aiohttp import web

from gateway.admin.replies import json_reply, time_shown
from gateway.admin.session import SESSIONS, WRONG_KEY, comes_from_here
from gateway.api.auth import bearer, shows_key
from gateway.api.body import read_body
from gateway.api.error_body import error_response
from gateway.api.keys import INFO
from gateway.errors import AdminKeyUnset, CrossOrigin, InvalidRequest, NotAuthenticated, RateLimited, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from aiohttp.typedefs import Middleware

    from gateway.admin.session import Session, Sessions

log = structlog.get_logger()

_SAFE = frozenset({"GET", "HEAD"})
_NOT_ENDED = (
    "This browser is logged out. Redis is unavailable, so other processes accept a copy of the cookie until the "
    "session expires. Change admin.key to end all sessions."
)


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

    Raises AdminKeyUnset, NotAuthenticated, and CrossOrigin if a session would change something from a page of another
    origin.
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


class LoginThrottle:
    """Delays replies to wrong admin keys by `pause_s`, and bounds how many may wait: in all, and per client address.

    It protects log and workers from a flood. The correct key is always accepted: otherwise a client that sends wrong
    keys could lock operators out, for example behind a shared proxy. Keys are too long to guess at any rate.
    """

    def __init__(self, pause_s: float = 1.0, max_waiting: int = 32, max_per_address: int = 4) -> None:
        self._pause_s = pause_s
        self._max_waiting = max_waiting
        self._max_per_address = max_per_address
        self._waiting: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        return self._waiting.total()

    def admit(self, remote: str) -> None:
        """Raise RateLimited if too many rejected logins wait already."""
        if self._waiting[remote] >= self._max_per_address or self._waiting.total() >= self._max_waiting:
            raise RateLimited("Too many logins with a wrong key. Wait a few seconds.", retry_after_s=self._pause_s)

    async def fail(self, remote: str) -> None:
        """Wait for the delay of a rejected login."""
        self._waiting[remote] += 1
        try:
            await asyncio.sleep(self._pause_s)
        finally:
            self._waiting[remote] -= 1
            if not self._waiting[remote]:
                del self._waiting[remote]


ATTEMPTS = web.AppKey("attempts", LoginThrottle)


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
        log.warning("admin_login_failed", remote=request.remote)
        await attempts.fail(remote)
        raise NotAuthenticated(WRONG_KEY)
    session = sessions.begin()
    log.info("admin_login", remote=request.remote)
    response = json_reply(_shown(sessions, session))
    sessions.set_cookie(request, response, session)
    return response


async def show_session(request: web.Request) -> web.Response:
    """GET /session: the state of the browser's session. The status is 200 with and without a session."""
    sessions = request.app[SESSIONS]
    return json_reply(_shown(sessions, await sessions.of(request)))


async def log_out(request: web.Request) -> web.Response:
    """DELETE /session: end the session. Every process then rejects its cookie."""
    if not comes_from_here(request):
        raise CrossOrigin("Only a page of this listener may log out.")
    sessions = request.app[SESSIONS]
    session = await sessions.of(request)
    response: web.Response = web.Response(status=204, headers={"Cache-Control": "no-store"})
    if session is not None and not await sessions.end(session):
        response = error_response(StoreUnavailable(_NOT_ENDED), request[INFO].id)
    sessions.delete_cookie(request, response)
    return response


def _key_in(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Login).key
    except (msgspec.DecodeError, ValueError):  # the error itself may quote the key
        raise InvalidRequest('The body must be {"key": "the admin key"}.', param="key") from None


def _shown(sessions: Sessions, session: Session | None) -> Mapping[str, object]:
    return {
        "object": "session",
        "active": session is not None,
        "who": "admin" if session is not None else None,
        "until": time_shown(session.until) if session is not None else None,
        "key_set": sessions.key_set,
    }
