"""Lets operators watch the tenants' budgets: what Redis counts, shown in the metrics.

Keys' budgets are left out of the metrics: there may be any number of keys, and no label names one. What is left of each
budget that this process uses is also what it shares out while Redis is away.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from gateway.accounting.budgets import Account
from gateway.accounting.scopes import TENANT, tenant_scope
from gateway.pricing import picodollars
from gateway.telemetry.metrics import BudgetFigures

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.accounting.budgets import Balance, Budgets
    from gateway.accounting.local_limits import LocalLimits
    from gateway.config.sections import Defaults
    from gateway.policy.policies import Policies
    from gateway.policy.schema import TenantPolicy
    from gateway.redis.client import RedisClient
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_EVERY_S = 10.0
_PER_CALL = 100
"""Tenants looked at in one go, for which the event loop is held."""


class BudgetMonitor:
    """Looks at the budgets of all tenants that have series of their own, again and again."""

    def __init__(
        self,
        client: RedisClient,
        budgets: Budgets,
        policies: Policies,
        defaults: Defaults,
        metrics: Metrics,
        local: LocalLimits,
    ) -> None:
        self._client = client
        self._budgets = budgets
        self._policies = policies
        self._defaults = defaults
        self._metrics = metrics
        self._local = local

    async def run(self) -> None:
        """For ever. What cannot be seen is not shown: an old figure would pass for a new one."""
        while True:
            try:
                self._metrics.budgets.show(await self.look() if self._client.up else {})
                if self._client.up:
                    await self.refresh()
            except Exception as error:
                self._metrics.budgets.show({})
                self._client.failed(error)
                unexpected = not isinstance(error, RedisError | OSError)
                log.warning("budgets_unseen", error=type(error).__name__, exc_info=unexpected)
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> dict[str, BudgetFigures]:
        """How each stands, by tenant. Raises RedisError and OSError."""
        seen = {}
        policies = self._policies.book.policies
        for start in range(0, len(policies), _PER_CALL):
            accounts = self._accounts(policies[start : start + _PER_CALL])
            for account, balance in await self._learned(accounts):
                seen[account.tenant] = BudgetFigures(
                    float(balance.most_usd), float(balance.spent_usd), float(balance.left_usd)
                )
        return seen

    async def refresh(self) -> None:
        """Learn what is left of the keys' budgets that this process used of late. Raises RedisError and OSError."""
        used = self._local.used_of_late(asyncio.get_running_loop().time())
        accounts = [Account(tenant, scope) for tenant, scope in used if scope.name != TENANT]
        for start in range(0, len(accounts), _PER_CALL):
            await self._learned(accounts[start : start + _PER_CALL])

    async def _learned(self, accounts: Sequence[Account]) -> list[tuple[Account, Balance]]:
        asked_s = asyncio.get_running_loop().time()
        seen = list(zip(accounts, await self._budgets.look(accounts), strict=True))
        for account, balance in seen:
            left = int(picodollars(balance.left_usd))
            self._local.learn(account.tenant, account.scope, left, asked_s, used=False)
        return seen

    def _accounts(self, policies: Iterable[TenantPolicy]) -> list[Account]:
        scopes = (
            (policy.tenant, tenant_scope(policy, self._defaults))
            for policy in policies
            if self._metrics.has_name(policy.tenant)
        )
        return [Account(tenant, scope) for tenant, scope in scopes if scope is not None and scope.budget is not None]
