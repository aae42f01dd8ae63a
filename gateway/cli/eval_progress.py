"""How far a run is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.console import Console

_LINE_EVERY_S = 30.0
# Until so many are done, those under way beside them tell more than they do.
_ENOUGH = 16


class ProgressBars:
    """A bar for each stage, on a terminal. `end` it, however the run does."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._speed = TokenRate()

    def begin(self, stage: str, total: int) -> None:
        self._speed = TokenRate()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task(stage, total=total, speed="")
        self._progress.start()

    def step(self, tokens: int = 0) -> None:
        if self._progress is not None:
            self._speed.add(tokens)
            self._progress.update(self._task, advance=1, speed=self._speed.shown)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class ProgressLines:
    """A line when a stage begins, every half minute, and when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage, self._done, self._total = "", 0, 0
        self._speed = TokenRate()
        self._told = 0.0

    def begin(self, stage: str, total: int) -> None:
        self._stage, self._done, self._total = stage, 0, total
        self._speed = TokenRate()
        self._tell()

    def step(self, tokens: int = 0) -> None:
        self._done += 1
        self._speed.add(tokens)
        if time.monotonic() > self._told + _LINE_EVERY_S:
            self._tell()

    def end(self) -> None:
        if self._done:
            self._tell()
        self._done = 0

    def _tell(self) -> None:
        self._told = time.monotonic()
        left = self._speed.left_s(self._done, self._total)
        parts = [f"{self._done} of {self._total}", self._speed.shown]
        parts += [f"{duration(left)} left"] if left and self._done < self._total else []
        self._console.print(f"{self._stage}: {', '.join(filter(None, parts))}", markup=False, highlight=False)


class TokenRate:
    """Tokens a second since the stage began."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._tokens = 0

    def add(self, tokens: int) -> None:
        """So many more were written."""
        self._tokens += tokens

    @property
    def shown(self) -> str:
        """Empty before the first token."""
        seconds = time.monotonic() - self._began
        speed = self._tokens / seconds if seconds else 0.0
        return f"{speed:.{0 if speed >= 10 else 1}f} tokens/s" if speed >= 0.05 else ""

    def left_s(self, done: int, total: int) -> float | None:
        """At the pace until now; None before so many are done that those under way beside them count little."""
        enough = 0 < done >= min(_ENOUGH, total // 2)
        return (time.monotonic() - self._began) / done * (total - done) if enough else None


def duration(seconds: float) -> str:
    """As a person says it, in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
