"""Effective limits and budget of a caller's tenant and key. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.config.limits import BudgetRule, LimitsRule
    from gateway.config.sections import Defaults
    from gateway.policy.book import Caller
    from gateway.policy.schema import KeyEntry, TenantPolicy


class EffectiveLimits(NamedTuple):
    """Limits and budget of a tenant or of a key."""

    limits: LimitsRule
    budget: BudgetRule | None


def allowed(caller: Caller, defaults: Defaults) -> tuple[EffectiveLimits, EffectiveLimits]:
    """Return the effective limits of the tenant and of the key."""
    policy, key = caller
    return allowed_tenant(policy, defaults), allowed_key(policy, key, defaults)


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
