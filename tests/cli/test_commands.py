"""The commands under one name: each pays for what it needs, and Ctrl-C ends each at any time without a traceback."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.commands import COMMANDS, app
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.cli.lazy import LazyGroup

REPOSITORY = Path(__file__).parents[2]

# The modules that the command line has imported when it ends.
_IMPORTED = """
import sys
from gateway.cli import main
try:
    main()
finally:
    sys.stderr.write("\\n".join(sys.modules))
"""
# A Ctrl-C just as a module is looked for.
_INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs this may ignore it
module = sys.argv.pop(1)
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from gateway.cli import main
main()
"""


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=REPOSITORY,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ("--version", {"ruamel.yaml", "aiohttp", "redis", "huggingface_hub", "gateway.config.settings", "gateway.app"}),
        ("--help", {"aiohttp", "redis", "gateway.config.settings", "gateway.cli.serve"}),
        ("keys list --help", {"redis", "sqlalchemy", "gateway.pipeline.completion", "gateway.api"}),
        ("queue --help", {"redis", "sqlalchemy", "gateway.pipeline.completion", "gateway.api"}),
        ("usage show --help", {"redis", "sqlalchemy", "gateway.pipeline.completion", "gateway.api"}),
        ("serve --help", {"aiohttp", "sqlalchemy", "huggingface_hub", "gateway.local.weights"}),
        ("check", {"aiohttp", "redis", "huggingface_hub", "gateway.app", "gateway.local", "gateway.cli.demo"}),
    ],
)
def test_a_command_imports_no_more_than_it_needs(command: str, without: set[str]) -> None:
    done = _python(_IMPORTED, *command.split())
    assert done.returncode == 0, done.stderr
    assert not without & set(done.stderr.splitlines())


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("typer", "--version"),
        ("pydantic", "check"),
        ("pydantic", "serve"),
        ("aiohttp", "demo"),
    ],
)
def test_ctrl_c_during_imports_exits_with_130_and_no_traceback(module: str, command: str) -> None:
    done = _python(_INTERRUPTED, module, command)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr


def test_a_misspelt_command_names_the_nearest() -> None:
    done = _python("from gateway.cli import main; main()", "serv")
    assert done.returncode == 2
    assert "Did you mean 'serve'?" in done.stderr


def _groups() -> Iterator[LazyGroup]:
    top = typer.main.get_command(app)
    yield top
    for name in top.commands:
        _, command, _ = top.resolve_command(None, [name])
        if hasattr(command, "summaries"):
            yield command


def test_the_option_version_prints_the_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"gkt-gateway {__version__}\n")


def test_help_groups_at_most_16_commands_into_three_sections() -> None:
    lines = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout.splitlines()
    sections: dict[str, list[str]] = {}
    for line in lines:
        if title := re.match(r"[^\w│]+ (\w+) ", line):
            names = sections.setdefault(title[1], [])
        elif command := re.match(r"│ ([\w-]+) ", line):
            names.append(command[1])
    del sections["Options"]
    assert list(sections) == ["use", "operate", "evaluate"]
    shown = [name for names in sections.values() for name in names]
    assert shown == list(COMMANDS)
    assert len(shown) <= 16


def test_every_group_lists_the_first_paragraph_of_a_commands_help() -> None:
    for group in _groups():
        for name, summary in group.summaries.items():
            _, command, _ = group.resolve_command(None, [name])
            assert summary == inspect.cleandoc(command.help).split("\n\n")[0].replace("\n", " "), name
