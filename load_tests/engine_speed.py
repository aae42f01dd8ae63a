"""Measure the speed of the fake engine and the accuracy of its times.

    python -m load_tests.engine_speed --help

Calls and events per second come from wrk with one thread, which must be installed. Three servers are measured:

- an aiohttp handler that reads its request and returns canned bytes,
- the fake engine without latency,
- the fake engine with very short passes, which shows the cost of its batching and of one write for each event.

The times come from this process. It reads concurrent streams and measures the interval between their tokens while all
of them are in the batch.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import re
import shutil
import statistics
import subprocess
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import aiohttp
import orjson
import typer
import uvloop
from aiohttp import web
from rich.console import Console
from rich.table import Table

from load_tests.engine_process import fake_engine
from load_tests.fake.profile import TIMINGS, read_profile
from load_tests.fake.replies import Form, Text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

TOKENS = 128
CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Why is the sky blue? " * 20}], "max_tokens": TOKENS}
START_WITHIN_S = 20.0
# Passes of 10 microseconds: the engine never sleeps, and always runs its scheduler.
HASTY = """\
model: fake-hasty
dialect: openai
prefill: {}
decode: {fixed: 0.01ms}
"""


def serve_canned(port_to: Connection) -> None:
    """Serve the aiohttp handler for the comparison until the parent ends."""

    # wrk disconnects during an answer, for which aiohttp would log a traceback.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

    async def run() -> None:
        form, text = Form("canned", chat=True, tgi=False), Text(0, "prose", 0, TOKENS, "length")
        whole, events = form.whole((text,), 100), form.events(0, "prose")
        # The form's events contain chunk framing, which aiohttp adds here.
        bare = [framed.split(b"\r\n", 1)[1][:-2] for framed in events]

        async def answer(request: web.Request) -> web.StreamResponse:
            body = orjson.loads(await request.read())
            if not body.get("stream"):
                return web.Response(body=whole, content_type="application/json")
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for number in range(TOKENS):
                await response.write(bare[number % len(bare)])
            await response.write_eof()
            return response

        app = web.Application()
        app.router.add_post(CHAT, answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port_to.send(runner.addresses[0][1])
        await asyncio.get_running_loop().run_in_executor(None, port_to.poll, None)  # readable when closed

    uvloop.run(run())


@contextmanager
def canned() -> Iterator[str]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve_canned, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_WITHIN_S):
            raise typer.BadParameter(f"aiohttp's server did not start within {START_WITHIN_S:g} s")
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        ours.close()
        process.join(5)
        process.kill()


def calls_per_s(url: str, *, stream: bool, connections: int, seconds: int, folder: Path) -> float:
    """Return calls per second, measured by wrk. Every status must be 200."""
    script = folder / "post.lua"
    body = orjson.dumps({**BODY, "stream": stream}).decode()
    script.write_text(f"wrk.method = 'POST'\nwrk.body = [==[{body}]==]\n")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url + CHAT]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    rate = re.search(r"Requests/sec: +([0-9.]+)", output)
    if rate is None or "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"wrk says:\n{output}")
    return float(rate[1])


async def pace(url: str, streams: int, tokens: int) -> list[float]:
    """Return the seconds between two tokens of a stream while all streams are active."""
    arrived: list[list[float]] = [[] for _ in range(streams)]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": tokens, "stream": True}

    async def read(times: list[float]) -> None:
        async with session.post(url + CHAT, data=orjson.dumps(body)) as reply:
            async for part in reply.content.iter_any():
                tokens_in_it = part.count(b'"content":"') - part.count(b'"content":""')
                times += [time.perf_counter()] * tokens_in_it

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for times in arrived:
            group.create_task(read(times))
    begin, end = max(times[0] for times in arrived), min(times[-1] for times in arrived)
    inside = [moment for moment in arrived[0] if begin <= moment <= end]
    return [later - earlier for earlier, later in pairwise(inside)]


def show_speed(connections: int, seconds: int) -> None:
    table = Table("server", "JSON calls/s", "streamed calls/s", f"events/s ({TOKENS} a call)")
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hasty.yaml").write_text(HASTY)
        servers = {
            "aiohttp, canned bytes": canned(),
            "fake engine, instant": fake_engine("instant"),
            "fake engine, batching": fake_engine(folder / "hasty.yaml"),
        }
        for server, running in servers.items():
            with running as url:
                whole, streamed = (
                    calls_per_s(url, stream=stream, connections=connections, seconds=seconds, folder=folder)
                    for stream in (False, True)
                )
            table.add_row(server, f"{whole:.0f}", f"{streamed:.0f}", f"{streamed * TOKENS:.0f}")
    Console(width=100).print(table)


def show_pace(streams: int, tokens: int) -> None:
    table = Table(
        "profile", "steps", "step by the file, ms", "mean, ms", "p5, ms", "p95, ms", title=f"{streams} streams at once"
    )
    for name in ("teacher", "student"):
        decode = read_profile(TIMINGS / f"{name}.yaml").decode
        assert decode is not None
        with TemporaryDirectory() as folder, fake_engine(_steady(name, Path(folder))) as url:
            gaps = [gap * 1000 for gap in uvloop.run(pace(url, streams, tokens))]
        ranks = statistics.quantiles(gaps, n=20)
        row = (decode.step_s(streams) * 1000, statistics.fmean(gaps), ranks[0], ranks[-1])
        table.add_row(name, str(len(gaps)), *(f"{value:.2f}" for value in row))
    Console(width=100).print(table)


def _steady(name: str, folder: Path) -> Path:
    """Return a profile without jitter whose answers reach max_tokens, so that the batch stays full."""
    text = (TIMINGS / f"{name}.yaml").read_text()
    file = folder / f"{name}.yaml"
    file.write_text(re.sub(r"^(jitter|answer_tokens):.*\n", "", text, flags=re.MULTILINE))
    return file


def main(
    connections: Annotated[int, typer.Option(min=1, max=512, help="Connections of wrk.")] = 32,
    seconds: Annotated[int, typer.Option(min=1, max=60, help="Seconds of each of wrk's six runs.")] = 4,
    streams: Annotated[int, typer.Option(min=2, max=128, help="Streams whose token interval is measured.")] = 64,
    tokens: Annotated[int, typer.Option(min=50, max=2000, help="Tokens of each of these streams.")] = 200,
) -> None:
    """Measure the fake engine on the loopback interface, and print tables of its speed and of its accuracy."""
    if shutil.which("wrk") is None:
        raise typer.BadParameter("wrk is not installed")
    show_speed(connections, seconds)
    show_pace(streams, tokens)


if __name__ == "__main__":
    typer.run(main)
