"""Child processes: failure, stop, restart, and exit with the parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

import aiohttp
import pytest

from gateway.local import ChildFailed, WeightsUnavailable, stack
from gateway.local.child import find_ready_url, ready_line
from gateway.local.stack import Child, ChildCommand, LocalStack, thread_shares, usable_cores
from gateway.local.weights import fetch

MODEL = "smollm2-135m-instruct"

PARENT = f"""
import asyncio, sys
from redis.asyncio import Redis
from gateway.local.redis import EmbeddedRedis
from gateway.local.stack import LocalStack

async def main():
    async with EmbeddedRedis() as redis, LocalStack(student={MODEL!r}, parallel=1, slot_tokens=256) as stack:
        async with Redis.from_url(redis.url) as client:
            info = await client.info("server")
        print(stack.student.pid, info["process_id"], flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def command(role: str, model: Path, port: int = 0) -> ChildCommand:
    return ChildCommand(role=role, model=model, name="small", threads=1, parallel=1, slot_tokens=256, port=port)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def kill_a_parent() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    assert parent.stdout is not None
    pids = [int(word) for word in (await parent.stdout.readline()).split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(10):
        while True:
            if not any(alive(pid) for pid in pids):
                break
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("cores", "engines", "threads"), [(2, 2, 1), (2, 1, 2), (8, 2, 4), (1, 2, 1), (3, 2, 1), (4, 0, 4)]
)
def test_engines_never_have_more_threads_than_there_are_cores(cores: int, engines: int, threads: int):
    assert thread_shares(cores, engines) == threads


def test_usable_cores_are_at_least_one():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_all_cores_are_usable_where_the_system_has_no_cpu_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(stack, "_CPU_QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6


def test_the_ready_line_is_found_among_other_output():
    log = f"a warning\n{ready_line('http://127.0.0.1:8080')}more\n"
    assert find_ready_url(log) == "http://127.0.0.1:8080"
    assert find_ready_url("a warning\n") is None


async def test_a_model_that_cannot_be_loaded_fails_with_the_log(tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    # llama.cpp writes its log in pieces, and one may precede the ready line without a line end.
    with pytest.raises(
        ChildFailed, match=r"ended with status 1; .*student\.log ends:\n(.*\n)*.*llama\.cpp could not serve"
    ):
        async with LocalStack(student=broken, log_folder=tmp_path):
            pass


async def test_an_unknown_model_is_an_error_before_anything_starts():
    with pytest.raises(WeightsUnavailable, match="unknown model nobody"):
        async with LocalStack(student="nobody"):
            pass


async def test_a_late_child_is_stopped_and_reported(tmp_path: Path):
    engine = Child(command("student", tmp_path / "any.gguf"), tmp_path / "log", ready_limit_s=0.01)
    with pytest.raises(ChildFailed, match=r"the embedded student was not ready after 0\.01 s; .*log ends:"):
        await engine.start()
    assert engine.pid is None


@pytest.mark.long
@pytest.mark.models
async def test_a_child_restarts_at_the_same_address(tmp_path: Path):
    engine = Child(command("teacher", await asyncio.to_thread(fetch, MODEL)), tmp_path / "log")
    await engine.start()
    try:
        url, first = engine.url, engine.pid
        await engine.stop()
        assert engine.pid is None
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientConnectionError):
                await session.get(f"{url}/health")
            await engine.start()
            assert (engine.url, engine.pid != first) == (url, True)
            async with session.get(f"{url}/health") as reply:
                assert reply.status == 200
    finally:
        await engine.stop()


@pytest.mark.long
@pytest.mark.models
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_exits_cleanly_on_a_signal_during_a_request(number: signal.Signals):
    small = command("student", await asyncio.to_thread(fetch, MODEL))._replace(slot_tokens=2048)
    arguments = [part for part in small.arguments if part != "--parent-watch"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    url = find_ready_url((await process.stdout.readline()).decode())
    messages = [{"role": "user", "content": "Write a long story."}]
    body = {"messages": messages, "max_tokens": 1500, "stream": True}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=body) as reply:
        await reply.content.readline()
        process.send_signal(number)
        async with asyncio.timeout(4):
            assert await process.wait() == 0
    assert await process.stdout.read() == b""


@pytest.mark.models
async def test_a_port_in_use_is_reported(stack: LocalStack, tmp_path: Path):
    port = int(stack.student.url.rsplit(":", 1)[1])
    engine = Child(command("student", await asyncio.to_thread(fetch, MODEL), port), tmp_path / "log")
    with pytest.raises(ChildFailed, match="ended with status 1"):
        await engine.start()


@pytest.mark.long
@pytest.mark.models
async def test_children_die_with_a_parent_that_is_killed(monkeypatch: pytest.MonkeyPatch):
    # A killed parent leaves its folders. The path of pytest's folder is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="gkt-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        await kill_a_parent()
