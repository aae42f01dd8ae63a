"""Sessions of operators' browsers: a signed cookie that every worker and replica with the same admin key accepts.

A session ends after twelve hours, after two hours without a request, at logout, and when the admin key changes: the
signature uses a key that is derived from the admin key. Only the ids of sessions that ended at logout are stored.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING

from aiohttp import web
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import SecretStr

    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys

LONGEST_S = 12 * 3600
"""A session ends, whatever is done in it."""
IDLE_S = 2 * 3600
"""It ends when nothing is done in it."""
_RENEW_AFTER_S = 60
_CLOCKS_APART_S = 60
_TOKEN = re.compile(r"([0-9]{10,12})\.([0-9]{10,12})\.([0-9a-f]{32})\.([0-9a-f]{64})", re.ASCII)
_MAX_ENDED = 10_000


@dataclass(frozen=True, slots=True)
class Session:
    """One browser's; times in Unix seconds.

    Attributes:
        began: when the admin key was shown.
        seen: when the cookie was made that the browser shows.
        id: random; every cookie of one session has it.
    """

    began: int
    seen: int
    id: str

    @property
    def until(self) -> int:
        """When it ends if nothing more is done in it."""
        return min(self.began + LONGEST_S, self.seen + IDLE_S)


class EndedSessions:
    """The ids of sessions that ended at logout, in Redis for all processes and in memory for this one.

    While Redis is away, a process knows only the logouts that it handled itself.

    Args:
        redis: None: the ids stay in this process.
    """

    def __init__(self, redis: RedisClient | None = None, keys: RedisKeys | None = None) -> None:
        self._redis = redis
        self._keys = keys
        self._here: OrderedDict[str, None] = OrderedDict()

    async def add(self, session: Session) -> bool:
        """Store the id for as long as a cookie of the session could be valid. Returns whether Redis stored it."""
        self._here[session.id] = None
        if len(self._here) > _MAX_ENDED:
            self._here.popitem(last=False)
        if self._redis is None or self._keys is None:
            return True
        if not self._redis.up:
            return False
        try:
            await self._redis.commands.set(self._keys.ended_session(session.id), 1, ex=LONGEST_S + _CLOCKS_APART_S)
        except (RedisError, OSError):
            return False
        return True

    async def has(self, session: Session) -> bool:
        """Return whether the session ended at logout, as far as this process can know."""
        if session.id in self._here:
            return True
        if self._redis is None or self._keys is None or not self._redis.up:
            return False
        try:
            return bool(await self._redis.commands.exists(self._keys.ended_session(session.id)))
        except (RedisError, OSError):
            return False


class Sessions:
    """Makes and reads cookies.

    Args:
        key: the admin key; None: there is none, and so no session.
        clock: Unix seconds.
        ended: the sessions that ended at logout.
    """

    def __init__(
        self, key: SecretStr | None, clock: Callable[[], float] = time.time, ended: EndedSessions | None = None
    ) -> None:
        secret = None if key is None else key.get_secret_value().encode()
        # Of all of it, whatever its length: a comparison of hashes takes the same time wherever they differ.
        self._wanted = None if secret is None else sha256(secret).digest()
        self._signing = None if secret is None else digest(secret, b"gkt-gateway session 2", "sha256")
        self._clock = clock
        self._ended = EndedSessions() if ended is None else ended
        # Browsers send a cookie to every port of a host: gateways on one machine must not end each other's sessions.
        mark = "" if self._signing is None else digest(self._signing, b"name", "sha256").hex()[:8]
        self.cookie = f"gkt_session_{mark}"

    @property
    def key_set(self) -> bool:
        return self._wanted is not None

    def is_key(self, shown: str) -> bool:
        """Whether this is the admin key."""
        return self._wanted is not None and compare_digest(
            sha256(shown.encode("utf-8", "surrogatepass")).digest(), self._wanted
        )

    def begin(self) -> Session:
        """A new one, for who has shown the admin key."""
        now = int(self._clock())
        return Session(now, now, secrets.token_hex(16))

    async def end(self, session: Session) -> bool:
        """End a session at logout, for every cookie of it. Returns whether all processes know it."""
        return await self._ended.add(session)

    async def of(self, request: web.Request) -> Session | None:
        """Return the session of a request; None: it has none, or the session has ended."""
        session = self._in_cookie(request)
        return None if session is None or await self._ended.has(session) else session

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
        """The session as the browser should go on with it; None if what it has will do."""
        now = int(self._clock())
        return Session(session.began, now, session.id) if now - session.seen >= _RENEW_AFTER_S else None

    def hand_out(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Give the browser its cookie."""
        response.set_cookie(
            self.cookie,
            f"{session.began}.{session.seen}.{session.id}.{self._signature(session)}",
            max_age=max(1, session.until - int(self._clock())),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=_is_https(request),
        )

    def take_back(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let the browser forget it."""
        response.del_cookie(self.cookie, path="/", httponly=True, samesite="Strict", secure=_is_https(request))

    def _signature(self, session: Session) -> str:
        assert self._signing is not None
        signed = f"{session.began}.{session.seen}.{session.id}"
        return digest(self._signing, signed.encode(), "sha256").hex()


SESSIONS = web.AppKey("sessions", Sessions)


def comes_from_here(request: web.Request) -> bool:
    """Whether a page of this listener sent the request, as its browser says. What says nothing of it did not.

    Other pages can make a browser send its cookies where SameSite does not reach: another port of the same host.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    _, _, origin = request.headers.get("Origin", "").partition("://")
    return bool(origin) and origin.lower() == request.host.lower()


def _is_https(request: web.Request) -> bool:
    """Also where a proxy in front ended TLS. Who makes it up only keeps his own cookie from plain HTTP."""
    first, _, _ = request.headers.get("X-Forwarded-Proto", "").partition(",")
    return request.secure or first.strip().lower() == "https"
