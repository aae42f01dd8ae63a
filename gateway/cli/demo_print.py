"""What the demo shows: the answer as it streams, the teacher's part marked, and its receipt."""

from __future__ import annotations

from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson
from rich import box
from rich.table import Table
from rich.text import Text

from gateway.accounting.savings import ABOUT_ZERO
from gateway.admin.marked_relay import MARK
from gateway.cli.marked_text import TEACHER_STYLE, MarkedText
from gateway.engines.sse import SseDecoder
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    import aiohttp
    from rich.console import Console

    from gateway.local.stack import LocalStack
    from gateway.policy.projections import Placement
    from gateway.runtime.addresses import GatewayAddresses

_OPENED = {"guided", "teacher_complete"}


async def print_answer(
    console: Console,
    session: aiohttp.ClientSession,
    admin: str,
    question: str,
    *,
    placement: Placement,
    models: Mapping[str, str],
) -> None:
    """Ask the gateway, print the answer as it comes, then its receipt. Raises StartupError if it gives no answer.

    It asks as the playground does, which hears whose words are whose; callers get the same words without marks.

    Args:
        session: sends the admin key.
        admin: where the admin listener is.
        placement: the route's; only what is placed in front of the answer is shown.
        models: what the engines call the models that play `teacher` and `student`.
    """
    console.print(Text.assemble(("\nQuestion ", "bold"), question), soft_wrap=True)
    receipt: dict[str, Any] | None = None
    async with _asked(session, admin, question) as reply:
        mode, unguided = reply.headers["x-gkt-mode"], reply.headers.get("x-gkt-unguided")
        marked = placement == "prefix" and mode in _OPENED
        console.print(Text.assemble("Answer   ", *_whose(mode, unguided, marked=marked), "\n"), soft_wrap=True)
        answer = MarkedText(console)
        async for event in _events(reply):
            if "choices" not in event:
                receipt = event
                continue
            for choice in event["choices"]:
                text, opening = choice["delta"].get("content") or "", event.get(MARK, {}).get("opening", "")
                answer.print(text[: len(opening)], teachers=True)
                answer.print(text[len(opening) :], teachers=False)
        answer.end()
    if receipt is None:
        raise StartupError("The answer broke off before its receipt.")
    console.print("\n")
    table, said = _receipt_table(receipt, models)
    console.print(table)
    console.print(said, soft_wrap=True, highlight=False)


def _whose(mode: str, unguided: str | None, *, marked: bool) -> Sequence[str | tuple[str, str]]:
    """Whose words follow."""
    teachers = ("the teacher's words", TEACHER_STYLE)
    if mode == "teacher_complete" and marked:
        return teachers, ", to the end"
    if marked:
        return teachers, ", then the student's"
    if mode in _OPENED:
        return ("the student's words, after a hint of the teacher's that is not shown",)
    why = f": unguided, {unguided} (docs/reference/receipts.md says what that means)" if unguided else ""
    return (f"the {'teacher' if mode == 'teacher' else 'student'}'s words alone{why}",)


@asynccontextmanager
async def _asked(session: aiohttp.ClientSession, admin: str, question: str) -> AsyncIterator[aiohttp.ClientResponse]:
    run = {"tenant": "demo", "model": "chat", "mode": "guided", "prompt": question, "temperature": 0, "max_tokens": 400}
    async with session.post(f"{admin}/playground/run", data=orjson.dumps(run)) as reply:
        if not reply.ok:
            raise StartupError(f"The gateway answered {reply.status}: {await reply.text()}")
        yield reply


async def _events(reply: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The chunks of the answer, then its receipt."""
    decoder = SseDecoder()
    async for received in reply.content.iter_any():
        for data in decoder.feed(received):
            if data == b"[DONE]":
                return
            event: dict[str, Any] = orjson.loads(data)
            if "error" in event:
                raise StartupError(f"The answer broke off: {event['error']['message']}")
            yield event


def _receipt_table(receipt: dict[str, Any], models: Mapping[str, str]) -> tuple[Table, str]:
    """The money as a table, and the rest in one line."""
    table = Table(
        "",
        "tokens read",
        "written",
        "cost, USD",
        title=f"Receipt {receipt['id']}",
        title_justify="left",
        box=box.SIMPLE,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for role in ("teacher", "student"):
        share = receipt[role]
        if share is not None:
            read, written = str(share["input_tokens"]), str(share["output_tokens"])
            who = Text.assemble(f"{role} ", (models[role], "dim"))
            table.add_row(who, read, written, _usd(share["cost_usd"]))
    table.add_row("together", "", "", _usd(receipt["cost_usd"]))
    about = " (estimate)" if receipt["baseline_estimated"] else ""
    table.add_row(f"the teacher alone{about}", "", "", _usd(receipt["baseline_usd"]))
    saved = ABOUT_ZERO if receipt.get("savings_about_zero") else _usd(receipt["savings_usd"])
    table.add_row("saved (negative: it cost more)", "", "", saved)
    timings = receipt["timings"]
    batch = receipt["batch"] or {"id": "none", "size": 0}
    said = [f"mode {receipt['mode']}", f"batch {batch['id']} of {batch['size']}"]
    stages = ("batch_wait", "teacher", "first_token", "total")
    said += [
        f"{stage.replace('_', ' ')} {timings[stage + '_ms'] / 1000:.2f} s"
        for stage in stages
        if stage + "_ms" in timings
    ]
    if receipt["unguided"]:
        said.append(f"unguided: {receipt['unguided']}")
    return table, ", ".join(said)


def _usd(amount: str) -> str:
    return f"{Decimal(amount):.7f}"


def print_where(console: Console, gateway: GatewayAddresses, engines: LocalStack, admin_key: str) -> None:
    """What listens where: enough to write a config.yaml against the demo's engines, and to look at its pages."""
    console.print(
        f"gateway {gateway.public}/v1   admin {gateway.admin}/readyz, /metrics\n"
        f"teacher {engines.teacher_url} (protocol tgi)   student {engines.student_url}/v1 (protocol openai)\n"
        f"pages   {gateway.admin}/playground, /dashboard   their admin key, until it stops: {admin_key}",
        highlight=False,
        soft_wrap=True,
    )


def print_how_to_call(console: Console, base_url: str, key: str) -> None:
    """Commands to copy. The prices of the demo are examples."""
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
