"""`gkt-gateway restore`: what a backup holds, back into Redis and the archive."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.backup.file import records, verify
from gateway.backup.putting import Putting
from gateway.cli.archive_export import progress
from gateway.cli.backup_stores import CONFIG, ConfigOption, lines_of, moment, settings_of, stores
from gateway.cli.stores_away import result_of
from gateway.errors import StartupError

if TYPE_CHECKING:
    from gateway.backup.file import Verified
    from gateway.backup.putting import Present
    from gateway.config import Settings


class Only(StrEnum):
    """What is restored alone."""

    REDIS = "redis"
    ARCHIVE = "archive"


def restore(
    file: Annotated[Path, typer.Argument(help="What `gkt-gateway backup` wrote.", metavar="FILE")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file, look at what is there, and change nothing.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Put it in the place of what is in Redis already, and add its receipts to the archive's.",
        ),
    ] = False,
    only: Annotated[
        Only | None,
        typer.Option("--only", help="Restore one of the two, and leave the other as it is: it was not lost."),
    ] = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Put what a backup holds back into Redis and the archive, as config.yaml names them.

    No gateway may run on that Redis meanwhile; with `--only archive` they may.

    The file is checked whole before anything is written. Where Redis or the archive hold anything already, nothing is
    done without --overwrite. docs/backup.md tells the rest.
    """
    with progress("checking the file", file.stat().st_size if file.exists() else None) as told:
        found = verify(file, told)
    typer.echo(f"{file}, made by gateway {found.header.gateway} at {moment(found.header.made)}, is whole")
    typer.echo(lines_of(found.counts, redis=only != Only.ARCHIVE, archive=only != Only.REDIS))
    typer.echo(result_of(_restore(settings_of(config), file, found, only, dry_run=dry_run, overwrite=overwrite)))


async def _restore(
    settings: Settings, file: Path, found: Verified, only: Only | None, *, dry_run: bool, overwrite: bool
) -> str:
    """What came of it, in a line."""
    wanted = only != Only.REDIS and found.header.archive
    async with stores(settings, archive=wanted) as here:
        if only == Only.ARCHIVE and here.archive is None:
            raise StartupError(
                "There is no archive to restore: archive.url is null, or the backup was made without it."
            )
        putting = Putting(here.client.commands, here.keys, here.archive, redis_too=only != Only.ARCHIVE)
        present = await putting.look()
        _check(present, overwrite=overwrite)
        if dry_run:
            return _foretold(present)
        if here.archive is not None:
            await here.archive.open()
        try:
            await putting.clear(present)
            with progress("restoring", found.records) as told:
                await putting.put(records(file), told)
        except BaseException:
            typer.echo("The restore broke off: do it again, with --overwrite.", err=True)
            raise
    return "Restored." if only == Only.ARCHIVE else "Restored. Start the gateways."


def _foretold(present: Present) -> str:
    """What would be done, and what becomes of what is there."""
    told = ["It would be restored."]
    if present.kept:
        told += ["Before that, this would be taken away from Redis:", lines_of(present.counts, archive=False)]
    if present.counts.receipts:
        told.append(f"The {present.counts.receipts} receipts that the archive has would stay.")
    return "\n".join([*told, "Nothing was changed."])


def _check(present: Present, *, overwrite: bool) -> None:
    if present.alive:
        raise StartupError(
            f"{present.alive} gateway processes run on this Redis, or ended within redis.lease of now: stop all of "
            "them, and try again after that. Nothing was changed."
        )
    if not present.nothing and not overwrite:
        raise StartupError(
            f"There is something already:\n{lines_of(present.counts)}\nNothing was changed. With --overwrite the "
            "backup takes the place of what is in Redis, and its receipts join those of the archive."
        )
