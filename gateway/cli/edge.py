"""`gkt-gateway edge`: one question, guided by a gateway and answered by a student on this machine."""

from __future__ import annotations

import json
import logging
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import uvloop
from rich.console import Console

from gateway.cli.edge_print import AnswerPrinter, print_synced
from gateway.cli.interrupts import INTERRUPTED, until_interrupted
from gateway.config.scalars import InvalidValue, ValueOrigin, dereference
from gateway.config.settings import environment
from gateway.edge import EdgeClient, GatewayRefused, LlamaStudent, UrlStudent
from gateway.errors import EngineError, StartupError
from gateway.local import weights as catalogue

if TYPE_CHECKING:
    from gateway.protocol.body import Json

_GATEWAY = "http://127.0.0.1:8080"
_KEY = "env:GKT_KEY"
_STUDENT, _SAMPLING = "The student", "Its sampling"


def edge(
    question: Annotated[str | None, typer.Argument(help="What to ask.", show_default=False)] = None,
    gateway: Annotated[str, typer.Option(help="The gateway's address.", metavar="URL")] = _GATEWAY,
    key: Annotated[
        str, typer.Option(help="Where the gateway's key is: env:NAME or file:PATH.", metavar="REFERENCE")
    ] = _KEY,
    route: Annotated[str, typer.Option(help="Which route guides.", metavar="NAME")] = "chat",
    student: Annotated[
        str | None,
        typer.Option(
            help="A server on this machine that speaks OpenAI's chat completions, like http://127.0.0.1:11434/v1.",
            metavar="URL",
            rich_help_panel=_STUDENT,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="What that server calls it. Default: the first it lists.", rich_help_panel=_STUDENT),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help=f"Or run one here: {', '.join(catalogue.CATALOGUE)}, or the path of a .gguf file.",
            metavar="NAME|PATH",
            rich_help_panel=_STUDENT,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of the whole answer.", rich_help_panel=_SAMPLING)
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, rich_help_panel=_SAMPLING)] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, rich_help_panel=_SAMPLING)] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=_SAMPLING)] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Where to end; several times for several.", rich_help_panel=_SAMPLING)
    ] = None,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds for guidance; then the student answers alone.")] = 30.0,
    queue: Annotated[
        Path | None,
        typer.Option(help="Folder for what the gateway is yet to be told.", show_default="in ~/.local/state"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON, with what it was.")] = False,
    sync: Annotated[bool, typer.Option("--sync", help="Tell the gateway of what waits; needs no question.")] = False,
) -> None:
    """Answer a question on this machine, with the first words from a gateway's teacher.

    `GKT_KEY=gk-demo gkt-gateway edge "Why is the sky blue?" --weights qwen2.5-coder-0.5b-instruct` asks the gateway
    that `gkt-gateway demo` runs, and goes on with a student in this process.

    The teacher's words are marked: in colour on a terminal, in brackets elsewhere. Without the gateway the student
    answers alone, and the line below says so; the gateway is told of it later. docs/edge-client.md has the rest.
    """
    if question is None and not sync:
        raise typer.BadParameter("is needed, unless --sync is all that is wanted", param_hint="QUESTION")
    secret = _key(key)
    logging.getLogger("gateway.edge").setLevel(logging.ERROR)  # what waits is printed
    body = _body(
        question,
        model=route,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=list(stop) if stop else None,
    )
    # Nobody asks a student that is there for --sync alone.
    local = UrlStudent("http://127.0.0.1:1/v1") if body is None else _student(student, model, weights)
    try:
        client = EdgeClient(gateway, key=secret, student=local, queue=queue, patience_s=wait)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--gateway") from None
    asking = _Asking(client, body, as_json, sync)
    if not uvloop.run(until_interrupted(_run(asking, Console()), "edge")):
        raise typer.Exit(INTERRUPTED)


@dataclass(frozen=True, slots=True)
class _Asking:
    client: EdgeClient
    body: Json | None
    as_json: bool
    sync: bool


async def _run(asking: _Asking, console: Console) -> None:
    try:
        async with asking.client as client:
            if asking.body is not None:
                await _answer(client, asking.body, console, as_json=asking.as_json)
            if asking.sync:
                synced = await client.sync()
                print_synced(console, synced)
                if synced.waiting:
                    raise typer.Exit(1)
    except GatewayRefused as error:
        raise StartupError(f"The gateway refused: {error.message}") from None
    except EngineError as error:
        raise StartupError(f"{error.message} Name it with --student URL, or run one with --weights.") from None


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
            "Name one student: --student URL of a server on this machine, or --weights NAME or PATH to run one here."
        )
    if url is not None:
        return UrlStudent(url, model=model)
    assert weights is not None, "as was just seen"
    return LlamaStudent(catalogue.fetch(weights), name=catalogue.model_name(weights))


def _body(question: str | None, **given: Any) -> Json | None:
    if question is None:
        return None
    said = {name: value for name, value in given.items() if value is not None}
    return {**said, "messages": [{"role": "user", "content": question}]}


def _key(reference: str) -> str:
    """The key itself, which no command line shows. Raises typer.BadParameter."""
    try:
        found = dereference(reference, ValueOrigin(environment(), Path.cwd()))
    except InvalidValue as error:
        raise typer.BadParameter(str(error), param_hint="--key") from None
    if found is None:
        raise typer.BadParameter("must be a reference: env:NAME or file:PATH", param_hint="--key")
    return found
