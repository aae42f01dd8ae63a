"""Every `gkt-gateway ...` that a Markdown page says to type: the command is there, and has these options."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer

from gateway.cli.commands import app
from tests.docs.test_docs_links import PAGES, ROOT

_END = re.compile(r"[|<>`;)]|&&|\s#|\s\\$|$", re.MULTILINE)
_TOP = typer.main.get_command(app)


def typed(text: str) -> list[list[str]]:
    """The words of each, as far as the shell gives them to it. Prose about a command is one, too."""
    found = []
    for match in re.finditer(r"(?:^|[\s`/])gkt-gateway ((?!\[)[^\n]*(?:\\\n[^\n]*)*)", text):
        line = match[1].replace("\\\n", " ")
        end = _END.search(line)
        try:
            found.append(shlex.split(line[: end.start() if end else None].replace("$(", " ")))
        except ValueError:  # a quote that ends in another line
            found.append(line.split("'")[0].split())
    return found


def options_of(words: list[str]) -> tuple[str, set[str], set[str]]:
    """The command's name, the options that are typed, and those that it has."""
    command: Any = _TOP
    name = ""
    rest = [word for word in words if not word.startswith("-")]
    while rest and hasattr(command, "commands") and rest[0] in command.commands:
        name = f"{name} {rest[0]}".strip()
        _, command, rest = command.resolve_command(None, rest)
    has = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}
    return name, {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}, has


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_pages_commands_are_there_with_their_options(page: Any) -> None:
    unknown = []
    for words in typed(page.read_text("utf-8")):
        name, used, has = options_of(words)
        if used - has and name:
            unknown.append((name, sorted(used - has)))
    assert unknown == []


def test_an_option_that_is_not_there_is_found() -> None:
    name, used, has = options_of(typed("Type `gkt-gateway keys rotate prod --tenant acme --grase 24h | cat --x`.")[0])
    assert (name, used - has) == ("keys rotate", {"--grase"})
