"""Runs a command and ends it when the parent process ends.

    python -I -S parent_watch.py COMMAND ARGUMENT...

The file runs as a script with the standard library only, so it starts in a few milliseconds. The script ends the
command on SIGTERM, or at the end of its stdin, whose other end the parent holds (see `child.py`). The exit status is
that of the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

KILL_AFTER_S = 5.0


def main(command: list[str]) -> int:
    """Run `command` and return its status. End it with SIGTERM, and with SIGKILL after `KILL_AFTER_S` seconds."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 (the command is from EmbeddedRedis)

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
