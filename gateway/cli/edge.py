"""`gkt-gateway edge`: answer a question with a local student, guided by a gateway."""

from __future__ import annotations

import json
import logging
import time
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from gateway.cli.admin_client import without_none
from gateway.cli.interrupts import run_until_interrupted
from gateway.cli.tables import MarkedText
from gateway.config.scalars import InvalidValue, ValueOrigin, dereference
from gateway.config.settings import environment
from gateway.edge import EdgeClient, GatewayRefused, LlamaStudent, UrlStudent
from gateway.errors import EngineError, StartupError
from gateway.local import weights as catalogue

if TYPE_CHECKING:
    from gateway.edge import Synced
    from gateway.protocol.body import Json

_GATEWAY = "http://127.0.0.1:8080"
_KEY = "env:GKT_KEY"
_student_option = partial(typer.Option, rich_help_panel="Student")
_sampling = partial(typer.Option, rich_help_panel="Sampling of the student")


def edge(
    question: Annotated[str | None, typer.Argument(help="Question to answer.", show_default=False)] = None,
    gateway: Annotated[str, typer.Option(help="URL of the gateway.", metavar="URL")] = _GATEWAY,
    key: Annotated[
        str, typer.Option(help="Reference to the API key: env:NAME or file:PATH.", metavar="REFERENCE")
    ] = _KEY,
    route: Annotated[str, typer.Option(help="Route for guidance.", metavar="NAME")] = "chat",
    student: Annotated[
        str | None,
        _student_option(
            help="Server on this machine with OpenAI's chat completions API, like http://127.0.0.1:11434/v1.",
            metavar="URL",
        ),
    ] = None,
    model: Annotated[
        str | None, _student_option(help="Model name at that server. Default: the first one it lists.")
    ] = None,
    weights: Annotated[
        str | None,
        _student_option(
            help=f"Run a student in this process: {', '.join(catalogue.CATALOGUE)}, or the path of a .gguf file.",
            metavar="NAME|PATH",
        ),
    ] = None,
    max_tokens: Annotated[int | None, _sampling(min=1, help="Most tokens of the whole answer.")] = None,
    temperature: Annotated[float | None, _sampling(min=0, max=2, help="Sampling temperature.")] = None,
    top_p: Annotated[float | None, _sampling(min=0, max=1, help="Nucleus sampling.")] = None,
    seed: Annotated[int | None, _sampling(help="Random seed.")] = None,
    stop: Annotated[list[str] | None, _sampling(help="Stop sequence. Can be repeated.")] = None,
    wait: Annotated[
        float, typer.Option(min=0.1, help="Timeout for guidance in seconds; then the student answers alone.")
    ] = 30.0,
    queue: Annotated[
        Path | None,
        typer.Option(help="Folder for reports that the gateway has not received.", show_default="in ~/.local/state"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer and its details as JSON.")] = False,
    sync: Annotated[bool, typer.Option("--sync", help="Send waiting reports. Needs no question.")] = False,
) -> None:
    """Answer a question with a student on this machine, guided by a gateway's teacher.

    `GKT_KEY=gk-demo gkt-gateway edge "Why is the sky blue?" --weights qwen2.5-coder-0.5b-instruct` uses the gateway of
    `gkt-gateway demo` and a student in this process.

    The teacher's text is marked: by color on a terminal, by brackets elsewhere. If the gateway is unavailable, the
    student answers alone. The gateway receives a report of each answer, later if necessary.

    See `gkt-gateway docs edge`.
    """
    if question is None and not sync:
        raise typer.BadParameter("is required without --sync", param_hint="QUESTION")
    secret = _key(key)
    logging.getLogger("gateway.edge").setLevel(logging.ERROR)  # this command prints the number of waiting reports
    sampling = without_none(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop or None)
    messages = [{"role": "user", "content": question}]
    body: Json | None = None if question is None else {"model": route, **sampling, "messages": messages}
    # --sync alone needs no student: this URL is never called.
    local = UrlStudent("http://127.0.0.1:1/v1") if body is None else _student(student, model, weights)
    try:
        client = EdgeClient(gateway, key=secret, student=local, queue=queue, patience_s=wait)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--gateway") from None
    run_until_interrupted(_run(client, body, Console(), as_json=as_json, sync=sync), "edge")


async def _run(client: EdgeClient, body: Json | None, console: Console, *, as_json: bool, sync: bool) -> None:
    try:
        async with client:
            if body is not None:
                await _answer(client, body, console, as_json=as_json)
            if sync:
                synced = await client.sync()
                print_synced(console, synced)
                if synced.waiting:
                    raise typer.Exit(1)
    except GatewayRefused as error:
        raise StartupError(f"The gateway rejected the request: {error.message}") from None
    except EngineError as error:
        raise StartupError(f"{error.message} Set --student URL, or run a student with --weights.") from None


async def _answer(client: EdgeClient, body: Json, console: Console, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(await client.complete(body), indent=2, ensure_ascii=False))
        return
    printer = AnswerPrinter(console)
    async with aclosing(client.stream({**body, "stream_options": {"include_usage": True}})) as chunks:
        async for chunk in chunks:
            printer.show(chunk)
    printer.end(await client.waiting())


def _student(url: str | None, model: str | None, weights: str | None) -> UrlStudent:
    if (url is None) == (weights is None):
        raise StartupError(
            "Set one of --student URL, a server on this machine, and --weights NAME|PATH, a student in this process."
        )
    if url is not None:
        return UrlStudent(url, model=model)
    assert weights is not None
    return LlamaStudent(catalogue.fetch(weights), name=catalogue.model_name(weights))


def _key(reference: str) -> str:
    """Return the key that a reference names. Raises typer.BadParameter."""
    try:
        key = dereference(reference, ValueOrigin(environment(), Path.cwd()))
    except InvalidValue as error:
        raise typer.BadParameter(str(error), param_hint="--key") from None
    if key is None:
        raise typer.BadParameter("must be a reference: env:NAME or file:PATH", param_hint="--key")
    return key


class AnswerPrinter:
    """Prints the chunks of one answer and a summary."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._first_s: float | None = None
        self._answer = MarkedText(console)
        self._facts: Json = {}
        self._usage: Json = {}

    def show(self, chunk: Json) -> None:
        """Print the text of a chunk."""
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            if choice["finish_reason"] is not None:
                self._facts = chunk["gkt"]
            if text := choice["delta"].get("content"):
                self._first_s = self._first_s or time.monotonic() - self._began
                self._answer.print(text, by_teacher=chunk["gkt"].get("by") == "teacher")

    def end(self, waiting: int) -> None:
        """Print the summary. `waiting` is the number of reports that the gateway has not received."""
        self._answer.end()
        facts = self._facts
        summary = [f"mode {facts.get('mode', 'none')}"]
        if reason := facts.get("unguided"):
            summary.append(f"unguided: {reason}")
        if facts.get("guidance_tokens"):
            summary.append(f"guidance {facts['guidance_tokens']} tokens")
        if self._usage:
            summary.append(f"answer {self._usage['completion_tokens']} tokens")
        if self._first_s is not None:
            summary.append(f"first word {self._first_s:.2f} s")
        summary.append(f"total {time.monotonic() - self._began:.2f} s")
        if receipt := facts.get("receipt"):
            summary.append(f"receipt {receipt}")
        self._print(Text("\n\n" + ", ".join(summary) + "\n"))
        if facts.get("said"):
            alone = " The student answered alone." if reason else ""
            self._print(Text(f"{facts['said']}{alone}\n"))
        if waiting > 1 or (waiting and reason):
            self._print(Text(f"{waiting} reports wait for the gateway. Send them with gkt-gateway edge --sync\n"))

    def _print(self, text: Any) -> None:
        self._console.print(text, end="", soft_wrap=True, highlight=False)


def print_synced(console: Console, synced: Synced) -> None:
    """Print the result of a sync."""
    counts = {"sent": synced.sent, "already known": synced.known, "rejected": synced.refused, "waiting": synced.waiting}
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing was waiting"
    console.print(f"Sync: {summary}.{f' {synced.why}' if synced.why else ''}", soft_wrap=True, highlight=False)
