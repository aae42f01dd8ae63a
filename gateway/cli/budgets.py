"""`gkt-gateway budgets`: list budgets and raise one at a running gateway; restore their spend from receipts."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from urllib.parse import quote

import typer
from rich.text import Text

from gateway.cli.admin_client import ActorOption, AdminClient, ConfigOption, UrlOption, usd_of, without_none
from gateway.cli.lazy import CONFIG, SETTINGS, config_option
from gateway.cli.tables import JsonOption, console_for, counted, in_json, plain_table, when

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.cli.budgets_rebuild import Rebuilt

StoresConfigOption: TypeAlias = Annotated[
    Path, config_option(help="Configuration file, for Redis, the usage database and the policies.")
]

budgets = typer.Typer(
    name="budgets",
    help=(
        "List the budgets of tenants and keys, raise one temporarily, and restore spend from receipts.\n\nBudgets are "
        "configured in policy files and keys. A raise is added to a budget, takes effect with the next request in "
        "every process, and ends by itself. `list` and `raise` call the admin listener of a running gateway, at "
        "admin.host and admin.port of config.yaml or at --url. They send the admin key from the environment variable "
        "GKT_ADMIN_KEY or from admin.key of config.yaml.\n\nSee `gkt-gateway docs policies`."
    ),
    **SETTINGS,
)


@budgets.command(name="list")
def list_budgets(
    tenant: Annotated[
        str | None, typer.Option("--tenant", "-t", help="Show only this tenant and its keys. Default: all.")
    ] = None,
    key_id: Annotated[
        str | None,
        typer.Option(
            "--key", help="Show this key, or this key id of tokens, RULE:VALUE; needs --tenant.", metavar="ID"
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Show the budgets of this label's values; needs --tenant.", metavar="NAME")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """Show the spent, reserved and remaining amount of every budget, and the end of its period.

    Reserved amounts belong to requests in flight; amounts that these do not spend are released. Used is spent and
    reserved as a share of the budget. The remaining amount is yellow above the soft budget and red when a tenth or less
    is left. Expired keys are omitted. A budget of tokens that one caller has is shown with --key; `usage show --by key`
    lists the callers by spend.
    """
    client = AdminClient(url, config, keyed=True)
    unreadable: list[dict[str, Any]] = []
    if (key_id is not None or label is not None) and tenant is None:
        raise typer.BadParameter("needs --tenant", param_hint="--label" if key_id is None else "--key")
    of_tenant = f"/budgets/{quote(tenant or '', safe='')}"
    if key_id is not None:
        if label is not None:
            raise typer.BadParameter("cannot be combined with --label", param_hint="--key")
        entries = [client.call("GET", f"{of_tenant}/keys/{quote(key_id, safe='')}")]
    elif label is not None:
        entries = client.call("GET", f"{of_tenant}/labels?label={quote(label, safe='')}")["budgets"]
    else:
        pages = list(client.pages("/budgets", tenant=tenant))
        entries = [entry for page in pages for entry in page["budgets"]]
        unreadable = [one for page in pages for one in page["unreadable"]]
    if as_json:
        typer.echo(in_json({"budgets": entries, "unreadable": unreadable}))
    else:
        print_budgets(entries)
    if unreadable:
        names = ", ".join("/".join(filter(None, (one["tenant"], one["key"]))) for one in unreadable)
        typer.echo(f"A node of Redis does not answer. {len(unreadable)} budgets cannot be read: {names}", err=True)
        raise typer.Exit(1)


@budgets.command(name="raise")
def raise_budget(
    tenant: Annotated[str, typer.Argument(help="Tenant of the budget.", show_default=False)],
    usd: Annotated[
        str, typer.Option(help="Amount to add to max_budget. 0 ends a raise.", metavar="USD", show_default=False)
    ],
    key_id: Annotated[
        str | None,
        typer.Option(
            "--key", help="Raise the budget of this key, or of this key id of tokens, RULE:VALUE.", metavar="ID"
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Raise the budget of this value of a label.", metavar="NAME=VALUE")
    ] = None,
    duration: Annotated[
        str | None, typer.Option("--for", help="Duration of the raise, up to 366d.", metavar="DURATION")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="End of the raise: a date (its end, in UTC) or a time.", metavar="2026-12-01")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Reason for the audit trail, in one line.", metavar="TEXT")] = None,
    as_json: JsonOption = False,
    actor: ActorOption = None,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """Raise a budget temporarily.

    `gkt-gateway budgets raise acme --usd 50 --reason "launch week"`

    The raise lasts to the end of the current period, or for one budget_duration if the budget is not aligned with the
    calendar. Set another end with --for or --until.

    A raise replaces an earlier raise. soft_budget does not change. For a permanent change, edit the policy file.
    """
    body = without_none(usd=usd_of(usd, "--usd"), until=until, reason=reason, **{"for": duration})
    of = f"/keys/{quote(key_id, safe='')}" if key_id is not None else ""
    if label is not None:
        name, sign, body["value"] = label.partition("=")
        if key_id is not None or not sign:
            raise typer.BadParameter("write NAME=VALUE, without --key", param_hint="--label")
        of = f"/labels/{quote(name, safe='')}"
    path = f"/budgets/{quote(tenant, safe='')}{of}/raise"
    budget = AdminClient(url, config, keyed=True).call("POST", path, body, actor=actor)
    typer.echo(in_json(budget) if as_json else raise_result(budget))


@budgets.command()
def rebuild(config: StoresConfigOption = CONFIG) -> None:
    """Restore the spend of running budget periods from receipts, after Redis lost it.

    Stop all gateways first. The command adds up the receipts of the usage database and of the outboxes in Redis, each
    once. It raises the spend of each budget to the sum of its receipts, and never lowers it, so that it can be
    repeated. Budgets are those of the present policies and keys: run `keys import` first.

    Requests count in the period in which they ended. Warnings name budgets with periods that began before usage.keep,
    and unknown keys. See `gkt-gateway docs deployment#restore`.
    """
    from gateway.cli.budgets_rebuild import rebuild as rebuilt  # imported here: it imports the usage database
    from gateway.cli.stores import configuration_of, result_of

    print_rebuilt(result_of(rebuilt(*configuration_of(config))))


def print_rebuilt(rebuilt: Rebuilt) -> None:
    """Print the raised budgets, and warn of budgets that may be too low."""
    raised = [budget for budget in rebuilt.budgets if budget.after_usd != budget.before_usd]
    if raised:
        table = plain_table("tenant", "budget of", "spent before", "spent now", right=slice(2, None))
        for budget in raised:
            table.add_row(
                Text(budget.account.tenant),
                Text(budget.account.scope.name),
                _usd(budget.before_usd),
                _usd(budget.after_usd),
            )
        console_for(pipe_width=160).print(table)
    read = f"{counted(rebuilt.receipts, 'receipt')} read, {counted(len(rebuilt.budgets), 'budget')} with spend"
    typer.echo(f"{read}: {len(raised)} raised, {len(rebuilt.budgets) - len(raised)} unchanged")
    for account in rebuilt.incomplete:
        typer.echo(
            f"Warning: the period of {account.scope.name} of tenant {account.tenant} began before usage.keep. It may "
            "have spent more than its remaining receipts.",
            err=True,
        )
    for tenant, key_id in sorted(rebuilt.unknown):
        typer.echo(f"Warning: receipts have the key {key_id} of tenant {tenant}, which does not exist.", err=True)


def print_budgets(budgets: Iterable[dict[str, Any]]) -> None:
    """Print a table of budgets."""
    console = console_for(pipe_width=200)
    table = plain_table(
        "tenant", "key", "budget", "used", "spent", "reserved", "left", "ends", "raised", right=slice(3, 7)
    )
    for budget in budgets:
        table.add_row(
            Text(budget["tenant"]),
            Text(_scope_of(budget) or "all keys"),
            Text(f"{_usd(budget['max_budget'])} USD / {budget['budget_duration']}"),
            f"{(budget['spent_usd'] + budget['reserved_usd']) / _limit(budget):.1%}",
            _usd(budget["spent_usd"]),
            _usd(budget["reserved_usd"]),
            Text(_usd(budget["left_usd"]), color_of(budget)),
            Text(when(budget["ends"]) if budget["ends"] else "rolling"),
            Text(f"+{_usd(raised['usd'])} until {when(raised['until'])}" if (raised := budget["raise"]) else "-"),
        )
    if table.row_count:
        console.print(table)
    else:
        console.print("There are no budgets. Set `budget` or `key_budget` in a policy file.", soft_wrap=True)


def _scope_of(budget: dict[str, Any]) -> str | None:
    """Return the key, or the label and its value, of a budget; None for a tenant's."""
    key: str | None = budget["key"]
    return f"{budget['label']}={budget['value']}" if "label" in budget else key


