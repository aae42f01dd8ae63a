"""Public keys of an issuer (JWKS, RFC 7517), and verification of signatures with them.

Importing this module loads the cryptography, so only `issuer.py` imports it, in a thread.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, RSAKey
from joserfc.jws import JWSRegistry

from gateway.keys.identity.token import MAX_KID_CHARS, parse_object

if TYPE_CHECKING:
    from joserfc.jwk import Key

MAX_KEYS = 100
_RSA_BITS = range(2048, 8193)
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_ALGORITHMS = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA", "Ed25519"}),
}
"""Algorithms by the type and the curve of a key. A key verifies signatures of these algorithms only."""
_MEMBERS = ("kty", "n", "e", "crv", "x", "y")
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "k"})


class SigningKey(NamedTuple):
    """A public key of an issuer."""

    kid: str | None
    algorithms: frozenset[str]
    thumbprint: str  # SHA-256 of the key (RFC 7638)
    key: Key

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Return whether the signature of this algorithm is that of this key."""
        return algorithm in self.algorithms and JWSRegistry.algorithms[algorithm].verify(signed, signature, self.key)


class KeySet(NamedTuple):
    """The usable keys of an issuer. `ignored` states why other keys of the document are not used."""

    keys: tuple[SigningKey, ...]
    ignored: tuple[str, ...]

    @classmethod
    def parse(cls, raw: bytes) -> KeySet:
        """Return the keys of a JWKS document. Raises ValueError if none can verify signatures."""
        entries = parse_object(raw).get("keys")
        if not isinstance(entries, list):
            raise ValueError("the document has no list of keys")
        if len(entries) > MAX_KEYS:
            raise ValueError(f"the document has more than {MAX_KEYS} keys")
        keys, ignored = [], []
        for index, entry in enumerate(entries):
            try:
                keys.append(_signing_key(entry))
            except (ValueError, TypeError, KeyError, JoseError, UnsupportedAlgorithm) as error:
                why = str(error) if type(error) is ValueError else "the key is invalid"
                ignored.append(f"keys[{index}]: {why}")
        if not keys:
            raise ValueError(f"no key can verify signatures: {'; '.join(ignored[:5]) or 'the list is empty'}")
        return cls(tuple(keys), tuple(ignored))

    def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """Return the key with this id for an algorithm. Without an id, there must be one key for the algorithm."""
        found = [key for key in self.keys if algorithm in key.algorithms and (kid is None or key.kid == kid)]
        return found[0] if len(found) == 1 else None

    def identities(self) -> frozenset[tuple[str | None, str]]:
        """Return the id and the thumbprint of each key."""
        return frozenset((key.kid, key.thumbprint) for key in self.keys)


def _signing_key(entry: Any) -> SigningKey:
    """Return a key of a document. Raises ValueError with the reason if it is not used, or an error of the library."""
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    if not _PRIVATE.isdisjoint(entry):
        raise ValueError("a secret key is published")
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ("verify",)):
        raise ValueError("not for signatures")
    kid = entry.get("kid")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID_CHARS):
        raise ValueError("its kid is not a short text")
    kind: Any = entry.get("kty")
    curve: Any = None if kind == "RSA" else entry.get("crv")
    algorithms = _ALGORITHMS.get((kind, curve), frozenset[str]())
    if (only := entry.get("alg")) is not None:
        algorithms &= {only}
    if not algorithms:
        raise ValueError("its type, curve or algorithm is not supported")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # short keys are rejected below
        key = JWKRegistry.import_key({name: entry[name] for name in _MEMBERS if name in entry})
    if isinstance(key, RSAKey) and key.public_key.key_size not in _RSA_BITS:
        raise ValueError(f"RSA keys must have {_RSA_BITS.start} to {_RSA_BITS.stop - 1} bits")
    return SigningKey(kid, algorithms, key.thumbprint(), key)
