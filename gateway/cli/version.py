"""`gkt-gateway version`."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.version import __version__


def version(*, short: Annotated[bool, typer.Option("--short", help="Print only the number.")] = False) -> None:
    """Print the version."""
    typer.echo(__version__ if short else f"gkt-gateway {__version__}")
