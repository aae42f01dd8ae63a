"""`gkt-gateway keys`: create, list, rotate and revoke API keys at a running gateway; export and import them."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from urllib.parse import quote

import typer
from rich.text import Text

from gateway.cli.admin_client import (
    ActorOption,
    AdminClient,
    ConfigOption,
    UrlOption,
    login_name,
    usd_of,
    without_none,
)
from gateway.cli.lazy import CONFIG, SETTINGS, config_option
from gateway.cli.tables import JsonOption, console_for, counted, in_json, plain_table, when
from gateway.config.yaml_source import YamlSource
from gateway.errors import ConfigError, ConfigIssue, StartupError
from gateway.keys.token import digest_of, new_token

if TYPE_CHECKING:
    from collections.abc import Iterable

keys = typer.Typer(
    name="keys",
    help=(
        "Create, list, rotate, revoke, export and import API keys.\n\nKeys are stored in Redis. Changes take effect in "
        "every process of the gateway within two seconds. These commands call the admin listener of a running gateway, "
        "at admin.host and admin.port of config.yaml or at --url. They send the admin key from the environment "
        "variable GKT_ADMIN_KEY or from admin.key of config.yaml.\n\n`keys create --print-yaml`, `keys export` and "
        "`keys import` need no gateway. See `gkt-gateway docs policies`."
    ),
    **SETTINGS,
)

TenantOption: TypeAlias = Annotated[str, typer.Option("--tenant", "-t", help="Tenant of the key.")]
IdArgument: TypeAlias = Annotated[str, typer.Argument(help="Id of the key, as in `keys list`.", show_default=False)]
ExpiresOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Expiry: a date, a time, or a duration. Default: never.",
                             metavar="2027-06-30|90d")
]  # fmt: skip
RedisConfigOption: TypeAlias = Annotated[Path, config_option(help="Configuration file, for the Redis of the gateway.")]
_limit = partial(typer.Option, rich_help_panel="Limits of the key")
_budget = partial(typer.Option, rich_help_panel="Budget of the key")


@keys.command()
def create(
    tenant: TenantOption,
    key_id: Annotated[str, typer.Option("--id", help="Id of the key in logs, receipts and lists.")],
    expires: ExpiresOption = None,
    models: Annotated[
        str | None, typer.Option(help="Models that the key may use. Default: all of its tenant.", metavar="A,B")
    ] = None,
    rpm_limit: Annotated[int | None, _limit(min=1, help="Requests in any 60 seconds.")] = None,
    tpm_limit: Annotated[int | None, _limit(min=1, help="Tokens in any 60 seconds.")] = None,
    max_parallel_requests: Annotated[int | None, _limit(min=1, help="Concurrent requests.")] = None,
    max_budget: Annotated[str | None, _budget(help="USD in each period.", metavar="USD")] = None,
    soft_budget: Annotated[str | None, _budget(help="Amount from which --on-soft applies.", metavar="USD")] = None,
    budget_duration: Annotated[
        str | None, _budget(help="Length of a period. Default: 1mo.", metavar="1d|1w|1mo")
    ] = None,
    rolling: Annotated[bool, _budget("--rolling", help="Use a rolling window instead of calendar periods.")] = False,
    on_soft: Annotated[str | None, _budget(metavar="warn|shorten|student_only", help="Default: warn.")] = None,
    on_hard: Annotated[str | None, _budget(metavar="reject|student_only", help="Default: reject.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Label of the key's requests, like team=search. Can be repeated.", metavar="NAME=VALUE"),
    ] = None,
    print_yaml: Annotated[
        bool, typer.Option("--print-yaml", help="Print the lines for a policy file. Needs no gateway.")
    ] = False,
    as_json: JsonOption = False,
    actor: ActorOption = None,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """Create a key. It is printed once; only its SHA-256 is stored.

    The key is printed to standard output, for `KEY=$(gkt-gateway keys create -t acme --id prod)`. Other messages go to
    standard error.

    With --print-yaml, the lines for `keys:` of a policy file go to standard output, and the key to standard error.
    """
    limits = without_none(rpm_limit=rpm_limit, tpm_limit=tpm_limit, max_parallel_requests=max_parallel_requests)
    budget = without_none(
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
    body = without_none(tenant=tenant, id=key_id, expires=expires, models=names, labels=_labels(label or ()) or None)
    body |= without_none(limits=limits or None, budget=budget or None)
    if print_yaml:
        token = new_token()
        typer.echo(yaml_lines(body, token, time.time()))
        typer.echo(f"The key, which is shown only this once: {token}", err=True)
        return
    key = AdminClient(url, config, keyed=True).call("POST", "/keys", body, actor=actor)
    _print_new_key(key, as_json=as_json)


@keys.command(name="list")
def list_keys(
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant's keys. Default: all.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """List all keys, including those of policy files, with models, limits, expiry and last use.

    The list has no keys, only the first characters (`hint`) of keys that the gateway created.
    """
    entries = AdminClient(url, config, keyed=True).list_all("/keys", "keys", tenant=tenant)
    if as_json:
        typer.echo(in_json({"keys": entries}))
    else:
        print_keys(entries)


@keys.command()
def rotate(
    key_id: IdArgument,
    tenant: TenantOption,
    grace: Annotated[
        str, typer.Option(help="Time for which the old key stays valid, 0s to 30d.", metavar="DURATION")
    ] = "1h",
    expires: Annotated[
        str | None, typer.Option(help="Expiry of the new key. Default: that of the old key.",
                                 metavar="2027-06-30|90d")
    ] = None,
    as_json: JsonOption = False,
    actor: ActorOption = None,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:  # fmt: skip
    """Replace a key by a new one. The old key stays valid for a grace period.

    The new key has the id, models and limits of the old one. It is printed to standard output. The old key is renamed
    to ID.1 (or .2, ...), so that lists and logs show whether it is still used.
    """
    path = f"/keys/{quote(tenant, safe='')}/{quote(key_id, safe='')}/rotate"
    body = without_none(grace=grace, expires=expires)
    key = AdminClient(url, config, keyed=True).call("POST", path, body, actor=actor)
    _print_new_key(key, as_json=as_json)


@keys.command()
def revoke(
    key_id: IdArgument,
    tenant: TenantOption,
    as_json: JsonOption = False,
    actor: ActorOption = None,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """Revoke a key permanently. Every process rejects it within two seconds. Requests in flight complete."""
    path = f"/keys/{quote(tenant, safe='')}/{quote(key_id, safe='')}"
    revoked = AdminClient(url, config, keyed=True).call("DELETE", path, actor=actor)
    typer.echo(in_json(revoked) if as_json else f"revoked: key {revoked['id']} of tenant {revoked['tenant']}")


def _print_new_key(key: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(in_json(key))
        return
    expires = f"expires {when(key['expires'])}" if key["expires"] else "does not expire"
    typer.echo(f"Key {key['id']} of tenant {key['tenant']}; it {expires}.", err=True)
    if (old := key.get("replaced")) is not None:
        validity = f"is valid until {when(old['expires'])}" if old["status"] == "grace" else "is no longer valid"
        typer.echo(f"The old key is now called {old['id']} and {validity}.", err=True)
    typer.echo("The key is shown only this once:", err=True)
    typer.echo(key["key"])


@keys.command()
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, with mode 0600. Default: standard output.")
    ] = None,
    config: RedisConfigOption = CONFIG,
) -> None:
    """Write what only Redis has to a file: API keys, raises of budgets, switched-off guidance, and the audit trail.

    `gkt-gateway keys export -o keys.jsonl` writes one line of JSON for each. `keys import` reads the file. A complete
    export replaces an existing file in one step, without a copy.

    The file has the SHA-256 of each key, never a key or another secret. Gateways may run. The command reads the Redis
    of config.yaml. It needs no admin key. See `gkt-gateway docs deployment#backups`.
    """
    from gateway.cli import keys_export  # imported here: it imports the usage database
    from gateway.cli.new_files import write_all
    from gateway.cli.stores import result_of, settings_of
    from gateway.keys.export_lines import line_text

    lines = result_of(keys_export.export(settings_of(config)))
    text = "".join(f"{line_text(line)}\n" for line in lines)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_all({output: text}, private={output}, copy=False)
    typer.echo(keys_export.summary(lines), err=True)


@keys.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="File that `keys export` wrote.", metavar="FILE", show_default=False)],
    actor: ActorOption = None,
    config: RedisConfigOption = CONFIG,
) -> None:
    """Add the lines of an export to the Redis of config.yaml.

    All lines are checked before the first is written. An error names the line and its correction.

    The state that Redis has stays. Lines that Redis has already are omitted, so the command can be repeated. If a line
    differs from Redis, for example because a key was revoked later, the other lines are imported. The command then
    lists the differences and exits with 1: revoke or create these keys with `keys`, raise budgets with `budgets`.

    Gateways may run. They use imported keys within two seconds. Raises that ended are omitted. The audit trail keeps
    its order, and gets an entry of this import.
    """
    from gateway.cli import keys_export  # imported here: it imports the usage database
    from gateway.cli.stores import result_of, settings_of

    try:
        raw = file.read_bytes()
    except OSError as error:
        raise StartupError(f"{file} cannot be read: {error.strerror}.") from None
    imported = result_of(keys_export.import_lines(settings_of(config), raw, str(file), actor or login_name()))
    typer.echo(f"Imported: {keys_export.summary(imported.added)}")
    typer.echo(f"Already in Redis: {keys_export.summary(imported.present)}")
    if imported.ended:
        typer.echo(f"Omitted: {counted(len(imported.ended), 'raise')} that ended")
    if imported.different:
        typer.echo("\n".join([*imported.different, "Redis was not changed where it differs."]), err=True)
        raise typer.Exit(1)


_SHORT = {"rpm_limit": "rpm", "tpm_limit": "tpm", "max_parallel_requests": "parallel"}
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)
_RESERVED_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}
_COLORS = {"active": "green", "grace": "yellow"}


def print_keys(keys: Iterable[dict[str, Any]]) -> None:
    """Print a table of keys."""
    console = console_for(pipe_width=200)
    table = plain_table("tenant", "id", "key", "status", "expires", "last used", "models", "limits", "budget")
    for key in keys:
        budget = key["budget"]
        table.add_row(
            Text(key["tenant"]),
            Text(key["id"]),
            Text(f"{key['hint']}..." if key["hint"] else "in its file"),
            Text(key["status"], _COLORS.get(key["status"], "red")),
            Text(when(key["revoked"] or key["expires"] or "never")),
            Text(when(key["last_used"] or "-")),
            Text(", ".join(key["models"] or ["all"])),
            Text("\n".join(f"{_SHORT[name]} {value}" for name, value in (key["limits"] or {}).items())),
            Text(f"{budget['max_budget']} USD / {budget.get('budget_duration', '1mo')}" if budget else ""),
        )
    console.print(table if table.row_count else "There are no keys. Create one with `gkt-gateway keys create`.")


def yaml_lines(body: dict[str, Any], token: str, now: float) -> str:
    """Return an entry for `keys:` of a policy file. Raises ConfigError where an option is invalid."""
    from gateway.admin.bodies import NewKey  # imported here: it imports the server

    parsed, issues = YamlSource("", body).check(NewKey)
    if parsed is None:
        raise ConfigError(
            [ConfigIssue(_option(issue.field), 0, 0, "", issue.message, issue.suggestion) for issue in issues]
        )
    lines = [f"id: {_quoted(parsed.id)}", f"sha256: {digest_of(token)}"]
    if parsed.expires.in_s is not None:
        lines.append(f"expires: {datetime.fromtimestamp(now + parsed.expires.in_s, UTC):%Y-%m-%dT%H:%M:%SZ}")
    elif "expires" in body:
        lines.append(f"expires: {body['expires']}")
    if parsed.models is not None:
        lines.append(f"models: [{', '.join(map(_quoted, parsed.models))}]")
    lines += [f"{name}: {_flow(body[name])}" for name in ("limits", "budget") if name in body]
    if parsed.labels:
        pairs = ", ".join(f"{name}: {_quoted(value)}" for name, value in parsed.labels.items())
        lines.append(f"labels: {{{pairs}}}")
    return "  - " + "\n    ".join(lines)


def _labels(given: Iterable[str]) -> dict[str, str]:
    labels = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not sign:
            raise typer.BadParameter(f"write a name, = and a value, and not '{one}'", param_hint="--label")
        labels[name.strip()] = value.strip()
    return labels


def _option(field: str) -> str:
    return "--" + field.partition("[")[0].rpartition(".")[2].replace("_", "-")


def _flow(values: dict[str, object]) -> str:
    pairs = (f"{name}: {str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items())
    return f"{{{', '.join(pairs)}}}"


def _quoted(text: str) -> str:
    """Return a text in quotes if YAML could read it as another type."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _RESERVED_WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)
