"""`gkt-gateway queue`: show the teachers' queues of a running gateway."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.filesize import decimal
from rich.text import Text

from gateway.cli.admin_client import AdminClient, ConfigOption, UrlOption
from gateway.cli.lazy import CONFIG
from gateway.cli.tables import JsonOption, console_for, in_json, plain_table
from gateway.config.yaml_messages import suggestion
from gateway.errors import StartupError

_UNKNOWN = "?"


def queue(
    teacher: Annotated[str | None, typer.Argument(help="Name of a teacher in config.yaml. Default: all.")] = None,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the queue and the calls in flight of each teacher, over the whole fleet.

    `watch gkt-gateway queue` refreshes the output.

    It comes from GET /queue of a running gateway's admin listener, at admin.host and admin.port of the configuration or
    GKT_ADMIN_HOST and GKT_ADMIN_PORT. All processes of a fleet return the same. While Redis is unavailable, a process
    returns only its own figures, and the output says so.

    Exits with 1 if the gateway cannot be reached. See `gkt-gateway docs operations`.
    """
    reply = AdminClient(url, config).call("GET", "/queue")
    if teacher is not None:
        reply["teachers"] = _only(teacher, reply["teachers"])
    if as_json:
        typer.echo(in_json(reply))
    else:
        print_queues(reply)


def _only(teacher: str, teachers: dict[str, Any]) -> dict[str, Any]:
    if teacher in teachers:
        return {teacher: teachers[teacher]}
    known = ", ".join(teachers) or "none"
    raise StartupError(
        f"No route gets guidance from a teacher '{teacher}'.{suggestion(teacher, teachers)} Teachers: {known}."
    )


def print_queues(reply: dict[str, Any]) -> None:
    """Print tables of the teachers, of the tenants with requests, and of the processes."""
    console = console_for(pipe_width=160)
    figures = ("in flight", "limit", "waiting", "oldest", "followers", "batches", "arriving/s", "granted/s", "cached")
    teachers = plain_table("teacher", *figures, right=slice(1, None))
    tenants = plain_table(
        "teacher", "tenant", "waiting", "oldest", "in flight", "weight", "share", right=slice(2, None)
    )
    processes = plain_table("teacher", "process", "last heartbeat", "in flight", right=slice(2, None))
    for name, view in reply["teachers"].items():
        if view["alone"]:
            console.print(Text(f"{name}: {view['why']}: showing worker {reply['worker']} only", "bold yellow"))
        teachers.add_row(Text(name, "bold"), *_teacher(view))
        for tenant in view["tenants"]:
            tenants.add_row(Text(name), Text(tenant["tenant"]), *_tenant(tenant))
        for process in view["processes"]:
            row = Text(process["process"]), f"{process['heard_ago_s']:.1f} s ago", _known(process["in_flight"])
            processes.add_row(Text(name), *row)
    if not reply["teachers"]:
        console.print("No policy has a guided route, so there are no teachers.")
    for table in (teachers, tenants, processes):
        if table.row_count:
            console.print(table)
    for name, view in reply["teachers"].items():
        for text in _omitted(view):
            console.print(Text(f"{name}: {text}"))


def _known(value: object) -> str:
    return _UNKNOWN if value is None else str(value)


def _seconds(value: float | None, *, at_least: bool = False) -> str:
    return "" if value is None else f"{'>= ' if at_least else ''}{value:.1f} s"


def _teacher(view: dict[str, Any]) -> list[str]:
    """Return the figures of a teacher. Redis has some of them."""
    cache = view["cache"]
    return [
        str(view["in_flight"]),
        str(view["cap"]),
        str(view["waiting"]),
        _seconds(view["oldest_wait_s"], at_least=not view["complete"]),
        *(_known(view[name]) for name in ("followers", "batches", "arrivals_per_s", "grants_per_s")),
        _UNKNOWN if cache is None else f"{decimal(cache['bytes'])} of {decimal(cache['max_bytes'])}",
    ]


def _tenant(tenant: dict[str, Any]) -> list[str]:
    return [
        str(tenant["waiting"]),
        _seconds(tenant["oldest_wait_s"]),
        _known(tenant["in_flight"]),
        _UNKNOWN if tenant["weight"] is None else f"{float(tenant['weight']):.3g}",
        "" if tenant["share"] is None else f"{tenant['share']:.0%}",
    ]


def _omitted(view: dict[str, Any]) -> list[str]:
    """Return sentences about entries that the reply does not list."""
    found = []
    if view["more_tenants"] or view["more_waiting"]:
        up_to = "" if view["complete"] else "up to "
        found.append(f"{up_to}{view['more_tenants']} more tenants, with {view['more_waiting']} waiting")
    if view["more_processes"]:
        found.append(f"{view['more_processes']} more processes")
    if view["unreadable"]:
        found.append(f"{view['unreadable']} unreadable entries omitted")
    return found
