"""The usage worker as users run it, in a separate process: it is killed, stopped, and its disk is full."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from ruamel.yaml import YAML

from gateway.cli.usage_worker import worker
from gateway.config.database_url import USAGE_FILE
from gateway.config.settings import worker_settings
from gateway.errors import ConfigError, StartupError
from gateway.usage.state import WorkerStateReader
from tests.postgres import running_postgres
from tests.usage.outboxes import Outboxes, open_outboxes, receipts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from gateway.usage.state import WorkerState


class Workers:
    """Processes over one Redis and one database."""

    def __init__(self, folder: Path, redis_url: str, outboxes: Outboxes, usage_url: str = "sqlite") -> None:
        self.outboxes = outboxes
        self.config = folder / "config.yaml"
        self.log = folder / "worker.log"
        config = {
            "redis": {"url": redis_url, "prefix": outboxes.keys.prefix},
            "usage": {"url": usage_url},
            "data": str(folder),
            "log": {"format": "json"},
            "models": [{"name": "big", "key": "env:NOBODY_SET_THIS"}],
        }
        YAML().dump(config, self.config)
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, *module: str, **more: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *(module or ("gateway", "usage", "worker", "--config", str(self.config)))]
        with self.log.open("ab") as file:
            self.running.append(subprocess.Popen(command, stderr=file, stdin=subprocess.DEVNULL, **more))
        return self.running[-1]

    async def state(self) -> WorkerState:
        board = WorkerStateReader(self.outboxes.redis, self.outboxes.keys.ledger(), self.outboxes.metrics, "")
        return await board.read()

    async def until(self, true: Callable[[], Any], limit_s: float = 60.0) -> None:
        deadline = asyncio.get_running_loop().time() + limit_s
        while not await true():
            assert asyncio.get_running_loop().time() < deadline, self.log.read_text()
            await asyncio.sleep(0.05)

    async def pids(self) -> set[int]:
        """Return the ids of processes that have logged their start."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return {line["pid"] for line in lines if line["event"] == "usage_worker"}

    async def is_up(self) -> bool:
        return (await self.state()).up is True

    async def drained(self) -> bool:
        return sum((await self.outboxes.lengths()).values()) == 0

    async def terminate(self, process: subprocess.Popen[bytes]) -> int:
        process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(process.wait, 20)

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest_asyncio.fixture
async def workers(redis_url: str, tmp_path: Path) -> AsyncIterator[Workers]:
    async with open_outboxes(redis_url, f"sqlite:///{tmp_path / USAGE_FILE}") as outboxes:
        processes = Workers(tmp_path, redis_url, outboxes)
        yield processes
        processes.close()


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_sigterm_writes_pending_receipts_and_exits_with_0(workers: Workers) -> None:
    process = workers.start()
    await workers.until(workers.is_up)
    settled = [*receipts(3_000), *receipts(3_000, "beta")]
    await workers.outboxes.settle(*settled)
    assert await workers.terminate(process) == 0
    await workers.outboxes.check(settled)
    assert await workers.drained()
    assert (await workers.state()).by is None


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", ["in_transaction", "before_acknowledgement"])
async def test_a_killed_worker_loses_and_doubles_nothing(workers: Workers, place: str) -> None:
    settled = receipts(500)
    await workers.outboxes.settle(*settled)
    process = workers.start("tests.usage.dying_worker", str(workers.config), place)
    assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL
    assert await workers.outboxes.pending() == 500
    assert len(await workers.outboxes.ids()) == (0 if place == "in_transaction" else 500)
    await workers.outboxes.settle(*(more := receipts(100)))
    second = workers.start("tests.usage.dying_worker", str(workers.config), "nowhere")
    await workers.until(workers.drained, 120)
    await workers.outboxes.check([*settled, *more])
    assert await workers.terminate(second) == 0


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_two_workers_killed_at_random_write_each_once(workers: Workers) -> None:
    settled = []
    processes = [workers.start(), workers.start()]
    await workers.until(workers.is_up)
    for turn in range(6):
        for _ in range(5):
            settled += (some := receipts(200))
            await workers.outboxes.settle(*some)
            await asyncio.sleep(0.05)
        processes[turn % 2].kill()
        processes[turn % 2].wait()
        processes[turn % 2] = workers.start()
        await asyncio.sleep(1.5)
    await workers.until(workers.drained, 150)
    await workers.outboxes.check(settled)

    async def both_run() -> bool:
        return {one.pid for one in processes} <= await workers.pids()

    await workers.until(both_run)
    assert [await workers.terminate(one) for one in processes] == [0, 0]


