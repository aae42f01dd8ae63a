"""How this process itself does: its memory, its files, its processor time, its tasks, and how late its event loop is.

prometheus_client tells the first three as well, but only of the one worker that happens to answer.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.telemetry.metrics import Metrics

_LOOK_EVERY_S = 5.0
_TICK_S = 0.25
_PROC = Path("/proc/self")


class ProcessSnapshot(NamedTuple):
    """One look. `resident_bytes` and `open_files` are None where there is no /proc that says."""

    resident_bytes: int | None
    open_files: int | None
    max_files: int
    cpu_s: float


def look() -> ProcessSnapshot:
    """It reads files, and may take milliseconds where many are open: call it in a thread."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ProcessSnapshot(
        resident_bytes=_resident_bytes(),
        open_files=_open_files(),
        max_files=sys.maxsize if soft == resource.RLIM_INFINITY else soft,
        cpu_s=used.ru_utime + used.ru_stime,
    )


def _resident_bytes() -> int | None:
    try:
        return int((_PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _open_files() -> int | None:
    try:
        return sum(1 for _ in (_PROC / "fd").iterdir()) - 1  # without the one through which it is read
    except OSError:
        return None


class ProcessMetrics:
    """Shows what `look` sees, and how late the loop is."""

    def __init__(self, metrics: Metrics) -> None:
        worker = metrics.worker
        self._resident = metrics.resident.labels(worker)
        self._open_files = metrics.open_files.labels(worker)
        self._max_files = metrics.max_files.labels(worker)
        self._cpu_seconds = metrics.cpu_seconds.labels(worker)
        self._tasks = metrics.loop_tasks.labels(worker)
        self._lag = metrics.loop_lag
        self._cpu_told_s = 0.0
        metrics.started.labels(worker).set(time.time())

    async def run(self) -> None:
        """Look every few seconds, for ever."""
        while True:
            self.show(await asyncio.to_thread(look))
            # Here and not in the thread: only the loop's own sees a set of them that does not change meanwhile.
            self._tasks.set(len(asyncio.all_tasks()))
            await asyncio.sleep(_LOOK_EVERY_S)

    def show(self, seen: ProcessSnapshot) -> None:
        """Tell what was seen. Processor time only grows, also over the lives of one worker."""
        if seen.resident_bytes is not None:
            self._resident.set(seen.resident_bytes)
        if seen.open_files is not None:
            self._open_files.set(seen.open_files)
        self._max_files.set(seen.max_files)
        self._cpu_seconds.inc(max(0.0, seen.cpu_s - self._cpu_told_s))
        self._cpu_told_s = seen.cpu_s

    async def watch_loop(self) -> None:
        """See, again and again, how much later than asked for a timer rings."""
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._lag.observe(max(0.0, loop.time() - asked))
