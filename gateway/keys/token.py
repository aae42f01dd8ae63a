"""The key itself. It is made here, shown once, and kept nowhere."""

from __future__ import annotations

import secrets
from hashlib import sha256

PREFIX = "gk-"
_RANDOM_BYTES = 32
_HINT_CHARS = 6


def new_token() -> str:
    """A new key: `gk-` and 43 characters, 256 bits of chance."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(token: str) -> str:
    """By which a key is found: the SHA-256 of all of it, in hex."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def hint_of(token: str) -> str:
    """What people may see of a key later, to tell it from others. It tells 18 of its 256 bits."""
    return token[:_HINT_CHARS]
