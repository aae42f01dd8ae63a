"""The dashboard without data, and with a broken policy, Redis or gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from gateway.local.redis import EmbeddedRedis
from tests.browser.conftest import ADMIN_KEY, accessible, loaded, log_in, opened, shoot
from tests.gateway_process import STUDENT_ONLY, model, running_gateway

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.long
async def test_empty_pages_say_what_to_do_and_problems_are_shown(browser: Browser, tmp_path: Path) -> None:
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
                for name, text in (
                    ("Overview", "Send a request with an API key"),
                    ("Spend", "Select a longer range, or clear the filter."),
                    ("Quality", "Give a guided route a quality rule"),
                    ("Requests", "Send a request with an API key"),
                    ("Keys and budgets", "Set budget in a policy file"),
                ):
                    await page.get_by_role("link", name=name, exact=True).click()
                    await expect(page.get_by_text(text).first).to_be_visible()
                    await loaded(page)
                    assert await accessible(page) == []
                    await shoot(page, f"empty-{name.lower().replace(' ', '-')}")
                await page.get_by_role("link", name="Reliability", exact=True).click()
                await expect(page.get_by_role("table", name="Engines")).to_contain_text("down")

                await page.get_by_role("link", name="Configuration", exact=True).click()
                (tmp_path / "policies" / "acme.yaml").write_text("tenant: acme\nroutes: 7\n", "utf-8")
                edits = page.get_by_role("region", name="Last edits")
                await expect(edits).to_contain_text("The last edit was refused")
                await expect(edits).to_contain_text("acme.yaml:2")
                assert await accessible(page) == []

                await redis.__aexit__(None, None, None)
                await page.get_by_role("link", name="Keys and budgets", exact=True).click()
                await expect(page.get_by_role("status")).to_contain_text("Redis")
                assert await accessible(page) == []

                gateway.terminate()
                # After failures the page polls once a minute. A page that becomes visible polls at once.
                await page.wait_for_function(
                    """() => {
                        document.dispatchEvent(new Event('visibilitychange'));
                        return document.querySelector('#status').textContent.includes('The gateway cannot be reached');
                    }""",
                    polling=1_000,
                )
                assert await accessible(page) == []
    finally:
        await redis.__aexit__(None, None, None)
