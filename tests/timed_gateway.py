"""A clock on the event loop of a gateway's workers: logs whatever used more CPU time than a bound without a break.

Run the gateway with AT_START as the code with which its processes begin. Environment variables hold the bounds:
`CALLBACK_BOUND_MS` for each callback of the event loop, `CALL_BOUND_MS` for each call of a C function in another
thread. Such a call holds the interpreter lock, and the event loop waits. CPU time of the thread is measured, so other
processes hardly change it. uvloop has no hook for callbacks, so asyncio's own loop runs instead.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import threading
import time
from asyncio import events
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

if TYPE_CHECKING:
    from types import FrameType

_BOUNDS_MS = {
    "slow_callback": float(os.environ.get("CALLBACK_BOUND_MS", "inf")),
    "slow_call": float(os.environ.get("CALL_BOUND_MS", "inf")),
}
_run_handle = events.Handle._run
AT_START = f"""
import sys
if "gateway.server.worker" in sys.orig_argv:
    sys.path.append({str(Path(__file__).parents[1])!r})
    from tests import timed_gateway
    timed_gateway.install()
"""


def install() -> None:
    events.Handle._run = _timed_run  # type: ignore[method-assign]
    threading.setprofile(_time_call)
    uvloop.run = asyncio.run


def _timed_run(handle: events.Handle) -> None:
    started = time.thread_time()
    _run_handle(handle)
    _log_slow(started, "slow_callback", handle)


class _Started(threading.local):
    """Start times of the C functions that run in a thread, the innermost last."""

    def __init__(self) -> None:
        self.times: list[float] = []


_started = _Started()


def _time_call(_: FrameType, event: str, called: Any) -> None:
    if event == "c_call":
        _started.times.append(time.thread_time())
    elif event == "call" and _started.times:
        _started.times[-1] = math.inf  # a C function that runs Python code lets other threads in
    elif event in {"c_return", "c_exception"} and _started.times:
        _log_slow(_started.times.pop(), "slow_call", called)


def _log_slow(started: float, event: str, what: object) -> None:
    spent_ms = (time.thread_time() - started) * 1000
    if spent_ms > _BOUNDS_MS[event]:
        name = _name(what._callback) if isinstance(what, events.Handle) else repr(what)
        line = {"event": event, "cpu_ms": round(spent_ms, 1), "callback": name[:300]}
        sys.stderr.write(json.dumps(line) + "\n")


def _name(callback: Any) -> str:
    """Return the coroutine of a task's step, or the function of another callback."""
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return f"task {owner.get_name()}: {getattr(owner.get_coro(), '__qualname__', '?')}"
    return getattr(callback, "__qualname__", repr(callback))
