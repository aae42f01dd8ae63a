"""Report budget events in the log, in a metric, and to a webhook where one is configured."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from typing import TYPE_CHECKING

import aiohttp
import orjson
import structlog

from gateway.accounting.scopes import TENANT
from gateway.pricing import dollars

if TYPE_CHECKING:
    from gateway.accounting.redis_ledger import TenantEvent
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

_TIMEOUT_S = 10.0
_RETRY_DELAYS_S = (1.0, 5.0, 30.0)
_MAX_POSTING = 100


class BudgetAlerts:
    """Report budget events.

    Args:
        webhook: the URL that events are posted to as JSON; None disables the webhook.
        secret: the key that signs requests, in `x-gkt-signature: sha256=` and the HMAC of the body in hexadecimal.
        metrics: the process's metrics.
        tasks: runs webhook requests in the background.
    """

    def __init__(self, webhook: str | None, secret: str | None, *, metrics: Metrics, tasks: BackgroundTasks) -> None:
        self._webhook = webhook
        self._secret = secret
        self._metrics = metrics
        self._tasks = tasks
        self._session: aiohttp.ClientSession | None = None
        self._posting = 0

    def send(self, tenant_event: TenantEvent) -> None:
        """Log and count an event, and post it to the webhook in the background."""
        event = tenant_event.event
        budget = "tenant" if tenant_event.scope.name == TENANT else "key"
        facts = {
            "event": f"budget_{event.kind}",
            "tenant": tenant_event.tenant,
            "budget": budget,
            "key": None if budget == "tenant" else tenant_event.scope.name.removeprefix("key:"),
            "spent_usd": f"{dollars(event.spent):f}",
            "reserved_usd": f"{dollars(event.reserved):f}",
            "max_budget_usd": f"{dollars(event.limit):f}",
            "soft_budget_usd": f"{dollars(event.soft):f}" if event.soft else None,
        }
        self._metrics.budget_events.labels(self._metrics.series.tenant(tenant_event.tenant), event.kind).inc()
        log.warning("budget", **{("kind" if name == "event" else name): value for name, value in facts.items()})
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
