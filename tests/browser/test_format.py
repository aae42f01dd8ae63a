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
    ("money", ["0"], "$0.00"),
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
    ("share", [0, 5], "0.0 %"),
    ("share", [1, 3], "33.3 %"),
    ("share", [-1, 2], "\u221250.0 %"),
    ("share", [1, 5000], "<0.1 %"),
    ("share", [1, 0], "-"),
    ("share", [None], "-"),
    ("short", [9_999], "9,999"),
    ("short", [12_345], "12.3k"),
    ("short", [4_560_000_000], "4.56bn"),
    ("counted", [0, "request"], "0 requests"),
    ("counted", [1, "request"], "1 request"),
    ("counted", [12_345, "token"], "12,345 tokens"),
    ("points", [0.041], "+4.1"),
    ("points", [-0.5], "\u221250.0"),
    ("utc", ["2001-11-25T15:33:45Z"], "25 nov 2001, 15:33:45 utc"),
    ("utc", [None], "-"),
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


COLUMNS: list[tuple[str, list[Any], list[str]]] = [
    ("usd", ["12.5", "0.001", "-3", None], ["$12.50", "<$0.01", "\u2212$3.00", "-"]),
    ("usd", [0.00299, 0.0000004, 0], ["$0.00299", "<$0.00001", "$0.00000"]),
    ("ms", [9.5, 0.42], ["9.50 ms", "0.42 ms"]),
    ("ms", [1480.4, 9.5], ["1,480 ms", "10 ms"]),
    ("ms", [61_000, 960], ["61.0 s", "1.0 s"]),
    ("share", [0.5, 0.001, None], ["50.0 %", "0.1 %", "-"]),
    ("count", [1234567, 0], ["1,234,567", "0"]),
]


async def test_figures_of_a_column_share_decimals_and_unit(browser: Browser, pages: GatewayProcess) -> None:
    async with opened(browser, pages) as page:
        script = """async (columns) => {
            const { column } = await import('/static/format.js');
            return columns.map(([unit, values]) => values.map(column(unit, values)));
        }"""
        written = await page.evaluate(script, [[unit, values] for unit, values, _ in COLUMNS])
    assert written == [texts for _, _, texts in COLUMNS]


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
            const { stages } = await import('/static/receipt.js');
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
