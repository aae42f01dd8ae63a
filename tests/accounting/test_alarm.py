"""The webhook receives events only at the configured URL."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.accounting.budget_watch import BudgetAlerts
from gateway.accounting.redis_ledger import TenantEvent
from gateway.accounting.verdict import BudgetEvent
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
from tests.accounting.budget_fixture import budget
from tests.fakes import served


async def test_a_webhook_that_moved_is_not_followed() -> None:
    """A redirect must not pass the event, or the token in the URL, to another host."""
    seen: list[str] = []

    async def hook(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    app = web.Application()
    app.router.add_post("/hook", hook)
    app.router.add_post("/elsewhere", hook)
    tasks = BackgroundTasks()
    with served(app) as url:
        alarm = BudgetAlerts(f"{url}/hook", None, metrics=Metrics(), tasks=tasks)
        alarm.send(TenantEvent("acme", budget("1"), BudgetEvent(0, "hard", "1", "0", limit="1", soft="")))
        async with asyncio.timeout(10):
            while len(seen) < 2:  # the redirect is a failure, so the post is repeated
                await asyncio.sleep(0.01)
        await tasks.close()
        await alarm.close()
    assert seen == ["/hook"] * 2
