"""Cancellation of a command by SIGTERM or SIGINT, with orderly cleanup."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, TypeVar

import typer
import uvloop

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

INTERRUPTED = 130
"""A command's exit status after Ctrl-C."""
T = TypeVar("T")


async def until_interrupted(work: Coroutine[Any, Any, T], name: str, status: int = INTERRUPTED) -> T:
    """Run `work` and return its result. SIGTERM and SIGINT cancel it and raise typer.Exit with `status`.

    The cleanup of `work` must stop child processes.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work, name=name)  # the main task of this process
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise typer.Exit(status) from None


def run_resumable(work: Coroutine[Any, Any, T], folder: Path) -> T:
    """Run `work`, which stores its answers in `folder`. Raises typer.Exit after a signal, with a hint how to resume."""
    try:
        return uvloop.run(until_interrupted(work, "eval"))
    except typer.Exit:
        typer.echo(f"Stopped. The answers are in {folder}: run the same command again to resume.", err=True)
        raise
