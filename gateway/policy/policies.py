"""The policies in effect, and the limits and budget that they give a tenant and a key."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from gateway.config.sections import Defaults

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config.limits import BudgetRule, LimitsRule
    from gateway.policy.book import PolicySet
    from gateway.policy.key_entry import KeyEntry
    from gateway.policy.schema import TenantPolicy

_MAX_FORMER = 10_000
NO_DEFAULTS = Defaults()


class PolicyEdition(NamedTuple):
    """Version of the policies folder from which a policy set was loaded."""

    version: str | None  # a hash over its files; None for a set without a folder
    files: int
    loaded_at: float  # Unix seconds


class Policies:
    """Hold the policy set for new requests. A request reads it once and uses it until its end.

    Attributes:
        defaults: limits and budgets of tenants and keys whose policy sets none.
        edition: the version of the folder that they come from.
        issues: issues of the current folder, which therefore was not loaded; empty if there are none.
    """

    def __init__(
        self, policy_set: PolicySet, edition: PolicyEdition | None = None, defaults: Defaults = NO_DEFAULTS
    ) -> None:
        self.policy_set, self.defaults = policy_set, defaults
        self.edition = edition or PolicyEdition(None, 0, time.time())
        self.issues: tuple[str, ...] = ()
        self._former: dict[str, int] = {}  # tenant or removed tenant -> the largest number of its slices so far
        self._listeners: list[Callable[[PolicySet], object]] = []

    def put(self, policy_set: PolicySet, edition: PolicyEdition) -> None:
        """Put a policy set into effect."""
        after = {policy.tenant: policy.redis_slices for policy in policy_set.policies}
        for policy in self.policy_set.policies:
            if after.get(policy.tenant, 0) < policy.redis_slices:
                self._former[policy.tenant] = max(policy.redis_slices, self._former.pop(policy.tenant, 0))
        self.policy_set, self.edition, self.issues = policy_set, edition, ()
        while len(self._former) > _MAX_FORMER:
            del self._former[next(iter(self._former))]
        for listener in self._listeners:
            listener(policy_set)

    def on_change(self, listener: Callable[[PolicySet], object]) -> None:
        """Call `listener` with each new policy set. It must neither block nor raise."""
        self._listeners.append(listener)

    def tenants(self) -> list[str]:
        """Return all tenants, removed ones included: their last requests may not be settled yet."""
        return list(dict.fromkeys((*(policy.tenant for policy in self.policy_set.policies), *self._former)))

    def slices_of(self, tenant: str) -> int:
        """Return the number of slices of a tenant, removed ones included: they may still have requests."""
        policy = self.policy_set.policy_of(tenant)
        return max(1 if policy is None else policy.redis_slices, self._former.get(tenant, 1))


class EffectiveLimits(NamedTuple):
    """Limits and budget of a tenant or of a key."""

    limits: LimitsRule
    budget: BudgetRule | None


def allowed_tenant(policy: TenantPolicy, defaults: Defaults) -> EffectiveLimits:
    """Return the limits of all keys of a tenant together. The policy overrides the defaults."""
    limits = defaults.limits if policy.limits is None else policy.limits
    return EffectiveLimits(limits, policy.budget or defaults.budget)


def allowed_key(policy: TenantPolicy, key: KeyEntry, defaults: Defaults) -> EffectiveLimits:
    """Return the limits of one key. Its own entry overrides its tenant's, which overrides the defaults."""
    limits = defaults.key_limits if policy.key_limits is None else policy.key_limits
    return EffectiveLimits(
        limits if key.limits is None else key.limits, key.budget or policy.key_budget or defaults.key_budget
    )
