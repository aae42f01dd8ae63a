"""What operators see of budgets, and whose there are: tenants', and those of their keys that hold."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gateway.accounting.budgets import Account
from gateway.accounting.scopes import key_scope, tenant_scope
from gateway.admin.key_views import time_shown
from gateway.keys.held import HeldKey
from gateway.pricing import dollars, in_short

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.accounting.budgets import Balance
    from gateway.config.sections import Defaults
    from gateway.policy.schema import KeyEntry, TenantPolicy

View: TypeAlias = dict[str, Any]
_HOLDS = {"active", "grace"}


class BudgetOwner(NamedTuple):
    """Who may have a budget: a tenant, or one of its keys, wherever that is kept."""

    policy: TenantPolicy
    key: HeldKey | KeyEntry | None = None

    @property
    def key_id(self) -> str | None:
        return None if self.key is None else self.key.id

    @property
    def name(self) -> tuple[str, str]:
        """By which lists are sorted: the tenant's own budget comes before those of its keys."""
        return self.policy.tenant, self.key_id or ""

    def account(self, defaults: Defaults) -> Account | None:
        """Its budget; None if it has none, or if this version does not understand the key."""
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
        """Told without reading all the terms of a key: there may be many keys."""
        if self.key is None:
            return (self.policy.budget or defaults.budget) is not None
        own = self.key.terms.budget if isinstance(self.key, HeldKey) else self.key.budget
        return (own or self.policy.key_budget or defaults.key_budget) is not None


def owners(policies: Iterable[TenantPolicy], held: Iterable[HeldKey], now: float) -> Iterator[BudgetOwner]:
    """Every tenant, and every key of theirs that holds; of two keys with one id, which count as one, both."""
    by_tenant = {policy.tenant: policy for policy in policies}
    for policy in by_tenant.values():
        yield BudgetOwner(policy)
        for key in policy.keys:
            if key.expires is None or key.expires > now:
                yield BudgetOwner(policy, key)
    for made in held:
        of = by_tenant.get(made.tenant)
        if of is not None and made.status(now) in _HOLDS:
            yield BudgetOwner(of, made)


def page_of(
    all_owners: Iterable[BudgetOwner], defaults: Defaults, *, tenant: str | None, after: str, most: int
) -> tuple[list[tuple[BudgetOwner, Account]], str | None]:
    """The budgets that come after `tenant/id`, or `tenant/` for its own; and the last one's name if more follow.

    It takes tenths of a second where there are 100,000: call it in a thread. A page may hold less than it could.
    """
    start = after.partition("/")[::2]
    found: dict[tuple[str, str], BudgetOwner] = {}
    for owner in all_owners:
        if tenant in {None, owner.policy.tenant} and (not after or owner.name > start) and owner.has_budget(defaults):
            found.setdefault(owner.name, owner)
    # Not `sorted`, which would let no other thread go on until it is done.
    first = nsmallest(most + 1, found)
    accounts = ((found[name], found[name].account(defaults)) for name in first[:most])
    page = [(owner, account) for owner, account in accounts if account is not None]
    return page, "/".join(first[most - 1]) if len(first) > most else None


def view(owner: BudgetOwner, account: Account, balance: Balance) -> View:
    """A budget: its terms in the words of policy files, and how it stands."""
    terms, raised = account.terms, balance.raised
    return {
        "tenant": account.tenant,
        "key": owner.key_id,
        "max_budget": balance.max_usd,
        "soft_budget": in_short(dollars(terms.soft)) if terms.soft else None,
        "budget_duration": f"{terms.count}{terms.unit}",
        "calendar_aligned": terms.aligned,
        "on_soft": terms.on_soft,
        "on_hard": terms.on_hard,
        "spent_usd": balance.spent_usd,
        "reserved_usd": balance.reserved_usd,
        "left_usd": in_short(balance.left_usd),
        "raise": {"usd": raised.usd, "until": time_shown(raised.until_s)} if raised else None,
        "ends": time_shown(balance.ends_s),
    }
