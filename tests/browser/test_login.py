"""Login and logout in a real browser."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.browser.conftest import ADMIN_KEY, accessible, log_in, opened, shoot
from tests.gateway_process import model, running_gateway

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser, Route

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_wrong_key_is_reported_and_the_right_one_redirects_to_the_requested_page(
    browser: Browser, pages: GatewayProcess
) -> None:
    async with opened(browser, pages, path="/playground", forgive="401") as page:
        await expect(page).to_have_url(f"{pages.admin_url}/login?why=none&next=%2Fplayground")
        assert await accessible(page) == []
        await shoot(page, "login")
        await log_in(page, "certainly-not-the-admin-key")
        await expect(page.get_by_role("status")).to_contain_text("The admin key is wrong")
        assert await accessible(page) == []
        await log_in(page)
        await expect(page).to_have_url(f"{pages.admin_url}/playground")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Playground")


async def test_the_fragment_of_an_address_is_kept_through_the_login(browser: Browser, pages: GatewayProcess) -> None:
    async with opened(browser, pages, path="/playground#seed=7") as page:
        await log_in(page)
        await expect(page.get_by_label("Seed")).to_have_value("7")


async def test_a_link_on_another_site_leads_to_the_page_without_a_new_login(
    browser: Browser, pages: GatewayProcess
) -> None:
    """The browser sends a SameSite=Strict cookie only with requests from the login page."""
    async with opened(browser, pages) as page:
        await log_in(page)
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard")
        link = f"{pages.admin_url}/dashboard?range=7d"
        await page.goto(f"data:text/html,<a href='{link}'>elsewhere</a>")
        async with page.expect_request("**/login?**"):
            await page.get_by_role("link").click()
        await expect(page).to_have_url(link)
        await expect(page.get_by_role("heading", level=1)).to_have_text("Overview")


async def test_the_form_is_not_sent_before_its_script_is_there(browser: Browser, pages: GatewayProcess) -> None:
    may_load = asyncio.Event()

    async def hold(route: Route) -> None:
        await may_load.wait()
        await route.continue_()

    async with opened(browser, pages) as page:
        await page.route("**/static/login.js", hold)
        await page.goto("/login", wait_until="commit")
        key = page.get_by_label("Admin key", exact=True)
        await key.fill(ADMIN_KEY)
        await key.press("Enter")
        await expect(page.get_by_role("button", name="Log in")).to_be_disabled()
        await expect(page).to_have_url(f"{pages.admin_url}/login")
        may_load.set()
        await page.get_by_role("button", name="Log in").click()
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard")


async def test_after_a_logout_a_login_is_required(browser: Browser, pages: GatewayProcess) -> None:
    async with opened(browser, pages) as page:
        await log_in(page)
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard")
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("status")).to_contain_text("You are logged out")
        await page.goto("/dashboard")
        await expect(page).to_have_url(f"{pages.admin_url}/login?why=none&next=%2Fdashboard")


@pytest.mark.long
async def test_login_leads_to_no_other_site(browser: Browser, pages: GatewayProcess) -> None:
    evil = [
        "//evil.example/",
        "javascript:alert(1)",
        "/login",
        "http://[",
        "\\\\evil.example",
        "/.//evil.example/",
        "/session",
        "/dashboard/..//evil.example",
        "/static/base.css",
    ]
    async with opened(browser, pages, path="/login?next=https://evil.example/") as page:
        await log_in(page)
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard")
        for target in evil:
            await page.goto(f"/login?next={target}")
            await expect(page).to_have_url(f"{pages.admin_url}/dashboard")


@pytest.mark.long
async def test_without_an_admin_key_the_page_explains_how_to_set_one(
    browser: Browser, redis_url: str, tmp_path: Path
) -> None:
    nowhere = model("small", "openai", "http://127.0.0.1:9/v1", continuation="trailing")
    route = {"model": "chat", "mode": "student", "student": "small"}
    with running_gateway(
        tmp_path, models=[nowhere], routes=[route], redis_url=redis_url, redis={"prefix": "keyless"}
    ) as keyless:
        async with opened(browser, keyless, path="/dashboard") as page:
            await expect(page.get_by_role("heading", name="This gateway has no admin key")).to_be_visible()
            await expect(page.get_by_text("admin: {key: env:GKT_ADMIN_KEY}")).to_be_visible()
            await expect(page.get_by_role("button", name="Log in")).to_be_hidden()
            assert await accessible(page) == []
