"""Budgets of tenants and of their valid keys, as the admin API lists them."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gateway.accounting.budgets import Account
from gateway.accounting.scopes import key_scope, tenant_scope
from gateway.admin.key_views import time_shown
from gateway.keys.held import HeldKey
from gateway.pricing import dollars, without_trailing_zeros

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.accounting.budgets import Balance
    from gateway.config.sections import Defaults
    from gateway.policy.schema import KeyEntry, TenantPolicy

View: TypeAlias = dict[str, Any]
_VALID = {"active", "grace"}


class BudgetOwner(NamedTuple):
    """A tenant, or one of its keys in Redis or in a policy file."""

    policy: TenantPolicy
    key: HeldKey | KeyEntry | None = None

    @property
    def key_id(self) -> str | None:
        return None if self.key is None else self.key.id

    @property
    def name(self) -> tuple[str, str]:
        """Return the sort key of lists: a tenant's own budget precedes the budgets of its keys."""
        return self.policy.tenant, self.key_id or ""

    def account(self, defaults: Defaults) -> Account | None:
        """Return the owner's budget, or None if there is none or this version cannot read the key's terms."""
        if not self.has_budget(defaults):
            return None
        if self.key is None:
            scope = tenant_scope(self.policy, defaults)
        else:
            try:
                entry = self.key.entry if isinstance(self.key, HeldKey) else self.key
            except ValueError:
                return None
            scope = key_scope(self.policy, entry, defaults)
        return None if scope is None or scope.budget is None else Account(self.policy.tenant, scope)

    def has_budget(self, defaults: Defaults) -> bool:
        """Return whether the owner has a budget, without decoding all terms of a key: there may be many keys."""
        if self.key is None:
            return (self.policy.budget or defaults.budget) is not None
        own = self.key.terms.budget if isinstance(self.key, HeldKey) else self.key.budget
        return (own or self.policy.key_budget or defaults.key_budget) is not None


def owners(policies: Iterable[TenantPolicy], held: Iterable[HeldKey], now: float) -> Iterator[BudgetOwner]:
    """Yield every tenant and every valid key. Two keys with one id share a budget; both are yielded."""
    by_tenant = {policy.tenant: policy for policy in policies}
    for policy in by_tenant.values():
        yield BudgetOwner(policy)
        for key in policy.keys:
            if key.expires is None or key.expires > now:
                yield BudgetOwner(policy, key)
    for held_key in held:
        tenant_policy = by_tenant.get(held_key.tenant)
        if tenant_policy is not None and held_key.status(now) in _VALID:
            yield BudgetOwner(tenant_policy, held_key)


def page_of(
    all_owners: Iterable[BudgetOwner], defaults: Defaults, *, tenant: str | None, after: str, limit: int
) -> tuple[list[tuple[BudgetOwner, Account]], str | None]:
    """Return a page of budgets, and the name of its last budget if more follow.

    The call takes tenths of a second for 100,000 keys: run it in a thread. A page may have fewer than `limit` budgets.

    Args:
        after: `tenant/id` of the last budget of the previous page, or `tenant/` for the tenant's own budget.
    """
    start = after.partition("/")[::2]
    found: dict[tuple[str, str], BudgetOwner] = {}
    for owner in all_owners:
        if tenant in {None, owner.policy.tenant} and (not after or owner.name > start) and owner.has_budget(defaults):
            found.setdefault(owner.name, owner)
    # `sorted` would hold the interpreter lock until it is done.
    first = nsmallest(limit + 1, found)
    accounts = ((found[name], found[name].account(defaults)) for name in first[:limit])
    page = [(owner, account) for owner, account in accounts if account is not None]
    return page, "/".join(first[limit - 1]) if len(first) > limit else None


def view(owner: BudgetOwner, account: Account, balance: Balance) -> View:
    """Return a budget: its terms, with the field names of policy files, and its balance."""
    terms, raised = account.terms, balance.raised
    return {
        "tenant": account.tenant,
        "key": owner.key_id,
        "max_budget": balance.max_usd,
        "soft_budget": without_trailing_zeros(dollars(terms.soft)) if terms.soft else None,
        "budget_duration": f"{terms.count}{terms.unit}",
        "calendar_aligned": terms.aligned,
        "on_soft": terms.on_soft,
        "on_hard": terms.on_hard,
        "spent_usd": balance.spent_usd,
        "reserved_usd": balance.reserved_usd,
        "left_usd": without_trailing_zeros(balance.left_usd),
        "raise": {"usd": raised.usd, "until": time_shown(raised.until_s)} if raised else None,
        "ends": time_shown(balance.ends_s),
    }
