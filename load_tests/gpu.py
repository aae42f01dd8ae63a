"""Compare guided answers with the teacher alone on two running engines; load_tests/gpu.sh starts the engines.

    PYTHONPATH=. .venv/bin/python -m load_tests.gpu --teacher-url http://127.0.0.1:8001 --student-url http://127.0.0.1:8002

The questions are generated arithmetic with known results. The gateway, Redis and the load run on this machine. Each
timed call has its own question: the gateway would share the guidance of equal ones, and engines cache their prompts.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated

import aiohttp
import typer
from rich.console import Console
from rich.progress import Progress

from gateway.local.redis import EmbeddedRedis
from load_tests.chat_client import Timed, ask
from load_tests.markdown import table
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, guided, model, running_gateway
from tests.readiness import wait_until_probed

QUESTIONS = 50
ACCURACY_CALLERS = 16
MODES = {"guided": "chat", "teacher alone": "chat-teacher", "student alone": "chat-student"}
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class ArithmeticQuestion:
    text: str
    result: int


@dataclass(frozen=True)
class ModeResult:
    """Results of one mode with one number of callers."""

    mode: str
    callers: int
    answers: list[Timed]
    right: int
    took_s: float

    def speed_cells(self) -> list[str]:
        tokens = sum(answer.tokens for answer in self.answers)
        first_ms = statistics.median(answer.first_s for answer in self.answers) * 1000
        usd = sum(float(answer.facts.get("cost_usd") or 0) for answer in self.answers)
        return [
            str(self.callers),
            self.mode,
            f"{tokens / self.took_s:.0f}",
            f"{first_ms:.0f}",
            f"{statistics.median(answer.total_s for answer in self.answers):.2f}",
            f"{usd / len(self.answers) * 1000:.3f}",
            self.unguided(),
        ]

    def accuracy_cells(self) -> list[str]:
        return [self.mode, f"{self.right} of {len(self.answers)}", self.unguided()]

    def unguided(self) -> str:
        """Return the number of answers without guidance; "" for modes without guidance."""
        return str(sum("unguided" in answer.facts for answer in self.answers)) if self.mode == "guided" else ""


@dataclass(frozen=True)
class GpuComparison:
    """Results by mode: timed runs for each number of callers, and answers to the same questions."""

    speed: list[ModeResult]
    accuracy: list[ModeResult]


def questions(count: int = QUESTIONS) -> list[ArithmeticQuestion]:
    """Return different generated questions. The results follow from the numbers, so no data set is needed."""
    numbers = product(range(6, 61), range(3, 21), range(2, 61), (False, True))
    return [_question(a, b, c, sells=sells) for a, b, c, sells in Random(18).sample(list(numbers), count)]


def _question(a: int, b: int, c: int, *, sells: bool) -> ArithmeticQuestion:
    ending = "Explain each step briefly. End with the result as a number."
    if sells:
        text = f"A shop has {a} boxes with {b} pens each and sells {c} pens. How many pens are left?"
        return ArithmeticQuestion(f"{text} {ending}", a * b - c)
    text = f"Anna reads {a} pages a day for {b} days, and then {c} more pages. How many pages did she read?"
    return ArithmeticQuestion(f"{text} {ending}", a * b + c)


def timed_calls(callers: int, count: int) -> int:
    """Return the number of calls of a timed run: a part of `count` for one caller, several calls for each of many."""
    return min(count, 10) if callers == 1 else max(count, 3 * callers)


def is_right(text: str, result: int) -> bool:
    """Return whether the last number of an answer is the result."""
    numbers = _NUMBER.findall(text)
    return bool(numbers) and float(numbers[-1].replace(",", "")) == result


async def measure(
    session: aiohttp.ClientSession,
    url: str,
    mode: str,
    callers: int,
    selected: list[ArithmeticQuestion],
    max_tokens: int,
) -> ModeResult:
    """Send the questions with a number of concurrent callers."""
    queue, answers, right = iter(selected), [], 0

    async def call() -> None:
        nonlocal right
        for question in queue:
            answer = await ask(session, url, MODES[mode], question.text, max_tokens)
            answers.append(answer)
            right += is_right(answer.text, question.result)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())
    return ModeResult(mode, callers, answers, right, time.perf_counter() - began)


async def run(
    urls: tuple[str, str], names: tuple[str, str], usd: tuple[float, float], m: int, max_tokens: int,
    callers: list[int], count: int,
) -> GpuComparison:  # fmt: skip
    """Time every mode with every number of callers, in turns, so that changes of the machine affect all modes.

    All modes then answer the same `count` questions, which no timed run contains.
    """
    prices = [{"price": {"input_per_1m": price, "output_per_1m": price}} for price in usd]
    async with EmbeddedRedis() as redis:
        with (
            TemporaryDirectory() as folder,
            running_gateway(
                Path(folder),
                redis_url=redis.url,
                models=[
                    model(name, "openai", f"{url}/v1", model=served, max_concurrency=256, **price)
                    for name, url, served, price in zip(("big", "small"), urls, names, prices, strict=True)
                ],
                routes=[guided(tokens=m, cache_ttl="0s", deadline="30s"), STUDENT_ONLY, TEACHER_ONLY],
            ) as gateway,
        ):
            await asyncio.to_thread(wait_until_probed, gateway.admin_url)
            timed = sum(timed_calls(number, count) for number in callers)
            unused = iter(questions(count + len(MODES) * (1 + timed)))
            same = list(islice(unused, count))
            speed, accuracy = [], []
            connector = aiohttp.TCPConnector(limit=0)
            with Progress(console=Console(stderr=True)) as progress:
                task = progress.add_task("measuring", total=(len(callers) + 1) * len(MODES))
                headers = {"Authorization": f"Bearer {KEY}"}
                async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
                    for mode in MODES:
                        await measure(session, gateway.url, mode, 1, [next(unused)], max_tokens)  # warms the engines up
                    for number in callers:
                        for mode in MODES:
                            own = list(islice(unused, timed_calls(number, count)))
                            speed.append(await measure(session, gateway.url, mode, number, own, max_tokens))
                            progress.advance(task)
                    for mode in MODES:
                        accuracy.append(await measure(session, gateway.url, mode, ACCURACY_CALLERS, same, max_tokens))
                        progress.advance(task)
            return GpuComparison(speed, accuracy)


def main(
    teacher_url: Annotated[str, typer.Option(help="The teacher's server, without /v1.")],
    student_url: Annotated[str, typer.Option(help="The student's server, without /v1.")],
    teacher: Annotated[str, typer.Option(help="The teacher's name in requests.")] = "teacher",
    student: Annotated[str, typer.Option(help="The student's name in requests.")] = "student",
    teacher_usd: Annotated[float, typer.Option(min=0, help="Price of a million tokens of the teacher, in USD.")] = 0.40,
    student_usd: Annotated[float, typer.Option(min=0, help="Price of a million tokens of the student, in USD.")] = 0.05,
    tokens: Annotated[int, typer.Option(min=1, help="m, the teacher's tokens.")] = 40,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    callers: Annotated[list[int] | None, typer.Option(min=1, help="Concurrent callers; repeat it.")] = None,
    count: Annotated[int, typer.Option("--questions", min=1, help="Questions for the accuracy.")] = QUESTIONS,
) -> None:
    """Print Markdown tables: tokens per second, first token, cost and accuracy of each mode."""
    urls, names, usd = (teacher_url, student_url), (teacher, student), (teacher_usd, student_usd)
    found = asyncio.run(run(urls, names, usd, tokens, max_tokens, callers or [1, 16, 64], count))
    typer.echo(report(found, usd, tokens, max_tokens))


def report(found: GpuComparison, usd: tuple[float, float], m: int, max_tokens: int) -> str:
    """Return the Markdown tables and the parameters of the run."""
    parameters = (
        f"m = {m}, at most {max_tokens} tokens for an answer, greedy. Assumed prices of a million tokens: "
        f"{usd[0]:g} USD (teacher), {usd[1]:g} USD (student). Each timed call has its own question."
    )
    head = ["callers", "mode", "tokens/s", "first token p50, ms", "total p50, s", "USD per 1000 answers", "unguided"]
    speed = table(head, [row.speed_cells() for row in found.speed])
    accuracy = table(["mode", "right answers", "unguided"], [row.accuracy_cells() for row in found.accuracy])
    same = f"The same questions in each mode, {ACCURACY_CALLERS} callers:"
    return f"{parameters}\n\n{speed}\n\n{same}\n\n{accuracy}"


if __name__ == "__main__":
    typer.run(main)
