"""Every page over a synthetic world: accessible in both color schemes, and without horizontal scrolling on a phone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from playwright.async_api import expect

from tests.browser import world
from tests.browser.conftest import accessible, loaded, logged_in, shoot

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, Route

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")

RECEIPT = world.receipts({})["data"][1]["id"]
PAGES = {
    "/dashboard": "Overview",
    "/dashboard/spend": "Spend",
    "/dashboard/quality": "Quality",
    "/dashboard/reliability": "Reliability",
    "/dashboard/requests": "Requests",
    f"/dashboard/requests/{RECEIPT}": "Requests",
    "/dashboard/access": "Keys and budgets",
    "/dashboard/configuration": "Configuration",
    "/playground": "Playground",
}
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True},
}
HOVERED = """button => {
  const style = getComputedStyle(button);
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = (text) => {
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((one) => one / 255);
    const [red, green, blue] = parts.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
  };
  const [one, other] = [light(style.color), light(style.backgroundColor)];
  return Math.max(one, other) / Math.min(one, other);
}"""


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("path", PAGES)
@pytest.mark.long
async def test_a_page_is_accessible_and_fits_the_screen(
    browser: Browser, pages: GatewayProcess, path: str, view: str
) -> None:
    async with logged_in(browser, pages, path, synthetic=True, **VIEWS[view]) as page:
        await expect(page.get_by_role("heading", level=1)).to_have_text(PAGES[path])
        await loaded(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await accessible(page) == []
        await shoot(page, f"{path.strip('/').replace('/', '-')}-{view}")


async def test_navigation_keeps_the_range_and_the_filter_in_the_url(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard", synthetic=True) as page:
        await page.get_by_role("button", name="7 d").click()
        await page.get_by_label("Tenant", exact=True).select_option("globex")
        await page.get_by_label("Route", exact=True).select_option("support")
        await page.get_by_role("link", name="Spend", exact=True).click()
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard/spend?range=7d&tenant=globex&route=support")
        await expect(page.get_by_role("link", name="Spend", exact=True)).to_have_attribute("aria-current", "page")
        await page.reload()
        await expect(page.get_by_role("button", name="7 d")).to_have_attribute("aria-pressed", "true")
        await expect(page.get_by_label("Tenant", exact=True)).to_have_value("globex")
        await page.get_by_role("button", name="Clear").click()
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard/spend?range=7d")
        await page.go_back()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
        await loaded(page)  # a request after the end of the test would reach the gateway, which has no such tenant


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
async def test_a_selected_button_is_readable_while_hovered(
    browser: Browser, pages: GatewayProcess, scheme: Any
) -> None:
    async with logged_in(browser, pages, "/dashboard", synthetic=True, color_scheme=scheme) as page:
        for name in ("Month", "24 h"):
            button = page.get_by_role("button", name=name)
            await button.hover()
            await expect(button).to_be_visible()
            assert await button.evaluate(HOVERED) >= 4.5


@pytest.mark.long
async def test_budgets_that_cannot_be_read_are_named(browser: Browser, pages: GatewayProcess) -> None:
    """A node of a Redis Cluster is down."""
    unreadable = [{"tenant": "initech", "key": None}, {"tenant": "initech", "key": "ci"}]

    async def partial(route: Route) -> None:
        await route.fulfill(json={**world.budgets({}), "unreadable": unreadable, "keys_current": False})

    async def none(route: Route) -> None:
        await route.fulfill(json={"budgets": [], "unreadable": unreadable, "keys_current": True, "next": None})

    async with logged_in(browser, pages, "/dashboard", synthetic=True) as page:
        await page.route("**/budgets?*", partial)
        await page.get_by_role("link", name="Keys and budgets", exact=True).click()
        budgets = page.get_by_role("region", name="Budgets")
        await expect(budgets.get_by_role("status").first).to_contain_text("cannot be read: initech, initech (key ci).")
        await expect(budgets.get_by_role("status").last).to_contain_text("last changes may be missing")
        await expect(budgets.get_by_role("table", name="Budgets")).to_contain_text("globex")
        assert await accessible(page) == []
        await page.route("**/budgets?*", none)
        await page.get_by_role("link", name="Overview", exact=True).click()
        await page.get_by_role("link", name="Keys and budgets", exact=True).click()
        await expect(budgets).to_contain_text("No budget can be read.")


@pytest.mark.long
async def test_an_invalid_range_has_an_error_at_its_fields(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/spend", synthetic=True) as page:
        await page.get_by_role("button", name="Custom").click()
        await page.get_by_label("From, UTC").fill("2026-11-20T10:00")
        await page.get_by_label("To, UTC").fill("2026-11-20T09:00")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_role("alert")).to_have_text("'From' must be earlier than 'To'.")
        await page.get_by_label("To, UTC").fill("2026-11-21T10:00")
        await page.get_by_role("button", name="Show").click()
        await expect(page).to_have_url(
            f"{pages.admin_url}/dashboard/spend?range=custom&since=2026-11-20T10%3A00%3A00Z"
            "&until=2026-11-21T10%3A00%3A00Z"
        )


@pytest.mark.long
async def test_tables_are_cards_on_a_phone(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/requests", synthetic=True, **VIEWS["phone"]) as page:
        row = page.locator("tbody").get_by_role("row").first
        await expect(row.get_by_role("cell").first).to_have_attribute("data-label", "Received, UTC")
        assert await row.evaluate("row => getComputedStyle(row).display") == "block"
        box = await row.bounding_box()
        assert box
        assert box["width"] <= 360


@pytest.mark.long
async def test_controls_are_reached_by_keyboard_with_visible_focus(browser: Browser, pages: GatewayProcess) -> None:
    async with logged_in(browser, pages, "/dashboard/requests", synthetic=True) as page:
        await loaded(page)
        reached, unseen = [], []
        for _ in range(60):
            await page.keyboard.press("Tab")
            name, seen = await page.evaluate(
                """() => {
                    const at = document.activeElement, style = getComputedStyle(at);
                    return [at.getAttribute('aria-label') || at.textContent.trim().slice(0, 40),
                            at === document.body ||
                              style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
                }"""
            )
            reached.append(name)
            if not seen:
                unseen.append(name)
        assert unseen == []
        expected = ["Skip to content", "Overview", "Log out", "Pause", "1 h", "Tenant", "Requests"]
        expected.append(f"{RECEIPT[4:12]}\u2026{RECEIPT[-4:]}")
        assert [name for name in expected if name in reached] == expected


@pytest.mark.long
async def test_colors_follow_the_system_or_the_switch_and_the_switch_is_kept(
    browser: Browser, pages: GatewayProcess
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    async with logged_in(browser, pages, "/dashboard/access", synthetic=True, color_scheme="dark") as page:
        dark = await page.evaluate(ground)
        switch = page.get_by_role("button", name="Colors")
        await switch.click()
        light = await page.evaluate(ground)
        assert light != dark
        await page.reload()
        assert await page.evaluate(ground) == light
        await switch.click()
        await expect(switch).to_have_accessible_name("Colors: dark. Change color scheme")
        assert await page.evaluate(ground) == dark


async def test_names_are_text_and_never_markup(browser: Browser, pages: GatewayProcess) -> None:
    evil = "<img src=x onerror=\"document.title='broken'\">"
    async with logged_in(browser, pages, "/dashboard", synthetic=True) as page:
        body = world.usage({"by": "tenant"})
        body["rows"][0]["tenant"] = evil
        await page.route("**/usage?*by=tenant*", lambda route: route.fulfill(json=body))
        await page.get_by_role("navigation", name="Pages").get_by_role("link", name="Spend", exact=True).click()
        await expect(page.get_by_role("rowheader", name=evil)).to_be_visible()
        assert await page.locator("main img").count() == 0


@pytest.mark.parametrize("path", ["/dashboard/spending", "/dashboard/spend/acme", "/dashboard/requests/"])
async def test_an_unknown_page_is_reported_with_a_link(browser: Browser, pages: GatewayProcess, path: str) -> None:
    async with logged_in(browser, pages, f"{path}?tenant=acme", synthetic=True) as page:
        heading = page.get_by_role("heading", level=1)
        if path.endswith("/"):
            await expect(heading).to_have_text("Requests")
            return
        await expect(heading).to_have_text("Page not found")
        await expect(page).to_have_title("Page not found - GKT Gateway")
        await expect(page.locator("nav [aria-current]")).to_have_count(0)
        assert await accessible(page) == []
        await page.get_by_role("link", name="Open the overview").click()
        await expect(heading).to_have_text("Overview")
        await expect(page).to_have_url(f"{pages.admin_url}/dashboard?tenant=acme")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("range=custom&since=2026-11-09T00:00:00Z&until=2026-11-08T00:00:00Z", "'since' must be earlier than 'until'."),
        ("range=custom&since=yesterday", "A custom range needs 'since' and 'until' as times"),
        ("range=custom&since=2036-11-09T00:00:00Z&until=2036-11-10T00:00:00Z", "'since' is in the future."),
        ("range=2y", 'There is no range "2y".'),
    ],
)
async def test_an_invalid_range_of_the_address_is_reported(
    browser: Browser, pages: GatewayProcess, query: str, reason: str
) -> None:
    async with logged_in(browser, pages, f"/dashboard?{query}", synthetic=True) as page:
        notice = page.locator(".filters .status")
        await expect(notice).to_contain_text("so this month is shown.")
        await expect(notice).to_contain_text(reason)
        await page.get_by_role("button", name="24 h", exact=True).click()
        await expect(notice).to_have_count(0)


async def test_reasons_keep_their_colors_when_their_order_changes(browser: Browser, pages: GatewayProcess) -> None:
    counts = {"engine_timeout": 9, "engine_overloaded": 4, "client_gone": 1}

    async def answer(route: Route) -> None:
        body = world.usage(dict(parse_qsl(urlsplit(route.request.url).query)))
        for one in body["rows"]:
            one["errors"] = counts
        await route.fulfill(json=body)

    async def colors(page: Page) -> dict[str, str]:
        legend = page.get_by_role("figure", name="Failed requests", exact=True).locator(".legend li:not(.when)")
        await expect(legend).to_have_text(sorted(counts, key=lambda name: -counts[name]))
        shown = await legend.evaluate_all(
            "all => all.map(one => [one.textContent.trim(), one.querySelector('i').style.color])"
        )
        return dict(shown)

    async with logged_in(browser, pages, "/dashboard/access", synthetic=True) as page:
        await page.route("**/usage?*", answer)
        await page.get_by_role("link", name="Reliability", exact=True).click()
        before = await colors(page)
        assert len(set(before.values())) == 3
        counts |= {"engine_timeout": 2, "client_gone": 8}
        await page.get_by_role("button", name="24 h", exact=True).click()
        assert await colors(page) == before
