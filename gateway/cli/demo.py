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
from typing import TYPE_CHECKING, Annotated, Any

import aiohttp
import orjson
import typer
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.accounting.savings import ABOUT_ZERO
from gateway.admin.playground import MARK
from gateway.cli.interrupts import INTERRUPTED, until_interrupted
from gateway.cli.tables import TEACHER_STYLE, MarkedText
from gateway.config.settings import Settings
from gateway.engines.sse import SseDecoder
from gateway.errors import StartupError
from gateway.local import weights
from gateway.local.redis import EmbeddedRedis
from gateway.local.stack import LocalStack
from gateway.policy.book import PolicySet
from gateway.policy.guidance_rule import GuidanceRule
from gateway.policy.projections import Shipped  # noqa: TC001  typer reads it
from gateway.policy.schema import TenantPolicy
from gateway.server.in_process import gateway_in_process, wait_until_probed
from gateway.server.ports import reserved_port
from gateway.server.usage_worker import usage_worker_in_process
from gateway.telemetry.logs import set_up_logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from gateway.policy.projections import Placement
    from gateway.server import GatewayAddresses

TEACHER = "qwen2.5-coder-1.5b-instruct"
STUDENT = "qwen2.5-coder-0.5b-instruct"
KEY = "gk-demo"
QUESTION = (
    "A baker sells 24 rolls in the morning and half as many in the afternoon. "
    "Each roll costs 3 dollars. How much money does the baker take in?"
)

# On a slow CPU the demo waits, so that the answer is guided.
_GUIDANCE_DEADLINE_S = 120.0
_PORT = 8080
_MAX_TOKENS = 400
_MODELS = f"{', '.join(weights.CATALOGUE)}, or the path of a .gguf file."


def demo(
    ask: Annotated[str | None, typer.Option(help="Answer this question and exit.")] = None,
    tokens: Annotated[int, typer.Option(min=1, max=_MAX_TOKENS, help="Tokens of guidance.")] = 40,
    projection: Annotated[Shipped, typer.Option(help="Projection of the guidance.")] = "cutoff",
    teacher: Annotated[str, typer.Option(help=_MODELS)] = TEACHER,
    student: Annotated[str, typer.Option(help=_MODELS)] = STUDENT,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the gateway. Default: 8080; with --ask any free port.")
    ] = None,
) -> None:
    """Start Redis, a teacher, a student and the gateway on this machine, and answer a question.

    The models are real and small, and run on the CPU with llama.cpp. Their weights (1.6 GB) are downloaded once. The
    teacher's server has text-generation-inference's API. Without --ask the gateway runs until Ctrl-C.
    """
    set_up_logs("warning", "auto")
    setup = _Setup(teacher, student, tokens, projection, port if port is not None else 0 if ask else _PORT)
    for name in (teacher, student):
        weights.find(name)  # an unknown name fails before any download
    with reserved_port("127.0.0.1", setup.port, "server.port"):
        pass
    for name in (teacher, student):
        weights.fetch(name)  # outside the event loop, so that Ctrl-C ends a download at once
    status = INTERRUPTED if ask is not None else 0
    uvloop.run(until_interrupted(_demo(setup, ask, Console()), "demo", status))


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
                        "protocol": "tgi",  # its `model` would name an adapter
                        "api_base": stack.teacher.url,
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
        overrides = {"modes": ["teacher", "student"], "guidance_tokens": _MAX_TOKENS}
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
            at = await exits.enter_async_context(gateway_in_process(settings, setup.book(), redis.url))
            session = await exits.enter_async_context(
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {setup.admin_key}"})
            )
            status.update("probing the engines")
            await wait_until_probed(session, at.admin)
        if ask is None:
            print_where(console, at, stack, setup.admin_key)
        placement = GuidanceRule(projection=setup.projection).placement
        await print_answer(console, session, at.admin, ask or QUESTION, placement=placement, models=setup.models)
        if ask is not None:
            console.print("\nWithout --ask the gateway keeps running. Then call it like this:")
            print_how_to_call(console, f"http://127.0.0.1:{_PORT}", KEY)
        else:
            print_how_to_call(console, at.public, KEY)
            console.print("\nThe gateway is running. [bold]Ctrl-C[/] stops it and everything it started.")
            await asyncio.Event().wait()


_GUIDED = {"guided", "teacher_complete"}


