"""Starts the workers, and again those that end; drains them all in the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.config.settings import environment
from gateway.errors import StartupError
from gateway.runtime.child_processes import end
from gateway.runtime.tasks import BackgroundTasks
from gateway.server import WorkerStarted
from gateway.server.ports import reserved_port
from gateway.telemetry.metric_files import MULTIPROCESS_FOLDER, remove_gauges
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gateway.config.settings import Settings
    from gateway.runtime.addresses import GatewayAddresses

log = structlog.get_logger()

_FIRST_PAUSE_S = 0.5
_LAST_PAUSE_S = 30.0
_STEADY_S = 60.0
"""A worker that lived as long as this is started again after the first pause."""
_DRAIN_MARGIN_S = 10.0
_WORD_LIMIT_BYTES = 2**20
_STOPPED = {0, -signal.SIGTERM}
"""How a worker ends that was told to. SIGTERM itself ends one that was still starting."""


@dataclass(frozen=True, slots=True)
class _End:
    """How a worker ended. `exit_code` is None when it could not even be started, negative for a signal."""

    exit_code: int | None
    error: str | None = None


class Supervisor:
    """Args:
    config: the file that every worker reads when it starts.
    count: how many workers.
    redis_url: the embedded Redis; None where the configuration names one.
    """

    def __init__(self, settings: Settings, config: Path, count: int, *, redis_url: str | None) -> None:
        self._settings = settings
        self._config = config
        self._count = count
        self._redis_url = redis_url
        self._stop_limit_s = settings.server.drain_timeout_s + _DRAIN_MARGIN_S
        self._tasks = BackgroundTasks()
        self._ready: set[int] = set()
        self._serving: set[asyncio.subprocess.Process] = set()
        self._failure: StartupError | None = None
        self._drained = True

    async def run(self, stop: asyncio.Event, reload: asyncio.Event) -> bool:
        """Keep the workers running until `stop` is set, then drain them: whether all ended in time and in order.

        Each time `reload` is set, they are told to read their policies.

        Raises StartupError when a port is taken, or a worker cannot start before any other has.
        """
        server, admin = self._settings.server, self._settings.admin
        with ExitStack() as stack:
            environ = {
                **environment(),
                # A worker finds the very modules that this process found, whatever folder this is.
                "PYTHONPATH": os.pathsep.join(sys.path),
                "GKT_HOST": server.host,
                "GKT_PORT": str(stack.enter_context(reserved_port(server.host, server.port, "server.port"))),
                "GKT_ADMIN_HOST": admin.host,
                "GKT_ADMIN_PORT": str(stack.enter_context(reserved_port(admin.host, admin.port, "admin.port"))),
                MULTIPROCESS_FOLDER: stack.enter_context(_shared_folder()),
            }
            if self._redis_url is not None:
                environ["GKT_REDIS_URL"] = self._redis_url
            telling = self._tasks.spawn("reload", self._pass_on(reload))
            stack.callback(telling.cancel)
            await asyncio.gather(*(self._keep(number, environ, stop) for number in range(1, self._count + 1)))
        if self._failure is not None:
            raise self._failure
        return self._drained

    async def _keep(self, number: int, environ: Mapping[str, str], stop: asyncio.Event) -> None:
        """Start worker `number`, again and again, until `stop`."""
        pause_s = _FIRST_PAUSE_S
        while not stop.is_set():
            began = time.monotonic()
            ended = await self._live(number, environ, stop)
            remove_gauges(environ[MULTIPROCESS_FOLDER], number)
            if stop.is_set():
                if self._failure is None and ended.exit_code not in _STOPPED:
                    self._drained = False
                    log.error("worker_not_drained", worker=number, exit_code=ended.exit_code)
                return
            if not self._ready:
                # It would be no better the next time, and whoever started us is still watching.
                why = f"worker {number} ended at its start, with exit code {ended.exit_code}: its output says why"
                self._failure = StartupError(ended.error or why)
                stop.set()
                return
            if time.monotonic() - began >= _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            log.error("worker_ended", worker=number, exit_code=ended.exit_code, error=ended.error, again_in_s=pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await stop.wait()
            pause_s = min(_LAST_PAUSE_S, pause_s * 2)

    async def _live(self, number: int, environ: Mapping[str, str], stop: asyncio.Event) -> _End:
        """One life of worker `number`."""
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "gateway.server.worker", str(self._config), str(number)),
                env=environ,
                # Held open, never written to: it ends with this process, and the worker watches for that.
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_WORD_LIMIT_BYTES,
                # A ctrl-C at the terminal reaches this process alone, which then tells the workers once.
                start_new_session=True,
            )
        except OSError as error:
            return _End(None, f"cannot start a process: {error.strerror}")
        stopping = self._tasks.spawn(f"stop:{number}", self._end_at(stop, process))
        try:
            word = await _first_word(process)
            if word.addresses is not None:
                self._serving.add(process)
                self._is_ready(number, process.pid, word.addresses)
            return _End(await process.wait(), word.error)
        finally:
            self._serving.discard(process)
            stopping.cancel()

    async def _pass_on(self, reload: asyncio.Event) -> None:
        while True:
            await reload.wait()
            reload.clear()
            for process in self._serving:  # one that still starts would end by it, and reads them anyway
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGHUP)

    def _is_ready(self, number: int, pid: int, addresses: GatewayAddresses) -> None:
        log.info("worker_ready", worker=number, pid=pid, process=addresses.process)
        if number in self._ready:
            return
        self._ready.add(number)
        if len(self._ready) == self._count:
            log.info(
                "listening",
                public=addresses.public,
                admin=addresses.admin,
                version=__version__,
                workers=self._count,
            )

    async def _end_at(self, stop: asyncio.Event, process: asyncio.subprocess.Process) -> None:
        await stop.wait()
        await end(process, self._stop_limit_s)


async def _first_word(process: asyncio.subprocess.Process) -> WorkerStarted:
    """What the worker says once it listens, or cannot. Empty when it ended without a word."""
    assert process.stdout is not None
    try:
        return msgspec.json.decode(await process.stdout.readline(), type=WorkerStarted)
    except ValueError:  # no JSON, or no end of line
        return WorkerStarted()


@contextmanager
def _shared_folder() -> Iterator[str]:
    """A fresh folder for the workers' metrics, gone in the end. Raises StartupError."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="gkt-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartupError(
            f"There is no folder for the metrics that workers share ({error.strerror}). Name one that can be written "
            "to in TMPDIR, or run one worker."
        ) from error
    with folder as path:
        yield path
