"""What `gkt-gateway usage` shows: a table, its sums, and what its columns are."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gateway.accounting.savings import ABOUT_ZERO, TEACHER_UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import Callable

_PIPE_WIDTH = 240
_NONE = "-"
_LEGEND = (
    "Tokens: read + written. Saved: what guidance, or a policy's choice of the student, saved. +/-: the error of the "
    "saved amount, which is about 0 where its error is as large. Teacher away: requests that the student answered "
    "since the teacher could not; they save nothing. Measuring: the part of the cost that paid for shadows, quality "
    "samples and probes. Cost share: the baseline less the saved amount, as a part of the baseline. Teacher share: "
    "the part of the answers' tokens that the teacher wrote. p50, p95: of the whole answer."
)


def usage_shown(told: dict[str, Any]) -> None:
    """Print a table of usage as the admin API tells it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(f"{_when(told['since'])} to {_when(told['until'])} UTC", highlight=False)
    if not told["total"]["requests"]:
        console.print(
            "No request was counted in this time. One counts about a second after it ended; --since goes further back.",
            soft_wrap=True,
        )
        return
    titles, left_out = list(_FIGURES), []
    table = _table(told, titles)
    for title in _LEFT_OUT_FIRST:
        if _width(console, table) <= console.width:
            break
        titles.remove(title)
        left_out.append(title)
        table = _table(told, titles)
    console.print(table)
    console.print(_LEGEND, style="dim", soft_wrap=not console.is_terminal, highlight=False)
    if left_out:
        console.print(f"A wider terminal has room for {', '.join(left_out)} too; so has --format csv.", style="dim")


def _table(told: dict[str, Any], titles: list[str]) -> Table:
    names = (["start"] if told["granularity"] else []) + told["by"]
    table = Table(*("model" if name == "route" else name for name in names), *titles, box=box.SIMPLE)
    for place, column in enumerate(table.columns):
        column.overflow = "fold"
        if place >= len(names):
            column.justify = "right"
    for row in told["rows"]:
        table.add_row(*(_name(row, name) for name in names), *(_FIGURES[title](row) for title in titles))
    if names:
        table.add_section()
        figures = (_FIGURES[title](told["total"]) for title in titles)
        table.add_row("all", *[""] * (len(names) - 1), *figures, style="bold")
    return table


def _width(console: Console, table: Table) -> int:
    """What it would take if it had all the room."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _name(row: dict[str, Any], name: str) -> Text:
    return Text(_when(row[name]) if name == "start" else row[name] or "(none)")


def _tokens(row: dict[str, Any], role: str) -> Text:
    tokens = row["tokens"][role]
    return Text(f"{tokens['input'] + tokens['cached'] + tokens['cache_write']:,} + {tokens['output']:,}")


def _errors(row: dict[str, Any]) -> Text:
    failed = sum(row["errors"].values())
    return Text(f"{failed:,}", "red" if failed else "")


def _saved(row: dict[str, Any]) -> Text:
    if row.get("savings_about_zero"):
        return Text(ABOUT_ZERO)
    saved = Decimal(row["savings_usd"])
    return Text(usd(row["savings_usd"]), "red" if saved < 0 else "green" if saved else "")


def _teacher_away(row: dict[str, Any]) -> Text:
    away = row.get("savings_classes", {}).get(TEACHER_UNAVAILABLE, {}).get("requests", 0)
    return Text(f"{away:,}", "red" if away else "")


def _seconds(row: dict[str, Any], part: str) -> Text:
    spent_ms = row["latency_ms"]["total"][part]
    return Text(_NONE if spent_ms is None else f"{float(spent_ms) / 1000:,.3f}")


_FIGURES: dict[str, Callable[[dict[str, Any]], Text]] = {
    "requests": lambda row: Text(f"{row['requests']:,}"),
    "errors": _errors,
    "unguided": lambda row: Text(f"{sum(row['unguided'].values()):,}"),
    "teacher tokens": lambda row: _tokens(row, "teacher"),
    "student tokens": lambda row: _tokens(row, "student"),
    "cost USD": lambda row: Text(usd(row["cost_usd"])),
    "measuring USD": lambda row: Text(usd(row.get("measuring_usd", "0"))),
    "baseline USD": lambda row: Text(usd(row["baseline_usd"])),
    "saved USD": _saved,
    "+/- USD": lambda row: Text(usd(row.get("savings_error_usd", row["baseline_error_usd"]))),
    "teacher away": _teacher_away,
    "cost share": lambda row: Text(_percent(row["cost_share"])),
    "teacher share": lambda row: Text(_percent(row["teacher_token_share"])),
    "p50 s": lambda row: _seconds(row, "p50"),
    "p95 s": lambda row: _seconds(row, "p95"),
}
_LEFT_OUT_FIRST = (
    "p50 s",
    "unguided",
    "student tokens",
    "teacher tokens",
    "p95 s",
    "errors",
    "teacher share",
    "measuring USD",
    "teacher away",
    "+/- USD",
)


def usd(amount: str) -> str:
    """To the millionth of a dollar, so that amounts stand below each other; with a minus where it is negative."""
    value = Decimal(amount)
    if value and abs(value) < Decimal("0.000001"):
        return f"{'>-' if value < 0 else '<'}0.000001"
    return f"{value:,.6f}"


def _percent(share: Decimal | float | None) -> str:
    return _NONE if share is None else f"{float(share) * 100:.1f} %"


def _when(moment: str) -> str:
    return moment.replace("T", " ").removesuffix("Z").removesuffix(":00")
