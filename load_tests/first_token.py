"""How long an SSE caller waits for the first words, and for all of them: with guidance that streams, and without.

    PYTHONPATH=. python load_tests/first_token.py --help

Real models on this machine: a teacher behind TGI's protocol, a student behind llama.cpp's server, a Redis, and one
gateway process in front. Each question is asked in every way before the next one, another way first each time, so a
machine that changes speed changes it for all. Loopback only, and it ends by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import aiohttp
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.local.redis import EmbeddedRedis
from gateway.local.stack import LocalStack
from load_tests import markdown, proc
from load_tests.chat_client import Timed, ask
from load_tests.machine import machine
from load_tests.seam_equality import chosen
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, guided, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STREAMED, WHOLE, STUDENT, TEACHER = "guided, streamed", "guided, not streamed", "student only", "teacher only"
# By the route that goes this way.
WAYS = {"chat": STREAMED, "chat-whole": WHOLE, STUDENT_ONLY["model"]: STUDENT, TEACHER_ONLY["model"]: TEACHER}
HEAD = (
    "", "first token p50", "p90", "receipt's p50", "of student's", "of not streamed", "whole answer p50", "guided",
)  # fmt: skip
# No wait of the gateway's may end before a slow machine has answered.
_LONG = "5m"


@dataclass(frozen=True, slots=True)
class Engines:
    """URLs of the engines and of Redis."""

    teacher_url: str
    student_url: str
    redis_url: str


@dataclass(frozen=True, slots=True)
class FirstTokenWorkload:
    """The workload: every question, `rounds` times, in each way."""

    questions: Sequence[str]
    rounds: int
    tokens: int
    max_tokens: int

    @property
    def calls(self) -> int:
        """How many there will be, those that warm up included."""
        return len(WAYS) * (1 + self.rounds * len(self.questions))


def main(
    questions: Annotated[int, typer.Option(min=1, max=50, help="How many of the prompts in seam_prompts.json.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each is asked in each way.")] = 1,
    tokens: Annotated[int, typer.Option("--tokens", "-m", min=1, max=500, help="m, the teacher's tokens.")] = 40,
    max_tokens: Annotated[int, typer.Option(min=1, max=1000, help="Length of an answer, in tokens, at most.")] = 64,
    teacher: Annotated[
        str, typer.Option(help="A model of gateway/local/weights.py, or a .gguf file.")
    ] = "qwen2.5-coder-1.5b-instruct",
    student: Annotated[str, typer.Option(help="Likewise.")] = "qwen2.5-coder-0.5b-instruct",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Print the time to the first token, and to the last, of four ways to an answer.

    **guided, streamed** shows the teacher's words as they are written (`guidance.stream: true`, the default);
    **guided, not streamed** shows them when all m are there (`stream: false`); **student only** and **teacher only**
    are the two models behind the same gateway, without guidance.

    How to read it: a guided answer's first word is the teacher's. Streamed, it comes when the teacher has read the
    prompt and written two words, since the last is held back until it is known to stay; not streamed, when it has
    written m tokens. So the first row should not change with -m, and the second should grow with it. Whole answers
    should take the same in both.

    The table is Markdown, as docs/design/benchmarks.md has it. Two cores take three minutes with the default
    models, --teacher qwen2.5-coder-0.5b-instruct --student smollm2-135m-instruct half of that. Models that are
    missing are fetched first. Let nothing else run meanwhile: the line below the table says whether something did.
    """
    asking = FirstTokenWorkload([question for _, question in chosen(questions)], rounds, tokens, max_tokens)
    figures = asyncio.run(_on_this_machine(teacher, student, asking))
    figures = {"machine": machine(), "teacher": teacher, "student": student, "m": tokens} | figures
    typer.echo(json.dumps(figures, indent=2) if as_json else shown(figures))


async def _on_this_machine(teacher: str, student: str, asking: FirstTokenWorkload) -> dict[str, Any]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left:"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("starting the engines", total=asking.calls)

        def on_answer(way: str) -> None:
            progress.update(bar, description=way, advance=1)

        async with EmbeddedRedis() as redis, LocalStack(teacher=teacher, student=student) as stack:
            engines = Engines(stack.teacher_url, stack.student_url, redis.url)
            return figures_of(*await measure(engines, asking, on_answer))


