"""Compare two clients of text-generation-inference in calls per second: the gateway's and huggingface_hub's.

    python load_tests/tgi_client.py --help

A TGI-like server with a canned reply runs in its own process on the loopback interface. `TGIEngine.generate_guidance`
with the gateway's aiohttp pool and `AsyncInferenceClient` send the same request to the same route. The clients take
turns. The table shows the best and the median round of each.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
import uvloop
from aiohttp import web
from huggingface_hub import AsyncInferenceClient
from rich.console import Console
from rich.table import Table

from gateway.engines.base import TeacherRequest
from gateway.engines.http import EngineDeadlines, EngineHttp
from gateway.engines.tgi import TGIEngine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from multiprocessing.connection import Connection

    Call = Callable[[], Awaitable[str]]

OURS, HUBS = "TGIEngine (aiohttp)", "AsyncInferenceClient (hub)"
CONCURRENCIES = (1, 32)
MAX_TOKENS = 40
PROMPT = "Q: Why is the sky blue?\nA:" * 20
TEXT = " because air scatters blue light more than red" * 4
MESSAGES = [{"role": "user", "content": PROMPT}]
START_WITHIN_S = 20.0

GENERATED = orjson.dumps(
    {
        "generated_text": TEXT,
        "details": {
            "finish_reason": "length",
            "generated_tokens": MAX_TOKENS,
            "seed": None,
            "prefill": [],
            "tokens": [{"id": n, "text": " because", "logprob": -0.25, "special": False} for n in range(MAX_TOKENS)],
        },
    }
)
CHATTED = orjson.dumps(
    {
        "object": "chat.completion",
        "id": "",
        "created": 1_700_000_000,
        "model": "tgi",
        "system_fingerprint": "3.3.7-native",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 200, "completion_tokens": MAX_TOKENS, "total_tokens": 200 + MAX_TOKENS},
    }
)


@dataclass(frozen=True)
class ClientRound:
    """A round of one client: number of calls and duration."""

    calls: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.calls / self.seconds


def serve(port_to: Connection) -> None:
    """Answer at once with the headers of TGI until the parent ends."""

    async def run() -> None:
        headers = {"x-prompt-tokens": "200", "x-generated-tokens": str(MAX_TOKENS), "x-queue-time": "0"}

        async def answer(request: web.Request) -> web.Response:
            await request.read()
            body = CHATTED if request.path.startswith("/v1/") else GENERATED
            return web.Response(body=body, headers=headers, content_type="application/json")

        app = web.Application()
        app.router.add_post("/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port_to.send(runner.addresses[0][1])
        parent = asyncio.get_running_loop().run_in_executor(None, port_to.poll, None)
        await parent  # readable after the parent closed it

    uvloop.run(run())


@contextmanager
def server() -> Iterator[str]:
    """Yield the address of a server that runs for the duration of the block."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_WITHIN_S):
            raise typer.BadParameter(f"the server did not start within {START_WITHIN_S:g} s")
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        ours.close()
        process.join(5)
        process.kill()


async def one_round(call: Call, concurrency: int, calls: int, seconds: float) -> ClientRound:
    """Call from `concurrency` tasks until the number of calls or the time limit is reached."""
    made = 0
    began = time.perf_counter()
    ends = began + seconds

    async def work() -> None:
        nonlocal made
        while made < calls and time.perf_counter() < ends:
            made += 1
            text = await call()
            assert text == TEXT, f"the client read {text!r}"

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return ClientRound(made, time.perf_counter() - began)


async def open_clients(stack: AsyncExitStack, url: str, *, chat: bool) -> dict[str, Call]:
    http = EngineHttp("tgi", url, api_key=None, deadlines=EngineDeadlines())
    engine = TGIEngine("tgi", http)
    stack.push_async_callback(engine.close)
    request = TeacherRequest(
        max_tokens=MAX_TOKENS, messages=MESSAGES if chat else None, prompt=None if chat else PROMPT, stop=("\nQ:",)
    )

    async def ours() -> str:
        return (await engine.generate_guidance(request)).text

    hub = await stack.enter_async_context(AsyncInferenceClient(url if chat else url + "/generate", timeout=300))

    async def hubs() -> str:
        if chat:
            reply = await hub.chat_completion(MESSAGES, max_tokens=MAX_TOKENS, temperature=0.0, stop=["\nQ:"])
            return str(reply.choices[0].message.content)
        generated = await hub.text_generation(
            PROMPT, details=True, max_new_tokens=MAX_TOKENS, do_sample=False, stop=["\nQ:"]
        )
        return str(generated.generated_text)

    return {OURS: ours, HUBS: hubs}


async def measure(
    url: str, *, chat: bool, calls: int, seconds: float, rounds: int
) -> dict[tuple[int, str], list[ClientRound]]:
    """Return rounds by concurrency and client. The clients take turns in alternating order."""
    measured: dict[tuple[int, str], list[ClientRound]] = {(c, name): [] for c in CONCURRENCIES for name in (OURS, HUBS)}
    async with AsyncExitStack() as stack:
        clients = await open_clients(stack, url, chat=chat)
        for concurrency in CONCURRENCIES:
            for call in clients.values():
                await one_round(call, concurrency, calls=2 * concurrency, seconds=seconds)  # warm up
            for turn in range(rounds):
                for name in (OURS, HUBS) if turn % 2 == 0 else (HUBS, OURS):
                    measured[concurrency, name].append(await one_round(clients[name], concurrency, calls, seconds))
    return measured


def show(title: str, measured: dict[tuple[int, str], list[ClientRound]]) -> None:
    table = Table("concurrency", "client", "calls", "median /s", "best /s", "median as a ratio", title=title)
    for concurrency in CONCURRENCIES:
        hub = statistics.median(one.per_second for one in measured[concurrency, HUBS])
        for name in (OURS, HUBS):
            rounds = measured[concurrency, name]
            rates = [one.per_second for one in rounds]
            median = statistics.median(rates)
            table.add_row(
                str(concurrency),
                name,
                str(sum(one.calls for one in rounds)),
                f"{median:.0f}",
                f"{max(rates):.0f}",
                f"{median / hub:.2f}x",
            )
    Console(width=100).print(table)


def main(
    calls: Annotated[int, typer.Option(min=1, max=100_000, help="Calls per round at most.")] = 2_000,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds per round at most.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Rounds of each client at each concurrency.")] = 5,
) -> None:
    """Measure both clients against a local TGI-like server, and print a table for each route."""
    with server() as url:
        for title, chat in (("/generate", False), ("/v1/chat/completions", True)):
            show(title, uvloop.run(measure(url, chat=chat, calls=calls, seconds=seconds, rounds=rounds)))


if __name__ == "__main__":
    typer.run(main)
