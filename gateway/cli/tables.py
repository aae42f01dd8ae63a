"""Console output of commands: the console of a terminal or a pipe, and plain tables."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table


def console_for(pipe_width: int) -> Console:
    """Return a console with the terminal's width, or with `pipe_width` if the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=pipe_width)


def plain_table(*titles: str, right: slice = slice(0)) -> Table:
    """Return a table without a frame that wraps long cells.

    Args:
        titles: the titles of its columns.
        right: the columns that are aligned to the right.
    """
    table = Table(*titles, box=box.SIMPLE)
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[right]:
        column.justify = "right"
    return table
