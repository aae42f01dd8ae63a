"""Generate docs/reference/cli.md: python -m tests.cli_reference > docs/reference/cli.md"""

from __future__ import annotations

import re
import sys
from typing import Any

import typer

from gateway.cli.commands import app

_HEAD = """# Command line

All commands with their options. `python -m tests.cli_reference > docs/reference/cli.md` generates this page.
"""


def document() -> str:
    return _HEAD + "".join(_section("gkt-gateway", typer.main.get_command(app)))


def _section(name: str, command: Any) -> list[str]:
    children = getattr(command, "commands", {})
    rows = [_row(param) for param in command.params if param.name != "help"]
    table = "\n| option | meaning |\n|---|---|\n" + "".join(rows) if rows else ""
    text = re.sub(r"[ \t]*\n[ \t]*", "\n", (command.help or "").replace("\f", "").strip())
    return [f"\n## {name}\n\n{text}\n{table}"] + [
        part
        for child in children
        for part in _section(f"{name} {child}", command.resolve_command(None, [child])[1])  # commands are loaded lazily
    ]


def _row(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    help_text = " ".join((param.help or "").replace("|", "\\|").split())
    has_default = isinstance(param.default, str | int | float) and param.default and "Default:" not in help_text
    given = f" Default: `{param.default}`." if has_default else ""
    return f"| {names} | {help_text}{' Required.' if param.required else ''}{given} |\n"


if __name__ == "__main__":
    sys.stdout.write(document())
