"""Find the callers of verified tokens by the rules (`identities`) of the policies."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import structlog

from gateway.keys.identity.token import TokenRejected, looks_like_jwt
from gateway.policy.book import Caller

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from gateway.keys.identity.issuers import Issuers, VerifiedToken
    from gateway.policy.book import PolicySet
    from gateway.policy.identities import IdentityMatch, TenantIdentities
    from gateway.policy.policies import Policies

log = structlog.get_logger()

_MAX_NAMES = 20


class TokenCallers:
    """The callers of tokens. A verified token keeps its caller until the policies change.

    The check is at the start of a request: a token that expires later does not end the answer.
    """

    def __init__(self, policies: Policies, issuers: Issuers) -> None:
        self._policies, self._issuers = policies, issuers
        # The result for each cached token. It disappears with the token, or with the policies that it refers to.
        self._found: WeakKeyDictionary[VerifiedToken, Caller | TokenRejected] = WeakKeyDictionary()
        policies.on_change(lambda _: self._found.clear())

    def takes(self, token: str) -> bool:
        """Return whether a bearer token is to be verified: it is a JSON Web Token, and there are issuers."""
        return bool(self._issuers) and looks_like_jwt(token)

    def known(self, digest: str) -> Caller | None:
        """Return the caller of a token that was verified before, by its SHA-256; else None. Raises TokenRejected."""
        verified = self._issuers.cached(digest)
        return None if verified is None else self._caller(verified)

    async def verify(self, token: str, digest: str) -> Caller:
        """Return the caller of a token. Raises TokenRejected with the reason, and with nothing from the token."""
        return self._caller(await self._issuers.verify(token, digest=digest))

    def _caller(self, verified: VerifiedToken) -> Caller:
        found = self._found.get(verified)
        if found is None:
            found = caller_of(self._policies.policy_set, verified.issuer.name, verified.claims)
            self._found[verified] = found
            if isinstance(found, TokenRejected):  # logged once for each token
                log.warning("token_without_caller", issuer=found.issuer, reason=found.reason, **found.facts)
        if isinstance(found, TokenRejected):
            self._issuers.count(found)
            raise TokenRejected(found.message, found.reason, found.issuer)
        return found


def matches_of(tenants: Iterable[TenantIdentities], claims: Mapping[str, Any]) -> list[IdentityMatch]:
    """Return the first matching rule of each tenant."""
    return [match for tenant in tenants if (match := tenant.match(claims)) is not None]


def caller_of(policy_set: PolicySet, issuer: str, claims: Mapping[str, Any]) -> Caller | TokenRejected:
    """Return the caller with these verified claims, or why it has none."""
    tenants = policy_set.identities.get(issuer, ())
    matches = matches_of(tenants, claims)
    if not matches:
        rules = [rule for tenant in tenants for rule in tenant.rules]
        names = sorted({path for rule in rules for path in rule.when})[:_MAX_NAMES]
        compared = f"They compare the claims {', '.join(names)}." if names else "No rule names this issuer."
        return TokenRejected(
            f"The token of issuer '{issuer}' is valid, but no rule of this gateway's policies matches it. {compared}",
            "no_rule",
            issuer,
            claims=names,
            rules=[rule.place for rule in rules[:_MAX_NAMES]],
        )
    if len(matches) > 1:
        return TokenRejected(
            f"The token of issuer '{issuer}' matches rules of {len(matches)} tenants, so its tenant is unknown. "
            "The operator of this gateway finds the rules in its log.",
            "several_tenants",
            issuer,
            rules=[match.rule.place for match in matches],
        )
    tenant, rule = matches[0]
    key_id, policy = rule.key_id(claims), policy_set.policy_of(tenant)
    if key_id is None or policy is None:
        return TokenRejected(
            f"The token of issuer '{issuer}' has no text or number in the claim {rule.key}, which identifies callers.",
            "no_key_claim",
            issuer,
            rules=[rule.place],
            claims=[rule.key],
        )
    return Caller(policy, rule.entry(key_id), claims)
