"""What `gkt-gateway reconcile` shows: a table by day and engine, and one line for all of it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 160


def days_shown(found: dict[str, Any]) -> None:
    """Print a reconciliation."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    head = ("day", "engine", "USD/h", "up", "down", "unseen", "wall", "charged", "difference", "used")
    table = Table(*head, box=box.SIMPLE)
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[2:]:
        column.justify = "right"
    for day in found["days"]:
        for place, one in enumerate(day["engines"]):
            name = day["day"] + ("" if day["complete"] else " so far")
            table.add_row("" if place else name, Text(one["engine"]), *_hours(one), *_sides(one))
    if not table.row_count:
        console.print("No engine was paid for, by the hour or by the token.")
        return
    table.add_section()
    total = found["total"]
    table.add_row("all", "by the hour", "", "", "", "", *_sides(total["by_hour"]))
    table.add_row("", "by the token", "", "", "", "", "", _usd(total["by_token_usd"]), "", "")
    console.print(table)


def _hours(one: dict[str, Any]) -> list[str]:
    if one["minutes"] is None:
        return ["", "", "", ""]
    return [one["usd_per_hour"], *(f"{one['minutes'][name] / 60:.2f} h" for name in ("up", "down", "unseen"))]


def _sides(one: dict[str, Any]) -> list[str | Text]:
    if one["wall_usd"] is None:
        return ["", _usd(one["charged_usd"]), "", ""]
    over = one["difference_usd"].startswith("-")
    used = "-" if one["utilisation"] is None else f"{one['utilisation']:.1%}"
    return [
        _usd(one["wall_usd"]),
        _usd(one["charged_usd"]),
        Text(_usd(one["difference_usd"]), "red" if over else ""),
        used,
    ]


def _usd(amount: str) -> str:
    """To the millionth of a dollar; what is less is not shown as nothing."""
    text = f"{Decimal(amount):.6f}"
    return text if Decimal(text) or not Decimal(amount) else ("-" if amount.startswith("-") else "") + "<0.000001"
