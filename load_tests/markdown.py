"""Tables as docs/design/benchmarks.md holds them: a run's output can be put there as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a line break at its end."""
    return "\n".join((line(head), "|" + "---|" * len(head), *map(line, rows)))


def line(cells: Sequence[str]) -> str:
    """One line of it."""
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
