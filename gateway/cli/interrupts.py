"""Cancellation of a command by SIGTERM or SIGINT, with orderly cleanup."""

from __future__ import annotations

import signal
from asyncio import CancelledError, get_running_loop
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer
import uvloop

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

INTERRUPTED = 130
"""A command's exit status after Ctrl-C."""
T = TypeVar("T")


class _Interrupts:
    """Signals that arrived, and the task that they cancel while it runs."""

    def __init__(self) -> None:
        self.arrived = False
        self._running: tuple[AbstractEventLoop, Task[Any]] | None = None

    def on_signal(self, _number: int, _frame: object) -> None:
        self.arrived = True
        if self._running is not None:
            loop, task = self._running
            loop.call_soon_threadsafe(task.cancel)

    async def cancelling(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Run `work` in a task that signals cancel. Return its result."""
        loop = get_running_loop()
        task = loop.create_task(work, name=name)  # the main task of this process
        self._running = loop, task
        if self.arrived:
            task.cancel()
        try:
            return await task
        finally:
            self._running = None


def run_until_interrupted(work: Coroutine[Any, Any, T], name: str, status: int = INTERRUPTED) -> T:
    """Run `work` in an event loop and return its result. SIGTERM and SIGINT cancel it and raise typer.Exit(status).

    A signal counts from the first step of the event loop until it is closed, also if `work` has just ended.
    The cleanup of `work` must stop child processes.
    """
    interrupts = _Interrupts()
    try:
        with _handling(interrupts):
            return uvloop.run(interrupts.cancelling(work, name))
    except CancelledError:
        raise typer.Exit(status) from None
    finally:
        if interrupts.arrived:
            raise typer.Exit(status) from None


@contextmanager
def _handling(interrupts: _Interrupts) -> Iterator[None]:
    """Handle SIGTERM and SIGINT, and restore the previous handlers at the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, interrupts.on_signal)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def run_resumable(work: Coroutine[Any, Any, T], folder: Path) -> T:
    """Run `work`, which stores its answers in `folder`. Raises typer.Exit after a signal, with a hint how to resume."""
    try:
        return run_until_interrupted(work, "eval")
    except typer.Exit:
        typer.echo(f"Stopped. The answers are in {folder}: run the same command again to resume.", err=True)
        raise
