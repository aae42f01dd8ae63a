"""Rejected JSON Web Tokens, and limits of tokens."""

from __future__ import annotations

import re

from gateway.errors import NotAuthenticated

MAX_TOKEN_CHARS = 16_384
"""Longest token. The listeners accept headers of about half this length."""
CLOCK_SKEW_S = 60
"""Largest difference of the clocks, for the claims `exp`, `nbf` and `iat`."""
_PARTS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)


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


def rejected(issuer: str, why: str, reason: str) -> TokenRejected:
    """Return the rejection of a token of the issuer with this name."""
    return TokenRejected(f"The token of issuer '{issuer}' {why}", reason, issuer)


def looks_like_jwt(token: str) -> bool:
    """Return whether a bearer token has three base64url parts. An API key of the gateway has one part."""
    return token.count(".") == 2 and _PARTS.fullmatch(token) is not None
