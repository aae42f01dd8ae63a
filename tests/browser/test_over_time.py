"""The dashboard over time: axes, days, ranges chosen during a request, and a page that stays open."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import expect

from tests.browser import synthetic
from tests.browser.conftest import log_in, opened, shoot

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, Route

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")

NEW_YORK = "America/New_York"
KOLKATA = "Asia/Kolkata"  # half an hour off the hours of UTC


async def ticks(page: Page, chart: str, axis: str) -> list[str]:
    """Return the tick labels of a chart's axis."""
    await expect(page.locator(f"#chart-{chart} figcaption")).not_to_have_text("")
    labels: list[str] = await page.evaluate(
        f"Chart.getChart(document.querySelector('#chart-{chart} canvas')).scales.{axis}.ticks.map(one => one.label)"
    )
    return labels


@pytest.mark.long
async def test_axes_have_round_times_and_whole_numbers(browser: Browser, pages: GatewayProcess) -> None:
    async def answer(route: Route) -> None:
        body = synthetic.over_time(24)
        for row in body["rows"]:
            row["errors"] = {}
        body["rows"][3]["errors"] = {"engine_timeout": 1}
        await route.fulfill(json=body)

    async with opened(browser, pages, timezone_id=KOLKATA) as page:
        await page.route("**/usage?*", answer)
        await log_in(page)
        assert await ticks(page, "errors", "y") == ["0", "1"]
        times = await ticks(page, "money", "x")
        assert len(times) >= 6
        assert {time[-2:] for time in times} == {"30"}  # hours of UTC begin there
        await page.get_by_role("button", name="1 h", exact=True).click()
        await expect(page.locator("#usage-range")).to_have_text("Period: the last hour.")
        for chart, minutes in (("money", 5), ("tokens", 5)):
            times = await ticks(page, chart, "x")
            assert len(times) >= 3
            assert all(int(time[-2:]) % minutes == 0 for time in times), times
        await page.get_by_role("button", name="7 d").click()
        await expect(page.locator("#usage-range")).to_have_text("Period: the last 7 days.")
        days = await ticks(page, "money", "x")
        assert len(days) in {7, 8}
        assert all(re.fullmatch(r"\d+ \w{3,4}", one) for one in days), days
        await shoot(page, "dashboard-week")


async def test_days_are_utc_days_in_every_time_zone(browser: Browser, pages: GatewayProcess) -> None:
    """Sums by day are of UTC days. In New York such a day begins on the evening before and keeps its UTC date."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

    async def answer(route: Route) -> None:
        row = synthetic.figures(5, 1, 2)
        rows = [{"start": today.isoformat().replace("+00:00", "Z"), **row}]
        await route.fulfill(json={"object": "usage", "rows": rows, "total": row})

    async with opened(browser, pages, path="/login?next=/dashboard?range=30d", timezone_id=NEW_YORK) as page:
        await page.route("**/usage?*", answer)
        await log_in(page)
        await page.get_by_role("button", name="Tokens as a table").click()
        region = page.get_by_role("region", name="Tokens, as a table")
        await expect(region.locator("thead th").first).to_have_text("Start of the day (UTC)")
        await expect(region.locator("tbody th")).to_have_text([f"{today.day} {today:%b}"])


@pytest.mark.long
async def test_a_range_selected_while_paused_or_loading_is_shown(browser: Browser, pages: GatewayProcess) -> None:
    slow, request_received = asyncio.Event(), asyncio.Event()

    async def answer(route: Route) -> None:
        if parse_qs(urlsplit(route.request.url).query).get("granularity") == ["minute"]:
            request_received.set()
            await slow.wait()
        await route.fulfill(json=synthetic.over_time(24))

    async with opened(browser, pages) as page:
        await page.route("**/usage?*", answer)
        await log_in(page)
        await expect(page.locator("#chart-money figcaption")).not_to_have_text("")
        await page.get_by_role("button", name="Pause").click()
        await page.get_by_role("button", name="1 h", exact=True).click()
        await request_received.wait()
        await page.get_by_role("button", name="7 d").click()
        slow.set()
        await expect(page.locator("#chart-money canvas")).to_have_attribute("aria-label", re.compile("the last 7 days"))


@pytest.mark.long
async def test_a_burn_down_that_comes_late_does_not_wipe_out_the_one_that_is_open(
    browser: Browser, pages: GatewayProcess
) -> None:
    late, sent = asyncio.Event(), asyncio.Event()
    first: list[str] = []

    async def answer(route: Route) -> None:
        first.append(route.request.url)
        if len(first) == 1:
            await late.wait()
        await route.fulfill(json=synthetic.over_time(2))
        if len(first) > 1 and late.is_set():
            sent.set()

    painted = "Chart.getChart(document.querySelector('dialog canvas')) !== undefined"
    async with opened(browser, pages) as page:
        await page.route("**/usage?*tenant=acme*", answer)
        await log_in(page)
        button = page.locator("#budgets").get_by_role("button", name="acme")
        await button.click()
        await page.keyboard.press("Escape")
        await button.click()
        await page.wait_for_function(painted)
        async with page.expect_response(lambda reply: reply.url == first[0]):
            late.set()
        await sent.wait()
        await page.wait_for_timeout(200)  # for the page's script
        assert await page.evaluate(painted)


@pytest.mark.long
async def test_figures_delayed_by_the_focus_are_announced(browser: Browser, pages: GatewayProcess) -> None:
    async with opened(browser, pages) as page:
        await page.route("**/budgets?*", lambda route: route.continue_())
        # Install the clock on the login page, which does not poll: at first this clock returns a time in 1970.
        await page.clock.install()
        await log_in(page)
        button = page.locator("#budgets").get_by_role("button", name="acme")
        await button.focus()
        note = page.locator("#budgets").get_by_text("Updates are paused while a row of this table has the focus.")
        await expect(note).to_be_hidden()
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # polls at once
        await page.clock.run_for(100)
        await expect(note).to_be_visible()
        await page.get_by_role("button", name="Pause").focus()
        await expect(note).to_be_hidden()


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_a_page_that_is_left_open_does_not_grow(browser: Browser, pages: GatewayProcess) -> None:
    """Poll the usage of 200 tenants many times."""

    polls = 0

    async def answer(route: Route) -> None:
        nonlocal polls
        by_tenant = parse_qs(urlsplit(route.request.url).query).get("by") == ["tenant"]
        polls += by_tenant
        await route.fulfill(json=synthetic.by_tenant(200) if by_tenant else synthetic.over_time(168))

    async with opened(browser, pages, path="/login?next=/dashboard?range=7d") as page:
        await page.route("**/usage?*", answer)
        await log_in(page)
        await expect(page.locator("#usage tbody tr")).to_have_count(200)
        tools = await page.context.new_cdp_session(page)
        await tools.send("Performance.enable")

        async def metrics_after(times: int) -> dict[str, float]:
            until = polls + times
            while polls < until:
                await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # polls at once
                await asyncio.sleep(0.05)
            # Wait until the page has drawn the last replies and is idle.
            await page.evaluate("new Promise(done => requestAnimationFrame(() => requestIdleCallback(done)))")
            for _ in range(3):
                await tools.send("HeapProfiler.collectGarbage")
            reply = await tools.send("Performance.getMetrics")
            return {one["name"]: one["value"] for one in reply["metrics"]}

        before = await metrics_after(10)
        after = await metrics_after(80)
        assert after["Nodes"] < before["Nodes"] * 1.2
        assert after["JSEventListeners"] < before["JSEventListeners"] * 1.2
        assert after["JSHeapUsedSize"] < before["JSHeapUsedSize"] * 1.3
