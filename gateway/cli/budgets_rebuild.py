"""Read receipts from the usage database and the outboxes for `budgets rebuild`."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.accounting.budget_rebuild import BudgetRebuild, PeriodSpend, running_since
from gateway.accounting.budgets import Account, Budgets
from gateway.accounting.receipt import Receipt
from gateway.accounting.scopes import Scopes, key_scope, label_scope, tenant_scope
from gateway.cli.stores import stores
from gateway.errors import StartupError
from gateway.keys.follower import KeyFollower
from gateway.keys.held import Keyring
from gateway.keys.redis_keyring import RedisKeyring
from gateway.policy.book import Caller
from gateway.policy.key_entry import PLAYGROUND, KeyEntry
from gateway.usage.queries import ReceiptFilter
from gateway.usage.tables import DAY_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from gateway.accounting.budget_rebuild import RebuiltBudget
    from gateway.accounting.scopes import BudgetTerms, Scope
    from gateway.cli.stores import Stores
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet
    from gateway.policy.schema import TenantPolicy

_LONGEST_REQUEST_S = DAY_S
"""Receipts are selected by the start of their request, and count in the period of its end."""
_PER_CALL = 500
_UNKNOWN = KeyEntry.model_construct(id="", sha256="")


class ChargedBudgets:
    """Find the budgets of receipts, by the policies and keys of now.

    `unknown` has the tenants and key ids of receipts that no policy and no key has. The budget of an unknown key is the
    tenant's `key_budget`, as for a new key with this id.
    """

    def __init__(self, policies: PolicySet, settings: Settings, ring: Keyring) -> None:
        self._policies, self._defaults, self._ring = policies, settings.defaults, ring
        self._scopes = Scopes(settings.defaults)
        self._entries: dict[tuple[str, str], KeyEntry] = {}
        self.unknown: set[tuple[str, str]] = set()

    def of(self, receipt: Receipt) -> list[Account]:
        """Return the budgets that the request of a receipt was charged to."""
        policy = self._policies.policy_of(receipt.tenant)
        if policy is None:
            self.unknown.add((receipt.tenant, receipt.key))
            return []
        name = receipt.tenant, receipt.key
        entry = self._entries.get(name)
        if entry is None:
            self._entries[name] = entry = self._entry(policy, receipt.key)
        scopes = self._scopes.of(Caller(policy, entry), receipt.labels)
        return [Account(policy.tenant, scope, policy.redis_slices) for scope in scopes if scope.budget is not None]

    def _entry(self, policy: TenantPolicy, key_id: str) -> KeyEntry:
        for key in policy.keys:
            if key.id == key_id:
                return key
        if (held := self._ring.by_id(policy.tenant, key_id)) is not None:
            return held.entry
        for rule in policy.identities:
            if rule.has_key(key_id):
                return rule.entry(key_id)
        if key_id != PLAYGROUND:
            self.unknown.add((policy.tenant, key_id))
        return KeyEntry.model_construct(id=key_id, sha256="")

    def first_start(self, now_s: int) -> int | None:
        """Return the start of the longest running period in Unix seconds; None without budgets."""
        return min((running_since(terms, now_s) for terms in self._terms()), default=None)

    def _terms(self) -> Iterator[BudgetTerms]:
        entries = [(key.tenant, key.entry) for key in self._ring.all() if key.terms.budget is not None]
        scopes: list[Scope | None] = []
        for policy in self._policies.policies:
            keys = [*policy.keys, *(rule.entry("") for rule in policy.identities), _UNKNOWN]
            keys += [entry for tenant, entry in entries if tenant == policy.tenant]
            scopes += [tenant_scope(policy, self._defaults), *(key_scope(policy, key, self._defaults) for key in keys)]
            for name in policy.limited_labels:
                scopes += [label_scope(policy, name, value) for value in ("", *policy.labels[name].exceptions)]
        return (scope.budget for scope in scopes if scope is not None and scope.budget is not None)


@dataclass
class Rebuilt:
    """The result of a rebuild. `incomplete` has the budgets with receipts that `usage.keep` may have deleted."""

    budgets: list[RebuiltBudget] = field(default_factory=list)
    unknown: set[tuple[str, str]] = field(default_factory=set)
    incomplete: list[Account] = field(default_factory=list)
    receipts: int = 0


async def rebuild(settings: Settings, policies: PolicySet) -> Rebuilt:
    """Raise the spend of all running budget periods to the sum of their receipts.

    Raises StartupError, RedisError, OSError and UsageDatabaseError.
    """
    async with stores(settings) as opened:
        await _require_no_gateway(opened)
        if not await opened.usage.exists():
            raise StartupError("usage.url names a database without receipts. Restore the usage database first.")
        redis, ring, done = opened.client.commands, Keyring(), Rebuilt()
        now_s, _ = await redis.time()
        await KeyFollower(opened.client, RedisKeyring(redis, opened.keys), ring).catch_up()
        charged = ChargedBudgets(policies, settings, ring)
        since_s = charged.first_start(now_s)
        if since_s is None:
            return done
        spend = PeriodSpend(now_s)
        async for receipt in _receipts(opened, since_s):
            spend.add(receipt, charged.of(receipt))
            done.receipts += 1
        done.unknown = charged.unknown
        await _require_no_gateway(opened)
        writer = BudgetRebuild(redis, Budgets(redis, opened.keys), now_s)
        kept_since_s = -math.inf if settings.usage.keep_s is None else now_s - settings.usage.keep_s
        for account, slots in spend:
            done.budgets.append(await writer.restore(account, slots))
            if running_since(account.terms, now_s) < kept_since_s:
                done.incomplete.append(account)
        return done


async def _require_no_gateway(opened: Stores) -> None:
    pattern = opened.keys.escaped().heartbeat("*")
    alive = {key async for key in opened.client.commands.scan_iter(pattern, count=1_000)}
    if alive:
        raise StartupError(
            f"Gateway processes that use this Redis: {len(alive)}, running or ended less than redis.lease ago. Stop "
            "all gateways, wait for redis.lease, and run the command again. No budget was changed."
        )


async def _receipts(opened: Stores, since_s: int) -> AsyncIterator[Receipt]:
    """Yield each receipt of a request that ended at `since_s` or later, and some earlier ones."""
    # A usage worker may move receipts to the database meanwhile. So read the outboxes first.
    waiting = await _waiting(opened)
    async for batch in opened.usage.receipts(ReceiptFilter(since=since_s - _LONGEST_REQUEST_S)):
        for raw in batch:
            receipt = Receipt.from_json(raw)
            if (receipt.tenant, receipt.id) not in waiting:
                yield receipt
    for receipt in waiting.values():
        yield receipt


async def _waiting(opened: Stores) -> Mapping[tuple[str, str], Receipt]:
    """Return the receipts of all outboxes by tenant and id. Of two entries with one id, the later one counts."""
    redis: Any = opened.client.commands
    found: dict[tuple[str, str], Receipt] = {}
    for raw_name in await redis.smembers(opened.keys.ledger().tenants):
        outbox, after = opened.keys.outbox(raw_name.decode()), "-"
        while entries := await redis.xrange(outbox, after, "+", count=_PER_CALL):
            for _, fields in entries:
                with suppress(msgspec.MsgspecError):  # the usage worker cannot read such an entry either
                    receipt = Receipt.from_json(fields.get(b"receipt", b""))
                    found[receipt.tenant, receipt.id] = receipt
            after = f"({entries[-1][0].decode()}"
    return found
