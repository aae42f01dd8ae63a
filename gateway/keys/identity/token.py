"""Parse JSON Web Tokens in compact form (RFC 7515, RFC 7519) before their signature is verified.

The parser is strict. Two parsers must not read one token differently, so it rejects duplicate members, other encodings
than UTF-8, and base64url text that is not canonical.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, NamedTuple, NoReturn

from gateway.errors import NotAuthenticated

MAX_TOKEN_CHARS = 16_384
"""Longest token. The listeners accept headers of about half this length."""
MAX_KID_CHARS = 256
_PARTS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""Accepted values of the header `typ`. Tokens of other types, such as logout tokens, identify no caller."""


class TokenRejected(NotAuthenticated):
    """The token does not identify a caller. The message contains no value from the token.

    Attributes:
        reason: a short, stable name for metrics.
        issuer: the name of the token's issuer; None: it is not known.
        facts: details for the operator's log, which callers do not see.
    """

    def __init__(self, message: str, reason: str, issuer: str | None = None, **facts: object) -> None:
        super().__init__(message)
        self.reason, self.issuer, self.facts = reason, issuer, facts


class UnverifiedToken(NamedTuple):
    """The parts of a token. Nothing in it is verified. `token_type` is the header `typ` in lower case."""

    algorithm: str
    kid: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes
    token_type: str


def looks_like_jwt(token: str) -> bool:
    """Return whether a bearer token has three base64url parts. An API key of the gateway has one part."""
    return token.count(".") == 2 and _PARTS.fullmatch(token) is not None


def parse(token: str) -> UnverifiedToken:
    """Return the parts of a token. Raises TokenRejected if it is malformed or needs a feature that is not supported."""
    if len(token) > MAX_TOKEN_CHARS:
        raise TokenRejected(f"The token has more than {MAX_TOKEN_CHARS} characters.", "too_long")
    if not looks_like_jwt(token):
        _malformed("does not have three base64url parts")
    signed, _, last = token.rpartition(".")
    first, _, second = signed.partition(".")
    header, claims = _object(first, "header"), _object(second, "payload")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str):
        _malformed("has no algorithm in its header")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID_CHARS):
        _malformed(f"has a key id (kid) that is not a text of 1 to {MAX_KID_CHARS} characters")
    if "crit" in header or "b64" in header:
        raise TokenRejected("The token's header has crit or b64, which this gateway does not support.", "header")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise TokenRejected("The token's header has a typ other than JWT or at+jwt.", "header")
    return UnverifiedToken(algorithm, kid, claims, signed.encode("ascii"), _decode(last), kind.lower())


def parse_object(text: bytes) -> dict[str, Any]:
    """Return a JSON object in UTF-8. Raises ValueError, also for duplicate members and for NaN or Infinity."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_members, parse_constant=_refuse_constant)
        if b"\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair raises an error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is set twice")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(part: str, name: str) -> dict[str, Any]:
    try:
        return parse_object(_decode(part))
    except ValueError:
        _malformed(f"has a {name} that is not a JSON object without duplicate members")


def _decode(part: str) -> bytes:
    try:
        raw = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        raw = b""
    if urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") != part:
        _malformed("has a part that is not base64url")
    return raw


def _malformed(why: str) -> NoReturn:
    raise TokenRejected(f"The token is malformed: it {why}.", "malformed")
