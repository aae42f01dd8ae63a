"""The webhook receives events only at the configured URL."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.accounting.budget_watch import BudgetAlerts
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.metrics import Metrics
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
        alarm = BudgetAlerts(None, None, metrics=Metrics(), tasks=tasks)
        async with asyncio.timeout(10):
            assert await alarm._try(f"{url}/hook", b"{}", {}) == "status 307"
        await alarm.close()
    await tasks.close()
    assert seen == ["/hook"]
