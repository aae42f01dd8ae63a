"""`gkt-gateway demo`: run a gateway with real models on this machine, and answer a question."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gateway.cli.guided_answer import MAX_TOKENS, QUESTION, curl_command, print_answer, probed_gateway
from gateway.cli.interrupts import INTERRUPTED, run_until_interrupted
from gateway.config.settings import Settings
from gateway.local import weights
from gateway.local.redis import EmbeddedRedis, find_server
from gateway.local.stack import LocalStack
from gateway.policy.book import PolicySet
from gateway.policy.guidance_rule import GuidanceRule
from gateway.policy.projections import Shipped  # noqa: TC001  typer reads it
from gateway.policy.schema import TenantPolicy
from gateway.runtime import llama_cpp
from gateway.server.ports import reserved_port
from gateway.server.usage_worker import usage_worker_in_process
from gateway.telemetry.logs import set_up_logs

if TYPE_CHECKING:
    from gateway.server import GatewayAddresses

TEACHER = "qwen2.5-coder-1.5b-instruct"
STUDENT = "qwen2.5-coder-0.5b-instruct"
KEY = "gk-demo"

# On a slow CPU the demo waits, so that the answer is guided.
_GUIDANCE_DEADLINE_S = 120.0
_PORT = 8080
_MODELS = f"{', '.join(weights.CATALOGUE)}, or the path of a .gguf file."


def demo(
    ask: Annotated[str | None, typer.Option(help="Answer this question and exit.")] = None,
    tokens: Annotated[int, typer.Option(min=1, max=MAX_TOKENS, help="Tokens of guidance.")] = 40,
    projection: Annotated[Shipped, typer.Option(help="Projection of the guidance.")] = "cutoff",
    teacher: Annotated[str, typer.Option(help=_MODELS)] = TEACHER,
    student: Annotated[str, typer.Option(help=_MODELS)] = STUDENT,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the gateway. Default: 8080; with --ask any free port.")
    ] = None,
) -> None:
    """Start Redis, a teacher, a student and the gateway on this machine, and answer a question.

    The models are real and small, and run on the CPU with llama.cpp. Their weights (1.6 GB) are downloaded once.
    Without --ask the gateway runs until Ctrl-C.
    """
    set_up_logs("warning", "auto")
    setup = _Setup(teacher, student, tokens, projection, port if port is not None else 0 if ask else _PORT)
    for name in (teacher, student):
        weights.find(name)  # an unknown name fails before any download
    find_server()
    llama_cpp.require_library()
    with reserved_port("127.0.0.1", setup.port, "--port"):
        pass
    for name in (teacher, student):
        weights.fetch(name)  # outside the event loop, so that Ctrl-C ends a download at once
    status = INTERRUPTED if ask is not None else 0
    run_until_interrupted(_demo(setup, ask, Console()), "demo", status)


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
        """Names of the models at the engines, by role. The configuration uses the roles, since both may be equal."""
        return {"teacher": weights.model_name(self.teacher), "student": weights.model_name(self.student)}

    def settings(self, stack: LocalStack, folder: Path) -> Settings:
        """Return the settings of the demo, with the gateway's files in `folder`. The prices are examples."""
        return Settings.model_validate(
            {
                "server": {"host": "127.0.0.1", "port": self.port},
                "admin": {"port": 0, "key": self.admin_key},
                "redis": {"lease": _GUIDANCE_DEADLINE_S},
                "data": folder,
                "models": [
                    {
                        "name": "teacher",
                        "model": self.models["teacher"],
                        "protocol": "openai",
                        "api_base": stack.teacher.url + "/v1",
                        "price": {"input_per_1m": Decimal("0.90"), "output_per_1m": Decimal("0.90")},
                    },
                    {
                        "name": "student",
                        "model": self.models["student"],
                        "protocol": "openai",
                        "api_base": stack.student.url + "/v1",
                        "price": {"input_per_1m": Decimal("0.10"), "output_per_1m": Decimal("0.10")},
                        "timeouts": {"first_token": 120.0},
                    },
                ],
            }
        )

    def book(self) -> PolicySet:
        guidance = {"tokens": self.tokens, "projection": self.projection, "deadline": _GUIDANCE_DEADLINE_S}
        # Allows API requests with the settings of the playground.
        overrides = {"modes": ["teacher", "student"], "guidance_tokens": MAX_TOKENS}
        chat = {"model": "chat", "mode": "guided", "teacher": "teacher", "student": "student"}
        routes = [
            chat | {"guidance": guidance, "overrides": overrides},
            {"model": "chat-student", "mode": "student", "student": "student", "baseline": "teacher"},
            {"model": "chat-teacher", "mode": "teacher", "teacher": "teacher"},
        ]
        key = {"id": "demo", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
        return PolicySet.of([TenantPolicy.model_validate({"tenant": "demo", "keys": [key], "routes": routes})])


async def _demo(setup: _Setup, ask: str | None, console: Console) -> None:
    async with AsyncExitStack() as exits:
        # `status` restores the cursor also when the start fails.
        with console.status("starting Redis, the teacher and the student") as status:
            redis = await exits.enter_async_context(EmbeddedRedis())
            stack = await exits.enter_async_context(LocalStack(teacher=setup.teacher, student=setup.student))
            folder = exits.enter_context(TemporaryDirectory(prefix="gkt-demo-", ignore_cleanup_errors=True))
            settings = setup.settings(stack, Path(folder))
            await exits.enter_async_context(usage_worker_in_process(settings, redis.url))
            at, session = await exits.enter_async_context(probed_gateway(settings, setup.book(), redis.url, status))
        if ask is None:
            print_where(console, at, stack, setup.admin_key)
        placement = GuidanceRule(projection=setup.projection).placement
        await print_answer(console, session, at.admin, ask or QUESTION, placement=placement, models=setup.models)
        if ask is not None:
            console.print("\nWithout --ask the gateway keeps running. Then call it like this:")
            print_how_to_call(console, f"http://127.0.0.1:{setup.port or _PORT}", KEY)
        else:
            print_how_to_call(console, at.public, KEY)
            console.print("\nThe gateway is running. [bold]Ctrl-C[/] stops it and everything it started.")
            await asyncio.Event().wait()


def print_where(console: Console, gateway: GatewayAddresses, engines: LocalStack, admin_key: str) -> None:
    """Print the addresses of the gateway, its engines and its pages, and the admin key."""
    console.print(
        f"gateway {gateway.public}/v1   admin {gateway.admin}/readyz, /metrics\n"
        f"teacher {engines.teacher.url}/v1   student {engines.student.url}/v1\n"
        f"pages   {gateway.admin}/playground, /dashboard   admin key: {admin_key}",
        highlight=False,
        soft_wrap=True,
    )


def print_how_to_call(console: Console, base_url: str, key: str) -> None:
    """Print example calls of the gateway."""
    console.print(
        f"""
[bold]curl[/]
{curl_command(base_url, key, "chat")}

[bold]OpenAI SDK[/] (pip install openai)
from openai import OpenAI
client = OpenAI(base_url="{base_url}/v1", api_key="{key}")
reply = client.chat.completions.create(model="chat", messages=[{{"role": "user", "content": "Why is the sky blue?"}}])
print(reply.choices[0].message.content)

models: chat (guided), chat-student, chat-teacher; prices are examples""",
        highlight=False,
        soft_wrap=True,
    )
