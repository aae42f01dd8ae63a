"""The gateway with a clock on its event loop: logs each callback that used more CPU time than a bound.

Run as `python -m tests.timed_gateway serve ...`. The bound is the environment variable `CALLBACK_BOUND_MS`.
CPU time of the loop's thread is measured, so other processes hardly change it. uvloop has no hook for callbacks, so
asyncio's own loop runs instead.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio import events

import uvloop

_BOUND_MS = float(os.environ["CALLBACK_BOUND_MS"])
_run_handle = events.Handle._run


def _timed_run(handle: events.Handle) -> None:
    started = time.thread_time()
    _run_handle(handle)
    spent_ms = (time.thread_time() - started) * 1000
    if spent_ms > _BOUND_MS:
        line = {"event": "slow_callback", "cpu_ms": round(spent_ms, 1), "callback": repr(handle)[:300]}
        sys.stderr.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    events.Handle._run = _timed_run  # type: ignore[method-assign]
    uvloop.run = asyncio.run
    from gateway.cli import main

    main()
