"""Run a command that cannot watch its parent, and end it when the parent is gone.

    python -I -S leash.py COMMAND ARGUMENT...

This file is run as a script, by path, with the standard library alone: it starts in a few milliseconds. It ends the
command when its own stdin ends (the parent holds the other end of the pipe, see `child.py`) or on SIGTERM, and exits
with the command's status.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

KILL_AFTER_S = 5.0


def main(command: list[str]) -> int:
    """Run `command` until it ends, or end it: SIGTERM first, SIGKILL `KILL_AFTER_S` seconds later."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 (our own caller wrote it)

    def end() -> None:
        process.terminate()
        timer = threading.Timer(KILL_AFTER_S, process.kill)
        timer.daemon = True
        timer.start()

    def wait_for_end_of_stdin() -> None:
        while os.read(0, 4096):
            pass
        end()

    signal.signal(signal.SIGTERM, lambda *_: end())
    threading.Thread(target=wait_for_end_of_stdin, daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
