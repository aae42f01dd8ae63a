"""Signed values of cookies."""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from itsdangerous import BadData, URLSafeSerializer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import SecretStr

_HMAC_SHA256 = {"key_derivation": "hmac", "digest_method": sha256}


def no_issuer() -> str:
    """Return the URL of the issuer where no provider is configured."""
    return ""


class CookieSigner:
    """Signs values of cookies for one purpose. A change of a secret, or of the issuer's URL, invalidates all values.

    Values have their own times. A TimedSerializer would reject the values of a replica whose clock is a second ahead.

    Args:
        secrets_: secrets of the gateway. Without any, only this object accepts its values.
        issuer_url: returns the present URL of the issuer, which an edit of config.yaml may change at any time.
    """

    def __init__(self, purpose: str, *secrets_: SecretStr | None, issuer_url: Callable[[], str] = no_issuer) -> None:
        # Hashes have one length, so that no two lists of secrets give the same key.
        hashes = [sha256(one.get_secret_value().encode()).digest() if one else bytes(32) for one in secrets_]
        key = b"".join(hashes) if any(secrets_) else secrets.token_bytes(32)
        self._serializer = URLSafeSerializer(key, signer_kwargs=_HMAC_SHA256)
        self._purpose, self._issuer_url = purpose, issuer_url
        # Browsers send a cookie to every port of a host, so gateways on one host need different cookie names.
        self.mark = sha256(self._serializer.make_signer(purpose).get_signature(b"name")).hexdigest()[:8]

    def sign(self, value: object) -> str:
        """Return a JSON value with its signature, for a cookie."""
        return self._serializer.dumps(value, self._salt())

    def verify(self, text: str) -> Any:
        """Return the value of a cookie, or None if its signature is wrong."""
        try:
            return self._serializer.loads(text, self._salt()) if text.isascii() else None
        except BadData:
            return None

    def _salt(self) -> str:
        return f"{self._purpose} {self._issuer_url()}"
