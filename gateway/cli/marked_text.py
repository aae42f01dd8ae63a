"""Streaming output of an answer with the teacher's part marked: by color on a terminal, else by brackets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

TEACHER_STYLE = "bold cyan"


class MarkedText:
    """Prints the parts of one answer and marks those of the teacher."""

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
