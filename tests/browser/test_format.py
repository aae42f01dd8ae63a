"""Formatting of figures in the pages, tested in the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import opened

if TYPE_CHECKING:
    from playwright.async_api import Browser

    from tests.gateway_process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")

CASES: list[tuple[str, list[Any], str]] = [
    ("money", ["0"], "$0"),
    ("money", ["0.0000318"], "$0.0000318"),
    ("money", ["0.5"], "$0.50"),
    ("money", ["-1.5"], "\u2212$1.50"),
    ("money", ["1234567.891"], "$1.23m"),
    ("money", ["999999.994"], "$999,999.99"),
    ("money", ["0.00000000000123"], "$0.000000000001"),
    ("money", [None], "-"),
    ("money", [""], "-"),
    ("duration", [0], "0 ms"),
    ("duration", [0.123], "0.12 ms"),
    ("duration", [9.96], "10.0 ms"),
    ("duration", [999.4], "999 ms"),
    ("duration", [999.6], "1.00 s"),
    ("duration", [61_000], "1 min 1 s"),
    ("duration", [7_260_000], "2 h 1 min"),
    ("duration", [200_000_000], "2 d 8 h"),
    ("duration", [None], "-"),
    ("share", [0, 5], "0 %"),
    ("share", [1, 3], "33 %"),
    ("share", [-1, 2], "\u221250 %"),
    ("share", [1, 5000], "<0.1 %"),
    ("share", [1, 0], "-"),
    ("share", [None], "-"),
    ("tokens", [9_999], "9,999"),
    ("tokens", [12_345], "12.3k"),
    ("tokens", [4_560_000_000], "4.56bn"),
    ("rate", [0.5], "0.50"),
    ("rate", [12.34], "12.3"),
    ("rate", [1234.5], "1,235"),
    ("whole", [None], "-"),
]


async def test_figures_are_short_and_unknown_values_are_a_dash(browser: Browser, pages: GatewayProcess) -> None:
    async with opened(browser, pages) as page:
        script = """async (cases) => {
            const format = await import('/static/format.js');
            return cases.map(([name, given]) => format[name](...given));
        }"""
        written = await page.evaluate(script, [[name, given] for name, given, _ in CASES])
    results = zip(CASES, written, strict=True)
    wrong = [(name, given, got) for (name, given, expected), got in results if got.lower() != expected.lower()]
    assert wrong == []


async def test_a_waterfall_holds_stages_that_began_before_the_answer_was_over(
    browser: Browser, pages: GatewayProcess
) -> None:
    """Clocks are read at different times. A stage still ends within the total, and stages do not overlap."""
    receipts = [
        {"student": {}, "timings": {"total_ms": 10, "admission_ms": 1, "batch_wait_ms": 2, "teacher_ms": 3}},
        {"student": None, "timings": {"total_ms": 5, "admission_ms": 1, "teacher_ms": 4}},
        {"student": {}, "timings": {"total_ms": 5, "admission_ms": 1, "teacher_ms": 9}},
        {"student": {}, "timings": {"total_ms": 9, "admission_ms": 1, "teacher_ms": 3, "handover_ms": 2}},
        {"student": {}, "timings": {"total_ms": 9, "handover_ms": 2}},
        {"student": {}, "timings": {"total_ms": 0}},
    ]
    async with opened(browser, pages) as page:
        script = """async (receipts) => {
            const { stages } = await import('/static/stages.js');
            return receipts.map((one) => stages(one).map(([title, from, took]) => [title, from, took]));
        }"""
        assert await page.evaluate(script, receipts) == [
            [["Admission", 0, 1], ["Wait for batch", 1, 2], ["Teacher", 3, 3], ["Student and reply", 6, 4]],
            [["Admission", 0, 1], ["Teacher", 1, 4]],
            [["Admission", 0, 1], ["Teacher", 1, 4]],
            [["Admission", 0, 1], ["Teacher", 1, 3], ["Hand-over", 4, 2], ["Student and reply", 6, 3]],
            [["Student and reply", 0, 9]],
            [],
        ]
