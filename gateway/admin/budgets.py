"""The admin API's budgets: list them, and raise one for a limited time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from heapq import nsmallest
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import structlog
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from redis.exceptions import RedisError

from gateway.accounting.budgets import MAX_RAISE_S, Account, Raise
from gateway.accounting.scopes import key_of, key_scope, label_of, tenant_scope
from gateway.admin.balances import read_key_changes, readable_balances
from gateway.admin.bodies import ReasonText, actor_of, number_of, only_query, read_shape
from gateway.admin.replies import ENCODER, json_reply, needs_redis, time_shown
from gateway.api.keys import AUDIT, BUDGETS, KEY_FOLLOWER, KEYRING, POLICIES
from gateway.config.scalars import Duration, InvalidValue, Moment, Usd, duration_between
from gateway.config.yaml_messages import suggestion
from gateway.config.yaml_source import StrictModel
from gateway.errors import InvalidRequest, NotFound, StoreUnavailable
from gateway.keys.held import HeldKey
from gateway.policy.identities import ALL_CALLERS, is_token_key
from gateway.pricing import dollars, total_usd, without_trailing_zeros

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from aiohttp import web

    from gateway.accounting.budgets import Balance
    from gateway.config.sections import Defaults
    from gateway.keys.held import Keyring
    from gateway.policy.key_entry import KeyEntry
    from gateway.policy.schema import TenantPolicy

log = structlog.get_logger()

_PAGE = 500
_VALID = {"active", "grace"}


def _text(value: object) -> object:
    if not isinstance(value, str):
        raise InvalidValue("must be a date like 2026-12-01, or a time like 2026-12-01T12:00:00Z, in quotes")
    return value


class NewRaise(StrictModel):
    """POST /budgets/{tenant}/raise: the amount to add to a budget, and its end."""

    usd: Usd
    """0 ends a raise."""
    for_s: Annotated[Duration, duration_between("1s", "366d")] | None = Field(None, alias="for")
    until: Annotated[Moment, BeforeValidator(_text)] | None = None
    reason: ReasonText | None = None
    """For the audit trail."""

    @field_validator("for_s", "until")
    @classmethod
    def _one_end(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("usd") == 0:
            raise InvalidValue("usd 0 ends the raise at once: remove this field")
        if value is not None and info.data.get("for_s") is not None:
            raise InvalidValue("'for' sets the end too: keep one of the two")
        return value


@needs_redis
async def list_budgets(request: web.Request) -> web.Response:
    """GET /budgets: the budgets of tenants and of their valid keys, 500 at a time, after `after`."""
    only_query(request, "tenant", "after", "limit")
    return await _listed(request, request.query.get("tenant"))


@needs_redis
async def show_budgets(request: web.Request) -> web.Response:
    """GET /budgets/{tenant}: the budgets of one tenant. An unknown tenant is a 404."""
    only_query(request, "after", "limit")
    return await _listed(request, policy_of(request).tenant)


@needs_redis
async def show_key_budget(request: web.Request) -> web.Response:
    """GET /budgets/{tenant}/keys/{id}: the budget of a valid key, or of a key id of tokens."""
    only_query(request)
    _, account = await _existing(request)
    (balance,) = await request.app[BUDGETS].read([account])
    return json_reply(budget_view(account, balance))


async def _listed(request: web.Request, tenant: str | None) -> web.Response:
    limit, after = number_of(request, "limit", default=_PAGE, maximum=_PAGE), request.query.get("after", "")
    is_current = await read_key_changes(request.app)
    ring, policies = request.app[KEYRING], request.app[POLICIES].policy_set.policies
    page, following = await asyncio.to_thread(
        _page_of,
        _owners(policies, list(ring.all()), ring.now()),
        request.app[POLICIES].defaults,
        tenant=tenant,
        after=after,
        limit=limit,
    )
    accounts = [account for _, account in page]
    rows = list(zip(accounts, await readable_balances(request.app, accounts), strict=True))
    unreadable = [(account.tenant, key_of(account.scope.name)) for account, balance in rows if balance is None]
    if tenant is not None and unreadable:
        raise StoreUnavailable(f"The node of Redis with the budgets of tenant '{tenant}' does not answer. Try again.")
    body = {
        "budgets": [budget_view(account, balance) for account, balance in rows if balance is not None],
        "unreadable": [{"tenant": owner, "key": key_id} for owner, key_id in unreadable],
        "keys_current": is_current,
        "next": following,
    }
    return json_reply(body)


@needs_redis
async def raise_budget(request: web.Request) -> web.Response:
    """POST /budgets/{tenant}/raise and /budgets/{tenant}/keys/{id}/raise. It applies from the next request on."""
    new = await read_shape(request, NewRaise)
    owner, account = await _existing(request)
    return await put_raise(request, account, owner.key_id or "", new)


async def put_raise(request: web.Request, account: Account, subject: str, new: NewRaise) -> web.Response:
    """Set the raise of a budget, write it to the audit trail, and return the budget."""
    actor, budgets = actor_of(request), request.app[BUDGETS]
    (before,) = await budgets.read([account])
    raised = Raise(new.usd, _until_s(new, account, before)) if new.usd else None
    after = {**_audited(raised), **({"reason": new.reason} if new.reason else {})}
    await request.app[AUDIT].write(
        actor=actor,
        action="budget.raise",
        tenant=account.tenant,
        subject=subject,
        before=ENCODER.encode(_audited(before.raised)).decode(),
        after=ENCODER.encode(after).decode(),
    )
    await budgets.put_raise(account, raised)
    log.info("admin", action="budget.raise", actor=actor, tenant=account.tenant, subject=subject)
    (now,) = await budgets.read([account])
    return json_reply(budget_view(account, now))


async def budget_of(app: web.Application, only: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the budget of a filter by `tenant`, `route` and `key`, or None.

    A key with its tenant, and a tenant, have a budget of their own. Without a filter the budgets of all tenants add up,
    if each tenant has one and all end together. None also while Redis is down.
    """
    policies, tenant, key = app[POLICIES], only.get("tenant"), only.get("key")
    book, defaults, ring = policies.policy_set, policies.defaults, app[KEYRING]
    if "route" in only or (key is not None and tenant is None):
        return None
    found = book.policies if tenant is None else [policy for policy in [book.policy_of(tenant)] if policy is not None]
    if not 0 < len(found) <= _PAGE:
        return None
    owners: Iterable[BudgetOwner] = map(BudgetOwner, found)
    if tenant is not None and key is not None:
        owner = _owner_of(found[0], key, ring)
        owners = [] if owner is None else [owner]
    accounts = [account for owner in owners if (account := owner.account(defaults)) is not None]
    balances: list[Balance] = []
    with suppress(RedisError, OSError):
        balances = await app[BUDGETS].read(accounts)
    if len(balances) < len(found) or len({balance.ends_s for balance in balances}) > 1:
        return None
    sums = ((one.limit_usd, one.spent_usd, one.reserved_usd) for one in balances)
    limit, spent, reserved = (total_usd(*amounts) for amounts in zip(*sums, strict=True))
    return {
        "of": "tenants" if tenant is None else "tenant" if key is None else "key",
        "budgets": len(balances),
        "limit_usd": f"{limit.normalize():f}",
        "spent_usd": f"{spent.normalize():f}",
        "reserved_usd": f"{reserved.normalize():f}",
        "ends": time_shown(balances[0].ends_s),
    }


