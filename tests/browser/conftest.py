"""Fixtures: Chromium, and a running gateway with fake engines without latency.

A test fails if its page logs an error, sends a request to another host, or raises an error in a script.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import async_playwright, expect

from load_tests.engine_process import fake_engine
from tests.browser import world
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, GatewayProcess, guided, model, running_gateway
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request

ADMIN_KEY = "an-admin-key-for-browsers"
SCREENSHOTS = Path(__file__).parents[2] / ".screenshots"
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text("utf-8")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_LIMIT_MS = 15_000
COMPARED = {"sample": 1, "max_budget": 100, "max_in_flight": 64}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed: run scripts/system")
        pytest.skip("chromium is not installed: run scripts/system")
    expect.set_options(timeout=_LIMIT_MS)
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=_ARGUMENTS)
        yield launched
        await launched.close()


@pytest.fixture(scope="session")
def pages(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Run a gateway with an admin key, a teacher, a student, and routes in several modes."""
    with (
        fake_engine("instant", dialect="tgi") as teacher,
        fake_engine("instant", dialect="openai") as student,
        running_gateway(
            tmp_path_factory.mktemp("pages"),
            models=[
                model("big", "tgi", teacher),
                model("small", "openai", student + "/v1", continuation="trailing"),
            ],
            routes=[guided(), guided("chat-compared") | {"quality": COMPARED}, STUDENT_ONLY, TEACHER_ONLY],
            redis_url=redis_url,
            usage={"run": "host"},
            redis={"prefix": "pages", "timeout": "2s"},  # for a busy machine
            admin={"key": "env:PAGES_ADMIN_KEY"},
            environ={"PAGES_ADMIN_KEY": ADMIN_KEY},
            tenants={
                "acme": {"budget": {"max_budget": 5, "soft_budget": 4}},
                "globex": {},
            },
        ) as process,
    ):
        wait_until_up(process.admin_url)
        yield process


async def send(gateway: GatewayProcess, count: int, *, key: str = KEY, route: str = "chat") -> list[str]:
    """Send `count` different questions, eight at a time. Return the ids of their receipts."""
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=60) as client:
        gate = asyncio.Semaphore(8)

        async def one(number: int) -> str:
            async with gate:
                content = f"Question {number} of {count}: why is the sky blue?"
                reply = await client.post(
                    "/v1/chat/completions",
                    json={"model": route, "max_tokens": 40, "messages": [{"role": "user", "content": content}]},
                )
                assert reply.status_code == 200, reply.text
                return reply.headers["x-request-id"]

        return list(await asyncio.gather(*(one(number) for number in range(count))))


class PageWatch:
    """Collect errors, warnings and requests to other hosts of a page."""

    def __init__(self, own: str, forgive: str) -> None:
        self.wrong: list[str] = []
        self._own = own
        self._forgive = re.compile(forgive) if forgive else None

    def follow(self, page: Page) -> None:
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self._note(f"a script failed: {error}"))
        page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self._note(f"{message.type}: {message.text}")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self._own + "/", "data:")):
            self._note(f"a request to {request.url}")

    def _note(self, problem: str) -> None:
        if self._forgive is None or not self._forgive.search(problem):
            self.wrong.append(problem)


@asynccontextmanager
async def opened(
    browser: Browser, gateway: GatewayProcess, *, path: str = "/login", forgive: str = "", **context: Any
) -> AsyncIterator[Page]:
    """Open a page in its own browser context. `forgive` is a pattern of errors that the test causes."""
    context.setdefault("viewport", {"width": 1280, "height": 900})
    own: BrowserContext = await browser.new_context(base_url=gateway.admin_url, **context)
    own.set_default_timeout(_LIMIT_MS)
    watch = PageWatch(gateway.admin_url, forgive)
    own.on("page", watch.follow)
    try:
        page = await own.new_page()
        await page.goto(path)
        yield page
    finally:
        wrong = list(watch.wrong)  # from here on, requests of the page pass the test's routes
        for one in own.pages:
            await one.unroute_all(behavior="ignoreErrors")
        await own.close()
    assert wrong == []


async def log_in(page: Page, key: str = ADMIN_KEY) -> None:
    await page.get_by_label("Admin key", exact=True).fill(key)
    await page.get_by_role("button", name="Log in").click()


@asynccontextmanager
async def logged_in(
    browser: Browser, gateway: GatewayProcess, path: str, *, synthetic: bool = False, **context: Any
) -> AsyncIterator[Page]:
    """Open a page and log in. With `synthetic` the page shows the world of tests/browser/world.py."""
    async with opened(browser, gateway, path=f"/login?{urlencode({'next': path})}", **context) as page:
        if synthetic:
            await world.live_in(page)
        await log_in(page)
        await expect(page.get_by_role("heading", level=1)).not_to_have_text("GKT Gateway")
        yield page


async def loaded(page: Page) -> None:
    """Wait until each part of the page has its data."""
    await expect(page.get_by_role("heading", level=1)).to_be_visible()
    await expect(page.locator(".loading")).to_have_count(0)


async def shoot(page: Page, name: str) -> None:
    """Save a screenshot in a folder that git ignores."""
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


async def accessible(page: Page) -> list[str]:
    """Return the violations that axe finds against WCAG 2.2 AA and its best practices, with their locations."""
    await page.evaluate(AXE)  # not as an element: the page's policy forbids inline scripts
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]
