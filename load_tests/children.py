"""Run child processes that end with this process: at the end of their block, on Ctrl-C or SIGTERM, and on SIGKILL.

Each child runs under gateway/local/parent_watch.py, which ends it when this process ends for any reason. Each child has
its own session, so Ctrl-C at a terminal reaches only this process, which ends the children in order.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from gateway.local import parent_watch
from load_tests import proc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_END_WITHIN_S = parent_watch.KILL_AFTER_S + 3.0
_LOG_TAIL_CHARS = 600


class NotStarted(Exception):
    """A child ended or was not ready in time. The message gives the reason and the end of its log."""


class ChildProcess:
    """A running command. Its output goes to a file."""

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as output:
            self._parent_watch = subprocess.Popen(
                [sys.executable, "-I", "-S", parent_watch.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )

    def pids(self) -> list[int]:
        """Return the ids of the command's process and its descendants, without its parent watch."""
        return proc.tree(self._parent_watch.pid)[1:]

    def main_pid(self) -> int:
        """Return the id of a gateway's worker, or else of the command's own process."""
        pids = self.pids()
        return next((pid for pid in pids if "-m gateway.server.worker " in proc.command(pid)), pids[0])

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes."""
        return sum(proc.cpu_s(pid) for pid in self.pids())

    def wait_until(self, ready: Callable[[], object], limit_s: float, *, every_s: float = 0.1) -> None:
        """Call `ready` until it returns true; OSError and ValueError count as false. Raise NotStarted on a timeout."""
        give_up = time.monotonic() + limit_s
        last = "it is not ready"
        while time.monotonic() < give_up:
            if self._parent_watch.poll() is not None:
                raise NotStarted(f"it ended with status {self._parent_watch.returncode}: {self.log_tail()}")
            try:
                if ready():
                    return
            except (OSError, ValueError) as error:
                last = str(error)
            time.sleep(every_s)
        raise NotStarted(f"not ready in {limit_s:g} s: {last}: {self.log_tail()}")

    def log_text(self) -> str:
        """Return what its processes have written to stdout and stderr."""
        return self._log.read_text(errors="replace")

    def log_tail(self) -> str:
        text = self.log_text()[-_LOG_TAIL_CHARS:].strip()
        return " ".join(text.split()) or "it wrote no log"

    def end(self) -> None:
        """Send SIGTERM, later SIGKILL, and kill the processes that remain in its session."""
        assert self._parent_watch.stdin is not None
        with suppress(OSError):
            self._parent_watch.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._parent_watch.wait(timeout=_END_WITHIN_S)
        with suppress(ProcessLookupError):
            os.killpg(self._parent_watch.pid, signal.SIGKILL)
        self._parent_watch.wait()


@contextmanager
def running(
    name: str, command: Sequence[str | Path], folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[ChildProcess]:
    """Run a command for the duration of the block."""
    child = ChildProcess(name, command, folder / f"{name.replace(' ', '-')}.log", env)
    try:
        yield child
    finally:
        child.end()


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that this process ends its children."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_ports(count: int) -> list[int]:
    """Return unused ports of the loopback interface."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
