"""`gkt-gateway budgets`: look at budgets, and raise one, at a running gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from gateway.cli import SETTINGS
from gateway.cli.admin_client import AdminClient, ConfigOption, UrlOption
from gateway.cli.admin_commands import ActorOption, JsonOption, ask, ask_for_all, given, in_json, usd_of
from gateway.cli.budgets_print import budgets_shown, raise_told

budgets = typer.Typer(
    name="budgets",
    help=(
        "Look at the budgets of tenants and keys, and raise one for a while.\n\nA budget itself stands in policy files "
        "and keys; a raise comes on top of it, holds from the next request on in every process, and ends by itself. "
        "These commands ask the admin listener of a running gateway, at admin.host and admin.port of config.yaml or at "
        "--url, with the admin key: out of the environment variable GKT_ADMIN_KEY, or admin.key of config.yaml.\n\n"
        "docs/policies.md tells all of it."
    ),
    no_args_is_help=True,
    **SETTINGS,
)


@budgets.command(name="list")
def list_budgets(
    tenant: Annotated[
        str | None, typer.Option("--tenant", "-t", help="Only this tenant's, and its keys'. Default: all.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = Path("config.yaml"),
    url: UrlOption = None,
) -> None:
    """Show every budget: what is spent, reserved and left of it, and when its period ends.

    What is reserved belongs to requests under way, and comes back as far as they do not spend it. The bar shows all
    three; it is yellow from the soft line on, and red where a tenth or less is left. Keys that ended are left out.
    """
    found = ask_for_all(AdminClient(url, config, keyed=True), "/budgets", "budgets", tenant=tenant)
    if as_json:
        typer.echo(in_json({"budgets": found}))
    else:
        budgets_shown(found)


@budgets.command(name="raise")
def raise_budget(
    tenant: Annotated[str, typer.Argument(help="Whose budget it is: the tenant of a policy file.", show_default=False)],
    usd: Annotated[
        str, typer.Option(help="What comes on top of max_budget. 0 ends a raise.", metavar="USD", show_default=False)
    ],
    key_id: Annotated[
        str | None, typer.Option("--key", help="Raise the budget of this key of the tenant's, by its id.", metavar="ID")
    ] = None,
    lasting: Annotated[
        str | None,
        typer.Option("--for", help="How long it holds, up to 366d.", metavar="DURATION", show_default=False),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="Or until when: a date, whose end it is in UTC, or a time.", metavar="2026-12-01"),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why, in one line, for the audit trail.", metavar="TEXT")] = None,
    as_json: JsonOption = False,
    actor: ActorOption = None,
    config: ConfigOption = Path("config.yaml"),
    url: UrlOption = None,
) -> None:
    """Put something on top of a budget for a while, so that its tenant or key can go on.

    `gkt-gateway budgets raise acme --usd 50 --reason "launch week"` holds to the end of the present period; for a
    budget that is not aligned with the calendar, for one duration of it. --for or --until says otherwise.

    It takes the place of an earlier raise: two of 50 are 50. The soft line stays where it is. For good, edit the policy
    file.
    """
    key = f"/keys/{quote(key_id, safe='')}" if key_id is not None else ""
    body = given(usd=usd_of(usd, "--usd"), until=until, reason=reason) | ({} if lasting is None else {"for": lasting})
    path = f"/budgets/{quote(tenant, safe='')}{key}/raise"
    told = ask(AdminClient(url, config, keyed=True), "POST", path, body, actor=actor)
    typer.echo(in_json(told) if as_json else raise_told(told))
