"""Sessions of operators' browsers: a signed cookie that every worker and replica with the same secrets accepts.

A session ends at logout, after twelve hours, or after two hours without a request. Signatures depend on the admin key,
the session secret, the rules for roles, and the URL of the issuer. A change of one of them ends all sessions. Redis
stores only the ids of sessions that ended at logout, and of finished logins.
"""

from __future__ import annotations

import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from redis.exceptions import RedisError

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
_MAX_COOKIE_CHARS = 3_000


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


def no_issuer() -> str:
    """Return the URL of the issuer where no provider is configured."""
    return ""


class CookieSigner:
    """Signs values of cookies for one purpose. A change of a secret, or of the issuer's URL, invalidates all values.

    Args:
        secrets_: secrets of the gateway.
        issuer_url: returns the present URL of the issuer, which an edit of config.yaml may change at any time.
    """

    def __init__(self, purpose: str, *secrets_: SecretStr | None, issuer_url: Callable[[], str] = no_issuer) -> None:
        # Hashes have one length, so that no two lists of secrets give the same key.
        hashes = [sha256(one.get_secret_value().encode()).digest() if one else bytes(32) for one in secrets_]
        self._key = digest(b"".join(hashes), f"gkt-gateway {purpose}".encode(), "sha256") if any(secrets_) else None
        # Browsers send a cookie to every port of a host, so gateways on one host need different cookie names.
        self.mark = "" if self._key is None else digest(self._key, b"name ", "sha256").hex()[:8]
        self._issuer_url = issuer_url

    def derive(self, purpose: str, value: str) -> bytes:
        """Return a secret for a value. Without secrets of the gateway there is none: raises RuntimeError."""
        if self._key is None:
            raise RuntimeError("the gateway has no secret to sign with")
        return digest(self._key, f"{purpose} {value} {self._issuer_url()}".encode(), "sha256")

    def sign(self, content: bytes) -> str:
        """Return the content with its signature, for a cookie."""
        text = urlsafe_b64encode(content).decode().rstrip("=")
        return f"{text}.{self.derive('signature', text).hex()}"

    def verify(self, value: str) -> bytes | None:
        """Return the content of a cookie, or None if its signature is wrong."""
        text, _, signature = value.partition(".")
        if self._key is None or not text or len(value) > _MAX_COOKIE_CHARS or not value.isascii():
            return None
        if not compare_digest(signature, self.derive("signature", text).hex()):
            return None
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))


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
        self._signer = CookieSigner(f"session 3 {sha256(rules).hexdigest()}", key, secret, issuer_url=issuer_url)
        self._clock = clock
        # Behind a proxy that does not report TLS, too.
        self._persons_use_https = oidc is not None and oidc.public_url.startswith("https:")
        self._redis = redis
        self._keys = keys
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._used: OrderedDict[str, None] = OrderedDict()  # ids of logins
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
        # For as long as a cookie of the session could be valid.
        return await self._mark(self._ended, session_id, LONGEST_S) is not None

    async def use_once(self, login_id: str, valid_s: int) -> bool:
        """Return whether this is the first use of a login's id. While Redis is away, only this process is asked.

        Anyone can start logins. So their ids are kept for `valid_s` only, and never displace those of ended sessions.
        """
        if login_id in self._used:
            return False
        return await self._mark(self._used, login_id, valid_s) is not False

    async def _mark(self, ids: OrderedDict[str, None], id_: str, valid_s: int) -> bool | None:
        """Return whether the id was new, or None if other processes do not know of it because Redis is away."""
        ids[id_] = None
        if len(ids) > _MAX_ENDED:
            ids.popitem(last=False)
        if self._redis is None or self._keys is None:
            return True
        if not self._redis.up:
            return None
        try:
            key, keep_s = self._keys.ended_session(id_), valid_s + _CLOCKS_APART_S
            return bool(await self._redis.commands.set(key, 1, ex=keep_s, nx=True))
        except (RedisError, OSError):
            return None

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
        content = self._signer.verify(request.cookies.get(self.cookie, ""))
        if content is None:
            return None
        try:
            session = msgspec.json.decode(content, type=Session)
        except msgspec.DecodeError:  # of another version
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
            self._signer.sign(msgspec.json.encode(session)),
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
