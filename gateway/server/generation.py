"""The processes of one edition of config.yaml: its workers, and the usage worker of the host."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.config.settings import environment
from gateway.errors import StartupError
from gateway.runtime.child_processes import ProcessNotStarted, RestartPause, running_module
from gateway.runtime.tasks import BackgroundTasks
from gateway.server import ListeningSockets, SupervisorMessage, WorkerOptions, WorkerStarted, ports
from gateway.server.stopping import USAGE_FINISH_S
from gateway.telemetry.metric_files import MULTIPROCESS_FOLDER, remove_gauges

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.edits import EditResult
    from gateway.config.settings import Settings
    from gateway.server import GatewayAddresses
    from gateway.server.ports import SharedPort

log = structlog.get_logger()

_WORKER = "gateway.server.worker"
_USAGE_WORKER = "gateway.server.usage_worker"
_DRAIN_MARGIN_S = 10.0
_USAGE_STOP_LIMIT_S = USAGE_FINISH_S + 5.0
_MESSAGE_LIMIT_BYTES = 2**20
_STOPPED = {0, -signal.SIGTERM}  # exit codes of a stopped worker. SIGTERM itself ends a worker that is still starting


class WorkerNumbers:
    """The numbers of the running workers of all editions: each worker has the smallest number that is free.

    Files of metrics are named by these numbers, so their number is bounded, and counters continue.
    """

    def __init__(self) -> None:
        self._used: set[int] = set()

    def take(self) -> int:
        """Return a free number, and use it until `release`."""
        number = next(number for number in range(1, len(self._used) + 2) if number not in self._used)
        self._used.add(number)
        return number

    def release(self, number: int) -> None:
        """End the use of a number."""
        self._used.discard(number)


@dataclass(frozen=True, slots=True)
class HostParts:
    """The parts that the generations of one supervisor share.

    Attributes:
        metrics: the folder of the workers' metrics.
        redis_url: the URL of the embedded Redis; None: the configuration has the URL.
    """

    config: Path
    metrics: str
    redis_url: str | None
    numbers: WorkerNumbers = field(default_factory=WorkerNumbers)


class Generation:
    """The workers of one edition of config.yaml, and its usage worker.

    A worker that ends is restarted, until `retire` or `stop`.

    Attributes:
        public: the port for callers.
        admin: the port for operators.
        edit: the result of the last edit of config.yaml, for `/readyz` and metrics of the workers.
        is_replaced: whether workers of another edition, which have the same sockets, are starting.
        addresses: the addresses of a worker, after `start`.
    """

    addresses: GatewayAddresses

    @property
    def outbox(self) -> tuple[str, str]:
        """Return what identifies the outbox from which the usage worker reads receipts."""
        redis = self._settings.redis
        return redis.url.get_secret_value(), redis.prefix

    def __init__(
        self,
        settings: Settings,
        host: HostParts,
        shared_ports: tuple[SharedPort, SharedPort],
        workers: int,
        *,
        replaces: bool,
    ) -> None:
        self.public, self.admin = shared_ports
        self.workers = workers
        self.edit: EditResult | None = None
        self.is_replaced = False
        self._settings, self._host, self._replaces = settings, host, replaces
        self._stop_limit_s = settings.server.drain_timeout_s + _DRAIN_MARGIN_S
        self._tasks = BackgroundTasks()
        self._keeping: list[asyncio.Task[None]] = []
        self._usage: asyncio.Task[None] | None = None
        self._starting: set[asyncio.subprocess.Process] = set()
        self._serving: set[asyncio.subprocess.Process] = set()
        self._all_ready, self._failed = asyncio.Event(), asyncio.Event()
        self._ending, self._stopping, self._usage_stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._failure, self._drained = "", True

    async def start(self, limit_s: float | None = None) -> None:
        """Start the workers, and return when all of them listen. Raises StartupError if one does not within `limit_s`.

        Then call `stop`.
        """
        self._keeping = [self._tasks.spawn(f"worker:{slot}", self._keep(slot)) for slot in range(1, self.workers + 1)]
        ready, failed = (self._tasks.spawn("start", event.wait()) for event in (self._all_ready, self._failed))
        await asyncio.wait((ready, failed), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        failed.cancel()
        if self._failed.is_set():
            raise StartupError(self._failure)
        if not self._all_ready.is_set():
            raise StartupError(f"The workers were not ready within {limit_s:g} s: see their output.")
        if self._settings.usage.run == "host":
            self._usage = self._tasks.spawn("usage_worker", self._keep_usage_worker())

    def report(self, edit: EditResult) -> None:
        """Tell the workers the result of an edit of config.yaml."""
        self.edit = edit
        self._send_all(SupervisorMessage(edit=edit))

    def reload_policies(self) -> None:
        """Let the workers read their policies at once. A starting worker reads them anyway."""
        for process in self._serving:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)

    def retire(self) -> None:
        """Let each worker end with its last request, one that is starting at once. Others accept new connections."""
        self._ending.set()
        self._send_all(SupervisorMessage(retire=True))
        for process in self._starting:
            with suppress(ProcessLookupError):
                process.terminate()

    def stop_usage_worker(self) -> None:
        """Let the usage worker end before the workers. Another one writes their last receipts."""
        self._usage_stopping.set()

    def stop(self) -> None:
        """Drain the workers, within `server.drain_timeout`."""
        self._ending.set()
        self._stopping.set()

    async def ended(self) -> bool:
        """Wait until all workers have ended, and then the usage worker. Return whether all ended regularly in time."""
        if self._keeping:
            await asyncio.wait(self._keeping)
        # It writes the last receipts of the workers.
        self._usage_stopping.set()
        if self._usage is not None:
            await asyncio.wait([self._usage])
        return self._drained

    async def _keep(self, slot: int) -> None:
        """Run the worker of a slot, again after each end."""
        restart = RestartPause()
        while not self._ending.is_set():
            number = self._host.numbers.take()
            try:
                exit_code, error = await self._run_worker(number, slot)
            finally:
                self._host.numbers.release(number)
                remove_gauges(self._host.metrics, number)
            if self._ending.is_set():
                if exit_code not in _STOPPED and not self._failed.is_set():
                    self._drained = False
                    log.error("worker_not_drained", worker=number, exit_code=exit_code)
                return
            if not self._all_ready.is_set():
                reason = f"worker {number} ended during its start with exit code {exit_code}: see its output"
                self._failure = error or reason
                self._failed.set()
                return
            if not self.is_replaced:
                self._renew_sockets(slot)
            pause_s = restart.after_end()
            log.error("worker_ended", worker=number, exit_code=exit_code, error=error, restart_in_s=pause_s)
            await restart.wait(pause_s, self._ending)

    def _renew_sockets(self, slot: int) -> None:
        try:
            self.public.renew(slot)
            self.admin.renew(slot)
        except StartupError as error:
            # The restarted worker gets the former sockets. Connections to them wait until then.
            log.warning("sockets_not_renewed", error=error.message)

    async def _run_worker(self, number: int, slot: int) -> tuple[int | None, str | None]:
        """Run one worker. Return its exit code, which is negative for a signal, and the error of its start."""
        replaces = self._replaces and not self._all_ready.is_set()
        shared = replaces or not ports.DISTRIBUTES_CONNECTIONS
        try:
            sockets = ListeningSockets(self.public.descriptors(slot), self.admin.descriptors(slot), shared)
        except StartupError as error:
            return None, error.message
        settings = WorkerOptions(number, sockets, self._host.redis_url, replaces)
        arguments = (str(self._host.config), msgspec.json.encode(settings).decode())
        options = {
            "env": {**child_environment(), MULTIPROCESS_FOLDER: self._host.metrics},
            "stdout": asyncio.subprocess.PIPE,
            "limit": _MESSAGE_LIMIT_BYTES,
            "pass_fds": (*sockets.public, *sockets.admin),
        }
        try:
            async with running_module(_WORKER, arguments, self._stopping, self._stop_limit_s, **options) as process:
                self._starting.add(process)
                if self._ending.is_set():
                    process.terminate()
                try:
                    started = await _read_started(process)
                    if started.addresses is not None:
                        self._on_ready(number, process, started.addresses)
                    return await process.wait(), started.error
                finally:
                    self._starting.discard(process)
                    self._serving.discard(process)
        except ProcessNotStarted as error:
            return None, f"cannot start a process: {error}"

    def _on_ready(self, number: int, process: asyncio.subprocess.Process, addresses: GatewayAddresses) -> None:
        log.info("worker_ready", worker=number, pid=process.pid, process=addresses.process)
        self._starting.discard(process)
        self._serving.add(process)
        self.addresses = addresses
        if len(self._serving) == self.workers:
            self._all_ready.set()
        if self.edit is not None:
            _send(process, SupervisorMessage(edit=self.edit))
        if self._ending.is_set():
            _send(process, SupervisorMessage(retire=True))

    def _send_all(self, message: SupervisorMessage) -> None:
        for process in self._serving:
            _send(process, message)

    async def _keep_usage_worker(self) -> None:
        """Run a usage worker until the workers have ended. Then it writes waiting receipts, and ends."""
        restart = RestartPause()
        environ = child_environment()
        if self._host.redis_url is not None:
            environ["GKT_REDIS_URL"] = self._host.redis_url
        options = {"env": environ, "stdout": asyncio.subprocess.DEVNULL}
        arguments, stop = (str(self._host.config),), self._usage_stopping
        while not stop.is_set():
            exit_code = None
            try:
                async with running_module(_USAGE_WORKER, arguments, stop, _USAGE_STOP_LIMIT_S, **options) as process:
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


def child_environment() -> dict[str, str]:
    """Return the environment of a child, which imports the modules of this process from any working directory."""
    return {**environment(), "PYTHONPATH": os.pathsep.join(sys.path)}


async def _read_started(process: asyncio.subprocess.Process) -> WorkerStarted:
    """Return the worker's start message; an empty one if it ended without a message."""
    assert process.stdout is not None
    try:
        return msgspec.json.decode(await process.stdout.readline(), type=WorkerStarted)
    except ValueError:  # no JSON, or no end of line
        return WorkerStarted()


def _send(process: asyncio.subprocess.Process, message: SupervisorMessage) -> None:
    assert process.stdin is not None
    with suppress(ConnectionError, RuntimeError):  # the worker has ended
        process.stdin.write(msgspec.json.encode(message) + b"\n")