def raise_result(budget: dict[str, Any]) -> str:
    """Return the budget after a raise, in one line."""
    scope, kind = _scope_of(budget), "label" if "label" in budget else "key"
    owner = f"tenant {budget['tenant']}" if scope is None else f"{kind} {scope} of {budget['tenant']}"
    left = f"{_usd(budget['left_usd'])} USD are left"
    if budget["raise"] is None:
        return (
            f"the raise has ended: {owner} has {_usd(budget['max_budget'])} USD / {budget['budget_duration']}; {left}"
        )
    return f"raised: {owner} has {_usd(_limit(budget))} USD until {when(budget['raise']['until'])}; {left}"


def _limit(budget: dict[str, Any]) -> Decimal:
    return Decimal(budget["max_budget"]) + (Decimal(budget["raise"]["usd"]) if budget["raise"] else 0)


def color_of(budget: dict[str, Any]) -> str:
    """Return red if a tenth or less of the budget is left, yellow above the soft budget, else green."""
    soft = budget["soft_budget"]
    if budget["left_usd"] * 10 <= _limit(budget):
        return "red"
    return "yellow" if soft is not None and budget["spent_usd"] + budget["reserved_usd"] >= soft else "green"


def _usd(amount: Decimal | int) -> str:
    text = f"{Decimal(amount):.6f}".rstrip("0").rstrip(".")
    return text if text != "0" or not amount else "<0.000001"
