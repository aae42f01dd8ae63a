"""Groups of commands that import a command when it is called: `version` need not pay for the whole gateway."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from gateway.cli import SETTINGS


class LazyGroup(TyperGroup):
    """Each of `names` is what a module calls so, a function or commands of its own, unless it is registered.

    The module of a name is `prefix` and the name, with _ for -.
    """

    names: ClassVar[tuple[str, ...]]
    prefix: ClassVar[str]
    renamed: ClassVar[dict[str, str]] = {}
    """New names of commands by the old one. The old one is an error that gives the new one."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.renamed:
            ctx.fail(f"The command '{cmd_name}' is called '{self.renamed[cmd_name]}' now.")
        # All of them for a misspelt one, so that the nearest can be named.
        for name in (cmd_name,) if cmd_name in self.names else self.names:
            if name not in self.commands:
                self.add_command(_imported(self.prefix, name), name)
        return super().get_command(ctx, cmd_name)


def _imported(prefix: str, name: str) -> Any:
    attribute = name.replace("-", "_")
    found = getattr(import_module(prefix + attribute), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(**SETTINGS)
    alone.command(name)(found)
    return typer.main.get_command(alone)
