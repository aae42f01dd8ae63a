"""Generate and hash API keys. A key is shown once and stored nowhere."""

from __future__ import annotations

import secrets
from hashlib import sha256

PREFIX = "gk-"
_RANDOM_BYTES = 32
_HINT_CHARS = 6


def new_token() -> str:
    """Return a new key: `gk-` and 43 characters with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(token: str) -> str:
    """Return the SHA-256 digest of a key in hex."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def hint_of(token: str) -> str:
    """Return the visible prefix of a key, which helps to recognize it. It reveals 18 of 256 bits."""
    return token[:_HINT_CHARS]
