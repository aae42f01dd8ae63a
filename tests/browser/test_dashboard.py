"""The dashboard in a real browser, over a real gateway with real receipts."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.async_api import expect

from tests.browser import synthetic
from tests.browser.conftest import ADMIN_KEY, accessible, log_in, opened, send, shoot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Locator, Page, Request, Route

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")


@asynccontextmanager
async def dashboard(browser: Browser, gateway: GatewayProcess, query: str = "", **context: Any) -> AsyncIterator[Page]:
    """Open the dashboard, log in, and wait for the first figures."""
    async with opened(browser, gateway, path=f"/dashboard{query}", **context) as page:
        await log_in(page)
        await expect(page.locator("#pulse")).to_contain_text("as of")
        yield page


def tile(page: Page, title: str) -> Locator:
    return page.locator(".tile").filter(has=page.get_by_role("heading", name=title, exact=True)).locator(".big")


def get_json(gateway: GatewayProcess, path: str) -> Any:
    reply = httpx.get(gateway.admin_url + path, headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    reply.raise_for_status()
    return reply.json()


async def test_live_figures_move_under_load(browser: Browser, pages: GatewayProcess) -> None:
    async with dashboard(browser, pages, "?range=1h") as page:
        before = get_json(pages, "/overview")["today"]["requests"]
        ids = await send(pages, 60)
        await expect(tile(page, "Requests per second")).not_to_have_text(re.compile(r"^(-|0\.00)$"))
        # The table of usage counts all requests, and the table of receipts shows the last one.
        while get_json(pages, "/overview")["today"]["requests"] < before + 60:
            await asyncio.sleep(0.1)
        await page.reload()
        row = page.locator("#usage tbody tr").filter(has_text="acme")
        usage = get_json(pages, "/usage?since=1h&by=tenant")["rows"]
        (count,) = (one["requests"] for one in usage if one["tenant"] == "acme")
        await expect(row.locator("td").first).to_have_text(f"{count:,}")
        await expect(tile(page, "Guided share")).to_have_text("100 %")
        box = await page.get_by_label("Usage by tenants").evaluate("box => box.scrollWidth - box.clientWidth")
        assert box == 0  # all columns are visible
        await expect(tile(page, "Cost today")).to_have_text(re.compile(r"^\$0\.\d*[1-9]"))
        newest = page.locator("#receipts tbody tr").first.locator("button")
        assert await newest.inner_text() in ids
        await expect(page.locator("#chart-money figcaption")).to_contain_text("saved.")
        assert await accessible(page) == []
        await shoot(page, "dashboard")


@pytest.mark.long
async def test_guidance_gain_is_shown_by_route_and_length(browser: Browser, pages: GatewayProcess) -> None:
    await send(pages, 24, route="chat-compared")
    async with dashboard(browser, pages) as page:
        while not (rows := get_json(pages, "/quality")["rows"]) or rows[-1]["samples"] < 10:
            await asyncio.sleep(0.1)
        await page.reload()
        table = page.get_by_role("region", name="Table of quality")
        whole = table.locator("tbody tr").filter(has=page.get_by_role("cell", name="all", exact=True))
        await expect(whole.locator("th")).to_have_text("chat-compared")
        assert await table.evaluate("box => box.scrollWidth - box.clientWidth") == 0, "all columns are visible"
        cells = whole.locator("td")
        await expect(cells.nth(0)).to_have_text("acme")
        await expect(cells.nth(2)).to_have_text("words")
        await expect(cells.nth(4)).to_have_text(re.compile(r"^\d+(\.\d)? %$"))
        await expect(cells.nth(7)).to_have_text(re.compile(r"^[+\u2212]?\d+\.\d to [+\u2212]?\d+\.\d$"))
        await expect(page.locator("#quality-note")).to_contain_text("Comparisons cost $0.")
        assert await accessible(page) == []
        await page.locator("#quality").scroll_into_view_if_needed()
        await shoot(page, "dashboard-quality")


@pytest.mark.long
async def test_a_selected_range_survives_a_reload_and_applies_to_figures(
    browser: Browser, pages: GatewayProcess
) -> None:
    await send(pages, 3)
    async with dashboard(browser, pages) as page:
        await expect(page.get_by_role("button", name="24 h")).to_have_attribute("aria-pressed", "true")
        await page.get_by_role("button", name="7 d").click()
        await expect(page.locator("#usage-range")).to_have_text("Period: the last 7 days.")
        await expect(page).to_have_url(re.compile("range=7d"))
        await page.reload()
        await expect(page.get_by_role("button", name="7 d")).to_have_attribute("aria-pressed", "true")
        await page.get_by_role("button", name="Cost compared with the teacher alone as a table").click()
        region = page.get_by_role("region", name="Cost compared with the teacher alone, as a table")
        await expect(region.locator("thead th")).to_have_text(["Start of the hour", "Cost", "Teacher alone", "Saved"])
        await expect(region.locator("tbody tr").first.locator("td").first).to_have_text(re.compile(r"^\$0\.\d*[1-9]"))
        await expect(page.locator("#chart-money canvas")).to_be_hidden()
        assert await accessible(page) == []


@pytest.mark.long
async def test_an_invalid_range_has_an_error_at_its_fields(browser: Browser, pages: GatewayProcess) -> None:
    async with dashboard(browser, pages, forgive="400") as page:
        await page.get_by_role("button", name="Custom").click()
        await page.get_by_label("From").fill("2026-11-20T10:00")
        await page.get_by_label("To", exact=True).fill("2026-11-20T09:00")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_role("alert")).to_have_text("'From' must be earlier than 'To'.")
        assert await accessible(page) == []
        # Only the gateway can reject this range: usage is not retained that long.
        await page.get_by_label("From").fill("2001-01-01T00:00")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_role("status")).to_contain_text("older than the retained usage")
        assert await accessible(page) == []


@pytest.mark.long
async def test_a_receipt_opens_as_a_waterfall_and_escape_leads_back_to_it(
    browser: Browser, pages: GatewayProcess
) -> None:
    (receipt_id,) = await send(pages, 1)
    async with dashboard(browser, pages) as page:
        button = page.locator("#receipts").get_by_role("button", name=receipt_id)
        await button.focus()
        await page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name=re.compile(receipt_id))
        await expect(dialog).to_be_visible()
        await expect(dialog.locator(".waterfall tbody th")).to_have_text(
            ["Admission", "Wait for batch", "Teacher", "Student and reply"]
        )
        receipt = next(one for one in get_json(pages, "/receipts?limit=200")["data"] if one["id"] == receipt_id)
        spans = await dialog.locator(".waterfall i").evaluate_all(
            "bars => bars.map(bar => [parseFloat(bar.style.left), parseFloat(bar.style.width)])"
        )
        total = receipt["timings"]["total_ms"]
        assert spans[0] == pytest.approx([0, 100 * receipt["timings"]["admission_ms"] / total], abs=0.01)
        assert all(at + width == pytest.approx(then, abs=0.01) for (at, width), (then, _) in pairwise(spans))
        assert sum(width for _, width in spans) == pytest.approx(100, abs=0.01)
        assert await accessible(page) == []
        await shoot(page, "waterfall")
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        await expect(button).to_be_focused()


@pytest.mark.long
async def test_two_hundred_tenants_are_sorted_and_searched(browser: Browser, pages: GatewayProcess) -> None:
    async def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        body = synthetic.by_tenant(200) if query.get("by") == ["tenant"] else synthetic.over_time(168)
        await route.fulfill(json=body)

    async with opened(browser, pages, path="/login") as page:
        await page.route("**/usage?*", answer)
        await log_in(page)
        await page.get_by_role("button", name="7 d").click()
        rows = page.locator("#usage tbody tr")
        await expect(rows).to_have_count(200)
        names = rows.locator("th")
        await expect(names.first).to_have_text("tenant-000")  # the highest cost
        heads = page.get_by_label("Usage by tenants").locator("thead th")
        head = heads.filter(has_text="Saved").first
        await expect(heads.filter(has_text="Cost")).to_have_attribute("aria-sort", "descending")
        await head.get_by_role("button").click()
        await expect(head).to_have_attribute("aria-sort", "descending")
        await head.get_by_role("button").click()
        await expect(head).to_have_attribute("aria-sort", "ascending")
        await expect(names.first).to_have_text("tenant-009")  # the largest loss
        await expect(rows.first.locator(".bad")).to_have_text("\u2212$499,995.50")
        await page.get_by_label("Search tenants").fill("-19")
        await expect(rows).to_have_count(10)
        await page.get_by_label("Search tenants").fill("nobody")
        await expect(page.get_by_text('No row matches "nobody".')).to_be_visible()
        await page.get_by_label("Search tenants").fill("")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await expect(page.get_by_role("link", name="Download CSV")).to_have_attribute(
            "href", re.compile("by=tenant&format=csv")
        )
        assert await accessible(page) == []
        await shoot(page, "dashboard-large")


@pytest.mark.long
async def test_negative_savings_have_text_and_not_only_a_color(browser: Browser, pages: GatewayProcess) -> None:
    async def answer(route: Route) -> None:
        seen = await (await route.fetch()).json()
        for period in (seen["today"], seen["month"]):
            period |= {"cost_usd": "3.5", "baseline_usd": "2", "savings_usd": "-1.5", "savings_about_zero": False}
        await route.fulfill(json=seen)

    async with opened(browser, pages, path="/login") as page:
        await page.route("**/overview", answer)
        await log_in(page)
        for name in ("Saved today", "Saved this month"):
            await expect(tile(page, name)).to_have_text("\u2212$1.50")
        await expect(page.get_by_text("cost more than the teacher alone").first).to_be_visible()


@pytest.mark.long
async def test_all_controls_work_by_keyboard_with_visible_focus(browser: Browser, pages: GatewayProcess) -> None:
    await send(pages, 1)
    async with opened(browser, pages, path="/dashboard") as page:
        await expect(page.get_by_label("Admin key", exact=True)).to_be_focused()
        await page.keyboard.type(ADMIN_KEY)
        await page.keyboard.press("Enter")
        await expect(page.locator("#receipts tbody button").first).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("button", name="Pause")).to_be_focused()
        unseen, reached = [], []
        for _ in range(120):
            seen = await page.evaluate(
                """() => {
                    const at = document.activeElement, style = getComputedStyle(at);
                    return [at.getAttribute('aria-label') || at.textContent.trim().slice(0, 40), at.tagName,
                            style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
                }"""
            )
            if seen[1] == "BODY":
                break
            reached.append(seen[0])
            if not seen[2]:
                unseen.append(seen[0])
            await page.keyboard.press("Tab")
        assert unseen == []
        expected = ["Pause", "1 h", "Custom", "Errors as a table", "Tenants", "Search tenants", "Table of engines"]
        assert [name for name in reached if name in expected] == expected
        await page.locator("#main").focus()
        for _ in range(3):
            await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="6 h")).to_have_attribute("aria-pressed", "true")


@pytest.mark.long
async def test_new_figures_do_not_take_the_focus_away(browser: Browser, pages: GatewayProcess) -> None:
    first = (await send(pages, 1))[0]
    async with dashboard(browser, pages) as page:
        button = page.locator("#receipts").get_by_role("button", name=first)
        await button.focus()
        second = (await send(pages, 1))[0]
        while not any(one["id"] == second for one in get_json(pages, "/receipts?limit=50")["data"]):
            await asyncio.sleep(0.1)
        async with page.expect_response("**/receipts?*"):
            pass  # the reply contains the second receipt
        await expect(button).to_be_focused()
        await page.get_by_role("button", name="Pause").focus()
        await expect(page.locator("#receipts").get_by_role("button", name=second)).to_be_visible()


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.long), "dark"])
async def test_the_dashboard_fits_a_phone(browser: Browser, pages: GatewayProcess, scheme: Any) -> None:
    await send(pages, 5)
    phone = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True}
    async with dashboard(browser, pages, "?range=1h", color_scheme=scheme, **phone) as page:
        await expect(page.locator("#receipts tbody tr").first).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
        assert await accessible(page) == []
        await page.locator("#receipts tbody button").first.click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await page.evaluate("document.querySelector('dialog').getBoundingClientRect().right") <= 360
        assert await accessible(page) == []
        await shoot(page, f"dashboard-phone-{scheme}")


@pytest.mark.long
async def test_colors_follow_the_system_or_the_switch_and_the_switch_is_kept(
    browser: Browser, pages: GatewayProcess
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    async with dashboard(browser, pages, color_scheme="dark") as page:
        dark = await page.evaluate(ground)
        assert await accessible(page) == []
        switch = page.get_by_role("button", name=re.compile("^Colors"))
        await switch.click()
        light = await page.evaluate(ground)
        assert light != dark
        await page.reload()
        assert await page.evaluate(ground) == light
        await switch.click()
        await expect(switch).to_have_accessible_name("Colors: dark. Change color scheme")
        assert await page.evaluate(ground) == dark


@pytest.mark.long
async def test_reduced_motion_is_respected(browser: Browser, pages: GatewayProcess) -> None:
    async with dashboard(browser, pages, reduced_motion="reduce") as page:
        moving = await page.evaluate(
            "[...document.querySelectorAll('*')].filter(one => getComputedStyle(one).transitionDuration !== '0s' "
            "|| getComputedStyle(one).animationName !== 'none').length"
        )
        assert moving == 0
        assert await page.evaluate("Chart.defaults.animation") is False


async def test_a_session_that_ends_leads_to_the_login_and_back(browser: Browser, pages: GatewayProcess) -> None:
    async with dashboard(browser, pages, "?range=6h", forgive="401") as page:
        await page.context.clear_cookies()
        await expect(page.get_by_role("status")).to_have_text("Your session has ended. Log in again.")
        assert await accessible(page) == []
        await log_in(page)
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard?range=6h")
        await expect(page.get_by_role("button", name="6 h")).to_have_attribute("aria-pressed", "true")


@pytest.mark.long
async def test_a_paused_page_sends_no_requests(browser: Browser, pages: GatewayProcess) -> None:
    async with dashboard(browser, pages) as page:
        requests: list[str] = []

        def note(request: Request) -> None:
            requests.append(request.url)

        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#pulse")).to_have_text("paused")
        await page.wait_for_load_state("networkidle")
        page.on("request", note)
        await page.wait_for_timeout(2_500)  # longer than the polling interval
        assert requests == []
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#pulse")).to_contain_text("as of")
        assert requests


@pytest.mark.long
async def test_an_unwritten_usage_database_is_shown_with_its_backlog(browser: Browser, pages: GatewayProcess) -> None:
    async def answer(route: Route) -> None:
        usage = {"where": "sqlite", "up": False, "lag_s": 95.0, "waiting": 1234, "error": "disk full", "by": "p"}
        await route.fulfill(json={"status": "ready", "usage": usage})

    async with opened(browser, pages, path="/login") as page:
        await page.route("**/readyz", answer)
        await log_in(page)
        line = page.get_by_role("status")
        await expect(line).to_contain_text(
            "The usage database cannot be written (disk full): 1,234 receipts are waiting"
        )
        await expect(line).to_contain_text("Usage is delayed by 1 min 35 s.")
        assert await accessible(page) == []


async def test_names_are_text_and_never_markup(browser: Browser, pages: GatewayProcess) -> None:
    evil = "<img src=x onerror=\"document.title='broken'\">"

    async def answer(route: Route) -> None:
        body = synthetic.by_tenant(2)
        body["rows"][0]["tenant"] = evil
        await route.fulfill(body=json.dumps(body), content_type="application/json")

    async with opened(browser, pages, path="/login") as page:
        await page.route("**/usage?*by=tenant*", answer)
        await log_in(page)
        await expect(page.locator("#usage tbody th").first).to_have_text(evil)
        assert await page.locator("#usage img").count() == 0


async def test_a_budget_burns_down(browser: Browser, pages: GatewayProcess) -> None:
    await send(pages, 1)
    async with dashboard(browser, pages) as page:
        row = page.locator("#budgets tbody tr").filter(has_text="acme")
        await expect(row.get_by_role("img")).to_have_accessible_name(re.compile("spent, .* of the period elapsed"))
        await row.get_by_role("button", name="acme").click()
        dialog = page.get_by_role("dialog", name="Budget of acme")
        await expect(dialog.locator("p")).to_contain_text("of $5.00 is left")
        assert await accessible(page) == []
        await shoot(page, "budget")
