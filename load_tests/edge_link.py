"""Measure bytes and times of a device on a slow link, with edge guidance and with whole answers of the teacher.

    PYTHONPATH=. python load_tests/edge_link.py --help

Real models run on this machine. A teacher behind TGI's protocol, a Redis and one gateway process are behind the link.
The device's student is in front of it. The link is a traffic-shaping proxy (slow_link.py). Only loopback is used, and
the run ends by itself.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.edge import EdgeClient, UrlStudent
from gateway.engines.sse import SseDecoder
from gateway.local.redis import EmbeddedRedis
from gateway.local.stack import LocalStack
from load_tests import markdown
from load_tests.machine import machine
from load_tests.seam_equality import chosen
from load_tests.slow_link import SHAPES, SlowLink
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, guided, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from load_tests.slow_link import Shape

EDGE, EDGE_WHOLE = "edge, streamed", "edge, whole guidance"
STREAMED, WHOLE = "teacher, streamed", "teacher, whole"
WAYS = (EDGE, EDGE_WHOLE, STREAMED, WHOLE)
HEAD = ("link", "answer", "sent", "received", "first token p50", "whole answer p50", "tokens p50", "guided")
_LONG, _LONG_S = "5m", 300.0


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer on the device: bytes over the link, including its report, and seconds since the request."""

    sent: int
    received: int
    first_s: float
    total_s: float
    tokens: int
    guided: bool


