"""An evaluation report in a browser: light, dark, and on a phone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from gateway.evaluation.record import read_run
from gateway.evaluation.reporting.rendering import write_report
from gateway.evaluation.reporting.report import section
from tests.browser.conftest import accessible, shoot
from tests.evaluation.run_folders import GUIDED, STUDENT, TEACHER, run_folder, with_shots

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser

    from gateway.evaluation.record import Example

pytestmark = pytest.mark.asyncio(loop_scope="session")

VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report of two runs whose answers contain markup. Return the path of the page."""

    def hostile(example: Example) -> Example:
        return msgspec.structs.replace(example, text="<img src=x onerror='document.title = 1'><script>throw 1</script>")

    base = tmp_path_factory.mktemp("report")
    folders = [
        run_folder(base / "one", data="gsm8k", change=hostile),
        run_folder(base / "two", with_shots((TEACHER, STUDENT, GUIDED), 0, 8), n=12, change=hostile),
    ]
    return write_report([section(read_run(folder), seed=1) for folder in folders], base / "report", seed=1)[0]


@pytest.mark.parametrize("view", ["light", *(pytest.param(view, marks=pytest.mark.long) for view in ("dark", "phone"))])
async def test_a_report_can_be_read(browser: Browser, page_file: Path, view: str) -> None:
    context = await browser.new_context(**VIEWS[view])
    try:
        page = await context.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url != page_file.as_uri() else None)
        await page.goto(page_file.as_uri())
        assert await page.title() == "Does guidance pay?"
        assert await page.evaluate("document.documentElement.scrollWidth") <= VIEWS[view]["viewport"]["width"]
        await page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert await accessible(page) == []
        await shoot(page, f"evaluation-report-{view}")
        assert wrong == []
    finally:
        await context.close()


async def test_figures_are_drawn_in_the_colors_of_the_theme(browser: Browser, page_file: Path) -> None:
    inks = []
    for view in ("light", "dark"):
        context = await browser.new_context(**VIEWS[view])
        page = await context.new_page()
        await page.goto(page_file.as_uri())
        inks.append(await page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill"))
        await context.close()
    assert inks == ["rgb(23, 32, 42)", "rgb(232, 237, 242)"]
