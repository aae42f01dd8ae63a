"""`gkt-gateway version`."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.version import __version__


def version(*, short: Annotated[bool, typer.Option("--short", help="The number alone, for scripts.")] = False) -> None:
    """Say which version this is."""
    typer.echo(__version__ if short else f"gkt-gateway {__version__}")
