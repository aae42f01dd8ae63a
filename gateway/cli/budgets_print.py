"""What `gkt-gateway budgets` shows: a table with a bar for each budget, and what became of a raise."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

_PIPE_WIDTH = 200
_BAR = 20
_BLOCKS, _LETTERS = "█▒░", "#+."  # spent, reserved, left


def budgets_shown(found: Iterable[dict[str, Any]]) -> None:
    """Print a table of budgets."""
    console = Console()
    drawn = console.is_terminal and console.encoding.startswith("utf")
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table("tenant", "key", "budget", "", "spent", "reserved", "left", "ends", "raised", box=box.SIMPLE)
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[4:7]:
        column.justify = "right"
    for budget in found:
        table.add_row(
            Text(budget["tenant"]),
            Text(budget["key"] or "all together"),
            Text(f"{_usd(budget['max_budget'])} USD / {budget['budget_duration']}"),
            bar_of(budget, _BLOCKS if drawn else _LETTERS),
            _usd(budget["spent_usd"]),
            _usd(budget["reserved_usd"]),
            Text(_usd(budget["left_usd"]), colour_of(budget)),
            Text(_when(budget["ends"]) if budget["ends"] else "rolling"),
            Text(_raised(budget["raise"]) if budget["raise"] else "-"),
        )
    if table.row_count:
        console.print(table)
    else:
        console.print("There are no budgets. `budget` and `key_budget` of a policy file make some.", soft_wrap=True)


def raise_told(budget: dict[str, Any]) -> str:
    """What became of a budget that was raised, in one line."""
    whose = f"tenant {budget['tenant']}" if budget["key"] is None else f"key {budget['key']} of {budget['tenant']}"
    left = f"{_usd(budget['left_usd'])} USD are left"
    if budget["raise"] is None:
        return (
            f"the raise has ended: {whose} has {_usd(budget['max_budget'])} USD / {budget['budget_duration']}; {left}"
        )
    return f"raised: {whose} has {_usd(_most(budget))} USD until {_when(budget['raise']['until'])}; {left}"


def _most(budget: dict[str, Any]) -> Decimal:
    return Decimal(budget["max_budget"]) + (Decimal(budget["raise"]["usd"]) if budget["raise"] else 0)


def bar_of(budget: dict[str, Any], signs: str) -> Text:
    """The shares of what is spent, reserved and left; rounded down, but what is there is seen."""
    most, cells = _most(budget), _BAR
    bar = Text()
    for sign, name, colour in ((signs[0], "spent_usd", colour_of(budget)), (signs[1], "reserved_usd", "blue")):
        share = max(int(_BAR * budget[name] / most), 1 if budget[name] else 0)
        bar.append(sign * min(share, cells), colour)
        cells -= min(share, cells)
    if not budget["left_usd"] and cells:  # what was rounded away
        bar.append(signs[0] * cells, colour_of(budget))
        cells = 0
    bar.append(signs[2] * cells, "dim")
    return bar


def colour_of(budget: dict[str, Any]) -> str:
    """How near a budget is to its end: red with a tenth left or less, yellow past its soft line."""
    soft = budget["soft_budget"]
    if budget["left_usd"] * 10 <= _most(budget):
        return "red"
    return "yellow" if soft is not None and budget["spent_usd"] + budget["reserved_usd"] >= soft else "green"


def _raised(raised: dict[str, Any]) -> str:
    return f"+{_usd(raised['usd'])} until {_when(raised['until'])}"


def _usd(amount: Decimal | int) -> str:
    """To the millionth of a dollar."""
    text = f"{Decimal(amount):.6f}".rstrip("0").rstrip(".")
    return text if text != "0" or not amount else "<0.000001"


def _when(moment: str) -> str:
    return moment.replace("T", " ").replace("Z", " UTC")
