"""The usage worker of `gkt-gateway serve`: one child process per host, restarted when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from gateway.config.settings import environment
from gateway.runtime.child_processes import end
from gateway.runtime.tasks import BackgroundTasks
from gateway.server.stopping import USAGE_FINISH_S
from gateway.telemetry.metric_files import MULTIPROCESS_FOLDER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

log = structlog.get_logger()

_FIRST_PAUSE_S = 0.5
_LAST_PAUSE_S = 30.0
_STEADY_S = 60.0
"""A worker that ran for as long as this is restarted after the first pause."""
_STOP_LIMIT_S = USAGE_FINISH_S + 5.0


@asynccontextmanager
async def usage_child(config: Path, redis_url: str | None) -> AsyncIterator[None]:
    """Run a usage worker until the context ends. Then it writes waiting receipts, and ends.

    Args:
        config: path of config.yaml.
        redis_url: URL of the embedded Redis; None: the configuration has the URL.
    """
    stop, tasks = asyncio.Event(), BackgroundTasks()
    environ = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    if redis_url is not None:
        environ["GKT_REDIS_URL"] = redis_url
    environ.pop(MULTIPROCESS_FOLDER, None)
    running = tasks.spawn("usage_worker", _keep(tasks, config, environ, stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait([running])


async def _keep(tasks: BackgroundTasks, config: Path, environ: Mapping[str, str], stop: asyncio.Event) -> None:
    pause_s = _FIRST_PAUSE_S
    while not stop.is_set():
        began = time.monotonic()
        exit_code = await _run_once(tasks, config, environ, stop)
        if stop.is_set():
            if exit_code not in {0, -signal.SIGTERM}:  # SIGTERM itself ends a process that is still starting
                log.warning("usage_worker_unfinished", exit_code=exit_code)
            return
        if time.monotonic() - began >= _STEADY_S:
            pause_s = _FIRST_PAUSE_S
        log.error("usage_worker_ended", exit_code=exit_code, restart_in_s=pause_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await stop.wait()
        pause_s = min(_LAST_PAUSE_S, pause_s * 2)


async def _run_once(
    tasks: BackgroundTasks, config: Path, environ: Mapping[str, str], stop: asyncio.Event
) -> int | None:
    """Run one process until it ends, or end it on `stop`. Return its exit code; None if it could not be started."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "gateway.server.usage_worker", str(config)),
            env=environ,
            # Never written to. It closes when this process ends, and then the worker stops.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            # Ctrl-C at the terminal must not end the worker before the gateway has drained.
            start_new_session=True,
        )
    except OSError as error:
        log.error("usage_worker_not_started", error=error.strerror)
        return None
    stopping = tasks.spawn("usage_worker_stop", _end_at(stop, process))
    try:
        return await process.wait()
    finally:
        stopping.cancel()


async def _end_at(stop: asyncio.Event, process: asyncio.subprocess.Process) -> None:
    await stop.wait()
    await end(process, _STOP_LIMIT_S)
