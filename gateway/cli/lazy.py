"""Groups of commands that import a command's module when the command is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from gateway.cli import SETTINGS


class LazyGroup(TyperGroup):
    """A group that lists its commands without their modules.

    Module and attribute of a command are `prefix` and its name, with _ for -. The attribute is a function or a Typer.
    """

    summaries: ClassVar[dict[str, str]]
    """The first paragraph of each command's help, by name."""
    prefix: ClassVar[str]
    renamed: ClassVar[dict[str, str]] = {}
    """New names of commands by the old one. The old one is an error that gives the new one."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, summary in self.summaries.items():
            self.add_command(TyperCommand(name, help=summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return name, command and its arguments, and import the command."""
        if args[0] in self.renamed:
            ctx.fail(f"The command '{args[0]}' is called '{self.renamed[args[0]]}' now.")
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else _imported(self.prefix, args[0]), rest


def _imported(prefix: str, name: str) -> Any:
    attribute = name.replace("-", "_")
    found = getattr(import_module(prefix + attribute), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(**SETTINGS)
    alone.command(name)(found)
    return typer.main.get_command(alone)
