"""The scopes that limits and budgets are counted for: a tenant, and each of its keys. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.policy.policies import allowed_key, allowed_tenant
from gateway.pricing import picodollars

if TYPE_CHECKING:
    from gateway.config.limits import BudgetRule, LimitsRule
    from gateway.config.sections import Defaults
    from gateway.policy.book import Caller
    from gateway.policy.schema import KeyEntry, TenantPolicy

TENANT = "tenant"
ROLLING = "s"
"""The unit of a rolling budget. It has no calendar period: it covers the last seconds."""
_MAX_CACHED = 10_000


class BudgetTerms(msgspec.Struct, frozen=True):
    """A budget as the script reads it. Amounts are picodollars as text; `soft` is "" without a soft limit."""

    max: str
    soft: str
    unit: str
    count: int
    seconds: int
    aligned: bool
    on_soft: str
    on_hard: str


class Scope(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tenant or a key with its limits. A limit of 0 means no limit."""

    name: str
    rpm: int
    tpm: int
    parallel: int
    budget: BudgetTerms | None = None

    @property
    def charge(self) -> Charge:
        """Return the charge of a request in this scope."""
        window, parallel, terms = bool(self.rpm or self.tpm), bool(self.parallel), self.budget
        if terms is None:
            return Charge(self.name, window, parallel, budget=False)
        unit, count = (terms.unit, terms.count) if terms.aligned else (ROLLING, terms.seconds)
        return Charge(self.name, window, parallel, budget=True, unit=unit, count=count)

    def __str__(self) -> str:
        return "this tenant" if self.name == TENANT else "this key"


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """The charge of a request in one scope, independent of later policy edits.

    `unit` and `count`: the length of the budget's periods. Redis needs it where this charge is its first of the budget.
    `unit` is `h`, `d`, `w`, `mo`, or `s` for a rolling budget. Both are empty without a budget, and in intents of
    earlier versions.
    """

    scope: str
    window: bool
    parallel: bool
    budget: bool
    unit: str = ""
    count: int = 0


class Scopes:
    """Look up the scopes of callers. The cache has one entry per key, so that an edited policy replaces its entry."""

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults
        self._cache: dict[tuple[str, str], tuple[Caller, tuple[Scope, ...]]] = {}

    def of(self, caller: Caller) -> tuple[Scope, ...]:
        """See `scopes_of`."""
        policy, key = caller
        name = policy.tenant, key.id
        cached = self._cache.get(name)
        # Compare by identity: the cache keeps both objects alive, so no other object can have the same identity.
        if cached is None or cached[0].policy is not policy or cached[0].key is not key:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[name] = cached = (caller, scopes_of(caller, self._defaults))
        return cached[1]


def scopes_of(caller: Caller, defaults: Defaults) -> tuple[Scope, ...]:
    """Return the scopes that count a caller's requests: its tenant and its key, where these have limits."""
    policy, key = caller
    scopes = tenant_scope(policy, defaults), key_scope(policy, key, defaults)
    return tuple(scope for scope in scopes if scope is not None)


def tenant_scope(policy: TenantPolicy, defaults: Defaults) -> Scope | None:
    """Return the scope of a tenant's keys together; None without limits."""
    return _scope(TENANT, *allowed_tenant(policy, defaults))


def key_scope(policy: TenantPolicy, key: KeyEntry, defaults: Defaults) -> Scope | None:
    """Return the scope of one key; None without limits."""
    return _scope(f"key:{key.id}", *allowed_key(policy, key, defaults))


def _scope(name: str, limits: LimitsRule, budget: BudgetRule | None) -> Scope | None:
    if not limits and budget is None:
        return None
    rpm, tpm, parallel = limits.rpm_limit or 0, limits.tpm_limit or 0, limits.max_parallel_requests or 0
    return Scope(name, rpm, tpm, parallel, None if budget is None else _terms(budget))


def _terms(rule: BudgetRule) -> BudgetTerms:
    period, soft = rule.budget_duration, "" if rule.soft_budget is None else picodollars(rule.soft_budget)
    lengths = period.unit, period.count, period.seconds
    return BudgetTerms(picodollars(rule.max_budget), soft, *lengths, rule.calendar_aligned, rule.on_soft, rule.on_hard)
