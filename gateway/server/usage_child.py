"""The usage worker of `gkt-gateway serve`: one child process per host, restarted when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from gateway.config.settings import environment
from gateway.runtime.child_processes import ProcessNotStarted, RestartPause, running_module
from gateway.runtime.tasks import BackgroundTasks
from gateway.server.stopping import USAGE_FINISH_S
from gateway.telemetry.metric_files import MULTIPROCESS_FOLDER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

log = structlog.get_logger()

_MODULE = "gateway.server.usage_worker"
_STOP_LIMIT_S = USAGE_FINISH_S + 5.0


@asynccontextmanager
async def usage_child(config: Path, redis_url: str | None) -> AsyncIterator[None]:
    """Run a usage worker until the context ends. Then it writes waiting receipts, and ends.

    `redis_url` is the URL of the embedded Redis; None: the configuration has the URL.
    """
    stop = asyncio.Event()
    environ = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    if redis_url is not None:
        environ["GKT_REDIS_URL"] = redis_url
    environ.pop(MULTIPROCESS_FOLDER, None)
    running = BackgroundTasks().spawn("usage_worker", _keep(config, environ, stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait([running])


async def _keep(config: Path, environ: Mapping[str, str], stop: asyncio.Event) -> None:
    restart = RestartPause()
    while not stop.is_set():
        exit_code = None
        try:
            options = {"env": environ, "stdout": asyncio.subprocess.DEVNULL}
            async with running_module(_MODULE, (str(config),), stop, _STOP_LIMIT_S, **options) as process:
                exit_code = await process.wait()
        except ProcessNotStarted as error:
            log.error("usage_worker_not_started", error=str(error))
        if stop.is_set():
            if exit_code not in {0, -signal.SIGTERM}:  # SIGTERM itself ends a process that is still starting
                log.warning("usage_worker_unfinished", exit_code=exit_code)
            return
        pause_s = restart.after_end()
        log.error("usage_worker_ended", exit_code=exit_code, restart_in_s=pause_s)
        await restart.wait(pause_s, stop)
