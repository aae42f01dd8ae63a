"""For whom limits and budgets are counted: a tenant, and each of its keys. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.policy.allowed import allowed_key, allowed_tenant
from gateway.pricing import picodollars

if TYPE_CHECKING:
    from gateway.config.limits import BudgetRule, LimitsRule
    from gateway.config.sections import Defaults
    from gateway.policy.book import Caller
    from gateway.policy.schema import KeyEntry, TenantPolicy

TENANT = "tenant"
ROLLING = "s"
"""In the place of a calendar's unit: the budget is that of so many seconds just past."""
_MOST_KNOWN = 10_000


class BudgetTerms(msgspec.Struct, frozen=True):
    """A budget as the script reads it. Money is in picodollars, as text; no soft line is an empty text."""

    max: str
    soft: str
    unit: str
    count: int
    seconds: int
    aligned: bool
    on_soft: str
    on_hard: str


class Scope(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of those for whom is counted, with the limits that hold for it; 0: no such limit."""

    name: str
    rpm: int
    tpm: int
    parallel: int
    budget: BudgetTerms | None = None

    @property
    def charge(self) -> Charge:
        """What a request is charged for here."""
        window, parallel, terms = bool(self.rpm or self.tpm), bool(self.parallel), self.budget
        if terms is None:
            return Charge(self.name, window, parallel, budget=False)
        unit, count = (terms.unit, terms.count) if terms.aligned else (ROLLING, terms.seconds)
        return Charge(self.name, window, parallel, budget=True, unit=unit, count=count)

    def __str__(self) -> str:
        return "this tenant" if self.name == TENANT else "this key"


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """What a request was charged for in one scope: it is given back, or settled, whatever the policy says by then.

    Attributes:
        unit, count: how long the budget's periods are, for where this is the first that Redis hears of it. `unit` is
            `h`, `d`, `w`, `mo`, or `s` for one that rolls. Empty and 0 without one, and in intents of earlier versions.
    """

    scope: str
    window: bool
    parallel: bool
    budget: bool
    unit: str = ""
    count: int = 0


class Scopes:
    """Where the requests of callers are counted. Remembered by key: to work it out takes longer than to look it up.

    Of each key what was last asked for is remembered, so that a policy goes when an edit has replaced it.

    Args:
        defaults: what holds where neither a policy nor a key says anything.
    """

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults
        self._known: dict[tuple[str, str], tuple[Caller, tuple[Scope, ...]]] = {}

    def of(self, caller: Caller) -> tuple[Scope, ...]:
        """See `scopes_of`."""
        policy, key = caller
        name = policy.tenant, key.id
        known = self._known.get(name)
        # By identity: what is remembered is kept, so that nothing else can come to have it.
        if known is None or known[0].policy is not policy or known[0].key is not key:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[name] = known = (caller, scopes_of(caller, self._defaults))
        return known[1]


def scopes_of(caller: Caller, defaults: Defaults) -> tuple[Scope, ...]:
    """Where the requests of a caller are counted: for its tenant and for its key, as far as either has a limit."""
    policy, key = caller
    scopes = tenant_scope(policy, defaults), key_scope(policy, key, defaults)
    return tuple(scope for scope in scopes if scope is not None)


def tenant_scope(policy: TenantPolicy, defaults: Defaults) -> Scope | None:
    """All keys of a tenant together; None where nothing is counted for them."""
    return _scope(TENANT, *allowed_tenant(policy, defaults))


def key_scope(policy: TenantPolicy, key: KeyEntry, defaults: Defaults) -> Scope | None:
    """One key by itself; None where nothing is counted for it."""
    return _scope(f"key:{key.id}", *allowed_key(policy, key, defaults))


def _scope(name: str, limits: LimitsRule, budget: BudgetRule | None) -> Scope | None:
    if not limits and budget is None:
        return None
    return Scope(
        name,
        limits.rpm_limit or 0,
        limits.tpm_limit or 0,
        limits.max_parallel_requests or 0,
        None if budget is None else _terms(budget),
    )


def _terms(rule: BudgetRule) -> BudgetTerms:
    period = rule.budget_duration
    return BudgetTerms(
        max=picodollars(rule.max_budget),
        soft="" if rule.soft_budget is None else picodollars(rule.soft_budget),
        unit=period.unit,
        count=period.count,
        seconds=period.seconds,
        aligned=rule.calendar_aligned,
        on_soft=rule.on_soft,
        on_hard=rule.on_hard,
    )
