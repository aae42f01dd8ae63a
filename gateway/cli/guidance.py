"""`gkt-gateway guidance`: switch guidance off and on at a running gateway."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from gateway.cli.admin_client import ActorOption, AdminClient, ConfigOption, UrlOption, without_none
from gateway.cli.lazy import CONFIG, SETTINGS
from gateway.cli.tables import JsonOption, console_for, in_json, plain_table, when
from gateway.errors import StartupError

guidance = typer.Typer(
    name="guidance",
    help=(
        "Switch guidance off and on for a route, a tenant or everything.\n\nWhile it is off, requests are answered by "
        "the student or the teacher alone, and receipts have the reason in `unguided`. A change reaches all processes "
        "within two seconds, is stored in Redis, and is in the audit trail. Guidance is also switched off by itself "
        "for a route whose answers fall below `quality.min_agreement`; `guidance on` restores it.\n\nThese commands "
        "call the admin listener of a running gateway, at admin.host and admin.port of config.yaml or at --url. They "
        "send the admin key from the environment variable GKT_ADMIN_KEY or from admin.key of config.yaml.\n\nSee "
        "`gkt-gateway docs policies`."
    ),
    **SETTINGS,
)

TenantOption = Annotated[
    str | None, typer.Option("--tenant", "-t", help="Only this tenant. Default: everything.", show_default=False)
]
RouteOption = Annotated[
    str | None,
    typer.Option("--route", help="Only this route of the tenant: the `model` of requests.", show_default=False),
]


@guidance.command(name="list")
def list_switches(as_json: JsonOption = False, config: ConfigOption = CONFIG, url: UrlOption = None) -> None:
    """Show what is switched off: since when, by whom and why."""
    reply = AdminClient(url, config, keyed=True).call("GET", "/guidance")
    if as_json:
        typer.echo(in_json(reply))
    else:
        print_switches(reply["off"])


@guidance.command(name="off")
def switch_off(
    tenant: TenantOption = None,
    route: RouteOption = None,
    answer_by: Annotated[
        Literal["student", "teacher"],
        typer.Option(help="Engine that answers meanwhile. Routes with guidance.on_failure: reject use the teacher."),
    ] = "student",
    reason: Annotated[str | None, typer.Option(help="Reason for the audit trail, in one line.", metavar="TEXT")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Switch everything off without confirmation.")] = False,
    as_json: JsonOption = False,
    actor: ActorOption = None,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """Switch guidance off.

    `gkt-gateway guidance off --tenant acme --route chat --reason "teacher update"`

    Requests in flight keep their guidance. The teacher alone costs more than guidance; limits and budgets apply.
    """
    scope = _scope(tenant, route)
    client = AdminClient(url, config, keyed=True)
    if tenant is None and not yes:
        if not sys.stdin.isatty():
            raise StartupError("Switching everything off needs a confirmation on a terminal: add --yes, or --tenant.")
        if not typer.confirm("Switch guidance off for all tenants and routes?", err=True):
            raise typer.Exit(1)
    reply = client.call("POST", "/guidance/off", scope | without_none(answer_by=answer_by, reason=reason), actor=actor)
    if as_json:
        typer.echo(in_json(reply))
        return
    typer.echo(f"guidance is off for {scope_of(reply)}")
    own = reply["tenant"], reply["route"]
    narrower = [one for one in reply["off"] if one["tenant"] is not None and (one["tenant"], one["route"]) != own]
    if narrower:
        typer.echo("Parts of it keep their own switches:")
        print_switches(narrower)


@guidance.command(name="on")
def switch_on(
    tenant: TenantOption = None,
    route: RouteOption = None,
    as_json: JsonOption = False,
    actor: ActorOption = None,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """Switch guidance on again, for the scope for which it was switched off.

    A tenant or route that is off by a switch of its own stays off; the command lists it. Comparisons of requests from
    before do not count toward quality.min_agreement any more.
    """
    client = AdminClient(url, config, keyed=True)
    reply = client.call("POST", "/guidance/on", _scope(tenant, route), actor=actor)
    if as_json:
        typer.echo(in_json(reply))
        return
    state = "on" if reply["before"] == "off" else "on already"
    typer.echo(f"guidance is {state} for {scope_of(reply)}")
    if reply["off"]:
        typer.echo("Other switches are still off:")
        print_switches(reply["off"])


def _scope(tenant: str | None, route: str | None) -> dict[str, Any]:
    if tenant is None and route is not None:
        raise typer.BadParameter("needs --tenant", param_hint="--route")
    return {"all": True} if tenant is None else without_none(tenant=tenant, route=route)


def scope_of(switch: dict[str, Any]) -> str:
    """Return the scope of a switch or of a reply in words."""
    if switch["tenant"] is None:
        return "everything"
    return f"tenant {switch['tenant']}" + ("" if switch["route"] is None else f", route {switch['route']}")


def print_switches(off: list[dict[str, Any]]) -> None:
    """Print a table of switches that are off."""
    console = console_for(pipe_width=200)
    table = plain_table("tenant", "route", "off since", "by", "answers", "reason")
    for switch in off:
        table.add_row(
            Text(switch["tenant"] or "all"),
            Text(switch["route"] or "all"),
            Text(when(switch["since"])),
            Text(switch["actor"] or switch["by"]),
            Text(switch["answer_by"]),
            Text(switch["reason"] or "-"),
        )
    if table.row_count:
        console.print(table)
    else:
        console.print("Guidance is on for everything.", soft_wrap=True)