@pytest.mark.long
@pytest.mark.timeout(200)
async def test_a_full_disk_is_waited_for(workers: Workers) -> None:
    """A limit of the file size is set, and then removed. Receipts wait in Redis."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))

    process = workers.start(preexec_fn=limit)
    await workers.until(workers.is_up)
    settled = []

    async def full() -> bool:
        settled.extend(some := receipts(500))
        await workers.outboxes.settle(*some)
        await asyncio.sleep(0.3)
        return (await workers.state()).error is not None

    await workers.until(full)
    state = await workers.state()
    assert state.up is False
    assert state.error == "OperationalError"
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await workers.until(workers.drained)
    await workers.outboxes.check(settled)
    await workers.until(workers.is_up)
    assert await workers.terminate(process) == 0


@pytest.mark.long
@pytest.mark.timeout(200)
async def test_a_postgres_that_stops_for_a_while_is_waited_for(redis_url: str, tmp_path: Path) -> None:
    with running_postgres() as server:
        address = server.url.replace("postgresql:", "postgresql+psycopg:", 1)
        async with open_outboxes(redis_url, address) as outboxes:
            workers = Workers(tmp_path, redis_url, outboxes, server.url)
            try:
                process = workers.start()
                await workers.until(workers.is_up)
                settled = receipts(300)
                await outboxes.settle(*settled)
                await workers.until(workers.drained)
                await asyncio.to_thread(server.stop)
                settled += (more := receipts(300))
                await outboxes.settle(*more)

                async def is_down() -> bool:
                    return (await workers.state()).up is False

                await workers.until(is_down)
                settled += (more := receipts(300))
                await outboxes.settle(*more)
                await asyncio.to_thread(server.start)
                await workers.until(workers.drained)
                await outboxes.check(settled)
                assert await workers.terminate(process) == 0
            finally:
                workers.close()


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_a_worker_without_its_database_exits_with_0(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / USAGE_FILE).mkdir()
    process = workers.start()

    async def is_down() -> bool:
        return (await workers.state()).up is False and (await workers.state()).by is not None

    await workers.until(is_down)
    assert await workers.terminate(process) == 0


def test_only_the_sections_of_the_worker_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    YAML().dump({"models": [{"key": "env:NOBODY_SET_THIS"}], "usage": {"keep": "30d"}, "data": "here"}, file)
    settings = worker_settings(file, {"GKT_USAGE_URL": "postgresql://db/gkt"})
    assert (settings.usage.keep_s, settings.data) == (30 * 86_400, tmp_path / "here")
    assert settings.usage.url.get_secret_value() == "postgresql://db/gkt"
    YAML().dump({"usage": {"keep": "30", "kept": 1}, "redis": {"prefix": "a b"}}, file)
    with pytest.raises(ConfigError) as error:
        worker_settings(file, {})
    assert [one.field for one in error.value.issues] == ["usage.keep", "usage.kept", "redis.prefix"]


@pytest.mark.parametrize(("content", "message"), [({}, "redis.url is embedded"), (None, "There is no")])
def test_a_failed_start_states_the_reason(
    tmp_path: Path, content: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GKT_REDIS_URL", raising=False)
    monkeypatch.setattr("gateway.server.usage_worker.set_up_logs", lambda *_, **__: None)
    file = tmp_path / "config.yaml"
    if content is not None:
        YAML().dump(content, file)
    with pytest.raises(StartupError, match=message):
        worker(file)
