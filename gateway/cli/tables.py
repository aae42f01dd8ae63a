"""Output of commands: JSON, the console of a terminal or a pipe, plain tables, and answers with marks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

TEACHER_STYLE = "bold cyan"
ENCODER = msgspec.json.Encoder(decimal_format="number")
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def in_json(body: Any) -> str:
    """Return a body as indented JSON; Decimals become numbers."""
    return msgspec.json.format(ENCODER.encode(body), indent=2).decode()


def console_for(pipe_width: int) -> Console:
    """Return a console with the terminal's width, or with `pipe_width` if the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=pipe_width)


def plain_table(*titles: str, right: slice = slice(0)) -> Table:
    """Return a table without a frame that wraps long cells. The columns `right` are aligned to the right."""
    table = Table(*titles, box=box.SIMPLE)
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[right]:
        column.justify = "right"
    return table


def values_table(body: dict[str, Any]) -> Table:
    """Return a table of the values in a JSON object that are not null, with their dotted names.

    A list has a row for each entry.
    """
    table = plain_table("name", "value")
    for name, value in _values("", body):
        table.add_row(Text(name), Text(value))
    return table


def _values(name: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, list):
        yield from ((name, str(entry)) for entry in value)
    elif value is not None:
        yield name, str(value).lower() if isinstance(value, bool) else str(value)


def decision_of(candidate: dict[str, Any]) -> str:
    """Return whether a route or a rule matches, in words. `why` is the reason that it does not match."""
    if candidate["takes"]:
        return "match"
    return "not used: an earlier one matches" if candidate["why"] is None else f"no: {candidate['why']}"


class MarkedText:
    """Prints the parts of one answer and marks those of the teacher: by color on a terminal, else by brackets."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._by_teacher = False

    def print(self, text: str, *, by_teacher: bool) -> None:
        """Print one part."""
        if text:
            self._mark(by_teacher)
            style = TEACHER_STYLE if by_teacher else ""
            self._console.print(Text(text, style), end="", soft_wrap=True, highlight=False)

    def end(self) -> None:
        """Close an open bracket, where the teacher also wrote the last part."""
        self._mark(False)

    def _mark(self, by_teacher: bool) -> None:
        # A pipe drops colors.
        if by_teacher != self._by_teacher and not self._console.is_terminal:
            self._console.print(Text("[" if by_teacher else "]"), end="", soft_wrap=True)
        self._by_teacher = by_teacher


def counted(number: int, noun: str) -> str:
    """Return a count with its noun: 1 request, 2 requests."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def when(moment: str) -> str:
    """Return a time of the admin API for tables."""
    return moment.replace("T", " ").replace("Z", " UTC")
