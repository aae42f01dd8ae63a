"""load_tests/hostile.py: the requests of the floods, and the counts of the table. The tests check no figures."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from aiohttp import web

from load_tests import hostile
from load_tests.floods.client import FloodCallers
from load_tests.floods.kinds import FLOODS, TOGETHER, Flood, named
from load_tests.hostile import HostileCase, HostileReply, Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:9/v1/chat/completions"
_MAX_BODY = 8_000_000


class Messages(msgspec.Struct):
    """The decoded part of a body. json would take seconds for hostile bodies."""

    messages: list[dict[str, str]]


def one(name: str) -> Flood:
    (flood,) = named(name)
    return flood


def parts(flood: Flood) -> tuple[dict[str, str], bytes]:
    head, _, body = flood.request(URL).partition(b"\r\n\r\n")
    fields = (line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return {name.lower(): value for name, value in fields}, body


@pytest.mark.long
@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.name)
def test_a_flood_sends_json_within_the_default_bound(flood: Flood) -> None:
    """An unfinished body has half of its bytes."""
    headers, sent = parts(flood)
    whole = sent if flood.manner != "unfinished" else sent + flood.body()[len(sent) :]
    assert int(headers["content-length"]) == len(whole)
    assert (len(sent) < len(whole)) == (flood.manner == "unfinished")
    body = gzip.decompress(whole) if flood.gzipped else whole
    assert len(body) <= _MAX_BODY
    assert msgspec.json.decode(body, type=Messages).messages
    assert flood.gzipped == (headers.get("content-encoding") == "gzip")


def test_the_acceptance_runs_every_flood_but_the_hostile_bodies_at_once() -> None:
    together = {flood.name for flood in named(TOGETHER)}
    assert together == {"JSON", "SSE", "unread streams", "unfinished bodies", "gzip", "rejected"}


@asynccontextmanager
async def engine(*, chunked: bool) -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        if not chunked:
            return web.Response(body=b"{}", headers={"x-ends-in": "0"})
        response = web.StreamResponse(headers={"x-ends-in": "0"})
        await response.prepare(request)
        for _ in range(3):
            await response.write(b"data: {}\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/chat/completions"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_caller_reads_each_reply_and_sends_the_next_request(*, chunked: bool) -> None:
    """Every reply counts once, by its status."""
    async with engine(chunked=chunked) as url:
        crowd = FloodCallers(replace(one("SSE" if chunked else "JSON"), callers=2), url)
        await crowd.run()
        async with asyncio.timeout(10):
            while crowd.seen["200"] < 10:
                await asyncio.sleep(0.01)
        crowd.end()
        await asyncio.sleep(0)
    assert set(crowd.seen) == {"opened", "200"}


def test_a_phase_counts_requests_that_started_in_it() -> None:
    """Latencies include only successful replies. All others are errors."""
    answers = [HostileReply(number, 0.001 * number, 200) for number in range(1, 101)] + [HostileReply(50, 9.0, 503)]
    seen = hostile.phase_between(answers, 1, 101)
    assert (seen.count, seen.errors) == (101, 1)
    assert (seen.p50_ms, seen.p99_ms) == (pytest.approx(50.5), pytest.approx(99))
    assert hostile.phase_between(answers, 200, 300) == Phase(0, math.inf, math.inf, 0)


def case(system: str, during: Phase) -> HostileCase:
    quiet = Phase(100, 2.0, 4.0, 0)
    return HostileCase("JSON", system, quiet, during, quiet, 100.0, {})


@pytest.mark.parametrize(
    ("during", "failing"),
    [
        (Phase(100, 5.0, 15.0, 0), 0),
        (Phase(100, 5.0, 15.0, 1), 1),
        (Phase(100, 9.0, 15.0, 0), 1),
        (Phase(100, 60.0, 120.0, 0), 4),
        (Phase(0, math.inf, math.inf, 0), 4),
    ],
)
def test_the_verdict_is_of_errors_and_of_both_latencies(during: Phase, failing: int) -> None:
    """The limits are relative to the victim's figures before the flood, and to those of bare's victim."""
    verdicts = hostile.judge([case("gateway", during), case("bare", Phase(100, 100.0, 200.0, 0))])
    assert sum(not holds for _, holds in verdicts) == failing


@pytest.mark.long
def test_a_run_prints_the_table(tmp_path: Path) -> None:
    """With both systems, in one run."""
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():
        pytest.skip("nginx is not installed")
    record = tmp_path / "hostile.json"
    command = [sys.executable, "load_tests/hostile.py", "--quick", "--only", "rejected", "--json", str(record)]
    run = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr
    assert "| rejected | gateway |" in run.stdout
    cases = json.loads(record.read_text())["cases"]
    assert [one["system"] for one in cases] == ["gateway", "bare"]
    assert cases[0]["seen"]["401"] > 0
    assert all(one["before"]["count"] > 0 for one in cases)