def _audited(raised: Raise | None) -> dict[str, Any]:
    return {"usd": 0} if raised is None else {"usd": without_trailing_zeros(raised.usd), "until": raised.until_s}


def _until_s(new: NewRaise, account: Account, balance: Balance) -> int:
    """Return the end of a raise, in whole Unix seconds by Redis' clock. Raises InvalidRequest."""
    now_s = balance.now_s + 1  # rounded up: a raise never ends before the requested duration
    if new.for_s is not None:
        return now_s + ceil(new.for_s)
    if new.until is None:
        return balance.ends_s or now_s + account.terms.seconds
    if new.until < now_s:
        raise InvalidRequest("'until' is in the past.", param="until")
    if new.until > now_s + MAX_RAISE_S:
        raise InvalidRequest("'until' must be at most 366 days away: for longer, change the policy.", param="until")
    return ceil(new.until)


async def _existing(request: web.Request) -> tuple[BudgetOwner, Account]:
    """Return the budget that the path names. Raises NotFound, which names the missing tenant, key or budget."""
    await request.app[KEY_FOLLOWER].catch_up()
    key_id, ring = request.match_info.get("id"), request.app[KEYRING]
    policy = policy_of(request)
    owner = _owner_of(policy, key_id, ring)
    if owner is None:
        known = [key.id for key in policy.keys] + [key.id for key in ring.all() if key.tenant == policy.tenant]
        close = suggestion(key_id or "", [one for one in known if one != key_id])
        raise NotFound(
            f"Tenant '{policy.tenant}' has no valid key '{key_id}'.{close} GET /keys lists them. Key ids of tokens "
            "begin with the id of a rule and a colon.",
            param="id",
        )
    account = owner.account(request.app[POLICIES].defaults)
    if account is None:
        owner_text = f"Tenant '{policy.tenant}'" if key_id is None else f"Key '{key_id}' of tenant '{policy.tenant}'"
        where = "budget" if key_id is None else "key_budget"
        raise NotFound(
            f"{owner_text} has no budget. Set `{where}` in its tenant's policy file, or "
            f"defaults.{where} in config.yaml for all tenants.",
            param="tenant" if key_id is None else "id",
        )
    return owner, account


