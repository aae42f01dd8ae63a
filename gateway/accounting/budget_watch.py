"""Read the tenants' budgets from Redis, for the metrics and for local limits, report budget events, and post alerts.

Metrics exclude the budgets of keys and labels, since their number is unbounded. Local limits (local_limits.py) use the
remainder of each budget that this process uses.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import orjson
import structlog

from gateway.accounting.budgets import Account, Balance
from gateway.accounting.scopes import TENANT, key_of, label_of, tenant_scope
from gateway.pricing import dollars, picodollars
from gateway.telemetry.gauges import BudgetFigures

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gateway.accounting.budgets import Budgets
    from gateway.accounting.local_limits import LocalLimits
    from gateway.accounting.redis_ledger import TenantEvent
    from gateway.policy.policies import Policies
    from gateway.policy.schema import TenantPolicy
    from gateway.redis.client import RedisClient
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_BATCH = 100
"""Tenants per call. A call blocks the event loop for this many tenants."""
_TIMEOUT_S = 10.0
_RETRY_DELAYS_S = (1.0, 5.0, 30.0)
_MAX_POSTING = 100


@dataclass(slots=True)
class BudgetMonitor:
    """Read the budgets of all tenants that have their own series."""

    client: RedisClient
    budgets: Budgets
    policies: Policies
    metrics: Metrics
    local: LocalLimits

    async def run(self, interval_s: float = 10.0) -> None:
        """Read budgets periodically until canceled. Remove the gauges while Redis is down: old values would mislead."""
        while True:
            try:
                self.metrics.budgets.set(await self.read_budgets() if self.client.up else {})
                if self.client.up:
                    await self.refresh()
            except Exception as error:
                self.metrics.budgets.set({})
                log.warning("budgets_not_read", error=type(error).__name__, exc_info=self.client.failed(error))
            await asyncio.sleep(interval_s)

    async def read_budgets(self) -> dict[str, BudgetFigures]:
        """Return the budgets by tenant. Raises RedisError and OSError."""
        found = {}
        policies = self.policies.policy_set.policies
        for start in range(0, len(policies), _BATCH):
            accounts = self._accounts(policies[start : start + _BATCH])
            read = await self._read([part for account in accounts for part in account.parts])
            by_name = {part.tenant: balance for part, balance in read}
            for account in accounts:
                parts = [by_name[part.tenant] for part in account.parts if part.tenant in by_name]
                if len(parts) == account.slices:  # none is on a failed node
                    balance = Balance.total(parts)
                    figures = balance.limit_usd, balance.spent_usd, balance.left_usd
                    found[account.tenant] = BudgetFigures(*map(float, figures))
        return found

    async def refresh(self) -> None:
        """Update the remainders of other budgets that this process used recently. Raises RedisError and OSError."""
        used = self.local.recently_used(asyncio.get_running_loop().time())
        accounts = [Account(namespace, scope) for namespace, scope in used if scope.name != TENANT]
        for start in range(0, len(accounts), _BATCH):
            await self._read(accounts[start : start + _BATCH])

    async def _read(self, accounts: Sequence[Account]) -> list[tuple[Account, Balance]]:
        started_s = asyncio.get_running_loop().time()
        accounts = [one for one in accounts if self.client.is_up(self.budgets.key_of(one))]
        found = list(zip(accounts, await self.budgets.read(accounts), strict=True))
        for one, balance in found:
            self.local.learn(one.tenant, one.scope, int(picodollars(balance.left_usd)), started_s, used=False)
        return found

    def _accounts(self, policies: Iterable[TenantPolicy]) -> list[Account]:
        tenants = (policy for policy in policies if self.metrics.has_own_series(policy.tenant))
        scopes = ((policy, tenant_scope(policy, self.policies.defaults)) for policy in tenants)
        return [
            Account(policy.tenant, scope, policy.redis_slices)
            for policy, scope in scopes
            if scope is not None and scope.budget is not None
        ]


class BudgetAlerts:
    """Report budget events, and post these and other alerts to the webhook.

    Args:
        webhook: the URL that events are posted to as JSON; None disables the webhook.
        secret: the key that signs requests, in `x-gkt-signature: sha256=` and the HMAC of the body in hexadecimal.
    """

    def __init__(self, webhook: str | None, secret: str | None, *, metrics: Metrics, tasks: BackgroundTasks) -> None:
        self._webhook, self._secret, self._metrics, self._tasks = webhook, secret, metrics, tasks
        self._session: aiohttp.ClientSession | None = None
        self._posting = 0

    def send(self, tenant_event: TenantEvent) -> None:
        """Log and count an event, and post it to the webhook in the background."""
        event = tenant_event.event
        name = tenant_event.scope.name
        key, label = key_of(name), label_of(name)
        facts = {
            "event": f"budget_{event.kind}",
            "tenant": tenant_event.tenant,
            "budget": "tenant" if name == TENANT else "key" if key is not None else "label",
            "key": key,
            **({} if label is None else label._asdict()),
            "spent_usd": f"{dollars(event.spent):f}",
            "reserved_usd": f"{dollars(event.reserved):f}",
            "max_budget_usd": f"{dollars(event.limit):f}",
            "soft_budget_usd": f"{dollars(event.soft):f}" if event.soft else None,
        }
        self._metrics.budget_events.labels(self._metrics.series.tenant(tenant_event.tenant), event.kind).inc()
        log.warning("budget", **{("kind" if name == "event" else name): value for name, value in facts.items()})
        self.post(facts)

    def post(self, facts: Mapping[str, object]) -> None:
        """Post an event to the webhook in the background, with the current time."""
        if self._webhook is not None and self._posting < _MAX_POSTING:
            self._posting += 1
            self._tasks.spawn("webhook", self._post(self._webhook, orjson.dumps({**facts, "at": int(time.time())})))

    async def _post(self, webhook: str, body: bytes) -> None:
        """Post the event, with retries. Neither URL nor response is logged: both may contain secrets."""
        headers = {"Content-Type": "application/json", "User-Agent": "gkt-gateway"}
        if self._secret is not None:
            headers["x-gkt-signature"] = "sha256=" + hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        try:
            for delay_s in (*_RETRY_DELAYS_S, None):
                failure = await self._try(webhook, body, headers)
                if failure is None or delay_s is None:
                    break
                await asyncio.sleep(delay_s)
            self._metrics.webhooks.labels("ok" if failure is None else "failed").inc()
            if failure is not None:
                log.error("webhook_failed", error=failure)
        finally:
            self._posting -= 1

    async def _try(self, webhook: str, body: bytes, headers: dict[str, str]) -> str | None:
        """Send one request. Return the reason of a failure, or None."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))
        try:
            async with self._session.post(webhook, data=body, headers=headers, allow_redirects=False) as reply:
                return None if reply.status < 300 else f"status {reply.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return type(error).__name__

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
