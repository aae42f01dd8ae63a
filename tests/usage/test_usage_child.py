"""`gkt-gateway serve` runs one usage worker for each host, restarts it, and stops it after the drain."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from gateway.redis.keys import RedisKeys
from gateway.usage.state import WorkerState
from gateway.usage.store import UsageStore
from gateway.usage.sums import Retention
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, model

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "child"
BODY = {"model": "chat-student", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}


def a_gateway(folder: Path, redis_url: str, engine: str, workers: int) -> GatewayProcess:
    return GatewayProcess(
        folder,
        redis_url=redis_url,
        redis={"prefix": PREFIX},
        server={"workers": workers},
        usage={"run": "host"},
        data=str(folder / "data"),
        models=[model("small", "openai", f"{engine}/v1", continuation="trailing", echo=False)],
        routes=[STUDENT_ONLY | {"baseline": "small"}],
    )


def ask(process: GatewayProcess, client: httpx.Client) -> str:
    answer = client.post(f"{process.url}/v1/chat/completions", json=BODY)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-request-id"]


async def ids_in(folder: Path) -> list[str]:
    store = UsageStore(f"sqlite:///{folder / 'data' / 'usage.db'}", Retention(1e9, 1e9, 1e9))
    try:
        return sorted([msgspec.json.decode(raw)["id"] async for batch in store.receipts() for raw in batch])
    finally:
        await store.close()


async def states(redis: Redis) -> list[WorkerState]:
    keys = RedisKeys(PREFIX).ledger()
    found: list[Any] = await redis.mget([keys.worker(number) for number in range(1, 9)])
    return [msgspec.json.decode(raw, type=WorkerState) for raw in found if raw is not None]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
async def test_one_child_writes_the_receipts_of_all_workers_and_those_of_the_drain(
    tmp_path: Path, redis_url: str, workers: int
) -> None:
    async with Redis.from_url(redis_url) as redis:
        await _forget(redis)
        with FakeEngine(says("An answer.")).running() as engine:
            process = a_gateway(tmp_path, redis_url, engine.url, workers)
            try:
                await asyncio.to_thread(process.start)
                await asyncio.to_thread(process.wait_for_log, "usage_worker", 60)
                with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
                    request_ids = [ask(process, client) for _ in range(20)]
                assert len(await states(redis)) == 1
                assert await asyncio.to_thread(process.terminate) == 0
            finally:
                process.close()
        events = [line["event"] for line in process.log]
        assert events.count("usage_worker") == 1
        assert events[-1] == "usage_worker_stopped", "it ends after the drain"
        assert await ids_in(tmp_path) == sorted(request_ids)
        assert await states(redis) == []


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_child_that_dies_is_restarted_and_one_whose_gateway_dies_ends(tmp_path: Path, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await _forget(redis)
        with FakeEngine(says("An answer.")).running() as engine:
            process = a_gateway(tmp_path, redis_url, engine.url, 1)
            try:
                await asyncio.to_thread(process.start)
                first = await asyncio.to_thread(process.wait_for_log, "usage_worker", 60)
                os.kill(first["pid"], signal.SIGKILL)
                ended = await asyncio.to_thread(process.wait_for_log, "usage_worker_ended", 10)
                assert (ended["exit_code"], ended["restart_in_s"]) == (-signal.SIGKILL, 0.5)

                def second() -> dict[str, Any]:
                    return process.wait_for_log("usage_worker", 60, number=2)

                pid = (await asyncio.to_thread(second))["pid"]
                with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
                    request_ids = [ask(process, client) for _ in range(5)]
                process.process.kill()
                for _ in range(200):
                    if not await states(redis):
                        break
                    await asyncio.sleep(0.1)
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)
            finally:
                process.close()
        assert set(await ids_in(tmp_path)) <= set(request_ids)


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_an_embedded_redis_ends_after_the_child_has_read_it(tmp_path: Path) -> None:
    with FakeEngine(says("An answer.")).running() as engine:
        process = a_gateway(tmp_path, "embedded", engine.url, 1)
        try:
            await asyncio.to_thread(process.start)
            await asyncio.to_thread(process.wait_for_log, "usage_worker", 60)
            with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
                request_ids = [ask(process, client) for _ in range(10)]
            assert await asyncio.to_thread(process.terminate) == 0
        finally:
            process.close()
    assert await ids_in(tmp_path) == sorted(request_ids)


async def _forget(redis: Redis) -> None:
    if names := await redis.keys(f"*{PREFIX}:*"):
        await redis.delete(*names)
