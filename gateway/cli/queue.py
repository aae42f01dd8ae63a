"""`gkt-gateway queue`: show the teachers' queues of a running gateway."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
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
from gateway.cli.lazy import CONFIG
from gateway.cli.tables import console_for, plain_table
from gateway.config.scalars import InvalidValue, duration_s
from gateway.config.yaml_messages import suggestion
from gateway.errors import StartupError
from gateway.server.stopping import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.table import Table

    from gateway.batching.view import ProcessView, QueueView

_SHORTEST_S = 0.1


def queue(
    teacher: Annotated[str | None, typer.Argument(help="Name of a teacher in config.yaml. Default: all.")] = None,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
    every: Annotated[str, typer.Option(help="Refresh interval, like 500ms or 5s.", metavar="DURATION")] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Print once and exit, as on a pipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON once.")] = False,
) -> None:
    """Show the queue and the calls in flight of each teacher, over the whole fleet.

    On a terminal the output is refreshed until Ctrl-C; on a pipe it is printed once. It comes from GET /queue of a
    running gateway's admin listener, at admin.host and admin.port of the configuration or GKT_ADMIN_HOST and
    GKT_ADMIN_PORT. All processes of a fleet return the same. While Redis is unavailable, a process returns only its
    own figures, and the output says so.

    Exits with 1 if the gateway cannot be reached. See `gkt-gateway docs operations`.
    """
    client = AdminClient(url, config)
    every_s = _every_s(every)
    console = console_for(pipe_width=160)
    if as_json or once or not console.is_terminal:
        queues = _queues(client, client.send("GET", "/queue"), teacher)
        if as_json:
            body = orjson.dumps(queues, option=orjson.OPT_INDENT_2)
            typer.echo(body.decode())
        else:
            console.print(render_queues(queues))
    else:
        uvloop.run(_watch(client, teacher, every_s, console))


def _queues(client: AdminClient, body: bytes, teacher: str | None) -> QueuesReply:
    """Return the queues of a reply, or only that of a teacher. Raises StartupError."""
    try:
        queues = msgspec.json.decode(body, type=QueuesReply)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise client.no_gateway("unexpected reply") from None
    if teacher is None:
        return queues
    if teacher in queues.teachers:
        return replace(queues, teachers={teacher: queues.teachers[teacher]})
    hint = suggestion(teacher, queues.teachers)
    known = ", ".join(queues.teachers) or "none"
    raise StartupError(f"No route gets guidance from a teacher '{teacher}'.{hint} Teachers: {known}.")


def _every_s(every: str) -> float:
    try:
        every_s = duration_s(every)
    except InvalidValue as error:
        raise typer.BadParameter(str(error), param_hint="--every") from None
    if every_s < _SHORTEST_S:
        raise typer.BadParameter(f"must be at least {_SHORTEST_S * 1000:g}ms", param_hint="--every")
    return every_s


async def _watch(client: AdminClient, teacher: str | None, every_s: float, console: Console) -> None:
    """Refresh until a signal. A failed request after the first one only shows its error."""
    stop = stop_on_signals()
    async with client.session() as session:
        queues = _queues(client, await client.request(session, "GET", "/queue"), teacher)
        with Live(render_queues(queues), console=console, auto_refresh=False) as live:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        await stop.wait()
                if stop.is_set():
                    return
                try:
                    queues = _queues(client, await client.request(session, "GET", "/queue"), teacher)
                except StartupError as error:
                    live.update(Group(render_queues(queues), Text(error.message, "bold red")), refresh=True)
                else:
                    live.update(render_queues(queues), refresh=True)


_UNKNOWN = "?"
_MAX_PROCESSES = 8
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def render_queues(queues: QueuesReply) -> RenderableType:
    """Return the output for all teachers."""
    if not queues.teachers:
        return Text("No policy has a guided route, so there are no teachers.")
    parts: list[RenderableType] = []
    for name, view in queues.teachers.items():
        if view.alone:
            parts.append(Text(f"{view.why}: showing worker {queues.worker} only", "bold yellow"))
        parts.append(Text.assemble((name, "bold"), "  ", _first_line(view)))
        parts += [Text(line) for line in _fleet_lines(view)]
        if view.unreadable:
            parts.append(Text(f"{view.unreadable} unreadable entries omitted", "bold yellow"))
        if view.tenants:
            parts.append(_tenants(view))
        if view.more_tenants or view.more_waiting:
            up_to = "" if view.complete else "up to "
            parts.append(Text(f"and {up_to}{view.more_tenants} more tenants, with {view.more_waiting} waiting"))
        parts.append(Text())
    return Group(*parts[:-1])


def _first_line(view: QueueView) -> str:
    parts = [f"in flight {view.in_flight} of {view.cap}", f"waiting {view.waiting}"]
    if view.oldest_wait_s is not None:
        parts.append(f"oldest {'' if view.complete else 'at least '}{_duration(view.oldest_wait_s)}")
    if view.followers is not None:
        parts.append(f"followers {view.followers}")
    return ", ".join(parts)


def _fleet_lines(view: QueueView) -> Iterator[str]:
    """Yield the lines that need Redis."""
    if view.alone:
        return
    time = datetime.fromtimestamp(view.redis_time or 0, UTC)
    yield (
        f"batches {view.batches}, arriving {view.arrivals_per_s:g}/s, granted {view.grants_per_s:g}/s, Redis time "
        f"{time:%H:%M:%S} UTC"
    )
    if (cache := view.cache) is not None and cache.max_bytes:
        yield f"guidance cache: {cache.entries} entries, {_size(cache.bytes)} of {_size(cache.max_bytes)}"
    first = [_process(process) for process in view.processes[:_MAX_PROCESSES]]
    more = len(view.processes) + view.more_processes - len(first)
    yield f"processes {len(first) + more}: {'; '.join(first) or 'none'}{f'; and {more} more' if more else ''}"


def _process(process: ProcessView) -> str:
    holds = _UNKNOWN if process.in_flight is None else process.in_flight
    return f"{process.process} (last heartbeat {_duration(process.heard_ago_s)} ago, {holds} in flight)"


def _tenants(view: QueueView) -> Table:
    table = plain_table("tenant", "waiting", "oldest", "in flight", "weight", "share", right=slice(1, None))
    for tenant in view.tenants:
        table.add_row(
            Text(tenant.tenant),
            str(tenant.waiting),
            _duration(tenant.oldest_wait_s) if tenant.oldest_wait_s is not None else "",
            _UNKNOWN if tenant.in_flight is None else str(tenant.in_flight),
            f"{tenant.weight:.3g}" if tenant.weight is not None else _UNKNOWN,
            f"{tenant.share:.0%}" if tenant.share is not None else "",
        )
    return table


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _size(size: int) -> str:
    for factor, unit in _UNITS:
        if abs(size) >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"
