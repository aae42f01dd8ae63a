"""Format tables for docs/design/benchmarks.md, so that the output of a run can be pasted there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, without a line break at its end."""
    return "\n".join((line(head), "|" + "---|" * len(head), *map(line, rows)))


def line(cells: Sequence[str]) -> str:
    """Return a row of the table."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
