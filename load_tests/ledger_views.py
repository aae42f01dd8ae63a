"""Measure the load times of the dashboard with a usage database, in a gateway process and Chromium.

Each view uses a new browser without a cache. Times are those of the page, from the start of navigation.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer
from playwright.async_api import async_playwright

from load_tests.engine_process import fake_engine
from tests.gateway_process import TEACHER_ONLY, model, running_gateway
from tests.readiness import wait_until_up

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser
    from rich.progress import Progress

RANGES = ("24h", "7d", "30d")
LOOKS = 5
BUDGET_MS = 300
_LIMIT_MS = 60_000
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
_CHART = "() => performance.getEntriesByName('first-chart')[0]?.startTime"
_TABLE = "() => document.querySelector('#usage tbody tr') && performance.now()"


async def opened(redis_url: str, prefix: str, folder: Path, progress: Progress) -> list[tuple[str, str]]:
    """Return the lines of a table: for each range, the time to the first chart and to the table by tenant."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise typer.BadParameter("Chromium is missing: install it with scripts/system, or use --no-views")
    key, bar = secrets.token_hex(16), progress.add_task("dashboards opened", total=LOOKS * len(RANGES))
    with ExitStack() as stack:
        teacher = stack.enter_context(fake_engine("instant", dialect="tgi"))
        gateway = await asyncio.to_thread(
            stack.enter_context,
            running_gateway(
                folder / "gateway",
                models=[model("big", "tgi", teacher)],
                routes=[TEACHER_ONLY],
                redis_url=redis_url,
                redis={"prefix": prefix, "timeout": "5s"},
                usage={"url": f"sqlite:///{folder / 'usage.db'}"},
                admin={"key": "env:VIEWS_ADMIN_KEY"},
                environ={"VIEWS_ADMIN_KEY": key},
            ),
        )
        await asyncio.to_thread(wait_until_up, gateway.admin_url)
        lines = []
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium, headless=True, args=_ARGUMENTS)
            for span in RANGES:
                charts, tables = [], []
                for _ in range(LOOKS):
                    chart_ms, table_ms = await _page_times(browser, gateway.admin_url, key, span)
                    charts.append(chart_ms)
                    tables.append(table_ms)
                    progress.update(bar, advance=1)
                lines += [
                    (f"dashboard of {span}, until the first chart", _summary(charts) + _verdict(charts)),
                    (f"dashboard of {span}, until the table by tenant", _summary(tables)),
                ]
            await browser.close()
    return lines


async def _page_times(browser: Browser, url: str, key: str, span: str) -> tuple[float, float]:
    context = await browser.new_context(base_url=url, viewport={"width": 1280, "height": 900})
    try:
        logged_in = await context.request.post("/session", data={"key": key}, headers={"Origin": url})
        assert logged_in.ok, await logged_in.text()
        page = await context.new_page()
        page.set_default_timeout(_LIMIT_MS)
        await page.goto(f"/dashboard?range={span}", wait_until="commit")
        table = asyncio.ensure_future(page.wait_for_function(_TABLE))  # noqa: TID251
        chart = await page.wait_for_function(_CHART)
        return float(await chart.json_value()), float(await (await table).json_value())
    finally:
        await context.close()


def _summary(took_ms: list[float]) -> str:
    median = statistics.median(took_ms)
    return f"p50 {median:,.0f} ms, the first {took_ms[0]:,.0f} ms, at most {max(took_ms):,.0f} ms"


def _verdict(took_ms: list[float]) -> str:
    return f" ({'under' if statistics.median(took_ms) < BUDGET_MS else 'NOT under'} {BUDGET_MS:,} ms)"
