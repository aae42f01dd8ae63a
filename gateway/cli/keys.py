"""`gkt-gateway keys`: make, list, rotate and revoke callers' keys at a running gateway."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from urllib.parse import quote

import typer

from gateway.cli import SETTINGS
from gateway.cli.admin_client import AdminClient, ConfigOption, UrlOption
from gateway.cli.admin_commands import ActorOption, JsonOption, ask, ask_for_all, given, in_json, usd_of
from gateway.cli.keys_print import key_told, keys_shown, yaml_lines
from gateway.keys.token import new_token

keys = typer.Typer(
    name="keys",
    help=(
        "Make, list, rotate and revoke the keys that callers show.\n\nThey are kept in Redis, and every process of the "
        "gateway knows of a change within two seconds. These commands ask the admin listener of a running gateway, at "
        "admin.host and admin.port of config.yaml or at --url, with the admin key: out of the environment variable "
        "GKT_ADMIN_KEY, or admin.key of config.yaml.\n\n`keys create --print-yaml` needs no gateway: it makes a key "
        "for a policy file. docs/policies.md tells all of it."
    ),
    no_args_is_help=True,
    **SETTINGS,
)

TenantOption: TypeAlias = Annotated[
    str, typer.Option("--tenant", "-t", help="Whose key it is: the tenant of a policy file.")
]
IdArgument: TypeAlias = Annotated[str, typer.Argument(help="The key's id, as in `keys list`.", show_default=False)]
ExpiresOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Until when it holds: a date, a time, or a duration. Default: for ever.",
                             metavar="2027-06-30|90d")
]  # fmt: skip
Limit: TypeAlias = int | None
_LIMITS = "Limits of its own"
_BUDGET = "A budget of its own"


@keys.command()
def create(
    tenant: TenantOption,
    key_id: Annotated[str, typer.Option("--id", help="What logs, receipts and lists call it.")],
    expires: ExpiresOption = None,
    models: Annotated[
        str | None, typer.Option(help="The models that it may name. Default: all of its tenant's.", metavar="A,B")
    ] = None,
    rpm_limit: Annotated[
        Limit, typer.Option(min=1, help="Requests in any 60 seconds.", rich_help_panel=_LIMITS)
    ] = None,
    tpm_limit: Annotated[Limit, typer.Option(min=1, help="Tokens in any 60 seconds.", rich_help_panel=_LIMITS)] = None,
    max_parallel_requests: Annotated[
        Limit, typer.Option(min=1, help="Requests under way at a time.", rich_help_panel=_LIMITS)
    ] = None,
    max_budget: Annotated[
        str | None, typer.Option(help="USD in each period.", metavar="USD", rich_help_panel=_BUDGET)
    ] = None,
    soft_budget: Annotated[
        str | None, typer.Option(help="From here on --on-soft holds.", metavar="USD", rich_help_panel=_BUDGET)
    ] = None,
    budget_duration: Annotated[
        str | None,
        typer.Option(help="How long a period lasts. Default: 1mo.", metavar="1d|1w|1mo", rich_help_panel=_BUDGET),
    ] = None,
    rolling: Annotated[
        bool,
        typer.Option("--rolling", help="A period is the time just past, no calendar's.", rich_help_panel=_BUDGET),
    ] = False,
    on_soft: Annotated[
        str | None, typer.Option(metavar="warn|shorten|student_only", help="Default: warn.", rich_help_panel=_BUDGET)
    ] = None,
    on_hard: Annotated[
        str | None, typer.Option(metavar="reject|student_only", help="Default: reject.", rich_help_panel=_BUDGET)
    ] = None,
    print_yaml: Annotated[
        bool, typer.Option("--print-yaml", help="Ask no gateway: print the lines for a policy file, without the key.")
    ] = False,
    as_json: JsonOption = False,
    actor: ActorOption = None,
    config: ConfigOption = Path("config.yaml"),
    url: UrlOption = None,
) -> None:
    """Make a key. It is shown once and kept nowhere; only its SHA-256 is.

    The key alone goes to standard output, so that `KEY=$(gkt-gateway keys create -t acme --id prod)` holds it; what
    else there is to say goes to standard error.

    With --print-yaml it is the other way round: the lines for `keys:` of policies/acme.yaml go to standard output, and
    the key to standard error.
    """
    limits = given(rpm_limit=rpm_limit, tpm_limit=tpm_limit, max_parallel_requests=max_parallel_requests)
    budget = given(
        max_budget=usd_of(max_budget, "--max-budget"),
        soft_budget=usd_of(soft_budget, "--soft-budget"),
        budget_duration=budget_duration,
        calendar_aligned=False if rolling else None,
        on_soft=on_soft,
        on_hard=on_hard,
    )
    if budget and max_budget is None:
        raise typer.BadParameter("is needed for a budget", param_hint="--max-budget")
    names = [name.strip() for name in models.split(",")] if models is not None else None
    body = given(tenant=tenant, id=key_id, expires=expires, models=names, limits=limits or None, budget=budget or None)
    if print_yaml:
        token = new_token()
        typer.echo(yaml_lines(body, token, time.time()))
        typer.echo(f"The key, which is shown this once: {token}", err=True)
        return
    made = ask(AdminClient(url, config, keyed=True), "POST", "/keys", body, actor=actor)
    _tell_key(made, as_json=as_json)


@keys.command(name="list")
def list_keys(
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant's. Default: all.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = Path("config.yaml"),
    url: UrlOption = None,
) -> None:
    """List all keys, those of the policy files too: what each may do, until when, and when it was last used.

    No list shows a key. `hint` is how one that was made here begins.
    """
    found = ask_for_all(AdminClient(url, config, keyed=True), "/keys", "keys", tenant=tenant)
    if as_json:
        typer.echo(in_json({"keys": found}))
    else:
        keys_shown(found)


@keys.command()
def rotate(
    key_id: IdArgument,
    tenant: TenantOption,
    grace: Annotated[
        str, typer.Option(help="How long the old key still holds, 0s to 30d.", metavar="DURATION")
    ] = "1h",
    expires: Annotated[
        str | None, typer.Option(help="Until when the new key holds. Default: as long as the old one was to.",
                                 metavar="2027-06-30|90d")
    ] = None,
    as_json: JsonOption = False,
    actor: ActorOption = None,
    config: ConfigOption = Path("config.yaml"),
    url: UrlOption = None,
) -> None:  # fmt: skip
    """Put a new key in the place of an old one. The old one still holds for a grace time.

    The new key has the old one's id and may do the same; it goes to standard output. The old one is called ID.1 from
    then on (or .2, ...), so that the list and the logs tell whether anybody still uses it.
    """
    path = f"/keys/{quote(tenant, safe='')}/{quote(key_id, safe='')}/rotate"
    body = given(grace=grace, expires=expires)
    _tell_key(ask(AdminClient(url, config, keyed=True), "POST", path, body, actor=actor), as_json=as_json)


@keys.command()
def revoke(
    key_id: IdArgument,
    tenant: TenantOption,
    as_json: JsonOption = False,
    actor: ActorOption = None,
    config: ConfigOption = Path("config.yaml"),
    url: UrlOption = None,
) -> None:
    """End a key for good. Within two seconds no process takes it any more; requests under way are finished."""
    path = f"/keys/{quote(tenant, safe='')}/{quote(key_id, safe='')}"
    gone = ask(AdminClient(url, config, keyed=True), "DELETE", path, actor=actor)
    typer.echo(in_json(gone) if as_json else f"revoked: key {gone['id']} of tenant {gone['tenant']}")


def _tell_key(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(in_json(made))
    else:
        typer.echo(key_told(made), err=True)
        typer.echo(made["key"])
