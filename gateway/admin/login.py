"""POST, GET and DELETE /session: exchange the admin key for a session cookie, read the session, end it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import structlog
from aiohttp import web

from gateway.admin.key_views import time_shown
from gateway.admin.replies import json_reply
from gateway.admin.session import SESSIONS, WRONG_KEY, comes_from_here
from gateway.api.body import read_body
from gateway.api.error_body import error_response
from gateway.api.keys import REQUEST_ID
from gateway.errors import (
    AdminKeyUnset,
    CrossOrigin,
    InvalidRequest,
    NotAuthenticated,
    RateLimited,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.admin.session import Session, Sessions

log = structlog.get_logger()

_NOT_ENDED = (
    "This browser is logged out. Redis is unavailable, so other processes accept a copy of the cookie until the "
    "session expires. Change admin.key to end all sessions."
)


class LoginThrottle:
    """Delays replies to wrong admin keys and bounds how many may wait, to protect log and workers from a flood.

    The correct key is always accepted: otherwise a client that sends wrong keys could lock operators out, for example
    behind a shared proxy. Keys are too long to guess at any rate.

    Args:
        pause_s: the delay of each rejected login, in seconds.
        max_waiting: rejected logins that may wait at once in this process.
        max_per_address: rejected logins that may wait at once for one client address.
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
        response = error_response(StoreUnavailable(_NOT_ENDED), request[REQUEST_ID])
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
