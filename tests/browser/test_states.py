"""The dashboard without data, and with a broken policy, Redis or gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from gateway.local.redis import EmbeddedRedis
from tests.browser.conftest import ADMIN_KEY, accessible, log_in, opened, shoot
from tests.gateway_process import STUDENT_ONLY, model, running_gateway

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.long
async def test_nothing_yet_then_a_wrong_edit_then_no_redis_then_no_gateway(browser: Browser, tmp_path: Path) -> None:
    """Each problem is shown as text, and the page keeps its contents."""
    nowhere = model("small", "openai", "http://127.0.0.1:9/v1", continuation="trailing")
    big = model("big", "openai", "http://127.0.0.1:9/v1", continuation="trailing")
    redis = EmbeddedRedis()
    await redis.__aenter__()
    try:
        with running_gateway(
            tmp_path,
            models=[nowhere, big],
            routes=[STUDENT_ONLY],
            redis_url=redis.url,
            admin={"key": "env:PAGES_ADMIN_KEY"},
            environ={"PAGES_ADMIN_KEY": ADMIN_KEY},
        ) as gateway:
            async with opened(browser, gateway, forgive="503|ERR_|Failed to load") as page:
                await log_in(page)
                await expect(page.get_by_text("No request has been answered yet.")).to_be_visible()
                await expect(page.get_by_text("No requests in this period.").first).to_be_visible()
                await expect(page.get_by_text("No tenant and no key has a budget.")).to_be_visible()
                await expect(page.locator("#engines tbody tr").first).to_contain_text("down")
                assert await accessible(page) == []
                await shoot(page, "dashboard-empty")

                (tmp_path / "policies" / "acme.yaml").write_text("tenant: acme\nroutes: 7\n", "utf-8")
                await expect(page.locator("#policies-state")).to_contain_text("The policy folder has an error")
                await expect(page.locator("#policies-errors")).to_contain_text("acme.yaml:2")
                assert await accessible(page) == []

                await redis.__aexit__(None, None, None)
                await expect(page.get_by_role("status")).to_contain_text("Redis is unavailable")
                assert await accessible(page) == []
                await shoot(page, "dashboard-redis-away")

                gateway.terminate()
                await expect(page.get_by_role("status")).to_contain_text("The gateway cannot be reached")
                await expect(page.get_by_role("status")).to_contain_text("Figures last updated at")
                assert await accessible(page) == []
    finally:
        await redis.__aexit__(None, None, None)
