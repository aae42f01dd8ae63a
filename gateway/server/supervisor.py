"""Run the child processes of `gkt-gateway serve`: start them, restart those that end, and stop them at shutdown.

The children are the workers, and one usage worker per host.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.config.settings import OVERRIDES, SUPERVISED_VARIABLE, environment
from gateway.errors import StartupError
from gateway.runtime.child_processes import ProcessNotStarted, RestartPause, running_module
from gateway.runtime.tasks import BackgroundTasks
from gateway.server import ListeningSockets, WorkerStarted
from gateway.server.ports import shared_port
from gateway.server.stopping import USAGE_FINISH_S
from gateway.telemetry.metric_files import MULTIPROCESS_FOLDER, remove_gauges
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from gateway.config.settings import Settings
    from gateway.server import GatewayAddresses
    from gateway.server.ports import HeldPort

log = structlog.get_logger()

_WORKER = "gateway.server.worker"
_USAGE_WORKER = "gateway.server.usage_worker"
_DRAIN_MARGIN_S = 10.0
_USAGE_STOP_LIMIT_S = USAGE_FINISH_S + 5.0
_MESSAGE_LIMIT_BYTES = 2**20
_STOPPED = {0, -signal.SIGTERM}  # exit codes of a stopped worker. SIGTERM itself ends a worker that is still starting


class Supervisor:
    """Run `count` workers, each of which reads `config` when it starts.

    `redis_url` is the URL of the embedded Redis; None: the configuration has the URL.
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
        self._sockets = ListeningSockets()

    async def run(self, stop: asyncio.Event, reload: asyncio.Event) -> bool:
        """Keep the workers running until `stop` is set. Then drain them. Return whether all ended regularly in time.

        Each time `reload` is set, send SIGHUP to the workers, so that they read their files again.

        Raises StartupError if a port is in use, or if a worker cannot start before any worker has started.
        """
        server, admin = self._settings.server, self._settings.admin
        with ExitStack() as stack:
            public = stack.enter_context(shared_port(server.host, server.port, "server.port"))
            operators = stack.enter_context(shared_port(admin.host, admin.port, "admin.port"))
            environ = {
                **_environment(self._redis_url),
                "GKT_HOST": server.host,
                "GKT_PORT": str(public.number),
                "GKT_ADMIN_HOST": admin.host,
                "GKT_ADMIN_PORT": str(operators.number),
                MULTIPROCESS_FOLDER: stack.enter_context(_shared_folder()),
            }
            environ[SUPERVISED_VARIABLE] = ",".join(OVERRIDES.keys() & environ.keys() - environment().keys())
            self._sockets = ListeningSockets(public.descriptors, operators.descriptors)
            forwarding = self._tasks.spawn("reload", self._forward_reload(reload))
            stack.callback(forwarding.cancel)
            closing = self._tasks.spawn("close_ports", _close_at(stop, public, operators))
            stack.callback(closing.cancel)
            await asyncio.gather(*(self._keep(number, environ, stop) for number in range(1, self._count + 1)))
        if self._failure is not None:
            raise self._failure
        return self._drained

    async def _keep(self, number: int, environ: Mapping[str, str], stop: asyncio.Event) -> None:
        restart = RestartPause()
        while not stop.is_set():
            exit_code, error = await self._run_once(number, environ, stop)
            remove_gauges(environ[MULTIPROCESS_FOLDER], number)
            if stop.is_set():
                if self._failure is None and exit_code not in _STOPPED:
                    self._drained = False
                    log.error("worker_not_drained", worker=number, exit_code=exit_code)
                return
            if not self._ready:
                # No worker has started yet: a retry would fail, too, so report the error to the operator.
                reason = f"worker {number} ended during its start with exit code {exit_code}: see its output"
                self._failure = StartupError(error or reason)
                stop.set()
                return
            pause_s = restart.after_end()
            log.error("worker_ended", worker=number, exit_code=exit_code, error=error, restart_in_s=pause_s)
            await restart.wait(pause_s, stop)

    async def _run_once(
        self, number: int, environ: Mapping[str, str], stop: asyncio.Event
    ) -> tuple[int | None, str | None]:
        """Run one worker. Return its exit code, which is negative for a signal, and the error of its start."""
        arguments = (str(self._config), str(number), msgspec.json.encode(self._sockets).decode())
        options = {
            "env": environ,
            "stdout": asyncio.subprocess.PIPE,
            "limit": _MESSAGE_LIMIT_BYTES,
            "pass_fds": (*self._sockets.public, *self._sockets.admin),
        }
        try:
            async with running_module(_WORKER, arguments, stop, self._stop_limit_s, **options) as process:
                try:
                    started = await _read_started(process)
                    if started.addresses is not None:
                        self._serving.add(process)
                        self._on_ready(number, process.pid, started.addresses)
                    return await process.wait(), started.error
                finally:
                    self._serving.discard(process)
        except ProcessNotStarted as error:
            return None, f"cannot start a process: {error}"

    async def _forward_reload(self, reload: asyncio.Event) -> None:
        while True:
            await reload.wait()
            reload.clear()
            for process in self._serving:  # SIGHUP would end a starting worker, which reads the files anyway
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGHUP)

    def _on_ready(self, number: int, pid: int, addresses: GatewayAddresses) -> None:
        log.info("worker_ready", worker=number, pid=pid, process=addresses.process)
        if number in self._ready:
            return
        self._ready.add(number)
        if len(self._ready) == self._count:
            urls = {"public": addresses.public, "admin": addresses.admin}
            log.info("listening", **urls, version=__version__, workers=self._count)


