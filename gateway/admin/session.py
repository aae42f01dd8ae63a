"""Sessions of operators' browsers: a signed cookie, which every worker and replica with the same admin key takes.

Nothing is kept of them. A session ends after twelve hours, after two without a request, when the browser gives it up,
and with the admin key: its signature is made with a key that is derived from that one.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import SecretStr

LONGEST_S = 12 * 3600
"""A session ends, whatever is done in it."""
IDLE_S = 2 * 3600
"""It ends when nothing is done in it."""
_RENEW_AFTER_S = 60
_CLOCKS_APART_S = 60
_TOKEN = re.compile(r"([0-9]{10,12})\.([0-9]{10,12})\.([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Session:
    """One browser's; times in Unix seconds.

    Attributes:
        began: when the admin key was shown.
        seen: when the cookie was made that the browser shows.
    """

    began: int
    seen: int

    @property
    def until(self) -> int:
        """When it ends if nothing more is done in it."""
        return min(self.began + LONGEST_S, self.seen + IDLE_S)


class Sessions:
    """Makes and reads cookies.

    Args:
        key: the admin key; None: there is none, and so no session.
        clock: Unix seconds.
    """

    def __init__(self, key: SecretStr | None, clock: Callable[[], float] = time.time) -> None:
        secret = None if key is None else key.get_secret_value().encode()
        # Of all of it, whatever its length: a comparison of hashes takes the same time wherever they differ.
        self._wanted = None if secret is None else sha256(secret).digest()
        self._signing = None if secret is None else digest(secret, b"gkt-gateway session 1", "sha256")
        self._clock = clock
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
        return Session(now, now)

    def of(self, request: web.Request) -> Session | None:
        """The session that a request is in; None: there is none, or it has ended."""
        found = _TOKEN.fullmatch(request.cookies.get(self.cookie, ""))
        if found is None or self._signing is None:
            return None
        began, seen = int(found[1]), int(found[2])
        if not compare_digest(found[3], self._signature(began, seen)):
            return None
        session, now = Session(began, seen), self._clock()
        return session if seen - _CLOCKS_APART_S <= now < session.until else None

    def renewed(self, session: Session) -> Session | None:
        """The session as the browser should go on with it; None if what it has will do."""
        now = int(self._clock())
        return Session(session.began, now) if now - session.seen >= _RENEW_AFTER_S else None

    def hand_out(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Give the browser its cookie."""
        response.set_cookie(
            self.cookie,
            f"{session.began}.{session.seen}.{self._signature(session.began, session.seen)}",
            max_age=max(1, session.until - int(self._clock())),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=_is_https(request),
        )

    def take_back(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let the browser forget it."""
        response.del_cookie(self.cookie, path="/", httponly=True, samesite="Strict", secure=_is_https(request))

    def _signature(self, began: int, seen: int) -> str:
        assert self._signing is not None
        return digest(self._signing, f"{began}.{seen}".encode(), "sha256").hex()


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
