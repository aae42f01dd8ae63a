"""Starts and stops the embedded engines as child processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Self

from gateway.local import ChildFailed, child, weights
from gateway.runtime.child_processes import end

READY_LIMIT_S = 60.0
STOP_LIMIT_S = child.EXIT_LIMIT_S + 2.0
_READY_POLL_S = 0.05
_LOG_TAIL_CHARS = 2000
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class ChildCommand(NamedTuple):
    """The command of one child. `role` names the engine in messages: `teacher` or `student`. Port 0: any free port."""

    role: str
    model: Path
    name: str
    threads: int
    parallel: int
    slot_tokens: int
    port: int = 0

    @property
    def arguments(self) -> list[str]:
        names = ("model", "name", "port", "threads", "parallel", "slot_tokens")
        pairs = [(f"--{name.replace('_', '-')}", str(getattr(self, name))) for name in names]
        return ["-m", "gateway.local.llama_server", *chain(*pairs), "--parent-watch"]


class Child:
    """A child process. `start` after `stop` uses the same port, so the URL does not change."""

    url: str  # `http://address:port`, after the first start; without `/v1`

    def __init__(self, command: ChildCommand, log_path: Path, *, ready_limit_s: float = READY_LIMIT_S) -> None:
        self.log_path = log_path
        self._command = command
        self._ready_limit_s = ready_limit_s
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id; None while the child does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises ChildFailed if it ended or was not ready in time."""
        before_chars = len(self._log())
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._command.arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal must not end the engines before the gateway has drained.
                start_new_session=True,
            )
        deadline = time.monotonic() + self._ready_limit_s
        while (url := child.find_ready_url(self._log()[before_chars:])) is None:
            if self._process.returncode is not None:
                raise ChildFailed(self._failure(f"ended with status {self._process.returncode}"))
            if time.monotonic() > deadline:
                await self.stop()
                raise ChildFailed(self._failure(f"was not ready after {self._ready_limit_s:g} s"))
            await asyncio.sleep(_READY_POLL_S)
        self.url = url
        self._command = self._command._replace(port=int(url.rsplit(":", 1)[1]))

    async def stop(self) -> None:
        """Terminate the process, wait, and kill it if it does not end. Do nothing if it is not running."""
        process, self._process = self._process, None
        await end(process, STOP_LIMIT_S)

    def _failure(self, what: str) -> str:
        return f"the embedded {self._command.role} {what}; {self.log_path} ends:\n{self._log()[-_LOG_TAIL_CHARS:]}"

    def _log(self) -> str:
        try:
            return self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""


class LocalStack:
    """An embedded teacher, a student, or both, as an async context manager.

    Each is a name in the catalogue or a `.gguf` file. Weights are fetched first, which may take minutes the first time.
    """

    def __init__(
        self,
        *,
        teacher: str | Path | None = None,
        student: str | Path | None = None,
        parallel: int = 4,  # requests that each engine decodes concurrently
        slot_tokens: int = 4096,  # the context of each request
        threads: int | None = None,  # of each engine; None: the cores are divided among the engines
        log_folder: Path | None = None,  # None: a temporary folder
    ) -> None:
        self._models = {role: model for role, model in (("teacher", teacher), ("student", student)) if model}
        self._parallel = parallel
        self._slot_tokens = slot_tokens
        self._threads = threads
        self._log_folder = log_folder
        self._children: dict[str, Child] = {}
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start all engines concurrently. Raises WeightsUnavailable and ChildFailed."""
        async with AsyncExitStack() as exits:
            folder = self._log_folder
            if folder is None:
                folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="gkt-local-"))
                exits.callback(shutil.rmtree, folder, ignore_errors=True)
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
            threads = self._threads or thread_shares(usable_cores(), len(self._models))
            for role, model in self._models.items():
                path = await asyncio.to_thread(weights.fetch, model)
                command = ChildCommand(
                    role=role,
                    model=path,
                    name=weights.model_name(model),
                    threads=threads,
                    parallel=self._parallel,
                    slot_tokens=self._slot_tokens,
                )
                engine = Child(command, folder / f"{role}.log")
                exits.push_async_callback(engine.stop)
                self._children[role] = engine
            await asyncio.gather(*(engine.start() for engine in self._children.values()))
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    @property
    def teacher(self) -> Child:
        """The teacher's process. Raises KeyError without a teacher."""
        return self._children["teacher"]

    @property
    def student(self) -> Child:
        """The student's process. Raises KeyError without a student."""
        return self._children["student"]


def usable_cores() -> int:
    """Return the number of cores that this process may use, from its CPU set and its container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no quota: no cgroup, or the value "max"
    return max(1, cores)


def thread_shares(cores: int, engines: int) -> int:
    """Return the number of threads for each of `engines` llama.cpp servers on `cores` cores.

    The sum does not exceed the number of cores. llama.cpp's threads wait for each other many times per token, by
    spinning, whatever `poll_percent` is. With more threads than cores the awaited thread may not be running, and
    decoding nearly stops. With two threads each, two busy engines on two cores wrote 0.6 tokens per second. With one
    thread each they wrote 10.2 (Qwen2.5-Coder 1.5B) and 12.7 (0.5B).
    """
    return max(1, cores // max(1, engines))
