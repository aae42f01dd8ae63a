"""Print a guided answer with the teacher's part marked, its receipt, and a call to try next.

`demo` and `init` use it. The question goes through a whole gateway in this process.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from rich import box
from rich.table import Table
from rich.text import Text

from gateway.accounting.savings import ABOUT_ZERO
from gateway.admin.playground import MARK
from gateway.cli.tables import TEACHER_STYLE, MarkedText
from gateway.engines.sse import SseDecoder
from gateway.errors import StartupError
from gateway.server.in_process import gateway_in_process, wait_until_probed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from rich.console import Console
    from rich.status import Status

    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet
    from gateway.policy.projections import Placement
    from gateway.server import GatewayAddresses

QUESTION = (
    "A baker sells 24 rolls in the morning and half as many in the afternoon. "
    "Each roll costs 3 dollars. How much money does the baker take in?"
)
MAX_TOKENS = 400
"""Maximum tokens of the answer."""


@asynccontextmanager
async def probed_gateway(
    settings: Settings, book: PolicySet, redis_url: str, status: Status
) -> AsyncIterator[tuple[GatewayAddresses, aiohttp.ClientSession]]:
    """Run a gateway in this process. Yield its addresses and a session with its admin key, once it probed the engines.

    Raises StartupError if the gateway or an engine does not start.
    """
    assert settings.admin.key is not None, "the question is sent with the admin key"
    authorization = {"Authorization": f"Bearer {settings.admin.key.get_secret_value()}"}
    async with AsyncExitStack() as exits:
        at = await exits.enter_async_context(gateway_in_process(settings, book, redis_url))
        session = await exits.enter_async_context(aiohttp.ClientSession(headers=authorization))
        status.update("probing the engines")
        await wait_until_probed(session, at.admin, settings.models)
        yield at, session


_GUIDED = {"guided", "teacher_complete"}


async def print_answer(
    console: Console,
    session: aiohttp.ClientSession,
    admin: str,
    question: str,
    *,
    placement: Placement,
    models: Mapping[str, str],
    tenant: str = "demo",
    route: str = "chat",
    temperature: float = 0,
) -> None:
    """Send the question, print the answer while it streams, then its receipt.

    The request goes with the admin key through the playground's endpoint, which marks the teacher's text. Only guidance
    that the route's placement puts in front of the answer is part of the output. Raises StartupError if the gateway
    returned no complete answer.

    Args:
        models: the names of the models at the engines, by role.
        temperature: the student's sampling temperature.
    """
    console.print(Text.assemble(("\nQuestion ", "bold"), question), soft_wrap=True)
    receipt: dict[str, Any] | None = None
    run: dict[str, Any] = {"tenant": tenant, "model": route, "mode": "guided", "prompt": question}
    run |= {"temperature": temperature, "max_tokens": MAX_TOKENS}
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
    if mode == "guided" and receipt["student"] is None:  # the head of the stream is older than the teacher's last token
        console.print("The teacher wrote the whole answer. No student was called.\n", soft_wrap=True)
    table, facts = _receipt_table(receipt, models)
    console.print(table)
    console.print(facts, soft_wrap=True, highlight=False)


def _authors(mode: str, unguided: str | None, *, marked: bool) -> Sequence[str | tuple[str, str]]:
    teacher = ("the teacher", TEACHER_STYLE)
    if mode == "teacher_complete":
        return "by ", teacher, " to the end"
    if marked:
        return "by ", teacher, ", then the student"
    if mode in _GUIDED:
        return ("by the student, after a hint by the teacher that is not shown",)
    reason = f": unguided, {unguided} (see `gkt-gateway docs receipts`)" if unguided else ""
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


def curl_command(base_url: str, key: str, model: str) -> str:
    """Return a shell command that sends a question to the gateway."""
    return (
        f"curl {base_url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\\n"
        f'  -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}\''
    )
