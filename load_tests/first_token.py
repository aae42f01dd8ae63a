"""Measure the time to the first token, the total time and the hand-over of SSE answers.

    PYTHONPATH=. python load_tests/first_token.py --help

Real models run on this machine: a teacher and a student in llama.cpp's servers, a Redis, and one gateway process. Each
question is sent with every method before the next question. The order of the methods rotates, so changes in the
machine's speed affect all of them. Only loopback is used, and the run ends by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
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
from gateway.local.stack import LocalStack, usable_cores
from load_tests import markdown, proc
from load_tests.chat_client import Timed, ask
from load_tests.engine_process import fake_engine
from load_tests.machine import machine
from load_tests.prompts import prompts
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, guided, model, running_gateway
from tests.readiness import wait_until_probed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from tests.gateway_process import GatewayProcess

STREAMED, WHOLE, STUDENT, TEACHER = "guided, streamed", "guided, not streamed", "student only", "teacher only"
# By route.
WAYS = {"chat": STREAMED, "chat-whole": WHOLE, STUDENT_ONLY["model"]: STUDENT, TEACHER_ONLY["model"]: TEACHER}
HEAD = (
    "", "first token p50", "p90", "receipt's p50", "of student's", "of not streamed", "whole answer p50", "guided",
)  # fmt: skip
COLD, WARM = "no", "yes"
# By route.
WARMING = {"chat-cold": COLD, "chat-warm": WARM}
HANDOVER_HEAD = (
    "prompt", "`warm_student`", "hand-over p50", "lowest", "highest", "prompt in cache",
)  # fmt: skip
_WORDS = ["river", "stone", "house", "green", "walk", "seven", "paper", "light", "train", "music", "table", "cloud"]
# Timeouts of the gateway are long enough for a slow machine.
_LONG = "5m"


@dataclass(frozen=True, slots=True)
class Engines:
    """URLs of the engines and of Redis."""

    teacher_url: str
    student_url: str
    redis_url: str


@dataclass(frozen=True, slots=True)
class FirstTokenWorkload:
    """The workload: every question, `rounds` times, with each method."""

    questions: Sequence[str]
    rounds: int
    tokens: int
    max_tokens: int

    @property
    def calls(self) -> int:
        """Return the number of calls, including the warm-up."""
        return len(WAYS) * (1 + self.rounds * len(self.questions))


@dataclass(frozen=True, slots=True)
class HandoverWorkload:
    """The workload: prompts of each number of words, `rounds` times, with and without a warm-up."""

    lengths: Sequence[int]
    rounds: int
    max_tokens: int = 44  # 40 of them are guidance

    def prompts(self) -> Iterator[tuple[int, str]]:
        """Yield each length in turn, with a prompt whose beginning no other prompt has."""
        dice = random.Random(1)
        for number, length in enumerate([*self.lengths] * self.rounds):
            yield length, f"({dice.random()}, {number}) " + " ".join(dice.choices(_WORDS, k=length))


def main(
    questions: Annotated[int, typer.Option(min=1, max=50, help="Number of prompts from prompts.json.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Calls per question and method.")] = 1,
    tokens: Annotated[int, typer.Option("--tokens", "-m", min=1, max=500, help="m, the teacher's tokens.")] = 40,
    max_tokens: Annotated[int, typer.Option(min=1, max=1000, help="Maximum length of an answer, in tokens.")] = 64,
    teacher: Annotated[
        str, typer.Option(help="A model of gateway/local/weights.py, or a .gguf file.")
    ] = "qwen2.5-coder-1.5b-instruct",
    student: Annotated[str, typer.Option(help="Likewise.")] = "qwen2.5-coder-0.5b-instruct",
    prompt_words: Annotated[
        str | None,
        typer.Option("--handover", help="Measure the hand-over instead, for prompts of so many words: 100,1000."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Print the time to the first token, and to the last one, of four methods.

    **guided, streamed** sends the teacher's text as it is generated (`guidance.stream: true`, the default).
    **guided, not streamed** sends it when all m tokens are complete (`stream: false`). **student only** and
    **teacher only** are the two models behind the same gateway, without guidance.

    The first token of a guided answer is the teacher's. With streaming, it arrives after the teacher has processed the
    prompt and generated two words, because the gateway holds back the last word. Without streaming, it arrives after m
    tokens. So the first row should not depend on -m, and the second row should grow with it. The total times of both
    should be equal.

    --handover measures the pause between the guidance and the student's first token with and without
    `guidance.warm_student`: --rounds calls of each length, with a modeled teacher that takes two seconds. The options
    --teacher and --questions do not apply.

    The table is Markdown, for docs/design/benchmarks.md. A run takes three minutes on two cores with the default
    models, and half of that with --teacher qwen2.5-coder-0.5b-instruct --student smollm2-135m-instruct. Missing models
    are downloaded first. Run nothing else at the same time. The line below the table reports the load of other
    programs.
    """
    if prompt_words is not None:
        lengths = [int(length) for length in prompt_words.split(",")]
        seen, others = asyncio.run(_handovers_on_this_machine(student, HandoverWorkload(lengths, rounds)))
        figures = {"machine": machine(), "student": student, "others_cores": others, "rows": handover_figures(seen)}
        typer.echo(json.dumps(figures, indent=2) if as_json else handover_shown(figures))
        return
    asking = FirstTokenWorkload(prompts(questions), rounds, tokens, max_tokens)
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
            engines = Engines(stack.teacher.url, stack.student.url, redis.url)
            return figures_of(*await measure(engines, asking, on_answer))


