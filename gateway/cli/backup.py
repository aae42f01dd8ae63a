"""`gkt-gateway backup`: one file with callers' keys, budgets, sums and receipts."""

from __future__ import annotations

import secrets
from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.archive.database import Where
from gateway.backup.file import verify, writing
from gateway.backup.pause import nobody_adds_up
from gateway.backup.taking import Taking, receipts
from gateway.cli.archive_export import progress
from gateway.cli.backup_stores import CONFIG, ConfigOption, lines_of, settings_of, stores
from gateway.cli.stores_away import result_of

if TYPE_CHECKING:
    from gateway.backup.file import Writer
    from gateway.cli.backup_stores import Stores
    from gateway.config import Settings


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write, for its owner alone (0600).", metavar="FILE")],
    without_archive: Annotated[
        bool,
        typer.Option(
            "--without-archive", help="Leave the archive's receipts out: its database has backups of its own."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file that is there.")] = False,
    config: ConfigOption = CONFIG,
) -> None:
    """Write callers' keys, budgets, sums and receipts to one file, while gateways go on.

    It reads Redis and the archive, as config.yaml names them. Of keys the file holds hashes; it holds no word of a
    prompt or an answer, no admin key and no password. Policies and config.yaml are files of yours: keep them beside it.

    For the seconds in which Redis is read receipts are not added up, and wait. docs/backup.md tells the rest.
    """
    result_of(_backup(settings_of(config), file, archive=not without_archive, overwrite=overwrite))
    with progress("checking the file", file.stat().st_size) as told:
        made = verify(file, told)
    typer.echo(f"{file}, {file.stat().st_size} bytes, read again and found whole\n{lines_of(made.counts)}")


async def _backup(settings: Settings, file: Path, *, archive: bool, overwrite: bool) -> None:
    async with stores(settings, archive=archive) as here:
        if here.archive is not None:
            await here.archive.open()
        made_s, _ = await here.client.commands.time()
        with writing(file, made_s, archive=here.archive is not None, overwrite=overwrite) as writer:
            ends = await _redis(here, writer)
            if here.archive is not None:
                with progress("reading the archive", await here.archive.count(Where())) as told:
                    async for record in receipts(here.archive, ends, made_s, told):
                        writer.put(record)


async def _redis(here: Stores, writer: Writer) -> dict[str, tuple[int, int]]:
    """All of Redis into the file: up to where each outbox went."""
    redis = here.client.commands
    async with nobody_adds_up(redis, here.keys, f"backup-{secrets.token_hex(6)}"):
        taking = Taking(redis, here.keys)
        inventory = await taking.inventory()
        with progress("reading Redis", len(inventory)) as told:
            async for record in taking.redis(inventory, told):
                writer.put(record)
    return inventory.ends
