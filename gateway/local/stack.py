"""The embedded engines as child processes: started, waited for, watched, stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gateway.local import ChildFailed, child, weights
from gateway.runtime.child_processes import end

if TYPE_CHECKING:
    from types import TracebackType

READY_LIMIT_S = 60.0
STOP_LIMIT_S = child.EXIT_LIMIT_S + 2.0
_LOOK_EVERY_S = 0.05
_LOG_TAIL_CHARS = 2000
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """How one child is started. `role` is the module in this package: `teacher` or `student`. Port 0: any free one."""

    role: str
    model: Path
    name: str
    threads: int
    parallel: int
    slot_tokens: int
    port: int = 0
    extra: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The command line, without the interpreter."""
        flags = {
            "--model": self.model,
            "--name": self.name,
            "--port": self.port,
            "--threads": self.threads,
            "--parallel": self.parallel,
            "--slot-tokens": self.slot_tokens,
        }
        pairs = [str(part) for pair in flags.items() for part in pair]
        return ["-m", f"gateway.local.{self.role}", *pairs, "--leash", *self.extra]


class Child:
    """One child process. `start` after `stop` takes the same port again, so that its URL stays."""

    def __init__(self, command: ChildCommand, log_path: Path, *, ready_limit_s: float = READY_LIMIT_S) -> None:
        self.log_path = log_path
        self._command = command
        self._ready_limit_s = ready_limit_s
        self._process: asyncio.subprocess.Process | None = None
        self._url: str | None = None

    @property
    def url(self) -> str:
        """`http://address:port`, known from the first start on."""
        if self._url is None:
            raise RuntimeError(f"the {self._command.role} has not been started")
        return self._url

    @property
    def pid(self) -> int | None:
        """The process id while the child runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and running else None

    async def start(self) -> None:
        """Start the process and wait until it serves.

        Raises:
            ChildFailed: it ended, or was not ready in time. Its log's tail is in the message.
        """
        before_chars = len(self._log())
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._command.arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                # A ctrl-C at the terminal must not end the engines before the gateway has drained.
                start_new_session=True,
            )
        deadline = time.monotonic() + self._ready_limit_s
        while (url := child.find_ready_url(self._log()[before_chars:])) is None:
            if self._process.returncode is not None:
                raise ChildFailed(self._failure(f"ended with status {self._process.returncode}"))
            if time.monotonic() > deadline:
                await self.stop()
                raise ChildFailed(self._failure(f"was not ready after {self._ready_limit_s:g} s"))
            await asyncio.sleep(_LOOK_EVERY_S)
        self._url = url
        self._command = replace(self._command, port=int(url.rsplit(":", 1)[1]))

    async def stop(self) -> None:
        """Terminate, wait, and kill what did not end. Nothing happens when it is not running."""
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
    """An async context manager around a teacher, a student, or both.

    `teacher` and `student` are names in the catalogue or `.gguf` files; None leaves that one out. Weights are
    fetched first, which may take minutes the first time. Each engine decodes `parallel` requests at once, each with
    `slot_tokens` of context; the teacher answers 429 beyond `max_concurrent_requests`. Logs go to `log_folder`, or
    to a temporary one which is removed in the end.
    """

    def __init__(
        self,
        *,
        teacher: str | Path | None = None,
        student: str | Path | None = None,
        parallel: int = 4,
        slot_tokens: int = 4096,
        max_concurrent_requests: int = 128,
        threads: int | None = None,
        log_folder: Path | None = None,
        ready_limit_s: float = READY_LIMIT_S,
    ) -> None:
        self._models = {role: model for role, model in (("teacher", teacher), ("student", student)) if model}
        self._parallel = parallel
        self._slot_tokens = slot_tokens
        self._extra = {"teacher": ("--max-concurrent-requests", str(max_concurrent_requests))}
        self._threads = threads
        self._log_folder = log_folder
        self._ready_limit_s = ready_limit_s
        self._children: dict[str, Child] = {}
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start every engine, at the same time.

        Raises:
            WeightsUnavailable: a model's weights are not to be had.
            ChildFailed: an engine did not start.
        """
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
                    extra=self._extra.get(role, ()),
                )
                engine = Child(command, folder / f"{role}.log", ready_limit_s=self._ready_limit_s)
                exits.push_async_callback(engine.stop)
                self._children[role] = engine
            await asyncio.gather(*(engine.start() for engine in self._children.values()))
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    @property
    def teacher(self) -> Child:
        """The teacher's process. KeyError when there is none."""
        return self._children["teacher"]

    @property
    def student(self) -> Child:
        """The student's process. KeyError when there is none."""
        return self._children["student"]

    @property
    def teacher_url(self) -> str:
        """Where the teacher speaks TGI's protocol."""
        return self.teacher.url

    @property
    def student_url(self) -> str:
        """Where the student speaks OpenAI's: routes begin with `/v1`."""
        return self.student.url


def usable_cores() -> int:
    """Whole cores this process may use: its CPU set, and a container's quota where there is one. At least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no quota: another system, or the word "max"
    return max(1, cores)


def thread_shares(cores: int, engines: int) -> int:
    """Threads for each of `engines` llama.cpp servers on `cores` cores: whole cores, never more than there are.

    llama.cpp's threads wait for each other many times per token, spinning. Once there are more threads than cores, a
    thread that is waited for is not running, and decoding all but stops. Two engines on two cores, Qwen2.5-Coder
    1.5B and 0.5B, tokens per second of the larger and the smaller:

        threads each   alternating      both busy
        1              10.3 and 13.0    10.2 and 12.7
        2              17.0 and 22.4    0.6 and 0.6

    `poll_percent` 0 or 50 makes no difference to this: the waits inside a token spin regardless. So an engine gets its
    own cores, although it alone would be faster with all of them.
    """
    return max(1, cores // max(1, engines))