async def measure(
    engines: Engines, asking: FirstTokenWorkload, on_answer: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, list[Timed]], float]:
    """Return every answer, by method, and the number of cores that other programs used.

    Args:
        on_answer: called with the method of each finished call.

    Raises typer.BadParameter if a call fails.
    """
    guidance: dict[str, Any] = {"tokens": asking.tokens, "deadline": _LONG, "cache_ttl": "0s"}
    with ExitStack() as stack:
        routes = [
            guided("chat", stream=True, **guidance),
            guided("chat-whole", stream=False, **guidance),
            STUDENT_ONLY,
            TEACHER_ONLY,
        ]
        gateway = stack.enter_context(_running(stack, engines, routes))
        await asyncio.to_thread(wait_until_probed, gateway.admin_url)
        seen: dict[str, list[Timed]] = {way: [] for way in WAYS.values()}
        numbers = itertools.count(10_000)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:

            async def call(route: str, question: str) -> Timed:
                # Each prompt has a unique beginning, so the engine processes all of it in spite of its prompt cache.
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


def _running(
    stack: ExitStack, engines: Engines, routes: list[dict[str, Any]]
) -> AbstractContextManager[GatewayProcess]:
    patient = {"timeouts": {"first_token": _LONG, "idle": _LONG, "total": _LONG}}
    return running_gateway(
        Path(stack.enter_context(TemporaryDirectory(prefix="gkt-first-token-"))),
        redis_url=engines.redis_url,
        redis={"lease": _LONG},
        models=[
            model("big", "openai", engines.teacher_url + "/v1", **patient),
            model("small", "openai", engines.student_url + "/v1", **patient),
        ],
        routes=routes,
    )


async def _handovers_on_this_machine(
    student: str, asking: HandoverWorkload
) -> tuple[dict[tuple[int, str], list[Timed]], float]:
    # The gateway and the modeled teacher need a part of a core.
    threads = max(1, usable_cores() - 1)
    async with EmbeddedRedis() as redis, LocalStack(student=student, threads=threads) as stack:
        with fake_engine("two_seconds", for_s=3600) as teacher:
            return await measure_handovers(Engines(teacher, stack.student.url, redis.url), asking)


