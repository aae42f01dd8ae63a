"""An issuer at which persons log in: the authorization code flow, with a page that asks for the person."""

from __future__ import annotations

import html
import secrets
from base64 import b64decode, urlsafe_b64encode
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

from aiohttp import web

from tests.identity_provider import TokenIssuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from ssl import SSLContext

CLIENT_ID = "gkt dashboard:1"
"""A client id with characters that the header of basic authentication must encode."""
CLIENT_SECRET = "a+client%secret&more"
PEOPLE: dict[str, dict[str, Any]] = {
    "vera": {"sub": "sub-vera", "email": "vera@example.com", "groups": ["gkt-viewers", "staff"]},
    "oscar": {"sub": "sub-oscar", "email": "oscar@example.com", "email_verified": True, "groups": ["gkt-operators"]},
    "ada": {"sub": "sub-ada", "email": "ada@example.com", "groups": ["gkt-admins", "gkt-viewers"]},
    "mallory": {"sub": "sub-mallory", "email": "ada@example.com", "email_verified": False, "groups": ["staff"]},
}
ROLES = {
    "admin": {"groups": "gkt-admins"},
    "operator": {"groups": ["gkt-operators"]},
    "viewer": {"groups": "gkt-viewers"},
}


@dataclass
class LoginProvider(TokenIssuer):
    """A running issuer with a client. Change the members to change its replies.

    Attributes:
        redirect_uri: the registered redirect URI; None: all are accepted.
        id_claims: claims that replace those of ID tokens; None removes a claim.
        kid: the key that signs ID tokens.
        hidden: claims that only the userinfo endpoint returns.
        userinfo: members that replace those of its replies.
        token_reply: the whole reply of the token endpoint, as status and body; None: the usual one.
        token_calls: the forms that the token endpoint got.
    """

    redirect_uri: str | None = None
    id_claims: dict[str, Any] = field(default_factory=dict)
    kid: str = "k1"
    hidden: tuple[str, ...] = ()
    userinfo: dict[str, Any] = field(default_factory=dict)
    token_reply: tuple[int, bytes] | None = None
    token_calls: list[dict[str, str]] = field(default_factory=list)
    _codes: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)

    @property
    def port(self) -> int | None:
        return urlsplit(self.url).port

    def approve(self, url: str, person: str) -> str:
        """Return the URL of the callback after `person` has logged in at an authorization URL."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert (query["client_id"], query["response_type"]) == (CLIENT_ID, "code")
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        assert self.redirect_uri in {None, query["redirect_uri"]}
        code = secrets.token_urlsafe(24)
        self._codes[code] = (person, query)
        back = {"code": code, "state": query["state"], "iss": self.url}
        return f"{query['redirect_uri']}?{urlencode(back)}"

    async def _authorize(self, request: web.Request) -> web.Response:
        links = "".join(
            f'<p><a href="{html.escape(self.approve(str(request.url), person))}">{person}</a></p>' for person in PEOPLE
        )
        page = (
            f"<!doctype html><html lang=en><title>Provider</title><link rel=icon href=data:,><h1>Provider</h1>{links}"
        )
        return web.Response(text=page, content_type="text/html")

    async def _token(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.token_calls.append(form)
        if self.token_reply is not None:
            status, body = self.token_reply
            return web.Response(status=status, body=body, content_type="application/json")
        if _client_of(request, form) != (CLIENT_ID, CLIENT_SECRET):
            return web.json_response({"error": "invalid_client"}, status=401)
        person, query = self._codes.pop(form["code"], ("", {}))
        challenge = urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).decode().rstrip("=")
        if not person or form["redirect_uri"] != query["redirect_uri"] or challenge != query["code_challenge"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        claims = {name: value for name, value in PEOPLE[person].items() if name not in self.hidden}
        claims |= {"aud": CLIENT_ID, "nonce": query["nonce"], **self.id_claims}
        return web.json_response(
            {"access_token": f"access-{person}", "token_type": "Bearer", "id_token": self.token(self.kid, **claims)}
        )

    async def _userinfo(self, request: web.Request) -> web.Response:
        person = request.headers.get("Authorization", "").removeprefix("Bearer access-")
        return web.json_response({**PEOPLE[person], **self.userinfo})

    async def _end_session(self, request: web.Request) -> web.Response:
        raise web.HTTPFound(request.query["post_logout_redirect_uri"])


def _client_of(request: web.Request, form: dict[str, str]) -> tuple[str | None, str | None]:
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme == "Basic":
        name, _, secret = b64decode(encoded).decode().partition(":")
        return unquote_plus(name), unquote_plus(secret)
    return form.get("client_id"), form.get("client_secret")


@asynccontextmanager
async def login_provider(host: str = "127.0.0.1", tls: SSLContext | None = None) -> AsyncIterator[LoginProvider]:
    """Run a provider on this machine. With the host `localhost`, it is another site for browsers than 127.0.0.1."""
    provider, app, path = LoginProvider(), web.Application(), "/realms/corp"
    app.router.add_get(f"{path}/.well-known/openid-configuration", provider._discovery)
    app.router.add_get(f"{path}/keys", provider._keys)
    app.router.add_get(f"{path}/authorize", provider._authorize)
    app.router.add_post(f"{path}/token", provider._token)
    app.router.add_get(f"{path}/userinfo", provider._userinfo)
    app.router.add_get(f"{path}/logout", provider._end_session)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        provider.url = f"{'http' if tls is None else 'https'}://{host}:{runner.addresses[0][1]}{path}"
        names = {"authorization_endpoint": "authorize", "token_endpoint": "token", "userinfo_endpoint": "userinfo"}
        provider.discovery = {name: f"{provider.url}/{part}" for name, part in names.items()}
        provider.discovery |= {
            "end_session_endpoint": f"{provider.url}/logout",
            "authorization_response_iss_parameter_supported": True,
        }
        yield provider
    finally:
        await runner.cleanup()
