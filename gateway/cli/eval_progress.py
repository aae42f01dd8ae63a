"""Progress of a run: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.console import Console

_LINE_EVERY_S = 30.0
# With fewer calls done, the calls in flight would bias the estimate.
_MIN_DONE = 16


def progress_on(console: Console) -> ProgressBars | ProgressLines:
    """Return bars on a terminal, else lines."""
    return ProgressBars(console) if console.is_terminal else ProgressLines(console)


class ProgressBars:
    """A progress bar for each stage. Call `end` also after failures."""

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
            self._progress.update(self._task, advance=1, speed=self._speed.text)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class ProgressLines:
    """Prints a line when a stage begins, every half minute, and when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage, self._done, self._total = "", 0, 0
        self._speed = TokenRate()
        self._printed = 0.0

    def begin(self, stage: str, total: int) -> None:
        self._stage, self._done, self._total = stage, 0, total
        self._speed = TokenRate()
        self._print_line()

    def step(self, tokens: int = 0) -> None:
        self._done += 1
        self._speed.add(tokens)
        if time.monotonic() > self._printed + _LINE_EVERY_S:
            self._print_line()

    def end(self) -> None:
        if self._done:
            self._print_line()
        self._done = 0

    def _print_line(self) -> None:
        self._printed = time.monotonic()
        left = self._speed.left_s(self._done, self._total)
        parts = [f"{self._done} of {self._total}", self._speed.text]
        parts += [f"{duration(left)} left"] if left and self._done < self._total else []
        self._console.print(f"{self._stage}: {', '.join(filter(None, parts))}", markup=False, highlight=False)


class TokenRate:
    """Tokens per second since the stage began."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._tokens = 0

    def add(self, tokens: int) -> None:
        """Count output tokens."""
        self._tokens += tokens

    @property
    def text(self) -> str:
        """Return the rate as text; empty before the first token."""
        seconds = time.monotonic() - self._began
        speed = self._tokens / seconds if seconds else 0.0
        return f"{speed:.{0 if speed >= 10 else 1}f} tokens/s" if speed >= 0.05 else ""

    def left_s(self, done: int, total: int) -> float | None:
        """Return the estimated remaining seconds, or None while too few calls are done for an estimate."""
        reliable = 0 < done >= min(_MIN_DONE, total // 2)
        return (time.monotonic() - self._began) / done * (total - done) if reliable else None


def duration(seconds: float) -> str:
    """Return a duration as text in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
