"""The identity provider of the admin pages: its URLs, the exchange of a code for an ID token, and the roles of persons.

The flow is the authorization code flow of OpenID Connect Core 1.0 with PKCE (RFC 7636). The callback must be of the
configured issuer (RFC 9207).
"""

from __future__ import annotations

from base64 import b64encode
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote_plus, urlencode

import structlog
from aiohttp import web

from gateway.admin.login_state import CALLBACK_PATH
from gateway.admin.login_throttle import AddressSlots
from gateway.admin.roles import Operator, Role
from gateway.config.claims import claim_of, mismatch, without_unverified_email
from gateway.errors import RoleRequired
from gateway.keys.identity.document import DocumentError, parse_object
from gateway.keys.identity.token import TokenRejected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from joserfc.jwt import ClaimsOption

    from gateway.admin.login_state import PendingLogin
    from gateway.config.admin_oidc import OidcSettings
    from gateway.keys.identity.issuer import Issuer
    from gateway.keys.identity.issuers import Issuers

log = structlog.get_logger()

START_PATH = "/login/oidc"
_MAX_CALLS = 64
_MAX_CALLS_PER_ADDRESS = 8
_MAX_NAME_CHARS = 128
_MAX_SUBJECT_CHARS = 255
_ACCESS_TOKENS = frozenset({"at+jwt", "application/at+jwt"})
_OF_KEYCLOAK = ("Bearer", "DPoP")
"""Values of Keycloak's claim `typ` in access tokens."""
_OK = 200
_ERRORS = frozenset(
    {
        "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type",
        "invalid_scope", "access_denied", "unsupported_response_type", "server_error", "temporarily_unavailable",
        "interaction_required", "login_required", "account_selection_required", "consent_required",
    }
)  # fmt: skip
"""Error codes of OAuth 2.0 and OpenID Connect. Other texts of a provider are not logged."""


