"""Read the tenants' budgets from Redis, for the metrics and for local limits.

Metrics exclude the budgets of keys, since the number of keys is unbounded. Local limits (local_limits.py) use the
remainder of each budget that this process uses.
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

_INTERVAL_S = 10.0
_BATCH = 100
"""Tenants per call. A call blocks the event loop for this many tenants."""


class BudgetMonitor:
    """Read the budgets of all tenants that have their own series."""

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
        """Read budgets periodically until canceled. Remove the gauges while Redis is down: old values would mislead."""
        while True:
            try:
                self._metrics.budgets.set(await self.read_budgets() if self._client.up else {})
                if self._client.up:
                    await self.refresh()
            except Exception as error:
                self._metrics.budgets.set({})
                self._client.failed(error)
                unexpected = not isinstance(error, RedisError | OSError)
                log.warning("budgets_not_read", error=type(error).__name__, exc_info=unexpected)
            await asyncio.sleep(_INTERVAL_S)

    async def read_budgets(self) -> dict[str, BudgetFigures]:
        """Return the budgets by tenant. Raises RedisError and OSError."""
        found = {}
        policies = self._policies.policy_set.policies
        for start in range(0, len(policies), _BATCH):
            accounts = self._accounts(policies[start : start + _BATCH])
            for account, balance in await self._read(accounts):
                found[account.tenant] = BudgetFigures(
                    float(balance.limit_usd), float(balance.spent_usd), float(balance.left_usd)
                )
        return found

    async def refresh(self) -> None:
        """Update the remainders of keys' budgets that this process used recently. Raises RedisError and OSError."""
        used = self._local.recently_used(asyncio.get_running_loop().time())
        accounts = [Account(tenant, scope) for tenant, scope in used if scope.name != TENANT]
        for start in range(0, len(accounts), _BATCH):
            await self._read(accounts[start : start + _BATCH])

    async def _read(self, accounts: Sequence[Account]) -> list[tuple[Account, Balance]]:
        started_s = asyncio.get_running_loop().time()
        found = list(zip(accounts, await self._budgets.read(accounts), strict=True))
        for account, balance in found:
            left = int(picodollars(balance.left_usd))
            self._local.learn(account.tenant, account.scope, left, started_s, used=False)
        return found

    def _accounts(self, policies: Iterable[TenantPolicy]) -> list[Account]:
        scopes = (
            (policy.tenant, tenant_scope(policy, self._defaults))
            for policy in policies
            if self._metrics.has_own_series(policy.tenant)
        )
        return [Account(tenant, scope) for tenant, scope in scopes if scope is not None and scope.budget is not None]
