"""All subcommands under one name. Each is imported when it is called: `version` need not pay for the whole gateway."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gateway.cli import SETTINGS
from gateway.version import __version__

COMMANDS = ("serve", "demo", "check", "schema", "keys", "budgets", "usage", "queue", "version")


class _Commands(TyperGroup):
    """COMMANDS; each but `version` is what the module of its name calls so: a function, or commands of its own."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # All of them for a misspelt one, so that the nearest can be named.
        for name in (cmd_name,) if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.add_command(_imported(name), name)
        return super().get_command(ctx, cmd_name)


def _imported(name: str) -> Any:
    found = getattr(import_module(f"gateway.cli.{name}"), name)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(**SETTINGS)
    alone.command(name)(found)
    return typer.main.get_command(alone)


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
