"""State of a login at an identity provider between its start and the callback, in a signed cookie.

Every process can therefore verify a callback. A login that began at another issuer is not finished. A callback ends
the login: the browser deletes the cookie, and the provider accepts a code once.
"""

from __future__ import annotations

import re
import secrets
import time
from base64 import urlsafe_b64encode
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING

import msgspec

from gateway.admin.cookies import CookieSigner, no_issuer

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web
    from pydantic import SecretStr

    from gateway.config.admin_oidc import OidcSettings

CALLBACK_PATH = "/login/callback"
LOGIN_LIMIT_S = 600
"""The maximum time between the start of a login and its callback."""
FIRST_PAGE = "/dashboard"
_PAGE = re.compile(
    r"/(playground|dashboard(/[A-Za-z0-9_%.-]+){0,2})(\?[A-Za-z0-9_.~!$&'()*+,;=:@/?%-]*)?"
    r"(#[A-Za-z0-9_.~!$&'()*+,;=:@/?%-]*)?",
    re.ASCII,
)
_DOTS = re.compile(r"/(\.|%2e)+(/|$)", re.IGNORECASE)
_MAX_PAGE_CHARS = 1_000


def page_or_first(path: str) -> str:
    """Return the path of a page of the dashboard, or the first page for every other text."""
    is_page = len(path) <= _MAX_PAGE_CHARS and _PAGE.fullmatch(path) and not _DOTS.search(re.split(r"[?#]", path)[0])
    return path if is_page else FIRST_PAGE


class PendingLogin(msgspec.Struct, frozen=True, array_like=True):
    """A login that waits for its callback: the content of the cookie.

    Attributes:
        began: its start in Unix seconds.
        page: the page to open after the login.
    """

    began: int
    page: str
    state: str
    nonce: str
    verifier: str

    @property
    def challenge(self) -> str:
        """Return the PKCE challenge of the method S256 (RFC 7636, section 4.2)."""
        return urlsafe_b64encode(sha256(self.verifier.encode()).digest()).decode().rstrip("=")


class LoginStates:
    """Writes and verifies the cookies of logins. `clock` returns Unix seconds, and `issuer_url` the issuer's URL."""

    def __init__(
        self,
        key: SecretStr | None,
        oidc: OidcSettings,
        clock: Callable[[], float] = time.time,
        issuer_url: Callable[[], str] = no_issuer,
    ) -> None:
        self._signer = CookieSigner("login", key, oidc.session_secret, issuer_url=issuer_url)
        self._clock = clock
        self._is_https = oidc.public_url.startswith("https:")
        self.cookie = f"gkt_login_{self._signer.mark}"

    def begin(self, page: str) -> PendingLogin:
        """Return a new login that opens a page, the result of `page_or_first`."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        return PendingLogin(int(self._clock()), page, state, nonce, verifier)

    def set_cookie(self, response: web.StreamResponse, login: PendingLogin) -> None:
        """Set the cookie of a login. It replaces that of an earlier login of the browser."""
        response.set_cookie(
            self.cookie,
            self._signer.sign(msgspec.to_builtins(login)),
            max_age=LOGIN_LIMIT_S,
            path=CALLBACK_PATH,
            httponly=True,
            samesite="Lax",  # the callback comes from the provider's site
            secure=self._is_https,
        )

    def delete_cookie(self, response: web.StreamResponse) -> None:
        """Delete the cookie."""
        response.del_cookie(self.cookie, path=CALLBACK_PATH, httponly=True, samesite="Lax", secure=self._is_https)

    def pending(self, request: web.Request, state: str) -> PendingLogin | None:
        """Return the login of the browser, or None: there is none, it is too old, or `state` is of another login."""
        try:
            login = msgspec.convert(self._signer.verify(request.cookies.get(self.cookie, "")), PendingLogin)
        except msgspec.ValidationError:
            return None
        is_current = self._clock() - login.began < LOGIN_LIMIT_S
        return login if is_current and compare_digest(login.state.encode(), state.encode("utf-8", "replace")) else None
