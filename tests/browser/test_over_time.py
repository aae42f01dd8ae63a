"""The dashboard over time: a page that stays open, a hidden one, late replies, and days in other time zones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import expect

from tests.browser import synthetic, world
from tests.browser.conftest import loaded, log_in, logged_in, opened

if TYPE_CHECKING:
    from playwright.async_api import Browser, Request, Route

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")

SHOW = """state => {
  Object.defineProperty(document, 'visibilityState', {value: state, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""
POLL = "document.dispatchEvent(new Event('visibilitychange'))"  # a visible page polls at once
SETTLED = "new Promise(done => requestAnimationFrame(() => requestIdleCallback(done)))"


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
async def test_days_are_utc_days_in_every_time_zone(browser: Browser, pages: GatewayProcess, zone: str) -> None:
    """Sums by day are of UTC days. In New York such a day begins on the evening before and keeps its UTC date."""
    today = world.NOW.replace(hour=0, minute=0)
    row = {"start": world.shown(today), **synthetic.figures(5, 1, 2)}
    body = {"object": "usage", "rows": [row], "total": row}
    title = "Cost compared with the teacher alone as a table"
    async with logged_in(browser, pages, "/dashboard/access", synthetic=True, timezone_id=zone) as page:
        await page.route("**/usage?*", lambda route: route.fulfill(json=body))
        await page.get_by_role("link", name="Spend", exact=True).click()
        await page.get_by_role("button", name=title).click()
        table = page.get_by_role("table", name=title)
        await expect(table.get_by_role("columnheader").first).to_have_text("Start of the day, UTC")
        await expect(table.get_by_role("rowheader")).to_have_text([f"{today.day} {today:%b}"])
        await expect(page.get_by_text("Updated 15:34:00 UTC")).to_be_visible()


async def test_a_page_with_reduced_motion_has_no_transitions(browser: Browser, pages: GatewayProcess) -> None:
    moving = """[...document.querySelectorAll('*')].filter(one => {
        const {transitionDuration, animationName} = getComputedStyle(one);
        return parseFloat(transitionDuration) > 0 || animationName !== 'none';
    }).length"""
    async with logged_in(browser, pages, "/dashboard", synthetic=True, reduced_motion="no-preference") as page:
        await loaded(page)
        assert await page.evaluate(moving) > 0
        await page.emulate_media(reduced_motion="reduce")
        assert await page.evaluate(moving) == 0


async def test_a_hidden_page_sends_no_requests(browser: Browser, pages: GatewayProcess) -> None:
    requests: list[str] = []

    def note(request: Request) -> None:
        requests.append(request.url)

    async with opened(browser, pages, path="/login?next=/dashboard/reliability") as page:
        # Install the clock on the login page, which does not poll.
        await page.clock.install(time=world.NOW)
        await page.route("**/*", world.answer)
        await log_in(page)
        await expect(page.get_by_role("table", name="Engines")).to_be_visible()
        async with page.expect_request("**/queue"):
            await page.clock.run_for(6_000)
        await page.evaluate(SHOW, "hidden")
        await page.wait_for_load_state("networkidle")
        page.on("request", note)
        await page.clock.run_for(120_000)
        assert requests == []
        async with page.expect_request("**/queue"):
            await page.evaluate(SHOW, "visible")
            await page.clock.run_for(10)


async def test_an_early_reply_that_comes_late_does_not_replace_a_later_one(
    browser: Browser, pages: GatewayProcess
) -> None:
    """A slow poll is under way when the next one begins. Its reply is dropped, and its request is cancelled."""
    received, answered = asyncio.Event(), 0

    async def answer(route: Route) -> None:
        nonlocal answered
        answered += 1
        if answered == 2:
            received.set()
            return  # never answered
        body = world.queue({})
        body["teachers"]["big"]["in_flight"] = 100 + answered
        await route.fulfill(json=body)

    async with logged_in(browser, pages, "/dashboard/access", synthetic=True) as page:
        await page.route("**/queue", answer)
        await page.get_by_role("link", name="Reliability", exact=True).click()
        await expect(page.get_by_role("table", name="Engines")).to_contain_text("101")
        async with page.expect_event("requestfailed", lambda request: request.url.endswith("/queue")):
            await page.evaluate(POLL)
            await received.wait()
            await page.evaluate(POLL)
        await expect(page.get_by_role("table", name="Engines")).to_contain_text("103")


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_a_page_that_is_left_open_does_not_grow(browser: Browser, pages: GatewayProcess) -> None:
    """Poll the usage of 200 tenants many times. New figures redraw the charts each time."""
    polls = 0

    async def answer(route: Route) -> None:
        nonlocal polls
        by_tenant = parse_qs(urlsplit(route.request.url).query).get("by") == ["tenant"]
        polls += by_tenant
        body = synthetic.by_tenant(200) if by_tenant else synthetic.over_time(168)
        for row in body["rows"]:
            row["cost_usd"] = str(float(row["cost_usd"]) + polls)
        await route.fulfill(json=body)

    async with opened(browser, pages, path="/login?next=/dashboard/spend?range=7d") as page:
        await page.route("**/usage?*", answer)
        await log_in(page)
        rows = page.get_by_role("table", name="Sums by tenant").locator("tbody tr")
        await expect(rows).to_have_count(200)
        tools = await page.context.new_cdp_session(page)
        await tools.send("Performance.enable")

        async def metrics_after(times: int) -> dict[str, float]:
            for _ in range(times):
                async with page.expect_response("**/usage?*by=tenant*") as reply:
                    await page.evaluate(POLL)
                await (await reply.value).finished()
                await page.evaluate(SETTLED)
            for _ in range(3):
                await tools.send("HeapProfiler.collectGarbage")
            reply = await tools.send("Performance.getMetrics")
            return {one["name"]: one["value"] for one in reply["metrics"]}

        before = await metrics_after(10)
        after = await metrics_after(60)
        assert polls >= 70
        assert after["Nodes"] < before["Nodes"] * 1.2
        assert after["JSEventListeners"] < before["JSEventListeners"] * 1.2
        assert after["JSHeapUsedSize"] < before["JSHeapUsedSize"] * 1.3
