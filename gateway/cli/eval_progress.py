"""Progress of a run: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.console import Console

_LINE_EVERY_S = 30.0
# With fewer calls done, the calls in flight would bias the estimate.
_MIN_DONE = 16


class EvalProgress(AbstractContextManager["EvalProgress"]):
    """Progress of the stages of a run. A context manager, which ends the last stage also after failures."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._stage, self._done, self._total, self._tokens = "", 0, 0, 0
        self._began = self._printed = 0.0

    def __exit__(self, *error: object) -> None:
        self.end()

    def begin(self, stage: str, total: int) -> None:
        self._stage, self._done, self._total, self._tokens = stage, 0, total, 0
        self._began = time.monotonic()
        if not self._console.is_terminal:
            self._print_line()
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(stage, total=total, speed="")
        self._bar.start()

    def step(self, tokens: int = 0) -> None:
        self._done += 1
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(self._task, advance=1, speed=self._speed)
        elif time.monotonic() > self._printed + _LINE_EVERY_S:
            self._print_line()

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._done:
            self._print_line()
        self._done = 0

    def left_s(self, done: int, total: int) -> float | None:
        """Return the estimated remaining seconds, or None while too few calls are done for an estimate."""
        reliable = 0 < done >= min(_MIN_DONE, total // 2)
        return (time.monotonic() - self._began) / done * (total - done) if reliable else None

    @property
    def _speed(self) -> str:
        """Return the output tokens per second of the stage as text; empty before the first token."""
        seconds = time.monotonic() - self._began
        speed = self._tokens / seconds if seconds else 0.0
        return f"{speed:.{0 if speed >= 10 else 1}f} tokens/s" if speed >= 0.05 else ""

    def _print_line(self) -> None:
        self._printed = time.monotonic()
        left = self.left_s(self._done, self._total)
        parts = [f"{self._done} of {self._total}", self._speed]
        parts += [f"{duration(left)} left"] if left and self._done < self._total else []
        self._console.print(f"{self._stage}: {', '.join(filter(None, parts))}", markup=False, highlight=False)


def duration(seconds: float) -> str:
    """Return a duration as text in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