def policy_of(request: web.Request) -> TenantPolicy:
    """Return the policy of the tenant that the path names. Raises NotFound."""
    tenant, book = request.match_info["tenant"], request.app[POLICIES].policy_set
    policy = book.policy_of(tenant)
    if policy is None:
        close = suggestion(tenant, [one.tenant for one in book.policies])
        raise NotFound(f"No policy file defines tenant '{tenant}'.{close}", param="tenant")
    return policy


class BudgetOwner(NamedTuple):
    """A tenant, or one of its keys: in Redis, in a policy file, or the key id of tokens."""

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
        if self.key is None:
            scope = tenant_scope(self.policy, defaults)
        else:
            try:
                entry = self.key.entry if isinstance(self.key, HeldKey) else self.key
            except ValueError:
                return None
            scope = key_scope(self.policy, entry, defaults)
        if scope is None or scope.budget is None:
            return None
        return Account(self.policy.tenant, scope, self.policy.redis_slices)

    def has_budget(self, defaults: Defaults) -> bool:
        """Return whether the owner has a budget, without decoding all terms of a key: there may be many keys."""
        if self.key is None:
            return (self.policy.budget or defaults.budget) is not None
        own = self.key.terms.budget if isinstance(self.key, HeldKey) else self.key.budget
        return (own or self.policy.key_budget or defaults.key_budget) is not None


def _owner_of(policy: TenantPolicy, key_id: str | None, ring: Keyring) -> BudgetOwner | None:
    """Return the owner of the budget of a tenant (`key_id` is None), of a valid key, or of a key id of tokens."""
    if key_id is not None and is_token_key(key_id):
        rule = next((rule for rule in policy.identities if rule.has_key(key_id)), None)
        return None if rule is None else BudgetOwner(policy, rule.entry(key_id))
    key = ring.by_id(policy.tenant, key_id) if key_id else None
    return next((one for one in _owners([policy], [key] if key else [], ring.now()) if one.key_id == key_id), None)


def _owners(policies: Iterable[TenantPolicy], held: Iterable[HeldKey], now: float) -> Iterator[BudgetOwner]:
    """Yield every tenant, every valid key, and the key id of each rule whose callers share one.

    Two keys with one id share a budget; both are yielded.
    """
    by_tenant = {policy.tenant: policy for policy in policies}
    for policy in by_tenant.values():
        yield BudgetOwner(policy)
        for key in policy.keys:
            if key.expires is None or key.expires > now:
                yield BudgetOwner(policy, key)
        for rule in policy.identities:
            if rule.key is None:
                yield BudgetOwner(policy, rule.entry(f"{rule.id}:{ALL_CALLERS}"))
    for held_key in held:
        tenant_policy = by_tenant.get(held_key.tenant)
        if tenant_policy is not None and held_key.status(now) in _VALID:
            yield BudgetOwner(tenant_policy, held_key)


def _page_of(
    all_owners: Iterable[BudgetOwner], defaults: Defaults, *, tenant: str | None, after: str, limit: int
) -> tuple[list[tuple[BudgetOwner, Account]], str | None]:
    """Return a page of budgets, possibly fewer than `limit`, and the name of its last budget if more follow.

    `after` is the last budget of the previous page: `tenant/id`, or `tenant/` for the tenant's own. The call takes
    tenths of a second for 100,000 keys: run it in a thread.
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


def budget_view(account: Account, balance: Balance) -> dict[str, Any]:
    """Return a budget: its terms, with the field names of policy files, and its balance."""
    terms, raised, label = account.terms, balance.raised, label_of(account.scope.name)
    return {
        "tenant": account.tenant,
        "key": key_of(account.scope.name),
        **({} if label is None else label._asdict()),
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
