"""The `gkt-gateway` command: one small file per subcommand."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gateway.cli.check import check
from gateway.cli.demo import demo
from gateway.cli.queue import queue
from gateway.cli.serve import serve
from gateway.errors import StartupError
from gateway.version import __version__

app = typer.Typer(
    name="gkt-gateway",
    help=(
        "A gateway that speaks OpenAI's API, in which a large teacher model opens every answer and a small student "
        "finishes it.\n\nStart with `gkt-gateway demo`: real models on this machine, one guided answer. Then write "
        "config.yaml and policies/, `gkt-gateway check` them, and `gkt-gateway serve`."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(demo)
app.command()(check)
app.command()(queue)


@app.command()
def version(*, short: Annotated[bool, typer.Option("--short", help="The number alone, for scripts.")] = False) -> None:
    """Say which version this is."""
    typer.echo(__version__ if short else f"gkt-gateway {__version__}")


def main() -> None:
    """Run the command; what cannot start says so in one line and leaves with 1."""
    try:
        app()
    except StartupError as error:
        typer.echo(f"gkt-gateway: {error.message}", err=True)
        sys.exit(1)
