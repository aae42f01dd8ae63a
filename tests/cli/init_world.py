"""Engines without models on threads, and a terminal, for the tests of `gkt-gateway init`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.config.settings import OVERRIDES
from load_tests.fake.engine import FakeEngine
from load_tests.fake.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # of colors and the cursor
ROOT = Path(__file__).parents[2]
PRICES = ("--teacher-price", "0.90,0.90", "--student-price", "0.10,0.10")
LIMIT_S = 240.0  # a busy machine starts a command slowly


@contextmanager
def modelled(**profile: Any) -> Iterator[str]:
    """Run an engine of load_tests on a thread of its own. Yield its URL."""
    settings = Profile.model_validate({"model": "fake", "dialect": "openai", "answer_tokens": (60,), **profile})
    loop, stop, urls = asyncio.new_event_loop(), asyncio.Event(), []
    started = threading.Event()

    async def serve() -> None:
        async with FakeEngine(settings).serving() as url:
            urls.append(url)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def environ(**more: str) -> dict[str, str]:
    """Return the environment of a command, without variables that override config.yaml."""
    own = {name: value for name, value in os.environ.items() if name not in OVERRIDES}
    return {**own, "PYTHONPATH": str(ROOT), "COLUMNS": "300", "NO_COLOR": "1", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway", *arguments]


class Terminal:
    """A command on a pseudo terminal. `screen` holds its output so far."""

    def __init__(self, *arguments: str, folder: Path, **environment: str) -> None:
        self._own, theirs = pty.openpty()
        self.screen = ""
        self._read_to = 0
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env=environ(TERM="xterm", **environment),
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)

    def wait_for(self, text: str) -> None:
        """Wait until `text` is on the screen after the text of the previous call."""
        give_up = time.monotonic() + LIMIT_S
        while text not in self.screen[self._read_to :]:
            assert self._read(give_up), f"no {text!r} on the screen:\n{self.screen}"
        self._read_to = self.screen.index(text, self._read_to) + len(text)

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def answer(self, prompt: str, text: str) -> None:
        """Wait for a prompt and type a line."""
        self.wait_for(prompt)
        self.wait_for(": ")
        self.type(text + "\n")

    def interrupt(self) -> None:
        """Press Ctrl-C at a prompt, and again if the command does not end within 20 s.

        Python loses a signal that arrives after the prompt and before `input` reads. The second one ends the read.
        """
        self.type("\x03")
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.type("\x03")

    def end(self) -> int:
        """Wait for the end of the command. Return its exit status."""
        give_up = time.monotonic() + LIMIT_S
        while self._read(give_up):
            pass
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._own)

    def _read(self, give_up: float) -> bool:
        ready, _, _ = select.select([self._own], [], [], max(0.0, give_up - time.monotonic()))
        try:
            part = os.read(self._own, 65_536) if ready else b""
        except OSError:  # the other side is closed
            part = b""
        self.screen += _CODES.sub("", part.decode(errors="replace")).replace("\r\n", "\n")
        return bool(part)


def _take_terminal() -> None:
    """Make the pseudo terminal that of the new session, so that it sends Ctrl-C as a signal.

    A shell starts background commands, such as the tests, with SIGINT ignored, and children inherit that.
    """
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def terminal(*arguments: str, folder: Path, **environment: str) -> Iterator[Terminal]:
    running = Terminal(*arguments, folder=folder, **environment)
    try:
        yield running
    finally:
        running.close()