async def print_answer(
    console: Console,
    session: aiohttp.ClientSession,
    admin: str,
    question: str,
    *,
    placement: Placement,
    models: Mapping[str, str],
) -> None:
    """Send the question, print the answer while it streams, then its receipt.

    The request goes with the admin key through the playground's endpoint, which marks the teacher's text. Only guidance
    that the route's placement puts in front of the answer is part of the output. Raises StartupError if the gateway
    returned no complete answer.
    """
    console.print(Text.assemble(("\nQuestion ", "bold"), question), soft_wrap=True)
    receipt: dict[str, Any] | None = None
    run = {"tenant": "demo", "model": "chat", "mode": "guided", "prompt": question, "temperature": 0, "max_tokens": 400}
    async with session.post(f"{admin}/playground/run", data=orjson.dumps(run)) as reply:
        if not reply.ok:
            raise StartupError(f"The gateway answered {reply.status}: {await reply.text()}")
        mode, unguided = reply.headers["x-gkt-mode"], reply.headers.get("x-gkt-unguided")
        marked = placement == "prefix" and mode in _GUIDED
        console.print(Text.assemble("Answer   ", *_authors(mode, unguided, marked=marked), "\n"), soft_wrap=True)
        answer = MarkedText(console)
        async for event in _events(reply):
            if "choices" not in event:
                receipt = event
                continue
            for choice in event["choices"]:
                text, guidance = choice["delta"].get("content") or "", event.get(MARK, {}).get("opening", "")
                answer.print(text[: len(guidance)], by_teacher=True)
                answer.print(text[len(guidance) :], by_teacher=False)
        answer.end()
    if receipt is None:
        raise StartupError("The answer ended before its receipt.")
    console.print("\n")
    table, facts = _receipt_table(receipt, models)
    console.print(table)
    console.print(facts, soft_wrap=True, highlight=False)


def _authors(mode: str, unguided: str | None, *, marked: bool) -> Sequence[str | tuple[str, str]]:
    teacher = ("the teacher", TEACHER_STYLE)
    if mode == "teacher_complete" and marked:
        return "by ", teacher, " to the end"
    if marked:
        return "by ", teacher, ", then the student"
    if mode in _GUIDED:
        return ("by the student, after a hint by the teacher that is not shown",)
    reason = f": unguided, {unguided} (see docs/reference/receipts.md)" if unguided else ""
    return (f"by the {'teacher' if mode == 'teacher' else 'student'} alone{reason}",)


async def _events(reply: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    decoder = SseDecoder()
    async for received in reply.content.iter_any():
        for data in decoder.feed(received):
            if data == b"[DONE]":
                return
            event: dict[str, Any] = orjson.loads(data)
            if "error" in event:
                raise StartupError(f"The answer failed: {event['error']['message']}")
            yield event


def _receipt_table(receipt: dict[str, Any], models: Mapping[str, str]) -> tuple[Table, str]:
    """Return a table of tokens and cost, and a line with the other facts."""
    heads, title = ("", "input tokens", "output tokens", "cost, USD"), f"Receipt {receipt['id']}"
    table = Table(*heads, title=title, title_justify="left", box=box.SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for role in ("teacher", "student"):
        share = receipt[role]
        if share is not None:
            tokens = str(share["input_tokens"]), str(share["output_tokens"])
            name = Text.assemble(f"{role} ", (models[role], "dim"))
            table.add_row(name, *tokens, _usd(share["cost_usd"]))
    table.add_row("total", "", "", _usd(receipt["cost_usd"]))
    about = " (estimate)" if receipt["baseline_estimated"] else ""
    table.add_row(f"the teacher alone{about}", "", "", _usd(receipt["baseline_usd"]))
    saved = ABOUT_ZERO if receipt.get("savings_about_zero") else _usd(receipt["savings_usd"])
    table.add_row("saved (negative: it cost more)", "", "", saved)
    timings = receipt["timings"]
    batch = receipt["batch"] or {"id": "none", "size": 0}
    facts = [f"mode {receipt['mode']}", f"batch {batch['id']} of {batch['size']}"]
    stages = ("batch_wait", "teacher", "first_token", "handover", "total")
    spent_ms = {stage.replace("_", " "): timings[f"{stage}_ms"] for stage in stages if f"{stage}_ms" in timings}
    facts += [f"{stage} {ms / 1000:.2f} s" for stage, ms in spent_ms.items()]
    if receipt["unguided"]:
        facts.append(f"unguided: {receipt['unguided']}")
    return table, ", ".join(facts)


def _usd(amount: str) -> str:
    return f"{Decimal(amount):.7f}"


def print_where(console: Console, gateway: GatewayAddresses, engines: LocalStack, admin_key: str) -> None:
    """Print the addresses of the gateway, its engines and its pages, and the admin key."""
    console.print(
        f"gateway {gateway.public}/v1   admin {gateway.admin}/readyz, /metrics\n"
        f"teacher {engines.teacher.url} (protocol tgi)   student {engines.student.url}/v1 (protocol openai)\n"
        f"pages   {gateway.admin}/playground, /dashboard   admin key: {admin_key}",
        highlight=False,
        soft_wrap=True,
    )


def print_how_to_call(console: Console, base_url: str, key: str) -> None:
    """Print example calls of the gateway."""
    console.print(
        f"""
[bold]curl[/]
curl {base_url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\
  -d '{{"model": "chat", "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}'

[bold]OpenAI SDK[/] (pip install openai, or .venv/bin/python)
from openai import OpenAI
client = OpenAI(base_url="{base_url}/v1", api_key="{key}")
reply = client.chat.completions.create(model="chat", messages=[{{"role": "user", "content": "Why is the sky blue?"}}])
print(reply.choices[0].message.content)

models: chat (guided), chat-student, chat-teacher; prices are examples""",
        highlight=False,
        soft_wrap=True,
    )
