"""All issuers of config.yaml: verify tokens, and cache verified ones."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.claims import without_unverified_email
from gateway.keys.identity.document import DocumentReader
from gateway.keys.identity.issuer import UNKNOWN_KEY_INTERVAL_S, Issuer
from gateway.keys.identity.token import CLOCK_SKEW_S, TokenRejected, rejected

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from joserfc.jwt import ClaimsOption

    from gateway.config.identity import IdentitySettings, IssuerSettings
    from gateway.keys.identity.jose import IssuerKeys
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics

MAX_CACHED = 10_000
MAX_CACHED_CHARS = 16_000_000
"""Limits of the cache of one process: its tokens, and their characters together."""
UNKNOWN = "(unknown)"
"""Label of tokens whose issuer is not known, in metrics. No issuer's name contains parentheses."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class VerifiedToken:
    """A token whose signature, issuer, audience and times are verified.

    Attributes:
        issuer: the settings of its issuer.
        claims: its claims as JSON values, without an unverified `email`.
        expires_s: the end of its validity in Unix seconds, with the clock skew.
        keys: the keys of the issuer at the verification.
        token_type: the header `typ` of the token in lower case, such as `jwt` or `at+jwt`.
    """

    issuer: IssuerSettings
    claims: Mapping[str, Any]
    expires_s: float
    keys: IssuerKeys
    token_type: str


class _Followed(NamedTuple):
    issuer: Issuer
    task: asyncio.Task[None]


