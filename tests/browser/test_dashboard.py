"""The dashboard in a real browser, over a real gateway with real receipts."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.async_api import expect

from tests.browser import world
from tests.browser.conftest import ADMIN_KEY, accessible, loaded, log_in, logged_in, send

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator, Page, Request, Route

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")


def get_json(gateway: GatewayProcess, path: str) -> Any:
    reply = httpx.get(gateway.admin_url + path, headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=60)
    reply.raise_for_status()
    return reply.json()


async def receipt_is_stored(gateway: GatewayProcess, receipt_id: str) -> None:
    """Wait until the usage database has the receipt."""
    while not any(one["id"] == receipt_id for one in get_json(gateway, "/receipts?limit=500")["data"]):
        await asyncio.sleep(0.1)


def tile(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title, exact=True)


def row(page: Page, table: str, text: str | re.Pattern[str]) -> Locator:
    return page.get_by_role("table", name=table, exact=True).get_by_role("row").filter(has_text=text)


def link_of(page: Page, receipt_id: str) -> Locator:
    return page.get_by_role("table", name="Requests").locator(f'a[title="{receipt_id}"]')


async def test_the_overview_states_cost_savings_and_quality(browser: Browser, pages: GatewayProcess) -> None:
    (receipt_id, *_) = await send(pages, 3)
    await receipt_is_stored(pages, receipt_id)
    async with logged_in(browser, pages, "/dashboard?range=1h") as page:
        sentence = page.locator(".sentence")
        await expect(sentence).to_have_text(re.compile(r"^Last hour: spent \$0\.\d*[1-9]\d*, saved .*; quality .+\.$"))
        await expect(tile(page, "Spent").locator(".big")).to_have_text(re.compile(r"^\$0\.\d*[1-9]"))
        await expect(tile(page, "Quality")).to_contain_text("n = ")
        await expect(page.get_by_role("figure", name="Cost compared with the teacher alone")).to_contain_text("cost $")
        assert await accessible(page) == []


async def test_banners_name_the_present_problems(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard", synthetic=True) as page:
        banners = page.get_by_role("alert")
        await expect(banners.first).to_contain_text(
            "Engine big is unavailable since 25 Nov, 15:02:11 UTC. Reason: unreachable. Circuit breaker: open."
        )
        await expect(banners.nth(1)).to_contain_text("83.0 % of 412 requests are without guidance")
        await expect(banners.nth(1)).to_contain_text("teacher_late 342, teacher_unreachable 61, queue_full 7")
        await expect(page.locator(".sentence")).to_have_text(
            "November: spent $79.12, saved $118.40 \u00b1 $9.20; quality holding."
        )
        await expect(page.locator(".failures")).to_have_text(
            "Last 15 minutes: 20 of 84 failed: engine small unreachable since 09:41 UTC."
        )
        await expect(tile(page, "Spent")).to_contain_text("4.8 % less per hour than before ($84.30).")
        await expect(tile(page, "Spent")).to_contain_text("$79.12 of $150.00 budget")
        await expect(tile(page, "Saved")).to_contain_text(
            "guidance $85.00, student by policy $18.91, reported by devices $16.70, "
            "other unguided answers \u2212$0.50, failed requests \u2212$1.10, measuring \u2212$0.61"
        )
        await expect(page.get_by_role("figure", name="Cost compared with the teacher alone")).to_contain_text(
            "51,200 requests cost $79.12. The teacher alone would have cost $197.52: saved $118.40."
        )
        await expect(tile(page, "Quality")).to_contain_text("n = 412")
        await expect(tile(page, "Saved")).to_contain_text(
            "$101.70 measured by the gateway, $16.70 reported by devices."
        )


@pytest.mark.parametrize(
    ("saved", "text", "color"),
    [
        ({"usd": "118.4", "error_usd": "9.2", "about_zero": False}, "$118.40", "good"),
        ({"usd": "-1.5", "error_usd": "0.2", "about_zero": False}, "\u2212$1.50", "bad"),
        ({"usd": "0.0007", "error_usd": "0.0025", "about_zero": True}, "about 0", ""),
    ],
)
async def test_savings_have_a_color_only_if_they_are_larger_than_their_error(
    browser: Browser, pages: GatewayProcess, saved: dict[str, Any], text: str, color: str
) -> None:
    async def answer(route: Route) -> None:
        body = world.summary({"since": "2026-11-01T00:00:00Z"})
        body["saved"] |= saved | {"share": None if saved["about_zero"] else 0.5}
        await route.fulfill(json=body)

    async with logged_in(browser, pages, "/dashboard/access", synthetic=True) as page:
        await page.route("**/summary?*", answer)
        await page.get_by_role("link", name="Overview", exact=True).click()
        big = tile(page, "Saved").locator(".big")
        await expect(big).to_have_text(text)
        for name in ("good", "bad"):
            pattern = re.compile(rf"\b{name}\b")
            await (expect(big).to_have_class(pattern) if name == color else expect(big).not_to_have_class(pattern))


async def test_an_hour_without_requests_is_a_gap(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/spend?range=24h", synthetic=True) as page:
        await page.get_by_role("button", name="Cost compared with the teacher alone as a table").click()
        table = page.get_by_role("table", name="Cost compared with the teacher alone as a table")
        await expect(table.get_by_role("rowheader").first).to_have_text("25 Nov, 15:00")
        assert await table.get_by_role("row").count() == 21, "19 or 20 hours with requests, and the titles"


@pytest.mark.long
async def test_sums_are_sorted_searched_and_share_decimals(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/spend", synthetic=True) as page:
        sums = page.get_by_role("region", name="How the amounts add up")
        await expect(sums).to_contain_text("Teacher alone$197.52")
        await expect(sums).to_contain_text("Failed requests (37)$1.58")
        await expect(sums).to_contain_text("= Saved$118.40")
        names = page.get_by_role("table", name="Sums by tenant").get_by_role("rowheader")
        await expect(names).to_have_text(["acme", "globex", "initech"])
        costs = page.locator("td[data-label=Cost]")
        await expect(costs).to_have_text(["$47.47", "$23.74", "$7.91"])
        for _ in range(2):  # descending, then ascending
            await page.locator("thead button", has_text=re.compile("^Saved$")).click()
        await expect(names.first).to_have_text("initech")
        await expect(page.locator("td[data-label=Saved]").first).to_have_text("\u2212$2.81")
        await page.get_by_role("button", name="Engines").click()
        await expect(page).to_have_url(re.compile("by=teacher%2Cstudent"))
        await expect(page.get_by_role("table", name="Sums by teacher and student")).to_be_visible()
        await expect(page.get_by_role("link", name="Download CSV")).to_have_attribute("href", re.compile("format=csv"))


async def test_shadows_are_nested_below_their_request_and_a_request_has_a_permalink(
    browser: Browser, pages: GatewayProcess
) -> None:
    receipt = world.receipts({})["data"][1]
    async with logged_in(browser, pages, "/dashboard/requests?tenant=acme", synthetic=True) as page:
        names = page.get_by_role("table", name="Requests").get_by_role("rowheader")
        await expect(names.nth(2)).to_have_text("shadow-teacher")
        assert await page.locator("tr.nested").count() == 2
        await names.nth(1).get_by_role("link").click()
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard/requests/{receipt['id']}?tenant=acme")
        await expect(page.locator(".lanes dt")).to_have_text(
            ["Admission", "Wait for batch", "Teacher", "Hand-over", "Student and reply"]
        )
        await expect(page.get_by_role("table", name="Shadows").get_by_role("rowheader")).to_have_count(2)
        await page.get_by_role("link", name="All requests").click()
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard/requests?tenant=acme")


async def test_requests_are_filtered_and_found_by_id(browser: Browser, pages: GatewayProcess) -> None:
    (receipt_id,) = await send(pages, 1)
    await receipt_is_stored(pages, receipt_id)
    async with logged_in(browser, pages, "/dashboard/requests?range=1h") as page:
        await expect(link_of(page, receipt_id)).to_be_visible()
        await page.get_by_label("Status").select_option("error")
        await expect(page).to_have_url(re.compile("status=error"))
        await expect(page.get_by_text("No request matches.")).to_be_visible()
        await page.get_by_role("button", name="clear these filters").click()
        await page.get_by_label("Cost from, USD").fill("1000")
        await page.keyboard.press("Tab")
        await expect(page).to_have_url(re.compile("min_cost=1000"))
        await expect(page.get_by_text("No request matches.")).to_be_visible()
        await page.get_by_label("Find by id").fill(receipt_id)
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile(f"/requests/{receipt_id}"))
        await expect(page.get_by_text("in total")).to_be_visible()
        assert await accessible(page) == []


async def test_older_requests_follow_on_their_own_page(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/requests", synthetic=True) as page:
        await page.get_by_role("button", name="Older requests").click()
        await expect(page).to_have_url(re.compile("before=WzE3"))
        await page.get_by_role("button", name="Newest").click()
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard/requests")


async def test_reliability_names_engines_and_reasons(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/reliability", synthetic=True) as page:
        await expect(row(page, "Engines", "unreachable")).to_contain_text("down")
        await expect(row(page, "Engines", "spare")).to_contain_text("not probed yet")
        await expect(row(page, "Rejected requests", "not_authenticated")).to_contain_text("unknown1,200")
        await expect(row(page, "Rejected requests", "rate_limited")).to_contain_text("acme")
        await row(page, "Requests without guidance", "teacher_late").get_by_role("link").click()
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard/requests?unguided=teacher_late")


async def test_quality_has_its_verdict_and_switches(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/quality", synthetic=True) as page:
        await expect(page.locator(".sentence")).to_contain_text("Quality is holding (n = 412).")
        await expect(page.get_by_role("region", name="Switched-off guidance")).to_contain_text("support of globex")
        await expect(row(page, "Gain through guidance", "33 to 64")).to_contain_text("+4.1 to +11.9")
        await expect(row(page, "Gain through guidance", "to 16")).to_contain_text("too few")


async def test_a_key_is_created_rotated_and_revoked(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/access?tenant=acme", forgive="400") as page:
        await page.get_by_role("button", name="New key").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Id").fill("wrong id!")
        await dialog.get_by_role("button", name="Create key").click()
        await expect(dialog.get_by_role("alert")).to_contain_text("'id'")
        await dialog.get_by_label("Id").fill("from-a-page")
        await dialog.get_by_label("Requests per minute").fill("60")
        await dialog.get_by_label("Budget, USD").fill("2.5")
        assert await accessible(page) == []
        await dialog.get_by_role("button", name="Create key").click()
        first = await dialog.get_by_label("New key").input_value()
        assert first.startswith("gk-")
        await dialog.get_by_role("button", name="Close").click()
        await expect(dialog).to_be_hidden()
        await expect(row(page, "Keys", "from-a-page")).to_contain_text("rpm_limit 60; budget $2.50")

        await page.get_by_role("button", name="Rotate acme from-a-page").click()
        await dialog.get_by_label("Grace period").fill("1h")
        await dialog.get_by_role("button", name="Rotate key").click()
        second = await dialog.get_by_label("New key").input_value()
        assert second.startswith("gk-")
        assert second != first
        await page.keyboard.press("Escape")

        await page.get_by_role("button", name="Revoke acme from-a-page.1", exact=True).click()
        await dialog.get_by_role("button", name="Revoke key").click()
        await expect(dialog).to_be_hidden()
        await expect(page.get_by_role("button", name="Rotate acme from-a-page.1", exact=True)).to_have_count(0)
        await expect(row(page, "Audit trail", "key.revoke").first).to_contain_text(
            re.compile(r"expires: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
        )

        await page.get_by_role("button", name="Revoke acme from-a-page", exact=True).click()
        await expect(dialog).to_contain_text("cannot be restored")
        await dialog.get_by_role("button", name="Revoke key").click()
        await expect(dialog).to_be_hidden()
        await expect(row(page, "Audit trail", "key.revoke").first).to_contain_text("from-a-page")
        statuses = {one["id"]: one["status"] for one in get_json(pages, "/keys?tenant=acme")["keys"]}
        assert (statuses["from-a-page"], statuses["from-a-page.1"]) == ("revoked", "revoked")


async def test_a_budget_is_raised(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/access") as page:
        await expect(row(page, "Budgets", "acme").get_by_role("img").first).to_have_accessible_name(
            re.compile("used, .* of the period elapsed")
        )
        await page.get_by_role("button", name="Raise acme", exact=True).click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Amount, USD").fill("7")
        await dialog.get_by_label("Reason").fill("launch week")
        await dialog.get_by_role("button", name="Raise budget").click()
        await expect(dialog).to_be_hidden()
        await expect(row(page, "Budgets", "+$7.00 until")).to_contain_text("$12.00")
        await expect(row(page, "Audit trail", "launch week")).to_contain_text("budget.raise")
        assert await accessible(page) == []


async def test_the_configuration_shows_settings_without_secrets(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/configuration") as page:
        await expect(row(page, "Settings in effect", "usage.run")).to_contain_text("host")
        await page.get_by_role("button", name="All", exact=True).click()
        await expect(page).to_have_url(re.compile("settings=all"))
        await expect(row(page, "Settings in effect", "server.host").first).to_be_visible()
        await expect(page.get_by_text(ADMIN_KEY)).to_have_count(0)
        await expect(row(page, "Policies in use", "globex")).to_contain_text("chat (guided)")


async def test_a_refused_edit_is_shown_with_its_file_and_line(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/configuration", synthetic=True) as page:
        edits = page.get_by_role("region", name="Last edits")
        await expect(edits).to_contain_text("The last edit was refused at 25 Nov, 12:00:01 UTC.")
        await expect(edits).to_contain_text("config.yaml:12: models[0].timeouts.total")
        await expect(edits).to_contain_text("The last edit was applied at 25 Nov, 14:10:00 UTC")
        await expect(row(page, "Settings in effect", "redis.url")).to_contain_text("set, not shown")


async def test_a_session_that_ends_leads_to_the_login_and_back(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/access?tenant=acme", forgive="401") as page:
        await loaded(page)
        await page.context.clear_cookies()
        await page.get_by_role("link", name="Reliability", exact=True).click()
        await expect(page.get_by_role("status")).to_have_text("Your session has ended. Log in again.")
        await log_in(page)
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard/reliability?tenant=acme")


@pytest.mark.long
async def test_a_paused_page_sends_no_requests(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/reliability") as page:
        await loaded(page)
        requests: list[str] = []

        def note(request: Request) -> None:
            requests.append(request.url)

        await page.get_by_role("button", name="Pause").click()
        await expect(page.get_by_text("Paused")).to_be_visible()
        await page.wait_for_load_state("networkidle")
        page.on("request", note)
        await page.wait_for_timeout(6_000)  # longer than the polling interval of queues
        assert requests == []
        async with page.expect_request("**/queue"):
            await page.get_by_role("button", name="Pause").click()


@pytest.mark.long
async def test_new_figures_do_not_take_the_focus_away(browser: Browser, pages: GatewayProcess) -> None:
    (first,) = await send(pages, 1)
    await receipt_is_stored(pages, first)
    async with logged_in(browser, pages, "/dashboard/requests?range=1h") as page:
        link = link_of(page, first)
        await link.focus()
        (second,) = await send(pages, 1)
        await receipt_is_stored(pages, second)
        await expect(link_of(page, second)).to_be_visible()
        await expect(link).to_be_focused()


async def test_a_reply_that_comes_late_does_not_replace_the_selected_range(
    browser: Browser, pages: GatewayProcess
) -> None:
    """The page cancels the request for the range that was selected before."""
    received = asyncio.Event()

    async def hold(route: Route) -> None:
        if "granularity=minute" in route.request.url:
            received.set()
            return  # never answered
        await world.answer(route)

    async with logged_in(browser, pages, "/dashboard", synthetic=True) as page:
        await page.route("**/usage?*", hold)
        await page.get_by_role("button", name="1 h", exact=True).click()
        await received.wait()
        async with page.expect_event("requestfailed", lambda request: "granularity=minute" in request.url):
            await page.get_by_role("button", name="7 d").click()
        figure = page.get_by_role("figure", name="Cost compared with the teacher alone")
        await expect(figure).to_contain_text("by hour, UTC")
