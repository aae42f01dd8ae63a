"""The `gkt-gateway` command with all subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.lazy import SETTINGS, LazyGroup
from gateway.version import __version__

SECTIONS = {
    "use": {
        "demo": "Start Redis, a teacher, a student and the gateway on this machine, and answer a question.",
        "init": "Write config.yaml, a policy and an admin key for two running engines, and ask a guided question.",
        "edge": "Answer a question with a student on this machine, guided by a gateway's teacher.",
        "import": "Convert the configuration of another gateway to config.yaml and a policy.",
        "docs": "Print a page of the documentation of this version, or one section of a page.",
    },
    "operate": {
        "serve": "Run the gateway until SIGTERM or Ctrl-C, then finish requests in flight.",
        "check": "Validate the configuration and all policies. Print every issue with its file and line.",
        "schema": "Print a JSON Schema, for completion and validation in editors.",
        "keys": "Create, list, rotate, revoke, export and import API keys.",
        "budgets": "List the budgets of tenants and keys, raise one temporarily, and restore spend from receipts.",
        "guidance": "Switch guidance off and on for a route, a tenant or everything.",
        "usage": "Show usage and cost, and maintain the usage database.",
        "queue": "Show the queue and the calls in flight of each teacher, over the whole fleet.",
    },
    "evaluate": {
        "eval": "Measure accuracy, cost and speed of teacher, student and guided student on your questions.",
        "plan": "Compute the GPUs and the cost of a load, with guidance and with the teacher alone.",
    },
}
"""Summaries of the commands by section and name. Each is the first paragraph of the command's own help."""
COMMANDS = {name: summary for section in SECTIONS.values() for name, summary in section.items()}


class _Commands(LazyGroup):
    summaries = COMMANDS
    sections = SECTIONS
    prefix = "gateway.cli."


app = typer.Typer(
    name="gkt-gateway",
    cls=_Commands,
    help=(
        "A gateway with OpenAI's API. A large teacher model begins each answer, and a small student model completes "
        "it.\n\nStart with `gkt-gateway demo`, which runs real models on this machine. Then `gkt-gateway init` writes "
        "config.yaml and policies/ for your own engines. Validate changes with `gkt-gateway check`, and run "
        "`gkt-gateway serve`."
    ),
    **SETTINGS,
)


def _print_version(given: bool) -> None:
    if given:
        typer.echo(f"gkt-gateway {__version__}")
        raise typer.Exit


@app.callback()
def _all(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...
