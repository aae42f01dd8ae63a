"""Send the events of budgets with slices: once for each budget and period, with the figures of the whole budget."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from redis.exceptions import RedisError

from gateway.accounting.budgets import Account
from gateway.accounting.redis_ledger import TenantEvent
from gateway.accounting.verdict import BudgetEvent
from gateway.pricing import picodollars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.accounting.budgets import Balance, Budgets
    from gateway.accounting.scopes import Scope
    from gateway.redis.client import RedisClient
    from gateway.runtime.tasks import BackgroundTasks

Kind = Literal["soft", "hard"]

_MAX_BUDGETS = 10_000


class SliceEvents:
    """Check budgets whose slices are past a limit, at most every `check_every_s` seconds each.

    A slice may be past its part of a soft limit before the budget is. The budget is read again while requests exceed
    the part. Budgets are checked one after the other: many at once would use all connections to Redis.
    """

    def __init__(
        self,
        client: RedisClient,
        budgets: Budgets,
        send: Callable[[TenantEvent], None],
        tasks: BackgroundTasks,
        *,
        check_every_s: float = 10.0,
    ) -> None:
        self._client, self._budgets, self._send, self._tasks = client, budgets, send, tasks
        self._check_every_s = check_every_s
        self._next_s: dict[tuple[Kind, str, str], float] = {}  # loop time of the next check of a budget
        self._waiting: dict[tuple[Kind, str, str], Account] = {}  # budgets to check
        self._checking = False

    def note(self, kind: Kind, tenant: str, slices: int, scopes: Iterable[Scope]) -> None:
        """Check the budgets of these scopes in the background.

        Kind `soft`: a slice is past its part of a soft limit. Kind `hard`: no slice has room for a request.
        """
        now = asyncio.get_running_loop().time()
        for scope in scopes:
            if scope.budget is None or (kind == "soft" and not scope.budget.soft):
                continue
            is_due = self._next_s.get((kind, tenant, scope.name), now) <= now
            if is_due and len(self._waiting) < _MAX_BUDGETS:
                self._set_next(kind, tenant, scope, now + self._check_every_s)
                self._waiting[kind, tenant, scope.name] = Account(tenant, scope, slices)
        if self._waiting and not self._checking:
            self._checking = True
            self._tasks.spawn("slice_events", self._check_waiting())

    def _set_next(self, kind: Kind, tenant: str, scope: Scope, at_s: float) -> None:
        if len(self._next_s) >= _MAX_BUDGETS:
            self._next_s.clear()
        self._next_s[kind, tenant, scope.name] = at_s

    async def _check_waiting(self) -> None:
        try:
            while self._waiting and self._client.up:
                name = next(iter(self._waiting))
                await self._check(name[0], self._waiting.pop(name))
        finally:
            self._waiting.clear()  # without Redis: later requests note these budgets again
            self._checking = False

    async def _check(self, kind: Kind, account: Account) -> None:
        try:
            (balance,) = await self._budgets.read([account])
            event = _event(kind, account, balance)
            if kind == "soft" and int(event.spent) + int(event.reserved) < int(event.soft):
                return
            lasts_s = account.terms.seconds if balance.ends_s is None else balance.ends_s - balance.now_s
            is_first = await self._budgets.claim_event(account, kind, lasts_s)
        except (RedisError, OSError) as error:
            self._client.failed(error)
            return
        if kind == "soft":  # a raise repeats the hard event
            self._set_next(kind, account.tenant, account.scope, asyncio.get_running_loop().time() + lasts_s)
        if is_first:
            self._send(TenantEvent(account.tenant, account.scope, event))


def _event(kind: Kind, account: Account, balance: Balance) -> BudgetEvent:
    spent, reserved, limit = map(picodollars, (balance.spent_usd, balance.reserved_usd, balance.limit_usd))
    return BudgetEvent(1, kind, spent, reserved, limit, account.terms.soft)
