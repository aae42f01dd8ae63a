"""Measure first-token and total time of guided answers, student alone, teacher alone and the bare student engine.

Everything runs on this machine: the embedded models, a Redis, and one gateway process. Each question is sent with all
four methods in turn, so changes in the machine's speed affect all of them. Only loopback is used. The run ends by
itself after `--questions` questions.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gateway.local.redis import EmbeddedRedis
from gateway.local.stack import LocalStack
from load_tests.chat_client import Timed, ask
from tests.gateway_process import KEY, STUDENT_ONLY, TEACHER_ONLY, guided, local_models, running_gateway
from tests.readiness import wait_until_probed

WAYS = ("guided", "student through the gateway", "bare student engine", "teacher through the gateway")


def main(
    questions: Annotated[int, typer.Option(min=1, max=200, help="Questions, each sent with all methods.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="m, the teacher's tokens.")] = 40,
    max_tokens: Annotated[int, typer.Option(min=1, max=1000, help="Length of every answer, in tokens.")] = 120,
    teacher: Annotated[str, typer.Option(help="A model of the catalogue.")] = "qwen2.5-coder-1.5b-instruct",
    student: Annotated[str, typer.Option(help="A model of the catalogue.")] = "qwen2.5-coder-0.5b-instruct",
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON instead of a table.")] = False,
) -> None:
    """Print the median first-token and total times of four methods, and their ratios."""
    figures = asyncio.run(_measure(questions, tokens, max_tokens, teacher, student))
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    table = Table("", "first token p50, ms", "total p50, ms", "tokens p50", "total, times the bare student's")
    bare = figures[WAYS[2]]["total_ms"]
    for way in WAYS:
        seen = figures[way]
        table.add_row(
            way, f"{seen['first_ms']:.0f}", f"{seen['total_ms']:.0f}", f"{seen['tokens']:.0f}",
            f"{seen['total_ms'] / bare:.2f}",
        )  # fmt: skip
    Console().print(table)


async def _measure(questions: int, tokens: int, max_tokens: int, teacher: str, student: str) -> dict[str, Any]:
    async with EmbeddedRedis() as redis, LocalStack(teacher=teacher, student=student) as stack:
        with (
            TemporaryDirectory() as folder,
            running_gateway(
                Path(folder),
                redis_url=redis.url,
                redis={"lease": "2m"},
                models=[entry | {"timeouts": {"first_token": "2m"}} for entry in local_models(stack)],
                routes=[guided(tokens=tokens, deadline="2m"), STUDENT_ONLY, TEACHER_ONLY],
            ) as gateway,
        ):
            await asyncio.to_thread(wait_until_probed, gateway.admin_url)
            ways = {
                WAYS[0]: (gateway.url, "chat"),
                WAYS[1]: (gateway.url, "chat-student"),
                WAYS[2]: (stack.student.url, "bare"),
                WAYS[3]: (gateway.url, "chat-teacher"),
            }
            seen: dict[str, list[Timed]] = {way: [] for way in WAYS}
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
                for number in track(range(questions + 1), "questions (the first one warms up)"):
                    question = (
                        f"A shop sells {number + 12} boxes with {number + 3} pens each. How many pens is that? "
                        "Explain each step."
                    )
                    for way, (url, name) in ways.items():
                        # cache_prompt: each method processes the whole prompt
                        timed = await ask(session, url, name, question, max_tokens, cache_prompt=False)
                        if number:
                            seen[way].append(timed)
    return {
        way: {
            "first_ms": statistics.median(one.first_s for one in times) * 1000,
            "total_ms": statistics.median(one.total_s for one in times) * 1000,
            "tokens": statistics.median(one.tokens for one in times),
        }
        for way, times in seen.items()
    }


if __name__ == "__main__":
    typer.run(main)
