"""Which limits and which budget hold for a caller: of its tenant, and of its key. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.config.limits import BudgetRule, LimitsRule
    from gateway.config.sections import Defaults
    from gateway.policy.book import Caller
    from gateway.policy.schema import KeyEntry, TenantPolicy


class EffectiveLimits(NamedTuple):
    """What one of the two may use and spend."""

    limits: LimitsRule
    budget: BudgetRule | None


def allowed(caller: Caller, defaults: Defaults) -> tuple[EffectiveLimits, EffectiveLimits]:
    """(of the tenant, of the key)."""
    policy, key = caller
    return allowed_tenant(policy, defaults), allowed_key(policy, key, defaults)


def allowed_tenant(policy: TenantPolicy, defaults: Defaults) -> EffectiveLimits:
    """All keys of a tenant together. What its policy says goes before the defaults."""
    limits = defaults.limits if policy.limits is None else policy.limits
    return EffectiveLimits(limits, policy.budget or defaults.budget)


def allowed_key(policy: TenantPolicy, key: KeyEntry, defaults: Defaults) -> EffectiveLimits:
    """One key. What is said for it goes before what its tenant says for keys, and that before the defaults."""
    limits = defaults.key_limits if policy.key_limits is None else policy.key_limits
    return EffectiveLimits(
        limits if key.limits is None else key.limits, key.budget or policy.key_budget or defaults.key_budget
    )
