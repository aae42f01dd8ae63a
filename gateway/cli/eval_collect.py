"""`gkt-gateway eval collect`: write a sample of a tenant's requests to a file, or delete it at the gateway."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

import typer

from gateway.cli.admin_client import ActorOption, AdminClient, ConfigOption, UrlOption, without_none
from gateway.cli.lazy import CONFIG
from gateway.cli.tables import ENCODER, counted
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE = 1000


def collect(
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="Tenant of the requests.")],
    file: Annotated[
        Path | None, typer.Argument(help="File to write, with mode 0600.", metavar="FILE", show_default=False)
    ] = None,
    route: Annotated[str | None, typer.Option(help="Only this route's requests. Default: all routes.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Write at most this many requests of each route.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the requests at the gateway.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
    actor: ActorOption = None,
    config: ConfigOption = CONFIG,
    url: UrlOption = None,
) -> None:
    """Write a sample of a tenant's requests to a file, for `eval run --data`.

    The gateway keeps requests only of routes whose policy has `collect`: a random sample, bounded in number, size and
    time. A line has `messages` with the system prompt and all turns, and the request's parameters. The file contains
    what users wrote: handle it as such.

    The command calls the admin listener of a running gateway with the admin key. Each reading and each deletion is in
    the audit trail. `--delete` without FILE deletes the requests, with FILE after they were written. See
    `gkt-gateway docs evaluation#questions-from-production`.
    """
    if file is None and not delete:
        raise typer.BadParameter("name the file to write, or delete the requests with --delete", param_hint="FILE")
    if delete and limit is not None:
        raise typer.BadParameter("would delete the requests beyond --limit, too: omit one", param_hint="--delete")
    client = AdminClient(url, config, keyed=True)
    path = f"/collected/{quote(tenant, safe='')}"
    if file is not None:
        samples = [one for one in client.call("GET", path)["routes"] if route in {None, one["route"]}]
        if not samples:
            where = f"route '{route}' of tenant '{tenant}'" if route is not None else f"tenant '{tenant}'"
            raise StartupError(
                f"The gateway has no requests of {where}. It collects those of routes with `collect` in the policy, "
                "and deletes them after `ttl`."
            )
        _write(file, (line for one in samples for line in _lines(client, path, one["route"], limit, actor)), overwrite)
        for one in samples:
            typer.echo(_summary(one), err=True)
        typer.echo(file)
    if delete:
        query = urlencode(without_none(route=route))
        deleted = client.call("DELETE", f"{path}?{query}" if query else path, actor=actor)["deleted"]
        for one in deleted:
            typer.echo(f"deleted: {counted(one['requests'], 'request')} of route {one['route']}", err=True)
        if not deleted:
            typer.echo("There was nothing to delete.", err=True)


def _lines(client: AdminClient, path: str, route: str, limit: int | None, actor: str | None) -> Iterator[bytes]:
    """Yield a route's requests as JSON lines. They are in random order, so the first ones are a random sample, too."""
    after: str | None = None
    left = limit
    while left is None or left > 0:
        query = urlencode(without_none(route=route, limit=min(_PAGE, left or _PAGE), after=after))
        page: dict[str, Any] = client.call("GET", f"{path}/requests?{query}", actor=actor)
        for one in page["requests"]:
            yield ENCODER.encode(one) + b"\n"
        after = page["next"]
        if after is None:
            return
        left = None if left is None else left - len(page["requests"])


def _write(file: Path, lines: Iterator[bytes], overwrite: bool) -> None:
    """Write a file that only its owner may read. Raises StartupError; an incomplete file is removed."""
    new = file.with_name(file.name + ".new")
    if file.exists() and not overwrite:
        raise StartupError(f"{file} exists: name another file, or add --overwrite.")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.writelines(lines)
            new.replace(file)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise StartupError(f"{file} cannot be written: {error.strerror}. Name another file.") from error


def _summary(sample: dict[str, Any]) -> str:
    skipped = ", ".join(f"{count} {reason}" for reason, count in sample["skipped"].items())
    return (
        f"route {sample['route']}: a sample of {sample['requests']} of {counted(sample['seen'], 'request')} since "
        f"{sample['since']}, which the gateway deletes at {sample['deleted_at']}"
        + (f"; skipped: {skipped}" if skipped else "")
    )