async def _close_at(stop: asyncio.Event, *ports: HeldPort) -> None:
    await stop.wait()
    for port in ports:
        port.close()


def _environment(redis_url: str | None) -> dict[str, str]:
    # A child imports the modules of this process, independent of the working directory.
    environ = {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    return environ if redis_url is None else {**environ, "GKT_REDIS_URL": redis_url}


async def _read_started(process: asyncio.subprocess.Process) -> WorkerStarted:
    """Return the worker's start message; an empty one if it ended without a message."""
    assert process.stdout is not None
    try:
        return msgspec.json.decode(await process.stdout.readline(), type=WorkerStarted)
    except ValueError:  # no JSON, or no end of line
        return WorkerStarted()


@contextmanager
def _shared_folder() -> Iterator[str]:
    """Yield a temporary folder for the workers' metrics. Raises StartupError."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="gkt-metrics-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartupError(
            f"The folder for shared metrics of workers cannot be created ({error.strerror}). Set TMPDIR to a writable "
            "folder, or run one worker."
        ) from error
    with folder as path:
        yield path


@asynccontextmanager
async def usage_child(config: Path, redis_url: str | None) -> AsyncIterator[None]:
    """Run a usage worker until the context ends. Then it writes waiting receipts, and ends.

    `redis_url` is the URL of the embedded Redis; None: the configuration has the URL.
    """
    stop = asyncio.Event()
    environ = _environment(redis_url)
    environ.pop(MULTIPROCESS_FOLDER, None)
    running = BackgroundTasks().spawn("usage_worker", _keep_usage_worker(config, environ, stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait([running])


async def _keep_usage_worker(config: Path, environ: Mapping[str, str], stop: asyncio.Event) -> None:
    restart = RestartPause()
    while not stop.is_set():
        exit_code = None
        try:
            options = {"env": environ, "stdout": asyncio.subprocess.DEVNULL}
            async with running_module(_USAGE_WORKER, (str(config),), stop, _USAGE_STOP_LIMIT_S, **options) as process:
                exit_code = await process.wait()
        except ProcessNotStarted as error:
            log.error("usage_worker_not_started", error=str(error))
        if stop.is_set():
            if exit_code not in _STOPPED:
                log.warning("usage_worker_unfinished", exit_code=exit_code)
            return
        pause_s = restart.after_end()
        log.error("usage_worker_ended", exit_code=exit_code, restart_in_s=pause_s)
        await restart.wait(pause_s, stop)