async def measure_handovers(
    engines: Engines, asking: HandoverWorkload
) -> tuple[dict[tuple[int, str], list[Timed]], float]:
    """Return every answer, by prompt length and `warm_student`, and the number of cores that other programs used.

    Raises typer.BadParameter if a call fails.
    """
    guidance: dict[str, Any] = {"tokens": 40, "deadline": _LONG, "cache_ttl": "0s"}
    seen: dict[tuple[int, str], list[Timed]] = {
        (length, warm): [] for length in asking.lengths for warm in WARMING.values()
    }
    with ExitStack() as stack:
        routes = [guided(name, warm_student=warm == WARM, **guidance) for name, warm in WARMING.items()]
        gateway = stack.enter_context(_running(stack, engines, routes))
        await asyncio.to_thread(wait_until_probed, gateway.admin_url)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
            await ask(session, gateway.url, "chat-cold", "Why?", asking.max_tokens)
            began, busy, ours = time.monotonic(), proc.busy_s(), proc.ours_s()
            for number, (length, prompt) in enumerate(asking.prompts()):
                # Each length begins with either route in turn.
                for route in sorted(WARMING, reverse=bool(number // len(asking.lengths) % 2)):
                    # Each call has a unique beginning, so that only its own warm-up fills the cache for it.
                    timed = await ask(session, gateway.url, route, f"({route}) {prompt}", asking.max_tokens)
                    seen[length, WARMING[route]].append(timed)
                    # The student may still read the prompt of a canceled warm-up.
                    await _until_idle(session, engines.student_url)
            others = (proc.busy_s() - busy - (proc.ours_s() - ours)) / (time.monotonic() - began)
    return seen, max(0.0, others)


async def _until_idle(session: aiohttp.ClientSession, student_url: str) -> None:
    """Wait until llama.cpp has ended all calls. An engine without /slots is not waited for."""
    while True:
        async with session.get(f"{student_url}/slots") as reply:
            slots = await reply.json() if reply.ok else []
        if not any(slot["is_processing"] for slot in slots):
            return
        await asyncio.sleep(0.2)


def handover_figures(seen: dict[tuple[int, str], list[Timed]]) -> list[dict[str, Any]]:
    """Return a row of figures for each prompt length and value of `warm_student`. Times are in milliseconds."""
    rows = []
    for (length, warm), answers in seen.items():
        spent_ms = [float(one.facts["handover_ms"]) for one in answers]
        rows.append(
            {
                "words": length,
                "warm_student": warm,
                "p50_ms": statistics.median(spent_ms),
                "lowest_ms": min(spent_ms),
                "highest_ms": max(spent_ms),
                "cached_p50": statistics.median(one.cached for one in answers),
                "in_cache": sum(one.cached > length for one in answers),
                "answers": len(answers),
            }
        )
    return rows


def handover_shown(figures: dict[str, Any]) -> str:
    """Return the figures of hand-overs in the format of docs/design/benchmarks.md."""
    rows = [
        (
            f"{row['words']:,} words",
            row["warm_student"],
            *(_seconds(row[name]) for name in ("p50_ms", "lowest_ms", "highest_ms")),
            f"{row['in_cache']} of {row['answers']}",
        )
        for row in figures["rows"]
    ]
    return "\n".join(
        (
            markdown.table(HANDOVER_HEAD, rows),
            "",
            f"A modeled teacher of two seconds -> {figures['student']}. {figures['machine']}",
            f"Other programs used {figures['others_cores']:.2f} cores meanwhile.",
        )
    )


def in_turn(routes: list[str], questions: Sequence[str]) -> list[tuple[str, str]]:
    """Yield each question with every route. The first route rotates."""
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
        # The gateway's time is part of the caller's time.
        "apart_max_ms": max(abs(one.first_s * 1000 - at) for one, at in zip(answers, receipt_ms, strict=True)),
        "total_p50_ms": statistics.median(one.total_s * 1000 for one in answers),
        "tokens_p50": statistics.median(one.tokens for one in answers),
        "modes": {mode: modes.count(mode) for mode in sorted(set(modes))},
    }


def shown(figures: dict[str, Any]) -> str:
    """Return the figures in the format of docs/design/benchmarks.md."""
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
            f"The first-token times of caller and receipt are at most {apart:.1f} ms apart.",
            f"Other programs used {figures['others_cores']:.2f} cores meanwhile.",
        )
    )


def _seconds(ms: float) -> str:
    return f"{ms / 1000:.2f} s"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command()(main)
    app()