class LoginError(Exception):
    """A login failed. `why` selects the message of the login page; the error's own message is for the log."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


class Person(NamedTuple):
    """A person whom the provider has identified."""

    subject: str
    operator: Operator


class _Tokens(NamedTuple):
    id_token: str
    access_token: str


class OidcProvider:
    """The provider at which operators log in.

    Args:
        max_calls: concurrent logins, which send requests to the provider.
        max_per_address: concurrent logins of one client address.
    """

    def __init__(
        self,
        settings: OidcSettings,
        issuers: Issuers,
        max_calls: int = _MAX_CALLS,
        max_per_address: int = _MAX_CALLS_PER_ADDRESS,
    ) -> None:
        self._settings, self._issuers = settings, issuers
        self._calls = AddressSlots(max_calls, max_per_address)

    @property
    def title(self) -> str:
        """Return the name of the provider on the login page."""
        return self._settings.title or self._settings.issuer

    @property
    def login_url(self) -> str:
        return self._settings.public_url + START_PATH

    @property
    def _redirect_uri(self) -> str:
        return self._settings.public_url + CALLBACK_PATH

    def issuer_url(self) -> str:
        """Return the URL of the issuer in config.yaml now; empty without the issuer."""
        issuer = self._issuers.named(self._settings.issuer)
        return "" if issuer is None else issuer.settings.issuer

    @contextmanager
    def call(self, remote: str) -> Iterator[None]:
        """Bound the calls to the provider inside the block: anyone can start a login. Raises LoginError."""
        if self._calls.is_full(remote):
            of_all, of_one = self._calls.most, self._calls.most_per_address
            raise LoginError("busy", f"{of_all} logins are in progress, or {of_one} of this address")
        with self._calls.hold(remote):
            yield

    async def authorization_url(self, login: PendingLogin, *, again: bool = False) -> str:
        """Return the provider's URL for a login. `again` asks for another login there. Raises LoginError."""
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": login.state,
            "nonce": login.nonce,
            "code_challenge": login.challenge,
            "code_challenge_method": "S256",
        }
        if again:
            query["prompt"] = "login"
        return _with_query(await self._endpoint("authorization_endpoint"), query)

    async def logout_url(self) -> str | None:
        """Return the provider's URL for a logout there, or None if the configuration or the provider has none.

        See OpenID Connect RP-Initiated Logout 1.0.
        """
        if self._settings.logout != "provider":
            return None
        try:
            url = await self._endpoint("end_session_endpoint")
        except LoginError as error:
            log.warning("admin_logout_local", error=str(error))
            return None
        back = f"{self._settings.public_url}/login"
        return _with_query(url, {"client_id": self._settings.client_id, "post_logout_redirect_uri": back})

    async def person_of(self, login: PendingLogin, query: Mapping[str, str]) -> Person:
        """Return the person of a callback whose state is verified. Raises LoginError."""
        await self._check_issuer(query.get("iss"))
        if (error := query.get("error")) is not None:
            raise LoginError("refused", f"the provider replied with the error {_known(error)}")
        if not (code := query.get("code")):
            raise LoginError("invalid", "the callback has neither code nor error")
        tokens = await self._exchange(code, login.verifier)
        try:
            claims = await self._claims(tokens.id_token, nonce={"essential": True, "value": login.nonce})
        except TokenRejected as rejected:
            raise LoginError("invalid", f"the ID token was rejected: {rejected.message}") from None
        if self._settings.userinfo:
            claims = {**await self._userinfo(tokens.access_token, claims.get("sub")), **claims}
        return self._person(claims)

    async def operator_of(self, token: str) -> Operator:
        """Return the operator whom a token for this client identifies. Raises TokenRejected and RoleRequired."""
        claims = await self._claims(token)
        try:
            return self._person(claims).operator
        except LoginError as error:
            raise RoleRequired(f"The token is valid, but {error}.") from None

    async def _claims(self, token: str, **required: ClaimsOption) -> Mapping[str, Any]:
        """Return the claims of a valid token for this client, with the required claims. Raises TokenRejected."""
        issuer, client_id = self._settings.issuer, self._settings.client_id
        verified = await self._issuers.verify_for(
            token, issuer=issuer, aud={"essential": True, "value": client_id}, azp={"value": client_id}, **required
        )
        claims = verified.claims
        # RFC 9068 names access tokens in the header. Keycloak does so in a claim.
        if verified.token_type in _ACCESS_TOKENS or claims.get("typ") in _OF_KEYCLOAK:
            raise TokenRejected(
                "The token is an access token (typ). This listener accepts ID tokens.", "access_token", issuer
            )
        # OpenID Connect Core 1.0, section 3.1.3.7: one of several audiences must be the authorized party.
        if claims["aud"] not in (client_id, [client_id]) and "azp" not in claims:
            raise TokenRejected("The token is for several clients and has no authorized party (azp).", "claim", issuer)
        return claims

    def _person(self, claims: Mapping[str, Any]) -> Person:
        """Return the person of verified claims. Raises LoginError without a subject or a role."""
        subject = claims.get("sub")
        if not isinstance(subject, str) or not _is_line(subject, _MAX_SUBJECT_CHARS):
            raise LoginError("invalid", "the token has no valid subject (sub)")
        claims = without_unverified_email(claims)  # it gives neither a name nor a role
        name = claim_of(claims, self._settings.name_claim)
        if not isinstance(name, str) or not _is_line(name, _MAX_NAME_CHARS):
            name = subject[:_MAX_NAME_CHARS]
        rules = self._settings.roles
        of_role = {Role.ADMIN: rules.admin, Role.OPERATOR: rules.operator, Role.VIEWER: rules.viewer}
        for role, rule in of_role.items():
            if rule is not None and mismatch(rule, claims) is None:
                return Person(subject, Operator(name, role, is_person=True))
        compared = ", ".join(sorted({path for rule in of_role.values() for path in rule or ()}))
        raise LoginError(
            "no_role", f"no rule of admin.oidc.roles matches {name} (sub {subject}). Compared claims: {compared}"
        )

    async def _check_issuer(self, issuer: str | None) -> None:
        """Check the parameter `iss` of a callback (RFC 9207). Raises LoginError."""
        if issuer is None:
            if (await self._discovery()).get("authorization_response_iss_parameter_supported") is True:
                raise LoginError("invalid", "the callback has no issuer (iss), which the provider always sends")
        elif issuer != self._issuer().settings.issuer:
            raise LoginError("invalid", "the callback is of another issuer (iss)")

    async def _exchange(self, code: str, verifier: str) -> _Tokens:
        """Return the tokens for a code. Raises LoginError."""
        settings = self._settings
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": verifier,
        }
        headers = {}
        if settings.client_secret is None:
            form["client_id"] = settings.client_id
        elif await self._accepts_basic():
            # RFC 6749, section 2.3.1: both parts are encoded first, since an id may contain a colon.
            parts = (settings.client_id, settings.client_secret.get_secret_value())
            headers["Authorization"] = f"Basic {b64encode(':'.join(map(quote_plus, parts)).encode()).decode()}"
        else:
            form |= {"client_id": settings.client_id, "client_secret": settings.client_secret.get_secret_value()}
        reply = await self._call("token_endpoint", form, headers)
        token, access_token = reply.get("id_token"), reply.get("access_token")
        if not isinstance(token, str):
            raise LoginError("invalid", "the reply of token_endpoint has no id_token: is openid in admin.oidc.scopes?")
        return _Tokens(token, access_token if isinstance(access_token, str) else "")

    async def _userinfo(self, access_token: str, subject: object) -> Mapping[str, Any]:
        """Return more claims of the person (OpenID Connect Core 1.0, section 5.3). Raises LoginError."""
        claims = await self._call("userinfo_endpoint", None, {"Authorization": f"Bearer {access_token}"})
        if claims.get("sub") != subject:
            raise LoginError("invalid", "the reply of userinfo_endpoint has another subject (sub) than the ID token")
        return claims

    async def _call(self, name: str, form: Mapping[str, str] | None, headers: Mapping[str, str]) -> Mapping[str, Any]:
        """Return the JSON object that an endpoint replies with. Raises LoginError."""
        url = await self._endpoint(name)
        try:
            status, body = await self._issuers.reader.request(
                "GET" if form is None else "POST", url, form, headers, ca=self._issuer().settings.ca
            )
        except DocumentError as error:
            raise LoginError("unreachable", f"{name}: {error}") from None
        try:
            reply = parse_object(body)
        except ValueError:
            reply = {}
        if status != _OK:
            raise LoginError("invalid", f"{name} replied with status {status} and error {_known(reply.get('error'))}")
        return reply

    async def _accepts_basic(self) -> bool:
        """Return whether the client authenticates in a header, as it does by default, and not in the form."""
        methods = (await self._discovery()).get("token_endpoint_auth_methods_supported")
        return not isinstance(methods, list) or "client_secret_basic" in methods or "client_secret_post" not in methods

    async def _discovery(self) -> Mapping[str, Any]:
        try:
            return await self._issuer().discovery()
        except DocumentError as error:
            raise LoginError("unreachable", f"the discovery document cannot be read: {error}") from None

    async def _endpoint(self, name: str) -> str:
        try:
            return await self._issuer().endpoint(name)
        except DocumentError as error:
            raise LoginError("unreachable", f"{name} is unknown: {error}") from None

    def _issuer(self) -> Issuer:
        issuer = self._issuers.named(self._settings.issuer)
        if issuer is None:
            raise LoginError("unreachable", f"identity.issuers has no issuer '{self._settings.issuer}' any more")
        return issuer


OIDC = web.AppKey("oidc", OidcProvider)


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"


def _known(error: object) -> str:
    return error if isinstance(error, str) and error in _ERRORS else "(another text)"


def _is_line(text: str, max_chars: int) -> bool:
    return 0 < len(text) <= max_chars and text.isprintable() and text == text.strip()