class Issuers:
    """The issuers of config.yaml, from the first call of `use` on. Without issuers, all tokens are rejected.

    Tokens are cached by the SHA-256 of the whole token until they expire. All tokens of an issuer leave the
    cache when its keys change.

    Attributes:
        reader: reads documents of issuers; until `close`.

    Args:
        now: returns the time in Unix seconds.
        unknown_key_interval_s: minimum time between readings of an issuer's keys that unknown keys of tokens cause.
    """

    def __init__(
        self,
        tasks: BackgroundTasks,
        metrics: Metrics,
        now: Callable[[], float] = time.time,
        unknown_key_interval_s: float = UNKNOWN_KEY_INTERVAL_S,
    ) -> None:
        self._tasks, self._metrics, self._now = tasks, metrics, now
        self._unknown_key_interval_s, self.reader = unknown_key_interval_s, DocumentReader()
        self._followed: dict[str, _Followed] = {}  # by `iss`
        self._cache: OrderedDict[str, tuple[VerifiedToken, int]] = OrderedDict()  # each with the token's length
        self._cached_chars = 0

    def __bool__(self) -> bool:
        return bool(self._followed)

    def use(self, settings: IdentitySettings) -> None:
        """Put settings into effect at once. Issuers whose settings did not change keep their keys.

        The first issuer loads the cryptography, so that no token waits for it later.
        """
        if settings.issuers:
            import_module("gateway.keys.identity.jose")
        before, self._followed = self._followed, {}
        for one in settings.issuers:
            kept = before.get(one.issuer)
            if kept is not None and kept.issuer.settings == one:
                self._followed[one.issuer] = before.pop(one.issuer)
            else:
                follows = self._drop_outdated, self._unknown_key_interval_s
                issuer = Issuer(one, self.reader, self._tasks, self._metrics, *follows)
                task = self._tasks.keep(f"issuer_keys:{one.name}", issuer.run())
                self._followed[one.issuer] = _Followed(issuer, task)
        names = {one.name for one in settings.issuers}
        for issuer, task in before.values():
            issuer.close()
            task.cancel()
            if issuer.name not in names:
                self._metrics.issuer_up.labels(issuer.name).set(math.nan)  # neither up nor down
        self._drop_outdated()

    async def close(self) -> None:
        """Close the connections to the issuers. The tasks end with the process' tasks."""
        await self.reader.close()

    def all(self) -> list[Issuer]:
        """Return the issuers, in the order of config.yaml."""
        return [followed.issuer for followed in self._followed.values()]

    def named(self, name: str) -> Issuer | None:
        """Return the issuer with this name in config.yaml, or None."""
        return next((issuer for issuer in self.all() if issuer.name == name), None)

    def cached(self, digest: str) -> VerifiedToken | None:
        """Return the verified token with this SHA-256 in hex, or None. An expired token is not returned."""
        entry = self._cache.get(digest)
        if entry is None:
            return None
        if entry[0].expires_s <= self._now():
            self._drop(digest)
            return None
        self._cache.move_to_end(digest)
        return entry[0]

    async def verify(self, token: str, *, digest: str | None = None) -> VerifiedToken:
        """Verify a token of a caller, and cache it. `digest` is its SHA-256 in hex. Raises TokenRejected."""
        digest = sha256(token.encode("utf-8", "surrogatepass")).hexdigest() if digest is None else digest
        if (known := self.cached(digest)) is not None:
            return known
        try:
            verified = await self._verify(token)
        except TokenRejected as error:
            self.count(error)
            raise
        self._metrics.identity_tokens.labels(verified.issuer.name, "verified").inc()
        self._add(digest, verified, len(token))
        return verified

    def count(self, error: TokenRejected) -> None:
        """Count the rejection of a token."""
        self._metrics.identity_tokens.labels(error.issuer or UNKNOWN, error.reason).inc()

    async def verify_for(self, token: str, *, issuer: str, **claims: ClaimsOption) -> VerifiedToken:
        """Verify a token of the issuer with this name that has other claims than those of callers; not cached.

        Args:
            claims: required claims, as in `joserfc.jwt.JWTClaimsRegistry`. They include `aud`.

        Raises:
            TokenRejected: the token is not valid, or another issuer's.
        """
        return await self._verify(token, issuer, **claims)

    async def _verify(self, token: str, name: str | None = None, **required: ClaimsOption) -> VerifiedToken:
        from gateway.keys.identity.jose import check_claims, open_token

        unverified = open_token(token)
        claims, url = unverified.claims, unverified.claims.get("iss")
        followed = self._followed.get(url) if isinstance(url, str) else None
        if followed is None or name not in {None, followed.issuer.name}:
            raise TokenRejected("The issuer (iss) of this token is not one of this gateway's.", "unknown_issuer")
        issuer = followed.issuer
        settings, reject = issuer.settings, partial(rejected, issuer.name)
        if unverified.algorithm not in settings.algorithms:
            allowed = ", ".join(settings.algorithms)
            raise reject(f"is signed with an algorithm that is not accepted. Accepted are {allowed}.", "algorithm")
        aud: ClaimsOption = {"essential": True, "values": list(settings.audience)}
        check_claims(issuer.name, claims, int(self._now()), **{"aud": aud, **required})
        key = await issuer.find_key(unverified.kid, unverified.algorithm)
        if key is None and issuer.state.error is not None:
            raise reject("is signed with an unknown key, and the keys of the issuer cannot be read now.", "no_keys")
        if key is None or issuer.keys is None or self._followed.get(settings.issuer) is not followed:
            raise reject("is signed with a key that the issuer does not publish.", "unknown_key")
        if not unverified.has_signature(key, settings.algorithms):
            raise reject("has a wrong signature.", "signature")
        expires_s = claims["exp"] + CLOCK_SKEW_S
        return VerifiedToken(settings, without_unverified_email(claims), expires_s, issuer.keys, unverified.token_type)

    def _add(self, digest: str, verified: VerifiedToken, chars: int) -> None:
        self._drop(digest)
        self._cache[digest] = verified, chars
        self._cached_chars += chars
        while len(self._cache) > MAX_CACHED or self._cached_chars > MAX_CACHED_CHARS:
            self._drop(next(iter(self._cache)))

    def _drop(self, digest: str) -> None:
        if (entry := self._cache.pop(digest, None)) is not None:
            self._cached_chars -= entry[1]

    def _drop_outdated(self) -> None:
        """Drop cached tokens of issuers whose settings or keys changed."""
        for digest, (verified, _) in list(self._cache.items()):
            followed = self._followed.get(verified.issuer.issuer)
            current = None if followed is None else followed.issuer
            if current is None or current.settings is not verified.issuer or current.keys is not verified.keys:
                self._drop(digest)
