"""The section `identity`: issuers of JSON Web Tokens (OpenID Connect) whose tokens identify callers."""

from __future__ import annotations

import ssl
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from gateway.config.scalars import (
    InvalidValue,
    Label,
    file_path,
    is_spelled_as_url,
    text_pattern,
)
from gateway.config.yaml_source import StrictModel

if TYPE_CHECKING:
    from collections.abc import Mapping

Algorithm: TypeAlias = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"
]
"""Signature algorithms with a public key. `none` and the symmetric HS256, HS384 and HS512 are not among them."""
DEFAULT_ALGORITHMS: tuple[Algorithm, ...] = ("RS256", "PS256", "ES256", "ES384", "EdDSA", "Ed25519")
MAX_ISSUERS = 32
_MAX_URL_CHARS = 512
_URL = "must be a URL like https://login.example.com/realms/corp"


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine. Only there may an issuer be reached without TLS."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def check_issuer_url(url: str) -> str:
    """Return a URL that begins with https://, or with http:// for this machine. Raises InvalidValue."""
    parts = None
    with suppress(ValueError):
        parts = urlsplit(url)
    if parts is None or not is_spelled_as_url(url) or not parts.hostname or parts.scheme not in {"http", "https"}:
        raise InvalidValue(_URL)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or len(url) > _MAX_URL_CHARS or "\\" in url:
        raise InvalidValue(_URL)
    if "@" in parts.netloc:
        raise InvalidValue("must not contain a user name or a password")
    if "#" in url:
        raise InvalidValue("must not contain '#'")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise InvalidValue("must begin with https://: without TLS, anyone on the network could replace the keys")
    return url


def _issuer(url: str) -> str:
    if "?" in url:
        raise InvalidValue("must not contain '?'")
    return check_issuer_url(url)


def trusting(ca: Path) -> ssl.SSLContext:
    """Read a file of CA certificates. Return a context of connections that trusts only these.

    Raises OSError, and its subclass SSLError for a file without certificates.
    """
    return ssl.create_default_context(cafile=ca)


def _certificates(value: object, info: ValidationInfo) -> Path:
    file = file_path(value, info)
    try:
        trusting(file)
    except ssl.SSLError:
        raise InvalidValue(
            f"{value} has no certificate as PEM: use the file that begins with -----BEGIN CERTIFICATE-----"
        ) from None
    except OSError as error:
        raise InvalidValue(f"cannot read {value}: {(error.strerror or 'error').lower()}") from None
    return file


def _names(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Url: TypeAlias = Annotated[str, AfterValidator(check_issuer_url), text_pattern("https?://[^#@ ]+")]
_IssuerUrl: TypeAlias = Annotated[str, AfterValidator(_issuer), text_pattern("https?://[^?#@ ]+")]
_Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
Texts: TypeAlias = Annotated[
    tuple[_Text, ...],
    BeforeValidator(_names, json_schema_input_type=_Text | Annotated[list[_Text], Field(min_length=1, max_length=32)]),
    Field(min_length=1, max_length=32),
]
"""A text, or a list of texts."""


class IssuerSettings(StrictModel):
    """An issuer of tokens: an OpenID Connect provider such as Keycloak, Entra ID, Okta, Auth0 or dex."""

    name: Label
    """Name of the issuer in policies, logs and metrics."""
    issuer: _IssuerUrl
    """Value of the claim `iss`, exactly as the issuer writes it. The gateway reads `.well-known/openid-configuration`
    below this URL."""
    audience: Texts
    """Accepted values of the claim `aud`: the name of this gateway at the issuer. One value or a list."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = DEFAULT_ALGORITHMS
    """Accepted signature algorithms. All of them use a public key."""
    jwks_url: _Url | None = None
    """URL of the issuer's keys (JWKS). None: the `jwks_uri` of the issuer's discovery document."""
    ca: Annotated[Path, BeforeValidator(_certificates)] | None = None
    """PEM file with the certificates of the private CA that signs those of the issuer. No other CA is trusted for this
    issuer. A change of the file applies at the next connection. None: the CAs of the system."""

    @field_validator("ca")
    @classmethod
    def _has_tls(cls, ca: Path | None, info: ValidationInfo) -> Path | None:
        urls = [url for url in (info.data.get("issuer"), info.data.get("jwks_url")) if url is not None]
        if ca is not None and urls and all(url.startswith("http:") for url in urls):
            raise InvalidValue("has no effect without TLS: remove it, or use an issuer with https://")
        return ca

    @field_validator("algorithms")
    @classmethod
    def _differ(cls, algorithms: tuple[Algorithm, ...]) -> tuple[Algorithm, ...]:
        if len(set(algorithms)) < len(algorithms):
            raise InvalidValue("names an algorithm twice: remove one of the two")
        return algorithms


class IdentitySettings(StrictModel):
    """Issuers whose tokens identify callers. Rules in the policies (`identities`) give the tokens permissions."""

    issuers: Annotated[tuple[IssuerSettings, ...], Field(max_length=MAX_ISSUERS)] = ()
    """Issuers of tokens. None: callers use API keys only."""

    @field_validator("issuers")
    @classmethod
    def _differ(cls, issuers: tuple[IssuerSettings, ...], info: ValidationInfo) -> tuple[IssuerSettings, ...]:
        # For a file, `check_settings` reports duplicates with their lines.
        if info.context is None:
            for values in ([one.name for one in issuers], [one.issuer for one in issuers]):
                if len(set(values)) < len(values):
                    raise InvalidValue("names and URLs of issuers must be unique")
        return issuers

    @property
    def urls(self) -> Mapping[str, str]:
        """Return the URL of each issuer by its name."""
        return {one.name: one.issuer for one in self.issuers}

    def named(self, name: str) -> IssuerSettings | None:
        """Return the issuer with this name, or None."""
        return next((one for one in self.issuers if one.name == name), None)
