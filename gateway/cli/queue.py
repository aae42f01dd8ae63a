"""`gkt-gateway queue`: what waits for the teachers, asked of a running gateway."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import orjson
import typer
import uvloop
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gateway.batching.view import QueuesReply
from gateway.cli.admin_client import AdminClient, ConfigOption, UrlOption
from gateway.cli.queue_print import queues_shown
from gateway.config.scalars import InvalidValue, duration_s
from gateway.config.yaml_messages import nearest
from gateway.errors import StartupError
from gateway.server.stopping import stop_on_signals

if TYPE_CHECKING:
    import aiohttp

_SHORTEST_S = 0.1
# Wide enough for every column where nobody's terminal sets a width.
_PIPE_WIDTH = 160


def queue(
    teacher: Annotated[
        str | None, typer.Argument(help="One teacher, by its name in config.yaml. Default: all.")
    ] = None,
    config: ConfigOption = Path("config.yaml"),
    url: UrlOption = None,
    every: Annotated[str, typer.Option(help="How often to look again, like 500ms or 5s.", metavar="DURATION")] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Look once and leave, as on a pipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the admin listener's JSON, once.")] = False,
) -> None:
    """Show what waits for each teacher and what is in flight, over the whole fleet.

    On a terminal it is drawn anew until Ctrl-C; on a pipe it is printed once. It comes from the admin listener of a
    running gateway, GET /queue, at admin.host and admin.port of the configuration; GKT_ADMIN_HOST and GKT_ADMIN_PORT
    override them. Every process of a fleet tells the same. While Redis is away, the one that answers tells of itself
    alone, and says so.

    Leaves with 1 when no gateway can be asked there. docs/operations.md explains every figure.
    """
    source = _Source(url, config, teacher)
    every_s = _every_s(every)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    if as_json or once or not console.is_terminal:
        queues = uvloop.run(_ask_once(source))
        if as_json:
            body = orjson.dumps(queues, option=orjson.OPT_INDENT_2)
            typer.echo(body.decode())
        else:
            console.print(queues_shown(queues))
    else:
        uvloop.run(_watch(source, every_s, console))


class _Source:
    """Where to ask, and for what. Raises StartupError."""

    def __init__(self, url: str | None, config: Path, teacher: str | None) -> None:
        self._teacher = teacher
        self._gateway = AdminClient(url, config)
        self.session = self._gateway.session

    async def ask(self, session: aiohttp.ClientSession) -> QueuesReply:
        """Raises StartupError with what to do."""
        body = await self._gateway.ask(session, "GET", "/queue")
        try:
            queues = msgspec.json.decode(body, type=QueuesReply)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._gateway.no_gateway("it answers something else") from None
        return self._chosen(queues)

    def _chosen(self, queues: QueuesReply) -> QueuesReply:
        if self._teacher is None:
            return queues
        if self._teacher in queues.teachers:
            return replace(queues, teachers={self._teacher: queues.teachers[self._teacher]})
        close = nearest(self._teacher, queues.teachers)
        hint = f" Did you mean '{close}'?" if close else ""
        known = ", ".join(queues.teachers) or "none"
        raise StartupError(f"No route asks a teacher '{self._teacher}' for guidance.{hint} Teachers there: {known}.")


def _every_s(every: str) -> float:
    try:
        every_s = duration_s(every)
    except InvalidValue as wrong:
        raise typer.BadParameter(str(wrong), param_hint="--every") from None
    if every_s < _SHORTEST_S:
        raise typer.BadParameter(f"must be at least {_SHORTEST_S * 1000:g}ms", param_hint="--every")
    return every_s


async def _ask_once(source: _Source) -> QueuesReply:
    async with source.session() as session:
        return await source.ask(session)


async def _watch(source: _Source, every_s: float, console: Console) -> None:
    """Draw anew until a signal comes. A gateway that goes away later may come back: it is only said."""
    stop = stop_on_signals()
    async with source.session() as session:
        queues = await source.ask(session)
        with Live(queues_shown(queues), console=console, auto_refresh=False) as live:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        await stop.wait()
                if stop.is_set():
                    return
                try:
                    queues = await source.ask(session)
                except StartupError as error:
                    live.update(Group(queues_shown(queues), Text(error.message, "bold red")), refresh=True)
                else:
                    live.update(queues_shown(queues), refresh=True)
