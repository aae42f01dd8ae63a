"""A fake model server for load tests. It has a protocol and the latency of a model, but no model.

    python -m load_tests.fake_engine --help
    python -m load_tests.fake_engine --profile load_tests/timings/teacher.yaml

It batches continuously like text-generation-inference and vLLM, so the latency of a call depends on the other calls.
Prompts wait in a queue and join the batch between two steps. The duration of a step depends on the size of the batch
(fake/batching.py). Each file under timings/ has the times and their source. GET /stats returns batch sizes and the
accuracy of the modelled times. POST /stats/reset resets the counts.

It must be faster than the measured system.
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
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 selects a free one.")] = 0,
    profile: Annotated[Path, typer.Option(help="A timing file.", exists=True, dir_okay=False)] = Path(
        "load_tests/timings/instant.yaml"
    ),
    dialect: Annotated[Dialect | None, typer.Option(help="Override the dialect of the file: tgi or openai.")] = None,
    for_s: Annotated[float, typer.Option("--for", min=0.1, max=86_400, help="Time limit in seconds.")] = 3600,
) -> None:
    """Serve a modelled engine on the loopback interface until SIGTERM or the time limit.

    The first line of its output is JSON with its `url`. In a gateway's config.yaml, this URL is the `api_base` of a
    model with protocol tgi. For protocol openai, append /v1.

    The files under load_tests/timings model a large teacher, a small student, and an engine without latency. Each of
    them names the source of its figures. To model another engine, copy one.
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
