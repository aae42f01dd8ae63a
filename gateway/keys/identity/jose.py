"""Read and verify tokens and keys of issuers with joserfc: JWS (RFC 7515), JWK (RFC 7517) and JWT (RFC 7519).

Importing this module loads the cryptography, which takes tenths of a second.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import (
    ClaimError,
    ExpiredTokenError,
    JoseError,
    SecurityWarning,
    UnsupportedAlgorithmError,
)
from joserfc.jwk import JWKRegistry, KeySet, RSAKey
from joserfc.jws import CompactSignature, JWSRegistry, extract_compact, validate_compact
from joserfc.jwt import JWTClaimsRegistry
from joserfc.registry import HeaderParameter

from gateway.config.identity import Algorithm
from gateway.keys.identity.document import parse_object
from gateway.keys.identity.token import CLOCK_SKEW_S, MAX_TOKEN_CHARS, TokenRejected, rejected

if TYPE_CHECKING:
    from collections.abc import Collection

    from joserfc.jwa import JWSAlgModel
    from joserfc.jwk import Key
    from joserfc.jwt import ClaimsOption

_ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
_MIN_RSA_BITS = 2048
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""Accepted values of the header `typ`. Tokens of other types, such as logout tokens, identify no caller."""
_UNSUPPORTED = HeaderParameter("not supported", "none")


class _Registry(JWSRegistry):
    """Accept some algorithms, and ignore members of a header that the library does not know (RFC 7515, section 4).

    `crit` and `b64` change how a token is read, so a header with one of them is rejected, whatever its value.
    """

    max_header_length = MAX_TOKEN_CHARS
    max_signature_length = 2_048  # base64 of a signature with 12,288 bits

    def __init__(self, accepted: Collection[str]) -> None:
        super().__init__({"crit": _UNSUPPORTED, "b64": _UNSUPPORTED}, algorithms=accepted, strict_check_header=False)
        self._accepted = accepted

    def get_alg(self, name: str) -> JWSAlgModel:
        """Return an accepted algorithm. The method of the library also warns of EdDSA, at each token."""
        if name not in self._accepted:
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]


_ALL = _Registry(_ALGORITHMS)


class UnverifiedToken(NamedTuple):
    """The parts of a token. Nothing in it is verified. `token_type` is the header `typ` in lower case."""

    algorithm: str
    kid: str | None
    claims: dict[str, Any]
    token_type: str
    jws: CompactSignature

    def has_signature(self, key: Key, accepted: Collection[str]) -> bool:
        """Return whether the token has the signature of a key, by one of the accepted algorithms."""
        try:
            return validate_compact(self.jws, key, registry=_Registry(accepted))
        except JoseError:  # the key is for another algorithm
            return False


def open_token(text: str) -> UnverifiedToken:
    """Return the parts of a token. Raises TokenRejected if it is malformed or needs features that are not supported."""
    if len(text) > MAX_TOKEN_CHARS:
        raise TokenRejected(f"The token has more than {MAX_TOKEN_CHARS} characters.", "too_long")
    try:
        jws = extract_compact(text.encode("ascii"), registry=_ALL)
        header = jws.headers()
        _ALL.check_header(header)
        claims = parse_object(jws.payload)
    except (JoseError, ValueError, TypeError, RecursionError):
        raise TokenRejected(
            "The token is malformed. It must have three base64url parts: a header that this gateway supports, claims "
            "as a JSON object, and a signature.",
            "malformed",
        ) from None
    token_type = header.get("typ", "JWT").lower()
    if token_type not in _TYPES:
        raise TokenRejected("The token's header has a typ other than JWT or at+jwt.", "header")
    return UnverifiedToken(header["alg"], header.get("kid"), claims, token_type, jws)


def check_claims(issuer: str, claims: dict[str, Any], now: int, **required: ClaimsOption) -> None:
    """Check the times of a token and its required claims. Raises TokenRejected with the name of a wrong claim."""
    try:
        JWTClaimsRegistry(now, CLOCK_SKEW_S, exp={"essential": True}, **required).validate(claims)
    except ExpiredTokenError:
        raise rejected(issuer, "has expired. Get a new token from the issuer.", "expired") from None
    except ClaimError as error:
        if error.claim == "aud":
            raise rejected(issuer, "is for another audience (aud) than this gateway.", "audience") from None
        raise rejected(issuer, f"has a claim that is not valid. {error.description}.", "claim") from None


class IssuerKeys(NamedTuple):
    """The public keys of an issuer. `ignored` states why other keys of its document are not used."""

    keys: KeySet
    ignored: list[str]

    @classmethod
    def parse(cls, raw: bytes) -> IssuerKeys:
        """Return the keys of a JWKS document. Raises ValueError if none can verify signatures."""
        entries = parse_object(raw).get("keys")
        if not isinstance(entries, list):
            raise ValueError("the document has no list of keys")
        keys: list[Key] = []
        ignored: list[str] = []
        # KeySet.import_key_set would reject the whole document for one key with an unknown curve or use.
        for index, entry in enumerate(entries):
            try:
                keys.append(_signing_key(entry))
            except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, AttributeError) as error:
                why = str(error) if type(error) is ValueError else "the key is invalid, or not for signatures"
                ignored.append(f"keys[{index}]: {why}")
        if not keys:
            raise ValueError(f"no key can verify signatures: {'; '.join(ignored[:5]) or 'the list is empty'}")
        return cls(KeySet(sorted(keys, key=lambda key: key.thumbprint())), ignored)

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the key with this id for an algorithm, or None. Without an id, the issuer must have one key."""
        # KeySet.get_by_kid compares no types: keys of different types may have the same id (RFC 7517, section 4.5).
        only = kid is None and len(self.keys.keys) == 1
        fits = (key for key in self.keys if (only or key.kid == kid) and _ALL.filter_algorithms(key, [algorithm]))
        return next(fits, None)


def _signing_key(entry: dict[str, Any]) -> Key:
    """Return a key of a document. Raises ValueError with the reason if it is not used, or an error of the library."""
    # Certificates of the key are not used, so invalid ones do not matter.
    members = {name: value for name, value in entry.items() if value is not None and not name.startswith("x5")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # short keys are rejected below
        key = JWKRegistry.import_key(members)
    if key.is_private:
        raise ValueError("a secret key is published")
    if isinstance(key, RSAKey) and key.public_key.key_size < _MIN_RSA_BITS:
        raise ValueError(f"RSA keys must have at least {_MIN_RSA_BITS} bits")
    key.check_use("sig")
    key.check_key_op("verify")
    if not JWSRegistry.filter_algorithms(key, list(_ALGORITHMS)):
        raise ValueError("its type, curve or algorithm is not supported")
    return key
