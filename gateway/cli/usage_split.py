"""`gkt-gateway usage split`: compare the variants of a split route, from a running gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer
from rich.text import Text

from gateway.cli.admin_client import AdminClient, ConfigOption, UrlOption
from gateway.cli.lazy import CONFIG
from gateway.cli.tables import JsonOption, console_for, in_json, plain_table

if TYPE_CHECKING:
    from rich.table import Table

_NONE = "-"
_LEGEND = (
    "Outcomes: mean score from 0 to 1 with its 95 % interval. Difference: to the first variant, with its 95 % "
    "interval. Units: conversations or callers with an outcome; intervals count these, and need 10 in each variant. "
    "Each interval holds by itself: with many variants, or after many looks, one may exclude 0 by chance."
)


def split(
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="Tenant of the route.", metavar="NAME")],
    route: Annotated[str, typer.Option("--route", "--model", "-r", help="Route with a split.", metavar="NAME")],
    days: Annotated[int, typer.Option(help="Number of days, in UTC, including today.", min=1, max=365)] = 7,
    as_json: JsonOption = False,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """Compare the variants of a split route: requests, cost and outcomes.

    - `gkt-gateway usage split --tenant acme --route chat`: the last seven days.
    - `gkt-gateway usage split -t acme -r chat --days 30 --json`: the last thirty days, for programs.

    Outcomes are scores that callers send to POST /v1/receipts/{id}/feedback, and the agreement of quality samples with
    the teacher. The verdict says whether the 95 % interval of the difference to the first variant excludes 0: higher,
    lower, or no difference shown.

    This command calls the admin listener of a running gateway, at admin.host and admin.port of config.yaml or at
    --url. It sends the admin key from the environment variable GKT_ADMIN_KEY or from admin.key of config.yaml.
    `gkt-gateway docs policies#split` describes splits.
    """
    query = urlencode({"tenant": tenant, "route": route, "days": days})
    reply = AdminClient(url, config, keyed=True).call("GET", f"/usage/split?{query}")
    if as_json:
        typer.echo(in_json(reply))
    else:
        print_split(reply)


def print_split(reply: dict[str, Any]) -> None:
    """Print a reply of the admin API as tables."""
    console = console_for(pipe_width=160)
    console.print(f"{reply['tenant']}, {reply['route']}: {reply['since']} to {reply['until']} UTC", highlight=False)
    figures = plain_table(
        "variant", "share", "requests", "guided", "errors", "cost USD", "USD per request", right=slice(1, None)
    )
    for one in reply["variants"]:
        share = _NONE if one["share"] is None else f"{100 * float(one['share']):.4g} %"
        guided = f"{100 * one['guided'] / one['requests']:.1f} %" if one["requests"] else _NONE
        counts = (f"{one['requests']:,}", guided, f"{one['errors']:,}")
        figures.add_row(Text(one["name"]), share, *counts, one["cost_usd"], one["cost_per_request_usd"] or _NONE)
    console.print(figures)
    outcomes = _outcomes(reply)
    if outcomes.row_count:
        console.print()
        console.print(outcomes)
        console.print(_LEGEND, style="dim", soft_wrap=not console.is_terminal, highlight=False)
    else:
        text = "No outcomes in this time. Callers send them to POST /v1/receipts/{id}/feedback."
        console.print(text, style="dim", soft_wrap=True, highlight=False)


def _outcomes(reply: dict[str, Any]) -> Table:
    table = plain_table("variant", "outcome", "units", "outcomes", "mean", "difference", "verdict", right=slice(2, 6))
    for one in reply["variants"]:
        for row in one["outcomes"]:
            difference = _estimate(row.get("difference"), "+")
            counts = (f"{row['units']:,}", f"{row['outcomes']:,}")
            mean = _estimate(row["mean"])
            table.add_row(Text(one["name"]), row["source"], *counts, mean, difference, row.get("verdict", "the first"))
    return table


def _estimate(estimate: dict[str, Any] | None, sign: str = "") -> str:
    if estimate is None:
        return _NONE
    value, low, high = (
        None if one is None else float(one) for one in (estimate[name] for name in ("value", "low", "high"))
    )
    if low is None or high is None:
        return f"{value:{sign}.3f}"
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
