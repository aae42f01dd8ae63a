"""Metrics of this process: memory, open files, CPU time, tasks, and the lag of the event loop.

prometheus_client's own process metrics cover only the worker that answers the scrape.
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

_PROC = Path("/proc/self")
_DESCRIPTORS = Path("/dev/fd")  # on Linux a link to /proc/self/fd


class ProcessSnapshot(NamedTuple):
    """The resource use of the process. `resident_bytes` is None without /proc, as on macOS."""

    resident_bytes: int | None
    open_files: int | None
    max_files: int
    cpu_s: float


def read_process() -> ProcessSnapshot:
    """Return the resource use. Counting may take milliseconds with many open files: call it in a thread."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ProcessSnapshot(
        resident_bytes=_resident_bytes(),
        open_files=_open_files(),
        max_files=sys.maxsize if soft == resource.RLIM_INFINITY else soft,
        cpu_s=usage.ru_utime + usage.ru_stime,
    )


def _resident_bytes() -> int | None:
    try:
        return int((_PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _open_files() -> int | None:
    try:
        return sum(1 for _ in _DESCRIPTORS.iterdir()) - 1  # exclude the descriptor of this iteration
    except OSError:
        return None


class ProcessMetrics:
    """Update the metrics of the process and of the event loop's lag."""

    def __init__(self, metrics: Metrics) -> None:
        worker = metrics.worker
        self._resident = metrics.resident.labels(worker)
        self._open_files = metrics.open_files.labels(worker)
        self._max_files = metrics.max_files.labels(worker)
        self._cpu_seconds = metrics.cpu_seconds.labels(worker)
        self._tasks = metrics.loop_tasks.labels(worker)
        self._lag = metrics.loop_lag
        self._counted_cpu_s = 0.0
        metrics.started.labels(worker).set(time.time())

    async def run(self, interval_s: float = 5.0) -> None:
        """Update the metrics periodically until canceled."""
        while True:
            self.update(await asyncio.to_thread(read_process))
            # Call this on the event loop: elsewhere the set of tasks may change during iteration.
            self._tasks.set(len(asyncio.all_tasks()))
            await asyncio.sleep(interval_s)

    def update(self, snapshot: ProcessSnapshot) -> None:
        """Set the metrics. CPU time is a counter that continues over restarts of a worker."""
        if snapshot.resident_bytes is not None:
            self._resident.set(snapshot.resident_bytes)
        if snapshot.open_files is not None:
            self._open_files.set(snapshot.open_files)
        self._max_files.set(snapshot.max_files)
        self._cpu_seconds.inc(max(0.0, snapshot.cpu_s - self._counted_cpu_s))
        self._counted_cpu_s = snapshot.cpu_s

    async def watch_loop(self, tick_s: float = 0.25) -> None:
        """Measure periodically how late a timer fires, until canceled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + tick_s
            await asyncio.sleep(tick_s)
            self._lag.observe(max(0.0, loop.time() - due))
