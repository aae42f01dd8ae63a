"""All subcommands under one name."""

from __future__ import annotations

from typing import Annotated, ClassVar

import typer

from gateway.cli import SETTINGS
from gateway.cli.lazy import LazyGroup
from gateway.version import __version__

COMMANDS = (
    "serve",
    "demo",
    "edge",
    "check",
    "eval",
    "schema",
    "keys",
    "budgets",
    "usage",
    "usage-worker",
    "usage-db",
    "reconcile",
    "plan",
    "backup",
    "restore",
    "queue",
    "version",
)


class _Commands(LazyGroup):
    names = COMMANDS
    prefix = "gateway.cli."
    renamed: ClassVar = {"archive": "usage-db"}


app = typer.Typer(
    name="gkt-gateway",
    cls=_Commands,
    help=(
        "A gateway that speaks OpenAI's API, in which a large teacher model opens every answer and a small student "
        "finishes it.\n\nStart with `gkt-gateway demo`: real models on this machine, one guided answer. Then write "
        "config.yaml and policies/, `gkt-gateway check` them, and `gkt-gateway serve`."
    ),
    no_args_is_help=True,
    **SETTINGS,
)


@app.callback()
def _all() -> None: ...


@app.command()
def version(*, short: Annotated[bool, typer.Option("--short", help="The number alone, for scripts.")] = False) -> None:
    """Say which version this is."""
    typer.echo(__version__ if short else f"gkt-gateway {__version__}")
