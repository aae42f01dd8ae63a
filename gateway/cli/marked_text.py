"""An answer on the screen as it comes: the teacher's part in colour, or in brackets where colour does not survive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

TEACHER_STYLE = "bold cyan"


class MarkedText:
    """Prints an answer's parts one behind the other, however many of them are the teacher's."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._teachers = False

    def print(self, text: str, *, teachers: bool) -> None:
        """Print one part."""
        if text:
            self._mark(teachers)
            self._console.print(Text(text, TEACHER_STYLE if teachers else ""), end="", soft_wrap=True, highlight=False)

    def end(self) -> None:
        """Close a bracket that is open: the teacher wrote the last part too."""
        self._mark(False)

    def _mark(self, teachers: bool) -> None:
        # ASCII marks: colour does not survive a pipe.
        if teachers != self._teachers and not self._console.is_terminal:
            self._console.print(Text("[" if teachers else "]"), end="", soft_wrap=True)
        self._teachers = teachers
