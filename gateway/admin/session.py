"""Sessions of operators' browsers: a signed cookie that every worker and replica with the same secrets accepts.

A session ends at logout, after twelve hours, or after two hours without a request. Signatures depend on the admin key,
the session secret, the rules for roles, and the URL of the issuer. A change of one of them ends all sessions. Redis
stores only the ids of sessions that ended at logout.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from redis.exceptions import RedisError

from gateway.admin.cookies import CookieSigner, no_issuer
from gateway.admin.roles import KEY_HOLDER, Operator, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import SecretStr

    from gateway.config.admin_oidc import OidcSettings
    from gateway.redis.client import RedisClient
    from gateway.redis.keys import RedisKeys

WRONG_KEY = "The admin key is wrong. Use admin.key of config.yaml; API keys of callers are not valid here."
LONGEST_S = 12 * 3600
"""The maximum duration of a session."""
IDLE_S = 2 * 3600
"""A session ends after this time without a request."""
_RENEW_AFTER_S = 60
_CLOCKS_APART_S = 60
_MAX_ENDED = 10_000


class Session(msgspec.Struct, frozen=True, array_like=True):
    """The session of one browser. All its cookies share the random `id`.

    `began` is the login, and `seen` the time at which the current cookie was issued, in Unix seconds.
    """

    began: int
    seen: int
    id: str
    name: str = KEY_HOLDER.name
    role: Role = KEY_HOLDER.role
    subject: str | None = None
    """The person's identifier at the identity provider; None: a login with the admin key."""

    @property
    def until(self) -> int:
        """Return the end of the session without further requests, in Unix seconds."""
        return min(self.began + LONGEST_S, self.seen + IDLE_S)

    @property
    def operator(self) -> Operator:
        return Operator(self.name, self.role, is_person=self.subject is not None)


class Sessions:
    """Issues and verifies session cookies. `clock` returns Unix seconds, and `issuer_url` the issuer's present URL.

    Without an admin key and a session secret there are no sessions. Without `oidc` there are none of persons. The ids
    of sessions that ended at logout are in Redis (if given) for all processes, and in memory for this one. While Redis
    is away, a process knows only the logouts that it handled itself.
    """

    def __init__(
        self,
        key: SecretStr | None,
        clock: Callable[[], float] = time.time,
        redis: RedisClient | None = None,
        keys: RedisKeys | None = None,
        oidc: OidcSettings | None = None,
        issuer_url: Callable[[], str] = no_issuer,
    ) -> None:
        # Hashes have one length and are compared in constant time.
        self._key_hash = None if key is None else sha256(key.get_secret_value().encode()).digest()
        rules = b"" if oidc is None else oidc.model_dump_json(include={"issuer", "client_id", "roles"}).encode()
        secret = None if oidc is None else oidc.session_secret
        self._signer = CookieSigner(f"session {sha256(rules).hexdigest()}", key, secret, issuer_url=issuer_url)
        self._clock = clock
        # Behind a proxy that does not report TLS, too.
        self._persons_use_https = oidc is not None and oidc.public_url.startswith("https:")
        self._redis = redis
        self._keys = keys
        self._ended: OrderedDict[str, None] = OrderedDict()
        self.cookie = f"gkt_session_{self._signer.mark}"

    @property
    def key_set(self) -> bool:
        return self._key_hash is not None

    def is_key(self, candidate: str) -> bool:
        """Return whether `candidate` is the admin key."""
        return self._key_hash is not None and compare_digest(
            sha256(candidate.encode("utf-8", "surrogatepass")).digest(), self._key_hash
        )

    def begin(self, operator: Operator = KEY_HOLDER, subject: str | None = None) -> Session:
        """Return a new session, after a login with the admin key or of the person `subject`."""
        now = int(self._clock())
        return Session(now, now, secrets.token_hex(16), operator.name, operator.role, subject)

    async def end(self, session_id: str) -> bool:
        """End a session at logout, with all its cookies. Return whether all processes reject it from now on."""
        self._ended[session_id] = None
        if len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)
        if self._redis is None or self._keys is None:
            return True
        if not self._redis.up:
            return False
        try:
            # For as long as a cookie of the session could be valid.
            await self._redis.commands.set(self._keys.ended_session(session_id), 1, ex=LONGEST_S + _CLOCKS_APART_S)
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
        try:
            session = msgspec.convert(self._signer.verify(request.cookies.get(self.cookie, "")), Session)
        except msgspec.ValidationError:
            return None
        return session if session.seen - _CLOCKS_APART_S <= self._clock() < session.until else None

    def renewed(self, session: Session) -> Session | None:
        """Return the session with a new `seen` time, or None while the browser's cookie is recent enough."""
        now = int(self._clock())
        return msgspec.structs.replace(session, seen=now) if now - session.seen >= _RENEW_AFTER_S else None

    def set_cookie(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Set the session's cookie on a reply."""
        response.set_cookie(
            self.cookie,
            self._signer.sign(msgspec.to_builtins(session)),
            max_age=max(1, session.until - int(self._clock())),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=_is_https(request) or (self._persons_use_https and session.subject is not None),
        )

    def delete_cookie(self, request: web.Request, response: web.StreamResponse) -> None:
        """Delete the session's cookie with a reply."""
        response.del_cookie(self.cookie, path="/", httponly=True, samesite="Strict", secure=_is_https(request))


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
