"""Sessions of operators' browsers: a signed cookie that every worker and replica with the same admin key accepts.

A session ends at logout, after twelve hours, or after two hours without a request. A new admin key ends all sessions:
the signing key is derived from it. Redis stores only the ids of sessions that ended at logout.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import SecretStr

    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys

WRONG_KEY = "The admin key is wrong. Use admin.key of config.yaml; API keys of callers are not valid here."
LONGEST_S = 12 * 3600
"""The maximum duration of a session."""
IDLE_S = 2 * 3600
"""A session ends after this time without a request."""
_RENEW_AFTER_S = 60
_CLOCKS_APART_S = 60
_TOKEN = re.compile(r"([0-9]{10,12})\.([0-9]{10,12})\.([0-9a-f]{32})\.([0-9a-f]{64})", re.ASCII)
_MAX_ENDED = 10_000


class Session(NamedTuple):
    """The session of one browser. All its cookies share the random `id`.

    `began` is the login, and `seen` the time at which the current cookie was issued, in Unix seconds.
    """

    began: int
    seen: int
    id: str

    @property
    def until(self) -> int:
        """Return the end of the session without further requests, in Unix seconds."""
        return min(self.began + LONGEST_S, self.seen + IDLE_S)


class Sessions:
    """Issues and verifies session cookies. Without an admin key there are none. `clock` returns Unix seconds.

    The ids of sessions that ended at logout are in Redis (if given) for all processes, and in memory for this one.
    While Redis is away, a process knows only the logouts that it handled itself.
    """

    def __init__(
        self,
        key: SecretStr | None,
        clock: Callable[[], float] = time.time,
        redis: RedisClient | None = None,
        keys: RedisKeys | None = None,
    ) -> None:
        secret = None if key is None else key.get_secret_value().encode()
        # Hashes have one length and are compared in constant time.
        self._key_hash = None if secret is None else sha256(secret).digest()
        self._signing = None if secret is None else digest(secret, b"gkt-gateway session 2", "sha256")
        self._clock = clock
        self._redis = redis
        self._keys = keys
        self._ended: OrderedDict[str, None] = OrderedDict()
        # Browsers send a cookie to every port of a host, so gateways on one host need different cookie names.
        mark = "" if self._signing is None else digest(self._signing, b"name", "sha256").hex()[:8]
        self.cookie = f"gkt_session_{mark}"

    @property
    def key_set(self) -> bool:
        return self._key_hash is not None

    def is_key(self, candidate: str) -> bool:
        """Return whether `candidate` is the admin key."""
        return self._key_hash is not None and compare_digest(
            sha256(candidate.encode("utf-8", "surrogatepass")).digest(), self._key_hash
        )

    def begin(self) -> Session:
        """Return a new session, after a login with the admin key."""
        now = int(self._clock())
        return Session(now, now, secrets.token_hex(16))

    async def end(self, session: Session) -> bool:
        """End a session at logout, with all its cookies. Return whether all processes reject it from now on."""
        self._ended[session.id] = None
        if len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)
        if self._redis is None or self._keys is None:
            return True
        if not self._redis.up:
            return False
        try:  # for as long as a cookie of the session could be valid
            await self._redis.commands.set(self._keys.ended_session(session.id), 1, ex=LONGEST_S + _CLOCKS_APART_S)
        except (RedisError, OSError):
            return False
        return True

    async def of(self, request: web.Request) -> Session | None:
        """Return the session of a request; None: it has none, or the session has ended."""
        session = self._in_cookie(request)
        return None if session is None or await self._has_ended(session) else session

    async def _has_ended(self, session: Session) -> bool:
        if session.id in self._ended:
            return True
        if self._redis is None or self._keys is None or not self._redis.up:
            return False
        try:
            return bool(await self._redis.commands.exists(self._keys.ended_session(session.id)))
        except (RedisError, OSError):
            return False

    def _in_cookie(self, request: web.Request) -> Session | None:
        found = _TOKEN.fullmatch(request.cookies.get(self.cookie, ""))
        if found is None or self._signing is None:
            return None
        began, seen = int(found[1]), int(found[2])
        session, now = Session(began, seen, found[3]), self._clock()
        if not compare_digest(found[4], self._signature(session)):
            return None
        return session if seen - _CLOCKS_APART_S <= now < session.until else None

    def renewed(self, session: Session) -> Session | None:
        """Return the session with a new `seen` time, or None while the browser's cookie is recent enough."""
        now = int(self._clock())
        return session._replace(seen=now) if now - session.seen >= _RENEW_AFTER_S else None

    def set_cookie(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Set the session's cookie on a reply."""
        response.set_cookie(
            self.cookie,
            f"{session.began}.{session.seen}.{session.id}.{self._signature(session)}",
            max_age=max(1, session.until - int(self._clock())),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=_is_https(request),
        )

    def delete_cookie(self, request: web.Request, response: web.StreamResponse) -> None:
        """Delete the session's cookie with a reply."""
        response.del_cookie(self.cookie, path="/", httponly=True, samesite="Strict", secure=_is_https(request))

    def _signature(self, session: Session) -> str:
        assert self._signing is not None
        signed = f"{session.began}.{session.seen}.{session.id}"
        return digest(self._signing, signed.encode(), "sha256").hex()


SESSIONS = web.AppKey("sessions", Sessions)


def comes_from_here(request: web.Request) -> bool:
    """Return whether a page of this listener sent the request, by Sec-Fetch-Site or Origin. Absent headers mean no.

    SameSite does not cover other ports of the same host, so a page there could use the cookie.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    _, _, origin = request.headers.get("Origin", "").partition("://")
    return bool(origin) and origin.lower() == request.host.lower()


def _is_https(request: web.Request) -> bool:
    """Return whether the browser uses TLS, also behind a proxy. A forged header affects only the sender's cookie."""
    first, _, _ = request.headers.get("X-Forwarded-Proto", "").partition(",")
    return request.secure or first.strip().lower() == "https"
