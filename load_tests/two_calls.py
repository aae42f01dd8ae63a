"""Compare guided answers with the same two engine calls made without the gateway, on one real vLLM.

    PYTHONPATH=. .venv/bin/python -m load_tests.two_calls

Without the gateway, a client requests the first m tokens, then sends them back as the beginning of the answer. Through
the gateway, the same engine is teacher and student. Every answer has a question of its own, so that no mode reads a
prompt from the cache that another one filled. `scripts/engines` installs vLLM.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import aiohttp
import orjson
import typer
from rich.console import Console
from rich.progress import Progress

from gateway.local.redis import EmbeddedRedis
from load_tests.markdown import table
from tests.contracts.catalog import CATALOG
from tests.contracts.running import RunningEngine
from tests.gateway_process import KEY, guided, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Json = dict[str, Any]

HEAD = ("callers", "mode", "tokens/s", "of two calls", "answer p50, s")
TWO_CALLS = "two calls, without the gateway"
_TOPICS = ("a bicycle tour", "a garden", "a small shop", "a school trip", "a library", "a kitchen", "a concert")
_DETAILS = ("in spring", "near the sea", "for two families", "without a car", "on a rainy day", "with little money")


@dataclass(frozen=True)
class TwoCallsSetup:
    """The engine, the gateway in front of it, and the lengths in tokens."""

    session: aiohttp.ClientSession
    engine: RunningEngine
    gateway_url: str
    m: int
    max_tokens: int

    async def two_calls(self, question: str) -> int:
        """Request the beginning and its continuation, and return the tokens of both."""
        body: Json = {"model": self.engine.model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
        url = f"{self.engine.url}/v1/chat/completions"
        first = await self._post(url, {**body, "max_tokens": self.m})
        begun = first["choices"][0]["message"]["content"]
        body["messages"] = [*body["messages"], {"role": "assistant", "content": begun}]
        more = {"continue_final_message": True, "add_generation_prompt": False}
        rest = await self._post(url, {**body, **more, "max_tokens": self.max_tokens - self.m})
        return int(first["usage"]["completion_tokens"] + rest["usage"]["completion_tokens"])

    async def guided(self, question: str, route: str) -> int:
        """Request a JSON answer of the gateway and return its tokens."""
        return int((await self._post(*self._request(question, route)))["usage"]["completion_tokens"])

    async def guided_stream(self, question: str, route: str) -> int:
        """Request a streamed answer of the gateway and return its tokens."""
        url, body = self._request(question, route)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with self.session.post(url, data=orjson.dumps(body)) as reply:
            raw = await reply.read()
        if not reply.ok or b"data: [DONE]" not in raw:
            raise typer.BadParameter(f"the stream failed: {raw[-500:].decode(errors='replace')}")
        last = orjson.loads(raw.rstrip().split(b"\n\n")[-2].removeprefix(b"data: "))
        if "unguided" in last["gkt"]:
            raise typer.BadParameter(f"an answer is unguided: {last['gkt']['unguided']}")
        return int(last["usage"]["completion_tokens"])

    def _request(self, question: str, route: str) -> tuple[str, Json]:
        messages = [{"role": "user", "content": question}]
        body = {"model": route, "temperature": 0, "messages": messages, "max_tokens": self.max_tokens}
        return f"{self.gateway_url}/v1/chat/completions", body

    async def _post(self, url: str, body: Json) -> Json:
        async with self.session.post(url, data=orjson.dumps(body)) as reply:
            raw = await reply.read()
            if not reply.ok or "x-gkt-unguided" in reply.headers:
                why = reply.headers.get("x-gkt-unguided", raw[:500].decode(errors="replace"))
                raise typer.BadParameter(f"{url} answered {reply.status}: {why}")
            return orjson.loads(raw)  # type: ignore[no-any-return]

    def modes(self) -> dict[str, Callable[[str], Awaitable[int]]]:
        return {
            TWO_CALLS: self.two_calls,
            "guided, JSON": lambda question: self.guided(question, "chat"),
            "guided, SSE": lambda question: self.guided_stream(question, "chat"),
        }


@dataclass(frozen=True)
class ModeSpeed:
    """Tokens per second of all answers of one mode, and the median time of an answer in seconds."""

    tokens_per_s: float
    answer_s: float


def questions() -> Iterator[str]:
    """Yield different questions without end."""
    random = Random(18)
    for number in range(1, 1_000_000):
        yield f"{number}. Plan {random.choice(_TOPICS)} {random.choice(_DETAILS)}. Explain each step in a sentence."


async def measure(ask: Callable[[str], Awaitable[int]], callers: int, sent: list[str]) -> ModeSpeed:
    """Send the questions with a number of concurrent callers."""
    queue, took, tokens = iter(sent), [], 0

    async def call() -> None:
        nonlocal tokens
        for question in queue:
            began = time.perf_counter()
            tokens += await ask(question)
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())
    return ModeSpeed(tokens / (time.perf_counter() - began), statistics.median(took))


async def run(engine: RunningEngine, m: int, max_tokens: int, callers: list[int], rounds: int) -> list[list[str]]:
    """Return the rows of the table. The modes take turns in each round; a row has the medians of all rounds."""
    models = [
        model("big", "openai", engine.api_base, model=engine.model, max_concurrency=256),
        model("small", "openai", engine.api_base, model=engine.model, max_concurrency=256),
    ]
    options: Json = {"tokens": m, "cache_ttl": "0s", "deadline": "60s"}
    routes = [guided(**options)]
    found: dict[tuple[int, str], list[ModeSpeed]] = {}
    texts = questions()
    async with EmbeddedRedis() as redis:
        with (
            TemporaryDirectory() as folder,
            running_gateway(Path(folder), redis_url=redis.url, models=models, routes=routes) as gateway,
            Progress(console=Console(stderr=True)) as progress,
        ):
            await asyncio.to_thread(wait_until_probed, gateway.admin_url)
            connector = aiohttp.TCPConnector(limit=0)
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
                setup = TwoCallsSetup(session, engine, gateway.url, m, max_tokens)
                modes = setup.modes()
                task = progress.add_task("measuring", total=rounds * len(callers) * len(modes))
                for ask in modes.values():
                    await measure(ask, 4, [next(texts) for _ in range(4)])  # warms the engine up
                for _ in range(rounds):
                    for number in callers:
                        for mode, ask in modes.items():
                            sent = [next(texts) for _ in range(3 * number)]
                            found.setdefault((number, mode), []).append(await measure(ask, number, sent))
                            progress.advance(task)
    return [_row(number, mode, found) for number, mode in found]


def _row(callers: int, mode: str, found: dict[tuple[int, str], list[ModeSpeed]]) -> list[str]:
    mine, base = found[callers, mode], found[callers, TWO_CALLS]
    # The ratio within a round: the machine's speed changes between rounds.
    ratio = statistics.median(one.tokens_per_s / other.tokens_per_s for one, other in zip(mine, base, strict=True))
    tokens_per_s = statistics.median(one.tokens_per_s for one in mine)
    answer_s = statistics.median(one.answer_s for one in mine)
    return [str(callers), mode, f"{tokens_per_s:.0f}", f"{ratio:.2f}", f"{answer_s:.2f}"]


def main(
    engine: Annotated[
        str, typer.Option(help="An engine of scripts/engines that continues messages like vLLM.")
    ] = "vllm",
    url: Annotated[str | None, typer.Option(help="A running server, without /v1, instead of an installed one.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="m, the tokens of the first call.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    callers: Annotated[list[int] | None, typer.Option(min=1, help="Concurrent callers; repeat it.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all modes.")] = 3,
) -> None:
    """Print a Markdown table: tokens per second of guided answers and of two calls without the gateway."""
    chosen = CATALOG.get(engine)
    if chosen is None or not (url or chosen.is_installed()):
        raise typer.BadParameter(f"{engine} is not installed: run scripts/engines {engine}")
    with TemporaryDirectory() as folder:
        running = RunningEngine(chosen, Path(folder) / "engine.log", url=url)
        running.start()
        try:
            rows = asyncio.run(run(running, tokens, max_tokens, callers or [8, 16], rounds))
        finally:
            if not running.is_external:
                running.stop()
    typer.echo(table(HEAD, rows))


if __name__ == "__main__":
    typer.run(main)
