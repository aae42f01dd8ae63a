"""The scopes that limits and budgets are counted for: a tenant, its keys, and values of its labels. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.config.limits import LimitsRule
from gateway.policy.policies import allowed_key, allowed_tenant
from gateway.pricing import picodollars

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config.limits import BudgetRule
    from gateway.config.sections import Defaults
    from gateway.policy.book import Caller
    from gateway.policy.key_entry import KeyEntry
    from gateway.policy.schema import TenantPolicy

TENANT = "tenant"
_KEY, _LABEL = "key:", "label:"
ROLLING = "s"
"""The unit of a rolling budget. It has no calendar period: it covers the last seconds."""
_MAX_CACHED = 10_000
NO_LABELS: Mapping[str, str] = MappingProxyType({})


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
    """A tenant, a key or a value of a label, with its limits. A limit of 0 means no limit."""

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
        if (label := label_of(self.name)) is not None:
            return f"{label.label} '{label.value}'"
        return "this tenant" if self.name == TENANT else "this key"


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """The charge of a request in one scope, independent of later policy edits.

    `unit` and `count`: the length of the budget's periods. Redis needs it where this charge is its first of the budget.
    `unit` is `h`, `d`, `w`, `mo`, or `s` for a rolling budget. Both are empty without a budget.
    """

    scope: str
    window: bool
    parallel: bool
    budget: bool
    unit: str = ""
    count: int = 0


class Scopes:
    """Look up the scopes of requests. The cache has one entry per key and value of a label, so that an edited policy
    replaces its entry."""

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults
        self._cache: dict[tuple[str, str], tuple[TenantPolicy, KeyEntry, tuple[Scope, ...]]] = {}
        self._of_labels: dict[tuple[str, str, str], tuple[TenantPolicy, Scope | None]] = {}

    def of(self, caller: Caller, labels: Mapping[str, str] = NO_LABELS) -> tuple[Scope, ...]:
        """Return the scopes that count a request of a caller with these labels."""
        scopes = self._of_caller(caller)
        limited = caller.policy.limited_labels
        if not limited or not labels:
            return scopes
        found = [self._of_label(caller.policy, name, labels[name]) for name in limited if name in labels]
        return (*scopes, *[scope for scope in found if scope is not None])

    def clear(self) -> None:
        """Forget former policies."""
        self._cache.clear()
        self._of_labels.clear()

    def _of_label(self, policy: TenantPolicy, name: str, value: str) -> Scope | None:
        cached = self._of_labels.get((policy.tenant, name, value))
        if cached is None or cached[0] is not policy:
            if len(self._of_labels) >= _MAX_CACHED:
                self._of_labels.clear()
            cached = self._of_labels[policy.tenant, name, value] = policy, label_scope(policy, name, value)
        return cached[1]

    def _of_caller(self, caller: Caller) -> tuple[Scope, ...]:
        """See `scopes_of`."""
        policy, key = caller.policy, caller.key
        name = policy.tenant, key.id
        cached = self._cache.get(name)
        # Compare by identity: the cache keeps both objects alive, so no other object can have the same identity. It
        # does not keep the claims of tokens.
        if cached is None or cached[0] is not policy or cached[1] is not key:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[name] = cached = (policy, key, scopes_of(caller, self._defaults))
        return cached[2]


def scopes_of(caller: Caller, defaults: Defaults) -> tuple[Scope, ...]:
    """Return the scopes that count a caller's requests: its tenant and its key, where these have limits."""
    policy, key = caller.policy, caller.key
    scopes = tenant_scope(policy, defaults), key_scope(policy, key, defaults)
    return tuple(scope for scope in scopes if scope is not None)


def tenant_scope(policy: TenantPolicy, defaults: Defaults) -> Scope | None:
    """Return the scope of a tenant's keys together; None without limits."""
    return _scope(TENANT, *allowed_tenant(policy, defaults))


def key_scope(policy: TenantPolicy, key: KeyEntry, defaults: Defaults) -> Scope | None:
    """Return the scope of one key; None without limits."""
    return _scope(f"{_KEY}{key.id}", *allowed_key(policy, key, defaults))


def label_scope(policy: TenantPolicy, name: str, value: str) -> Scope | None:
    """Return the scope of a value of a label; None without limits."""
    if (rule := policy.labels.get(name)) is None:
        return None
    limits, budget = rule.limits_of(value)
    return _scope(f"{_LABEL}{name}={value}", limits or LimitsRule(), budget)


class LabelScope(NamedTuple):
    """The label and its value that a scope counts."""

    label: str
    value: str


def label_of(scope: str) -> LabelScope | None:
    """Return the label of a scope by its name; None for a tenant's and a key's scope."""
    if not scope.startswith(_LABEL):
        return None
    name, _, value = scope.removeprefix(_LABEL).partition("=")
    return LabelScope(name, value)


def key_of(scope: str) -> str | None:
    """Return the key of a scope by its name; None for other scopes."""
    return scope.removeprefix(_KEY) if scope.startswith(_KEY) else None


def _scope(name: str, limits: LimitsRule, budget: BudgetRule | None) -> Scope | None:
    if not limits and budget is None:
        return None
    rpm, tpm, parallel = limits.rpm_limit or 0, limits.tpm_limit or 0, limits.max_parallel_requests or 0
    return Scope(name, rpm, tpm, parallel, None if budget is None else _terms(budget))


def _terms(rule: BudgetRule) -> BudgetTerms:
    period, soft = rule.budget_duration, "" if rule.soft_budget is None else picodollars(rule.soft_budget)
    lengths = period.unit, period.count, period.seconds
    return BudgetTerms(picodollars(rule.max_budget), soft, *lengths, rule.calendar_aligned, rule.on_soft, rule.on_hard)
