"""The section `admin.oidc`: login of operators at an OpenID Connect provider, and their roles."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from gateway.config.claims import ClaimConditions, ClaimPath, check_conditions
from gateway.config.identity import is_loopback
from gateway.config.scalars import (
    Flag,
    HttpBase,
    InvalidValue,
    Label,
    Secret,
)
from gateway.config.yaml_source import StrictModel

_SCOPE = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]{1,128}", re.ASCII)
_MIN_SECRET_LENGTH = 32


def _public_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.path:
        raise InvalidValue("must have no path: the pages are at /dashboard, /login and so on")
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise InvalidValue("must begin with https://: without TLS, anyone on the network could take over the session")
    return url


def _scope(value: str) -> str:
    if not _SCOPE.fullmatch(value):
        raise InvalidValue("must be the name of a scope, without spaces, quotes and backslashes")
    return value


_RoleRule: TypeAlias = Annotated[ClaimConditions, Field(min_length=1, max_length=16)]


class RoleRules(StrictModel):
    """Claims that a person must have for each role, as in `when` of `identities` in policies. Of several roles, the
    highest one applies."""

    admin: _RoleRule | None = None
    """Everything. None: only holders of the admin key have this role."""
    operator: _RoleRule | None = None
    """Change keys, budgets and guidance, and run the playground. None: nobody has this role."""
    viewer: _RoleRule | None = None
    """Read. None: nobody has this role."""

    @field_validator("admin", "operator", "viewer")
    @classmethod
    def _matches_tokens(cls, rule: ClaimConditions | None) -> ClaimConditions | None:
        check_conditions(rule or {})
        return rule

    @model_validator(mode="after")
    def _some_role(self) -> RoleRules:
        if self.admin is None and self.operator is None and self.viewer is None:
            raise InvalidValue("must have a rule for at least one of admin, operator and viewer")
        return self


def _client_id(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise InvalidValue("must be printable ASCII characters: copy it from the provider")
    return value


class OidcSettings(StrictModel):
    """Login of operators at an OpenID Connect provider."""

    issuer: Label
    """Name of an issuer in `identity.issuers`."""
    client_id: Annotated[str, AfterValidator(_client_id), Field(min_length=1, max_length=256)]
    """Client id of the gateway at the provider. Tokens must have it as audience."""
    client_secret: Secret | None = None
    """Client secret, as env:NAME or file:/path. None: a public client, which only PKCE protects."""
    public_url: Annotated[HttpBase, AfterValidator(_public_url)]
    """URL at which browsers reach the admin listener, like https://gkt.example.com. Register
    `PUBLIC_URL/login/callback` as redirect URI at the provider."""
    title: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Name of the provider on the login page. None: the issuer's name."""
    scopes: Annotated[tuple[Annotated[str, AfterValidator(_scope)], ...], Field(min_length=1, max_length=32)] = (
        "openid",
        "profile",
        "email",
    )
    """Requested scopes. Some providers send groups only with a scope of their own, such as `groups`."""
    userinfo: Flag = False
    """Read claims that are not in the ID token from the provider's `userinfo_endpoint` at a login. Bearer tokens must
    contain the claims themselves."""
    name_claim: ClaimPath = "email"
    """Claim with the person's name in the audit trail and on the pages. Without it, or with an email address that the
    provider has not verified, the name is `sub`."""
    roles: RoleRules
    """Conditions for each role. A person without a role is rejected."""
    logout: Literal["local", "provider"] = "local"
    """Effect of a logout: it ends the session of this gateway (`local`), or also that at the provider (`provider`), if
    the provider has an `end_session_endpoint`."""
    session_secret: Secret | None = None
    """Secret of at least 32 characters that signs sessions. Required without admin.key."""

    @field_validator("scopes")
    @classmethod
    def _asks_for_an_id_token(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in scopes:
            raise InvalidValue("must contain openid: without it, the provider sends no ID token")
        return scopes

    @field_validator("session_secret")
    @classmethod
    def _hard_to_guess(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value()) < _MIN_SECRET_LENGTH:
            raise InvalidValue(
                f"must have at least {_MIN_SECRET_LENGTH} characters: create one with openssl rand -hex 32"
            )
        return secret