@dataclass(frozen=True, slots=True)
class LinkWorkload:
    """The questions for each link and method."""

    questions: Sequence[str]
    max_tokens: int

    def body(self, question: str, route: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        return {"model": route, "messages": messages, "max_tokens": self.max_tokens, "temperature": 0}


def main(
    questions: Annotated[int, typer.Option(min=1, max=50, help="Number of prompts from seam_prompts.json.")] = 5,
    tokens: Annotated[int, typer.Option("--tokens", "-m", min=1, max=500, help="m, the teacher's tokens.")] = 40,
    max_tokens: Annotated[int, typer.Option(min=1, max=2000, help="Maximum length of an answer, in tokens.")] = 160,
    teacher: Annotated[
        str, typer.Option(help="A model of gateway/local/weights.py, or a .gguf file.")
    ] = "qwen2.5-coder-1.5b-instruct",
    student: Annotated[str, typer.Option(help="Likewise.")] = "qwen2.5-coder-0.5b-instruct",
    links: Annotated[str, typer.Option(help=f"Which, with commas between: {', '.join(SHAPES)}.")] = ",".join(SHAPES),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Print bytes and times of answers over links like 3G, 4G and Wi-Fi.

    **edge**: the gateway sends the teacher's first m tokens, streamed or in one reply. The student on the device writes
    the rest. The bytes include the report. The time does not, because nothing waits for the report. **teacher**: the
    teacher behind the same gateway writes the whole answer, streamed or in one reply.

    Bytes are those of HTTP, without TCP, IP and TLS. Teacher and student share this machine's cores. The bytes are
    absolute figures; compare the times only with each other.
    """
    names = [name.strip() for name in links.split(",")]
    if unknown := [name for name in names if name not in SHAPES]:
        raise typer.BadParameter(
            f"there is no '{unknown[0]}': must be some of {', '.join(SHAPES)}", param_hint="--links"
        )
    shapes = [SHAPES[name] for name in dict.fromkeys(names)]
    asking = LinkWorkload([question for _, question in chosen(questions)], max_tokens)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left:"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("starting the engines", total=questions * len(WAYS) * len(shapes))

        def on_answer(link: str, way: str) -> None:
            progress.update(bar, description=f"{link}: {way}", advance=1)

        seen = asyncio.run(_on_this_machine(teacher, student, tokens, asking, shapes, on_answer))
    figures = {"machine": machine(), "teacher": teacher, "student": student, "m": tokens, **figures_of(seen)}
    typer.echo(json.dumps(figures, indent=2) if as_json else shown(figures))


async def _on_this_machine(
    teacher: str,
    student: str,
    tokens: int,
    asking: LinkWorkload,
    shapes: Sequence[Shape],
    on_answer: Callable[[str, str], None],
) -> dict[str, dict[str, list[Seen]]]:
    patient = {"timeouts": {"first_token": _LONG, "idle": _LONG, "total": _LONG}}
    async with EmbeddedRedis() as redis, LocalStack(teacher=teacher, student=student) as engines:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="gkt-edge-link-")))
            gateway = stack.enter_context(
                running_gateway(
                    folder,
                    redis_url=redis.url,
                    redis={"lease": _LONG},
                    models=[
                        model("big", "tgi", engines.teacher.url, **patient),
                        model("small", "openai", engines.student.url + "/v1", **patient),
                    ],
                    routes=[
                        guided("chat", tokens=tokens, deadline=_LONG, cache_ttl="0s"),
                        STUDENT_ONLY,
                        TEACHER_ONLY,
                    ],
                )
            )
            await asyncio.to_thread(wait_until_probed, gateway.admin_url)
            return {
                shape.name: await measure(
                    gateway.url, engines.student.url, KEY, asking, shape, folder / "queue", on_answer
                )
                for shape in shapes
            }


async def measure(
    gateway: str,
    student: str,
    key: str,
    asking: LinkWorkload,
    shape: Shape,
    queue: Path,
    on_answer: Callable[[str, str], None] = lambda _link, _way: None,
) -> dict[str, list[Seen]]:
    """Measure every question with every method over one link, and call `told` after each answer.

    Raises httpx.HTTPError and the client's errors.
    """
    seen: dict[str, list[Seen]] = {way: [] for way in WAYS}
    async with AsyncExitStack() as running:
        # One probe for all requests: a device probes its student at startup.
        local = await running.enter_async_context(UrlStudent(f"{student}/v1", silence_s=_LONG_S))
        how = await local.detect_continuation()
        for number, question in enumerate(asking.questions):
            for place, way in enumerate(seen):
                # Each prompt has a unique beginning, so the engine processes all of it in spite of its prompt cache.
                prompt = f"({place} {shape.name} {number}) {question}"
                async with SlowLink(gateway, shape) as link:
                    if way in {EDGE, EDGE_WHOLE}:
                        known = UrlStudent(
                            f"{student}/v1",
                            continuation=how.mode if how is not None else "none",
                            echo=how.echo if how is not None else None,
                            silence_s=_LONG_S,
                        )
                        seen[way].append(
                            await ask_edge(link, known, key, asking.body(prompt, "chat"), queue, stream=way == EDGE)
                        )
                    else:
                        body = asking.body(prompt, TEACHER_ONLY["model"])
                        seen[way].append(await ask_teacher(link, key, body, stream=way == STREAMED))
                on_answer(shape.name, way)
    return seen


async def ask_edge(
    link: SlowLink, student: UrlStudent, key: str, body: dict[str, Any], queue: Path, *, stream: bool = True
) -> Seen:
    async with EdgeClient(link.url, key=key, student=student, queue=queue, patience_s=_LONG_S) as edge:
        began, first_s, mode, tokens = time.perf_counter(), 0.0, "", 0
        request = {**body, "stream": stream, "stream_options": {"include_usage": True}}
        async with aclosing(edge.stream(request)) as chunks:
            async for chunk in chunks:
                first_s = first_s or time.perf_counter() - began
                mode = chunk["gkt"].get("mode", mode)
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                total_s = time.perf_counter() - began
        await edge.sync()
    return Seen(link.up.bytes, link.down.bytes, first_s, total_s, tokens, mode != "student")


async def ask_teacher(link: SlowLink, key: str, body: dict[str, Any], *, stream: bool) -> Seen:
    request = {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body
    headers = {"Authorization": f"Bearer {key}"}
    began, first_s, tokens = time.perf_counter(), 0.0, 0
    async with (
        httpx.AsyncClient(base_url=link.url, headers=headers, timeout=_LONG_S) as client,
        client.stream("POST", "/v1/chat/completions", json=request) as reply,
    ):
        if not stream:
            usage = json.loads(await reply.aread())["usage"]
            total_s = time.perf_counter() - began
            return Seen(link.up.bytes, link.down.bytes, total_s, total_s, usage["completion_tokens"], False)
        decoder = SseDecoder()
        async for received in reply.aiter_bytes():
            for event in decoder.feed(received):
                event_data = {} if event == b"[DONE]" else json.loads(event)
                if any(choice["delta"].get("content") for choice in event_data.get("choices", ())):
                    first_s = first_s or time.perf_counter() - began
                tokens = (event_data.get("usage") or {}).get("completion_tokens", tokens)
    return Seen(link.up.bytes, link.down.bytes, first_s, time.perf_counter() - began, tokens, False)


def figures_of(seen: dict[str, dict[str, list[Seen]]]) -> dict[str, Any]:
    """Return the figures for --json, without the machine and models: medians, times in milliseconds."""
    return {
        "links": {link: {way: _figures_of(answers) for way, answers in ways.items()} for link, ways in seen.items()}
    }


def _figures_of(answers: list[Seen]) -> dict[str, Any]:
    return {
        "answers": len(answers),
        "sent_bytes": statistics.median(one.sent for one in answers),
        "received_bytes": statistics.median(one.received for one in answers),
        "first_p50_ms": statistics.median(one.first_s for one in answers) * 1000,
        "total_p50_ms": statistics.median(one.total_s for one in answers) * 1000,
        "tokens_p50": statistics.median(one.tokens for one in answers),
        "guided": sum(one.guided for one in answers),
    }


def shown(figures: dict[str, Any]) -> str:
    """Return the figures in the format of docs/design/benchmarks.md."""
    rows = [
        (
            link,
            way,
            f"{of['sent_bytes']:,.0f} B",
            f"{of['received_bytes']:,.0f} B",
            f"{of['first_p50_ms'] / 1000:.2f} s",
            f"{of['total_p50_ms'] / 1000:.2f} s",
            f"{of['tokens_p50']:.0f}",
            f"{of['guided']} of {of['answers']}" if way in {EDGE, EDGE_WHOLE} else "",
        )
        for link, ways in figures["links"].items()
        for way, of in ways.items()
    ]
    links = ", ".join(
        f"{shape.name} {shape.down_kbit / 1000:g}/{shape.up_kbit / 1000:g} Mbit/s down/up, {shape.rtt_ms:g} ms"
        for shape in SHAPES.values()
        if shape.name in figures["links"]
    )
    about = f"{figures['teacher']} -> {figures['student']}, m = {figures['m']}. {figures['machine']}"
    return "\n".join((markdown.table(HEAD, rows), "", f"Links: {links}.", about))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command()(main)
    app()
