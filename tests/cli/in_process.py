"""A command as `main` runs it, in the test's own process: to start one takes seconds."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple
from unittest.mock import patch

from typer.testing import CliRunner

from gateway.cli.commands import app
from gateway.errors import StartupError

ADMIN_KEY = "an-admin-key-for-tests"

_SETS_UP_LOGS = ("demo", "eval_run_session", "init", "serve")


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(command: str, *arguments: str, **environment: str) -> Done:
    """Run a command. Return its output and exit status. The environment has the admin key by default."""
    names = {"GKT_ADMIN_KEY": ADMIN_KEY, "NO_COLOR": "1", "LOGNAME": "carol", "COLUMNS": "200"}
    # A process has one log. This one's is the tests', and what the runner gives for a log is closed when it is done.
    with ExitStack() as logs:
        for module in _SETS_UP_LOGS:
            logs.enter_context(patch(f"gateway.cli.{module}.set_up_logs"))
        done = CliRunner().invoke(app, [command, *arguments], env={**names, **environment})
    if isinstance(done.exception, StartupError):
        return Done(1, done.stdout, done.stderr + done.exception.message)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)
