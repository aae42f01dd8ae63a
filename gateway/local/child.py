"""What the teacher's and the student's commands share: flags, the ready line, and dying with the parent.

A child that is started with `--leash` exits when its stdin reaches its end. Its parent holds the other end of that
pipe, and the kernel closes it however the parent ends, kill -9 included. Linux's PR_SET_PDEATHSIG would have to be
set between fork and exec, which is unsafe in a threaded parent, and it fires when the forking *thread* ends.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from gateway.errors import StartupError
from gateway.runtime.llama_cpp import LlamaOptions

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_LIMIT_S = 5.0
_READY = re.compile(r"^gkt-gateway (?P<role>\w+) ready at (?P<url>http://\S+)$", re.MULTILINE)


def parser(role: str, description: str) -> argparse.ArgumentParser:
    """The flags that both commands have."""
    defaults = LlamaOptions()
    flags = argparse.ArgumentParser(prog=f"python -m gateway.local.{role}", description=description)
    flags.add_argument("--model", required=True, help="a name in the catalogue, or the path of a .gguf file")
    flags.add_argument("--name", help="the model's name in replies; default: as --model, without folder and ending")
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=int, default=0, help="0 picks a free port")
    flags.add_argument("--threads", type=int, default=defaults.threads)
    flags.add_argument("--parallel", type=int, default=defaults.parallel, help="requests decoded at once")
    flags.add_argument("--slot-tokens", type=int, default=defaults.slot_tokens, help="prompt and answer together")
    flags.add_argument("--poll-percent", type=int, default=defaults.poll_percent, help="0-100: spin while idle")
    flags.add_argument("--leash", action="store_true", help="exit when stdin ends, that is with the parent")
    return flags


def ready_line(role: str, url: str) -> str:
    """The one line a child prints once it serves."""
    return f"gkt-gateway {role} ready at {url}\n"


def find_ready_url(log_text: str) -> str | None:
    """The URL in a child's output, or None while it is not ready."""
    match = _READY.search(log_text)
    return match["url"] if match is not None else None


def on_stop(stop: Callable[[], object], *, leash: bool) -> None:
    """Call `stop` once for SIGTERM or SIGINT and, with `leash`, for the end of stdin. Main thread only.

    `stop` may be called from another thread. If the process has not ended `EXIT_LIMIT_S` later, it is ended hard.
    """
    asked = threading.Event()

    def ask() -> None:
        if not asked.is_set():
            asked.set()
            timer = threading.Timer(EXIT_LIMIT_S, os._exit, (0,))
            timer.daemon = True
            timer.start()
            stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ask())
    if leash:
        threading.Thread(target=_wait_for_end_of_stdin, args=(ask,), name="leash", daemon=True).start()


def leave(server: object) -> NoReturn:
    """End the process at once, with status 0, without taking llama.cpp's `server` down.

    Its destructor waits for open connections, and holds the interpreter's lock meanwhile. It keeps nothing on disk.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run(main: Callable[[], None]) -> int:
    """Run a command's `main`; a StartupError becomes one line on stderr and exit status 1."""
    try:
        main()
    except StartupError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


def _wait_for_end_of_stdin(ask: Callable[[], None]) -> None:
    # The raw descriptor: a daemon thread inside sys.stdin's lock would break the interpreter's exit.
    while os.read(0, 4096):
        pass
    ask()
