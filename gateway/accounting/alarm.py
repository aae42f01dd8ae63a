"""Says what comes of budgets: in the log, in a metric, and to a webhook where one is configured."""

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
_PAUSES_S = (1.0, 5.0, 30.0)
_MAX_UNDER_WAY = 100


class BudgetAlerts:
    """Args:
    webhook: where events are posted as JSON; None: nowhere.
    secret: signs what is posted: `x-gkt-signature: sha256=` and the HMAC of the body in hex.
    """

    def __init__(self, webhook: str | None, secret: str | None, *, metrics: Metrics, tasks: BackgroundTasks) -> None:
        self._webhook = webhook
        self._secret = secret
        self._metrics = metrics
        self._tasks = tasks
        self._session: aiohttp.ClientSession | None = None
        self._under_way = 0

    def tell(self, one: TenantEvent) -> None:
        """Let it be known, off the caller's path."""
        event = one.event
        budget = "tenant" if one.scope.name == TENANT else "key"
        facts = {
            "event": f"budget_{event.kind}",
            "tenant": one.tenant,
            "budget": budget,
            "key": None if budget == "tenant" else one.scope.name.removeprefix("key:"),
            "spent_usd": f"{dollars(event.spent):f}",
            "reserved_usd": f"{dollars(event.reserved):f}",
            "max_budget_usd": f"{dollars(event.most):f}",
            "soft_budget_usd": f"{dollars(event.soft):f}" if event.soft else None,
        }
        self._metrics.budget_events.labels(self._metrics.series.tenant(one.tenant), event.kind).inc()
        log.warning("budget", **{("kind" if name == "event" else name): value for name, value in facts.items()})
        if self._webhook is not None and self._under_way < _MAX_UNDER_WAY:
            self._under_way += 1
            self._tasks.spawn("webhook", self._post(self._webhook, orjson.dumps({**facts, "at": int(time.time())})))

    async def _post(self, webhook: str, body: bytes) -> None:
        """A few tries. Neither the address nor the reply is logged: both may hold secrets."""
        headers = {"Content-Type": "application/json", "User-Agent": "gkt-gateway"}
        if self._secret is not None:
            headers["x-gkt-signature"] = "sha256=" + hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        try:
            for pause_s in (*_PAUSES_S, None):
                failure = await self._try(webhook, body, headers)
                if failure is None or pause_s is None:
                    break
                await asyncio.sleep(pause_s)
            self._metrics.webhooks.labels("ok" if failure is None else "failed").inc()
            if failure is not None:
                log.error("webhook_failed", error=failure)
        finally:
            self._under_way -= 1

    async def _try(self, webhook: str, body: bytes, headers: dict[str, str]) -> str | None:
        """Why it failed, or None."""
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
