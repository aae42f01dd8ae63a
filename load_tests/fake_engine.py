"""A fake model server for load tests: it has no model, only the time that one would take, and the protocol it speaks.

    python -m load_tests.fake_engine --help
    python -m load_tests.fake_engine --profile load_tests/timings/teacher.yaml

It batches continuously as text-generation-inference and vLLM do, so that what a caller sees depends on who else is
served: prompts queue, join the batch between two steps, and each step is as long as the batch is large
(fake/batching.py). The times stand in a file each under timings/, with where they come from. GET /stats says how full
the batches were and whether the modelled times were kept; POST /stats/reset begins anew.

It has to be faster than what is measured with it. Calls and events per second of the profile without latency, beside a
handler of aiohttp that answers canned bytes:

    python -m load_tests.engine_speed
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from load_tests.fake.engine import FakeEngine
from load_tests.fake.profile import Dialect, Profile, read_profile

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def main(
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 0,
    profile: Annotated[Path, typer.Option(help="A timing file.", exists=True, dir_okay=False)] = Path(
        "load_tests/timings/instant.yaml"
    ),
    dialect: Annotated[
        Dialect | None, typer.Option(help="Answer in this manner instead of the file's: tgi or openai.")
    ] = None,
    for_s: Annotated[float, typer.Option("--for", min=0.1, max=86_400, help="Seconds until it ends by itself.")] = 3600,
) -> None:
    """Serve a modelled engine on the loopback interface until SIGTERM or until its time is up.

    The first line that it prints is JSON with its `url`: what a gateway's config.yaml wants as `api_base` of a model
    with protocol tgi, and with /v1 behind it of one with protocol openai.

    The files under load_tests/timings are a large teacher, a small student, and an engine that takes no time; each says
    where its figures come from. To model another engine, copy one.
    """
    try:
        modelled = read_profile(profile)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if dialect is not None:
        modelled = modelled.model_copy(update={"dialect": dialect})
    try:
        uvloop.run(_serve(modelled, port, for_s))
    except OSError as error:
        raise SystemExit(f"127.0.0.1:{port}: {os.strerror(error.errno or 0)}") from None


async def _serve(profile: Profile, port: int, for_s: float) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.call_later(for_s, stop.set)
    async with FakeEngine(profile).serving(port) as url:
        print(json.dumps({"url": url, "model": profile.model}), flush=True)
        await stop.wait()


if __name__ == "__main__":
    app()