async def measure(
    engines: Engines, asking: FirstTokenWorkload, on_answer: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, list[Timed]], float]:
    """Every answer, by way, and how many cores other programs used meanwhile. `told` hears the way of each call made.

    Raises typer.BadParameter for a call that fails.
    """
    guidance: dict[str, Any] = {"tokens": asking.tokens, "deadline": _LONG, "cache_ttl": "0s"}
    patient = {"timeouts": {"first_token": _LONG, "idle": _LONG, "total": _LONG}}
    with ExitStack() as stack:
        gateway = stack.enter_context(
            running_gateway(
                Path(stack.enter_context(TemporaryDirectory(prefix="gkt-first-token-"))),
                redis_url=engines.redis_url,
                redis={"lease": _LONG},
                models=[
                    model("big", "tgi", engines.teacher_url, **patient),
                    model("small", "openai", engines.student_url + "/v1", **patient),
                ],
                routes=[
                    guided("chat", stream=True, **guidance),
                    guided("chat-whole", stream=False, **guidance),
                    STUDENT_ONLY,
                    TEACHER_ONLY,
                ],
            )
        )
        await asyncio.to_thread(wait_until_probed, gateway.admin_url)
        seen: dict[str, list[Timed]] = {way: [] for way in WAYS.values()}
        numbers = itertools.count(10_000)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:

            async def call(route: str, question: str) -> Timed:
                # Engines keep what they have read. No two prompts begin alike, so that each is read in full.
                timed = await ask(session, gateway.url, route, f"({next(numbers)}) {question}", asking.max_tokens)
                on_answer(WAYS[route])
                return timed

            for route in WAYS:
                await call(route, asking.questions[0])
            began, busy, ours = time.monotonic(), proc.busy_s(), proc.ours_s()
            for route, question in in_turn(list(WAYS), [*asking.questions] * asking.rounds):
                seen[WAYS[route]].append(await call(route, question))
            others = (proc.busy_s() - busy - (proc.ours_s() - ours)) / (time.monotonic() - began)
    return seen, max(0.0, others)


def in_turn(routes: list[str], questions: Sequence[str]) -> list[tuple[str, str]]:
    """Each question by every route, beginning with another one each time."""
    return [
        (route, question)
        for number, question in enumerate(questions)
        for route in routes[number % len(routes) :] + routes[: number % len(routes)]
    ]


def figures_of(seen: dict[str, list[Timed]], others: float) -> dict[str, Any]:
    """Return the figures for --json, without the machine and models. Times are in milliseconds."""
    ways = {way: _figures_of(answers) for way, answers in seen.items()}
    for figures in ways.values():
        figures["of_student"] = figures["first_p50_ms"] / ways[STUDENT]["first_p50_ms"]
        figures["of_whole"] = figures["first_p50_ms"] / ways[WHOLE]["first_p50_ms"]
    return {"others_cores": others, "ways": ways}


def _figures_of(answers: list[Timed]) -> dict[str, Any]:
    first = sorted(one.first_s * 1000 for one in answers)
    receipt_ms = [float(one.facts["first_token_ms"]) for one in answers]
    modes = [one.facts["mode"] for one in answers]
    return {
        "answers": len(answers),
        "first_p50_ms": statistics.median(first),
        "first_p90_ms": first[math.ceil(len(first) * 0.9) - 1],
        "receipt_p50_ms": statistics.median(receipt_ms),
        # The receipt begins and ends within the caller's time.
        "apart_max_ms": max(abs(one.first_s * 1000 - at) for one, at in zip(answers, receipt_ms, strict=True)),
        "total_p50_ms": statistics.median(one.total_s * 1000 for one in answers),
        "tokens_p50": statistics.median(one.tokens for one in answers),
        "modes": {mode: modes.count(mode) for mode in sorted(set(modes))},
    }


def shown(figures: dict[str, Any]) -> str:
    """The figures as docs/design/benchmarks.md has them."""
    ways = figures["ways"]
    rows = []
    for way, seen in ways.items():
        opened = seen["modes"].get("guided", 0) + seen["modes"].get("teacher_complete", 0)
        rows.append(
            (
                way,
                _seconds(seen["first_p50_ms"]),
                _seconds(seen["first_p90_ms"]),
                _seconds(seen["receipt_p50_ms"]),
                f"{seen['of_student']:.2f}",
                f"{seen['of_whole']:.2f}",
                _seconds(seen["total_p50_ms"]),
                f"{opened} of {seen['answers']}" if way in {STREAMED, WHOLE} else "",
            )
        )
    apart = max(seen["apart_max_ms"] for seen in ways.values())
    return "\n".join(
        (
            markdown.table(HEAD, rows),
            "",
            f"{figures['teacher']} -> {figures['student']}, m = {figures['m']}. {figures['machine']}",
            f"What the caller saw and what the receipt says of the first token are at most {apart:.1f} ms apart.",
            f"Other programs used {figures['others_cores']:.2f} cores meanwhile.",
        )
    )


def _seconds(ms: float) -> str:
    return f"{ms / 1000:.2f} s"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command()(main)
    app()
