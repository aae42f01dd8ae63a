"""The life of a child process that runs an engine: its ready line, and its exit with the parent.

A child with `--parent-watch` exits at the end of its stdin. The parent holds the other end of the pipe. The kernel
closes it however the parent ends, also after kill -9. Linux's PR_SET_PDEATHSIG is no alternative. It must be set
between fork and exec, which is unsafe in a threaded parent, and it fires when the forking *thread* ends.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_LIMIT_S = 5.0
_READY = re.compile(r"^llama\.cpp is ready at (?P<url>http://\S+)$", re.MULTILINE)


def ready_line(url: str) -> str:
    """Return the line that a child prints when it is ready."""
    return f"llama.cpp is ready at {url}\n"


def find_ready_url(log_text: str) -> str | None:
    """Return the URL in a child's output; None if it is not ready."""
    match = _READY.search(log_text)
    return match["url"] if match is not None else None


def on_stop(stop: Callable[[], object], *, parent_watch: bool) -> None:
    """Call `stop` once for SIGTERM or SIGINT and, with `parent_watch`, for the end of stdin. Main thread only.

    `stop` may be called from another thread. After `EXIT_LIMIT_S` seconds the process exits without cleanup.
    """
    requested = threading.Event()

    def request_stop() -> None:
        if not requested.is_set():
            requested.set()
            timer = threading.Timer(EXIT_LIMIT_S, os._exit, (0,))
            timer.daemon = True
            timer.start()
            stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: request_stop())

    def wait_for_end_of_stdin() -> None:
        # The raw descriptor: a daemon thread that holds the lock of sys.stdin breaks the interpreter's exit.
        while os.read(0, 4096):
            pass
        request_stop()

    if parent_watch:
        threading.Thread(target=wait_for_end_of_stdin, name="parent_watch", daemon=True).start()


def exit_now(server: object) -> NoReturn:
    """Exit with status 0 without calling the destructor of llama.cpp's `server`.

    The destructor waits for open connections and holds the interpreter lock. The server stores nothing on disk.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run(main: Callable[[], None]) -> int:
    """Run a command's `main`. Print a StartupError to stderr and return exit status 1."""
    try:
        main()
    except StartupError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0
