"""The focus, and filters that navigation must keep."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.browser.conftest import loaded, logged_in, send
from tests.browser.test_dashboard import link_of, receipt_is_stored, row
from tests.browser.test_pages import HOVERED

if TYPE_CHECKING:
    from typing import Any

    from playwright.async_api import Browser

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_focus_moves_to_the_content_if_its_link_is_gone(browser: Browser, pages: GatewayProcess) -> None:
    # A poll while the page is closed has a cursor that the real gateway does not know.
    async with logged_in(browser, pages, "/dashboard", synthetic=True, forgive="400") as page:
        await page.get_by_role("region", name="Spent", exact=True).get_by_role("link").press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Spend")
        await expect(page.locator("#main")).to_be_focused()
        link = page.get_by_role("link", name="Requests", exact=True)
        await link.press("Enter")
        await expect(link).to_be_focused()
        await page.get_by_role("button", name="Older requests").press("Enter")
        await expect(page.locator("#main")).to_be_focused()


async def test_the_skip_link_keeps_the_settings_of_the_playground(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/playground") as page:
        await page.get_by_role("spinbutton", name="Length").fill("7")
        await expect(page).to_have_url(re.compile("tokens=7"))
        await page.get_by_role("link", name="Skip to content").press("Enter")
        await expect(page.locator("#main")).to_be_focused()
        await expect(page).to_have_url(re.compile("tokens=7"))
        await expect(page.get_by_role("spinbutton", name="Length")).to_have_value("7")


async def test_a_click_beside_a_dialog_keeps_a_typed_form(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/access", synthetic=True) as page:
        await page.get_by_role("button", name="New key").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Id").fill("typed")
        await page.mouse.click(5, 5)
        box = await dialog.bounding_box()
        assert box
        await page.mouse.click(box["x"] + 5, box["y"] + 5)
        await expect(dialog.get_by_label("Id")).to_have_value("typed")
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        await expect(page.get_by_role("button", name="New key")).to_be_focused()


async def test_the_focus_stays_on_the_page_after_a_key_is_revoked(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/access?tenant=acme") as page:
        await page.get_by_role("button", name="New key").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Id").fill("short-lived")
        await dialog.get_by_role("button", name="Create key").click()
        await dialog.get_by_role("button", name="Close").click()
        await page.get_by_role("button", name="Revoke acme short-lived").press("Enter")
        await dialog.get_by_role("button", name="Revoke key").press("Enter")
        await expect(row(page, "Keys", "short-lived")).to_contain_text("revoked")
        await expect(page.locator("#main")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
async def test_a_dangerous_button_keeps_its_color_while_hovered(
    browser: Browser, pages: GatewayProcess, scheme: Any
) -> None:
    ground = "button => getComputedStyle(button).backgroundColor"
    context: dict[str, Any] = {"color_scheme": scheme, "reduced_motion": "reduce"}
    async with logged_in(browser, pages, "/dashboard/access", synthetic=True, **context) as page:
        await page.get_by_role("button", name="Revoke acme ci").click()
        button = page.get_by_role("button", name="Revoke key")
        red = await button.evaluate(ground)
        await button.hover()
        assert await button.evaluate(ground) == red
        assert await button.evaluate(HOVERED) >= 4.5


async def test_a_request_and_its_list_keep_the_filters(browser: Browser, pages: GatewayProcess) -> None:
    path = "/dashboard/requests?range=7d&tenant=acme&status=ok&min_cost=0.0001"
    async with logged_in(browser, pages, path, synthetic=True) as page:
        await page.get_by_role("table", name="Requests").get_by_role("link").first.click()
        await expect(page.get_by_text("in total")).to_be_visible()
        await page.get_by_role("link", name="All requests").click()
        await expect(page).to_have_url(pages.admin_url + path)
        await page.get_by_role("link", name="GKT Gateway").click()
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard?range=7d&tenant=acme")


async def test_another_range_begins_with_the_newest_request(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/requests", synthetic=True) as page:
        await page.get_by_role("button", name="Older requests").click()
        await expect(page).to_have_url(re.compile("before="))
        await page.get_by_role("button", name="7 d").click()
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard/requests?range=7d")


async def test_a_key_filter_is_shown_without_a_tenant(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/spend?key=ci", synthetic=True) as page:
        await expect(page.get_by_label("Key", exact=True)).to_have_value("ci")
        await page.get_by_role("button", name="Clear").press("Enter")
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard/spend")
        await expect(page.locator("#main")).to_be_focused()


async def test_a_request_is_found_by_id_although_another_tenant_is_selected(
    browser: Browser, pages: GatewayProcess
) -> None:
    (receipt_id,) = await send(pages, 1)
    await receipt_is_stored(pages, receipt_id)
    async with logged_in(browser, pages, "/dashboard/requests?range=1h&tenant=globex") as page:
        await loaded(page)
        await expect(link_of(page, receipt_id)).to_have_count(0)
        await page.get_by_label("Find by id").fill(receipt_id)
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("in total")).to_be_visible()


async def test_a_cost_filter_keeps_the_focus(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/requests", synthetic=True) as page:
        field = page.get_by_label("Cost from, USD")
        await field.fill("0.001")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile("min_cost=0.001"))
        await loaded(page)
        await expect(field).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.get_by_label("Cost to, USD")).to_be_focused()


async def test_a_broken_address_shows_the_error(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/requests/a%25", forgive="404") as page:
        await page.evaluate(
            "history.replaceState(null, '', '/dashboard/requests/%'); dispatchEvent(new Event('popstate'))"
        )
        await expect(page.get_by_text("This part cannot be shown.")).to_be_visible()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Requests")


async def test_on_a_phone_buttons_for_sorting_are_visible_while_they_have_the_focus(
    browser: Browser, pages: GatewayProcess
) -> None:
    async with logged_in(
        browser, pages, "/dashboard/spend", synthetic=True, viewport={"width": 390, "height": 844}
    ) as page:
        button = page.get_by_role("table", name="Sums by tenant").get_by_role("button", name="Cost")
        head = page.locator("table thead").first
        hidden = await head.bounding_box()
        assert hidden
        assert hidden["width"] <= 1
        await button.focus()
        shown = await button.bounding_box()
        assert shown
        assert shown["height"] >= 24
        assert shown["x"] >= 0
        assert shown["x"] + shown["width"] <= 390
        assert await button.evaluate("one => { const {x, y} = one.getBoundingClientRect();"
                                     " return document.elementFromPoint(x + 3, y + 3) === one; }")  # fmt: skip
        await button.press("Enter")
        await expect(page.locator("th[aria-sort]")).to_have_count(1)
        await expect(button).to_be_focused()
