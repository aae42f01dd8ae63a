"""`gkt-gateway demo`: real models on this machine, one guided answer, and a gateway to play with."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import aiohttp
import typer
import uvloop
from rich.console import Console

from gateway.cli.demo_print import print_answer, print_how_to_call, print_where
from gateway.cli.interrupts import INTERRUPTED, until_interrupted
from gateway.config.settings import Settings
from gateway.local import weights
from gateway.local.redis import EmbeddedRedis
from gateway.local.stack import LocalStack
from gateway.policy.book import PolicySet
from gateway.policy.projections import Shipped  # noqa: TC001  typer reads it
from gateway.policy.schema import GuidanceRule, TenantPolicy
from gateway.server.in_process import gateway_in_process, wait_until_probed
from gateway.server.ports import reserved_port
from gateway.server.usage_worker import usage_worker_in_process
from gateway.telemetry.logs import set_up_logs

TEACHER = "qwen2.5-coder-1.5b-instruct"
STUDENT = "qwen2.5-coder-0.5b-instruct"
KEY = "gk-demo"
QUESTION = (
    "A baker sells 24 rolls in the morning and half as many in the afternoon. "
    "Each roll costs 3 dollars. How much money does the baker take in?"
)

# A CPU is slow; the demo waits rather than showing an unguided answer.
_GUIDANCE_DEADLINE_S = 120.0
_PORT = 8080
_MOST_TOKENS = 400
_MODELS = f"{', '.join(weights.CATALOGUE)}, or the path of a .gguf file."


def demo(
    ask: Annotated[str | None, typer.Option(help="Ask this one question, print the answer, and leave.")] = None,
    tokens: Annotated[int, typer.Option(min=1, max=_MOST_TOKENS, help="How many tokens the teacher writes (m).")] = 40,
    projection: Annotated[Shipped, typer.Option(help="How the teacher is asked.")] = "cutoff",
    teacher: Annotated[str, typer.Option(help=_MODELS)] = TEACHER,
    student: Annotated[str, typer.Option(help=_MODELS)] = STUDENT,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Where the gateway listens. Default: 8080; with --ask any.")
    ] = None,
) -> None:
    """Start everything on this machine: Redis, a teacher, a student, the gateway; answer a question.

    The models are real and small, and run on the CPU; their weights (1.6 GB) are fetched once. The teacher speaks
    text-generation-inference's protocol, but is llama.cpp underneath. Without --ask the gateway goes on running until
    Ctrl-C.
    """
    set_up_logs("warning", "auto")
    setup = _Setup(teacher, student, tokens, projection, port if port is not None else 0 if ask else _PORT)
    for name in (teacher, student):
        weights.find(name)  # what is wrong is said before a gigabyte is fetched
    with reserved_port("127.0.0.1", setup.port, "server.port"):
        pass
    for name in (teacher, student):
        weights.fetch(name)  # before the event loop: Ctrl-C then ends a download at once
    if not uvloop.run(until_interrupted(_demo(setup, ask, Console()), "demo")):
        raise typer.Exit(INTERRUPTED if ask is not None else 0)


@dataclass(frozen=True, slots=True)
class _Setup:
    teacher: str
    student: str
    tokens: int
    projection: Shipped
    port: int
    admin_key: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)

    @property
    def models(self) -> dict[str, str]:
        """What the engines call the models, by role. In the configuration they go by their roles: they may be one."""
        return {"teacher": weights.model_name(self.teacher), "student": weights.model_name(self.student)}

    def settings(self, stack: LocalStack, folder: Path) -> Settings:
        """Return what config.yaml would hold, with the gateway's files in `folder`. The prices are examples."""
        return Settings.model_validate(
            {
                "server": {"host": "127.0.0.1", "port": self.port},
                "admin": {"port": 0, "key": self.admin_key},
                "redis": {"lease": _GUIDANCE_DEADLINE_S},
                "data": folder,
                "models": [
                    {
                        "name": "teacher",
                        "protocol": "tgi",  # to which any `model` of its own would name an adapter
                        "api_base": stack.teacher_url,
                        "price": {"input_per_1m": Decimal("0.90"), "output_per_1m": Decimal("0.90")},
                    },
                    {
                        "name": "student",
                        "model": self.models["student"],
                        "protocol": "openai",
                        "api_base": stack.student_url + "/v1",
                        "price": {"input_per_1m": Decimal("0.10"), "output_per_1m": Decimal("0.10")},
                        "timeouts": {"first_token": 120.0},
                    },
                ],
            }
        )

    def book(self) -> PolicySet:
        guidance = {"tokens": self.tokens, "projection": self.projection, "deadline": _GUIDANCE_DEADLINE_S}
        # So that what is tried in the playground can be copied and sent.
        overrides = {"modes": ["teacher", "student"], "guidance_tokens": _MOST_TOKENS}
        chat = {"model": "chat", "mode": "guided", "teacher": "teacher", "student": "student"}
        routes = [
            chat | {"guidance": guidance, "overrides": overrides},
            {"model": "chat-student", "mode": "student", "student": "student", "baseline": "teacher"},
            {"model": "chat-teacher", "mode": "teacher", "teacher": "teacher"},
        ]
        key = {"id": "demo", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
        return PolicySet.of([TenantPolicy.model_validate({"tenant": "demo", "keys": [key], "routes": routes})])


async def _demo(setup: _Setup, ask: str | None, console: Console) -> None:
    async with AsyncExitStack() as running:
        # However the start ends, the terminal gets its cursor back.
        with console.status("starting Redis, the teacher and the student") as starting:
            redis = await running.enter_async_context(EmbeddedRedis())
            stack = await running.enter_async_context(LocalStack(teacher=setup.teacher, student=setup.student))
            # It leaves nothing behind.
            folder = running.enter_context(TemporaryDirectory(prefix="gkt-demo-", ignore_cleanup_errors=True))
            settings = setup.settings(stack, Path(folder))
            await running.enter_async_context(usage_worker_in_process(settings, redis.url))
            at = await running.enter_async_context(gateway_in_process(settings, setup.book(), redis.url))
            session = await running.enter_async_context(
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {setup.admin_key}"})
            )
            starting.update("asking the engines what they can do")
            await wait_until_probed(session, at.admin)
        if ask is None:
            print_where(console, at, stack, setup.admin_key)
        placement = GuidanceRule(projection=setup.projection).placement
        await print_answer(console, session, at.admin, ask or QUESTION, placement=placement, models=setup.models)
        if ask is not None:
            console.print("\nWithout --ask the gateway goes on running. Then call it like this:")
            print_how_to_call(console, f"http://127.0.0.1:{_PORT}", KEY)
        else:
            print_how_to_call(console, at.public, KEY)
            console.print("\nThe gateway is running. [bold]Ctrl-C[/] stops it and everything it started.")
            await asyncio.Event().wait()
