"""Command groups that import a command's module when the command is called, and settings of all commands."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": "markdown",
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
    "no_args_is_help": True,
}
"""Settings of every command group."""
CONFIG = Path("config.yaml")
config_option = partial(typer.Option, "--config", "-c")


class LazyGroup(TyperGroup):
    """A group that lists its commands without importing their modules.

    A command's module is `prefix` and its name with _ for -, and with _ at its end if it is a word of Python. The
    module's attribute of that name is a function or a Typer.
    """

    summaries: ClassVar[dict[str, str]]
    """First paragraph of each command's help, by name."""
    sections: ClassVar[Mapping[str, Iterable[str]]] = {}
    """Names of the commands by section of the group's help. Other commands are in the section Commands."""
    prefix: ClassVar[str]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        section_of = {name: section for section, names in self.sections.items() for name in names}
        for name, summary in self.summaries.items():
            self.add_command(TyperCommand(name, help=summary, rich_help_panel=section_of.get(name)))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command. Return its name, the command and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else _import_command(self.prefix, args[0]), rest


def _import_command(prefix: str, name: str) -> Any:
    attribute = f"{name}_" if iskeyword(name) else name.replace("-", "_")
    command = getattr(import_module(prefix + attribute), attribute)
    if isinstance(command, typer.Typer):
        return typer.main.get_command(command)
    app = typer.Typer(**SETTINGS)
    app.command(name)(command)
    return typer.main.get_command(app)
