"""A `gkt-gateway` process that is forked from a server, which has imported the gateway: a second of CPU time less.

Its workers are forked from it, too.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from gateway.runtime import child_processes
from gateway.server import WorkerOptions

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.connection import Connection

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["gateway.app", "gateway.cli.serve", "gateway.server.worker", __name__])
_WORKER_NAME = "gkt-test-worker"
_OF_ALL_PROCESSES = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT}


class ForkedGateway:
    """The process, with the methods of subprocess.Popen that tests use.

    SIGKILL, SIGSTOP and SIGCONT reach its workers, too: all of the gateway dies, or stands still.
    """

    def __init__(self, arguments: list[str], environ: dict[str, str]) -> None:
        reader, writer = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=_run, args=(arguments, environ, Path.cwd(), writer), daemon=True)
        with reader, writer:
            self._process.start()
            self.stderr: IO[str] = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("gkt-gateway", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is not None:
            return
        workers = self._workers() if number in _OF_ALL_PROCESSES else []
        if number == signal.SIGKILL:
            os.kill(self.pid, signal.SIGSTOP)  # it must not restart a worker
        for pid in [*workers, self.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _workers(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == _WORKER_NAME]


def _run(arguments: list[str], environ: dict[str, str], folder: Path, stderr: Connection) -> None:
    """Run the command as a process of its own would."""
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["gkt-gateway", *arguments]
    start_module = child_processes.start_module

    async def start(module: str, arguments: Iterable[str], **options: Any) -> Any:
        if module != "gateway.server.worker":
            return await start_module(module, arguments, **options)
        return await _start_worker(*arguments, env=options["env"], keep=options["pass_fds"])

    child_processes.start_module = start
    from gateway.cli import main

    main()


class _ForkedWorker:
    """A worker, with the methods of asyncio.subprocess.Process that the supervisor uses."""

    def __init__(self, pid: int, stdin: int, stdout: asyncio.StreamReader) -> None:
        self.pid, self.stdin, self.stdout = pid, self, stdout
        self.returncode: int | None = None
        self._stdin, self._ended = stdin, asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._pidfd)
        os.close(self._stdin)
        self._ended.set()

    def write(self, data: bytes) -> None:
        if self.returncode is None:
            os.write(self._stdin, data)

    async def wait(self) -> int | None:
        await self._ended.wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def _start_worker(config: str, options: str, *, env: dict[str, str], keep: Iterable[int]) -> _ForkedWorker:
    stdin, to_worker = os.pipe()
    from_worker, stdout = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_worker(config, options, env, stdin, stdout, keep)
    os.close(stdin)
    os.close(stdout)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_worker, "rb", buffering=0)
    )
    return _ForkedWorker(pid, to_worker, reader)


def _become_worker(
    config: str, options: str, env: dict[str, str], stdin: int, stdout: int, keep: Iterable[int]
) -> None:
    """Run a worker as `python -m gateway.server.worker` would, and exit. Only the given descriptors stay open."""
    status = 1
    gc.freeze()  # the end of an object of the supervisor would close a descriptor of the worker with the same number
    try:
        Path("/proc/self/comm").write_text(_WORKER_NAME)
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        kept = [2, *sorted(keep)]
        for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
        os.environ.clear()
        os.environ.update(env)
        asyncio._set_running_loop(None)
        from gateway.server.worker import main

        status = main(Path(config), msgspec.json.decode(options, type=WorkerOptions))
    finally:
        sys.stderr.flush()
        os._exit(status)
