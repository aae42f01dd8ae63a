"""Names of request headers that policies may read."""

from __future__ import annotations

import re

from gateway.config.scalars import InvalidValue

_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)
_SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "api-key", "x-api-key", "x-goog-api-key"}
)


def checked_header(name: object, use: str) -> str:
    """Return the name of a header in lower case. `use` is the purpose, for messages.

    Raises InvalidValue for an invalid name, and for a header that may contain a secret.
    """
    if not isinstance(name, str) or not _HEADER.fullmatch(name.lower()):
        raise InvalidValue("a header name consists of letters, digits and -, like x-team: correct the name")
    if name.lower() in _SECRET_HEADERS:
        raise InvalidValue(f"{name.lower()} may contain a secret and cannot be a {use}: use another header")
    return name.lower()
