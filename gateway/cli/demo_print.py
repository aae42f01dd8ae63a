"""What the demo shows: the answer as it streams, the teacher's part marked, and its receipt."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson
from rich import box
from rich.table import Table
from rich.text import Text

from gateway.engines.sse import SseDecoder
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp
    from rich.console import Console

    from gateway.app import Addresses
    from gateway.local.stack import LocalStack

_TEACHER_STYLE = "bold cyan"
_RECEIPT_TRIES = 50


async def print_answer(console: Console, session: aiohttp.ClientSession, base_url: str, question: str) -> None:
    """Ask the gateway, print the answer as it comes, then its receipt. Raises StartupError if it gives no answer."""
    console.print(Text.assemble(("\nQuestion ", "bold"), question), soft_wrap=True)
    console.print(Text.assemble("Answer   ", ("the teacher's words", _TEACHER_STYLE), ", then the student's\n"))
    # ASCII marks as well: colour does not survive a pipe.
    opened = False
    receipt_id = ""
    async for part in _stream(session, base_url, question):
        if not receipt_id:
            receipt_id = part
        elif not opened:
            console.print(Text(part if console.is_terminal else f"[{part}]", _TEACHER_STYLE), end="", soft_wrap=True)
            opened = True
        else:
            console.print(Text(part), end="", soft_wrap=True)
    console.print("\n")
    table, said = _receipt_table(await _receipt(session, base_url, receipt_id))
    console.print(table)
    console.print(said, soft_wrap=True, highlight=False)


async def _stream(session: aiohttp.ClientSession, base_url: str, question: str) -> AsyncIterator[str]:
    """Yield the receipt's id, then the answer in the parts in which it comes."""
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "temperature": 0,
        "max_tokens": 400,
    }
    decoder = SseDecoder()
    async with session.post(f"{base_url}/v1/chat/completions", data=orjson.dumps(body)) as reply:
        if not reply.ok:
            raise StartupError(f"The gateway answered {reply.status}: {await reply.text()}")
        yield reply.headers["x-request-id"]
        async for received in reply.content.iter_any():
            for data in decoder.feed(received):
                if data == b"[DONE]":
                    return
                event = orjson.loads(data)
                if "error" in event:
                    raise StartupError(f"The answer broke off: {event['error']['message']}")
                for choice in event["choices"]:
                    if text := choice["delta"].get("content"):
                        yield text


async def _receipt(session: aiohttp.ClientSession, base_url: str, receipt_id: str) -> dict[str, Any]:
    """The receipt is written just after the answer has left."""
    for _ in range(_RECEIPT_TRIES):
        async with session.get(f"{base_url}/v1/receipts/{receipt_id}") as reply:
            if reply.ok:
                receipt: dict[str, Any] = await reply.json()
                return receipt
        await asyncio.sleep(0.02)
    raise StartupError(f"There is no receipt {receipt_id}.")


def _receipt_table(receipt: dict[str, Any]) -> tuple[Table, str]:
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
            table.add_row(f"{role} [dim]{share['model']}[/]", read, written, _usd(share["cost_usd"]))
    table.add_row("together", "", "", _usd(receipt["cost_usd"]))
    about = " (estimate)" if receipt["baseline_estimated"] else ""
    table.add_row(f"the teacher alone{about}", "", "", _usd(receipt["baseline_usd"]))
    table.add_row("saved (negative: it cost more)", "", "", _usd(receipt["savings_usd"]))
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


def print_where(console: Console, gateway: Addresses, engines: LocalStack) -> None:
    """What listens where: enough to write a config.yaml against the demo's engines."""
    console.print(
        f"gateway {gateway.public}/v1   admin {gateway.admin}/readyz, /metrics\n"
        f"teacher {engines.teacher_url} (protocol tgi)   student {engines.student_url}/v1 (protocol openai)",
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
