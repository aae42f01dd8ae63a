"""The dashboard shows the savings of the month of tests/savings_month.py, in the colors that their errors allow."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import expect

from gateway.admin.overview import summary
from gateway.usage.rollup import SumRow
from gateway.usage.usage import figures
from tests.browser.conftest import accessible, log_in, opened
from tests.browser.test_dashboard import tile
from tests.savings_month import MONTH, receipts

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator, Route

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")

SHOWN = {
    "acme": ("$0.00299", "$0.0000205"),
    "dusk": ("$0", "$0"),
    "tardy": ("\u2212$0.000325", "$0"),
    "lab": ("$0.00124", "$0.0019"),
    "haze": ("about 0", "$0"),
}
"""Savings and cost of measuring by tenant, as the page rounds them."""


def sums_by_tenant() -> dict[str, SumRow]:
    by_tenant: dict[str, SumRow] = {}
    for one in receipts():
        by_tenant.setdefault(one.tenant, SumRow()).merge(SumRow.of(one))
    return by_tenant


async def expect_color(cell: Locator, color: str) -> None:
    for name in ("good", "bad"):
        pattern = re.compile(rf"\b{name}\b")
        await (expect(cell).to_have_class(pattern) if name == color else expect(cell).not_to_have_class(pattern))


@pytest.mark.long
async def test_savings_have_a_color_only_where_they_are_larger_than_their_error(
    browser: Browser, pages: GatewayProcess
) -> None:
    rows, selected = sums_by_tenant(), ["acme"]

    async def overview(route: Route) -> None:
        seen: dict[str, Any] = await (await route.fetch()).json()
        seen |= {period: seen[period] | summary(rows[selected[0]]) for period in ("today", "month")}
        await route.fulfill(json=seen)

    async def usage(route: Route) -> None:
        if parse_qs(urlsplit(route.request.url).query).get("by") != ["tenant"]:
            chart: dict[str, Any] = await (await route.fetch()).json()
            chart["rows"] = [one | figures(rows["haze"]) for one in chart["rows"]]
            await route.fulfill(json=chart)
            return
        answer_rows = [{"tenant": tenant, **figures(row)} for tenant, row in rows.items()]
        await route.fulfill(json={"object": "usage", "rows": answer_rows, "total": figures(SumRow())})

    async with opened(browser, pages, path="/login") as page:
        await page.route("**/overview", overview)
        await page.route("**/usage?*", usage)
        await log_in(page)
        for tenant, (saved, measuring) in SHOWN.items():
            selected[0] = tenant
            for title in ("Saved today", "Saved this month"):
                await expect(tile(page, title)).to_have_text(saved)
                await expect_color(tile(page, title), MONTH[tenant].color)
            await expect(tile(page, "Cost of measuring today")).to_have_text(measuring)
            away = tile(page, "Teacher unavailable today")
            await expect(away).to_have_text(str(MONTH[tenant].teacher_away))
            await expect_color(away, "bad" if MONTH[tenant].teacher_away else "")
            line = page.locator("#usage tbody tr").filter(has_text=tenant)
            await expect_color(line.locator("td span").filter(has_text=saved).first, MONTH[tenant].color)
        await page.get_by_role("button", name="Cost compared with the teacher alone as a table").click()
        chart = page.get_by_role("region", name="Cost compared with the teacher alone, as a table")
        await expect(chart.locator("tbody tr").first.locator("td").last).to_have_text("about 0")
        both = page.get_by_text("$0.0007 \u00b1 $0.0025").first
        await expect(both).to_be_visible()
        assert await accessible(page) == []
