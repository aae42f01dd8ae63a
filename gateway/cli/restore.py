"""`gkt-gateway restore`: write what a backup holds to Redis and the usage database."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.backup.file import records, verify
from gateway.backup.putting import RestoreWriter
from gateway.cli.backup_counts import lines_of
from gateway.cli.stores import CONFIG, ConfigOption, settings_of, stores, utc
from gateway.cli.stores_away import result_of
from gateway.cli.usage_db_export import progress
from gateway.errors import StartupError

if TYPE_CHECKING:
    from gateway.backup.file import VerifiedBackup
    from gateway.backup.putting import DeploymentContents
    from gateway.config.settings import Settings


class RestorePart(StrEnum):
    """The part that is restored alone."""

    REDIS = "redis"
    USAGE = "usage"


def restore(
    file: Annotated[Path, typer.Argument(help="A file of `gkt-gateway backup`.", metavar="FILE")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file, show what is there, and change nothing.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Delete what is in Redis first, and add the receipts to those of the usage database.",
        ),
    ] = False,
    only: Annotated[
        RestorePart | None,
        typer.Option("--only", help="Restore Redis or the usage database alone: the other one was not lost."),
    ] = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Write what a backup holds to Redis and the usage database, as config.yaml names them.

    No gateway and no usage worker may run on that Redis meanwhile; with `--only usage` they may.

    The file is checked whole before anything is written. Where Redis or the usage database hold anything already,
    nothing is done without --overwrite. See docs/deployment.md#backups.
    """
    with progress("checking the file", file.stat().st_size if file.exists() else None) as told:
        found = verify(file, told)
    typer.echo(f"{file}, made by gateway {found.header.gateway} at {utc(found.header.made)}, is whole")
    typer.echo(lines_of(found.counts, redis=only != RestorePart.USAGE, usage=only != RestorePart.REDIS))
    typer.echo(result_of(_restore(settings_of(config), file, found, only, dry_run=dry_run, overwrite=overwrite)))


async def _restore(
    settings: Settings, file: Path, found: VerifiedBackup, only: RestorePart | None, *, dry_run: bool, overwrite: bool
) -> str:
    """Return the result for people."""
    async with stores(settings) as here:
        usage = here.usage if only != RestorePart.REDIS and found.header.receipts else None
        if only == RestorePart.USAGE and usage is None:
            raise StartupError("The backup was made without receipts: there is nothing to restore.")
        putting = RestoreWriter(here.client.commands, here.keys, usage, redis_too=only != RestorePart.USAGE)
        present = await putting.inspect()
        _check(present, overwrite=overwrite)
        if dry_run:
            return _foretold(present)
        if usage is not None:
            await usage.open()
        try:
            await putting.clear(present)
            with progress("restoring", found.records) as told:
                await putting.put(records(file), told)
        except BaseException:
            typer.echo("The restore was interrupted: run it again, with --overwrite.", err=True)
            raise
    if only == RestorePart.USAGE:
        return "Restored."
    if found.header.gkt_backup == 1:
        return (
            "Restored. Run `gkt-gateway usage-db migrate` for the sums of the earlier version; then start the gateways."
        )
    return "Restored. Start the gateways."


def _foretold(present: DeploymentContents) -> str:
    """Return what a restore would do, and what becomes of what is there."""
    told = ["It would be restored."]
    if present.kept:
        told += ["Before that, this would be deleted from Redis:", lines_of(present.counts, usage=False)]
    if present.counts.receipts:
        told.append(f"The {present.counts.receipts} receipts in the usage database would stay.")
    return "\n".join([*told, "Nothing was changed."])


def _check(present: DeploymentContents, *, overwrite: bool) -> None:
    if present.alive:
        raise StartupError(
            f"{present.alive} processes (gateways, usage workers) run on this Redis, or ended within redis.lease of "
            "now: stop all of them, and try again after that. Nothing was changed."
        )
    if not present.is_empty and not overwrite:
        raise StartupError(
            f"There is something already:\n{lines_of(present.counts)}\nNothing was changed. With --overwrite the "
            "backup replaces what is in Redis, and its receipts are added to those of the usage database."
        )
