"""All subcommands under one name."""

from __future__ import annotations

from typing import ClassVar

import typer

from gateway.cli import SETTINGS
from gateway.cli.lazy import LazyGroup

COMMANDS = {
    "serve": "Run the gateway until SIGTERM or Ctrl-C; then finish what is under way.",
    "demo": "Start everything on this machine: Redis, a teacher, a student, the gateway; answer a question.",
    "edge": "Answer a question on this machine, with the first words from a gateway's teacher.",
    "check": "Read the configuration and all policies; name every mistake with its file and line.",
    "eval": (
        "Measure whether guidance pays: how right the teacher alone is, the student alone, and the student after the "
        "teacher's first words; at what cost, and how fast."
    ),
    "schema": "Print a JSON Schema, with which editors complete and check what you write.",
    "keys": "Make, list, rotate and revoke the keys that callers show.",
    "budgets": "Look at the budgets of tenants and keys, and raise one for a while.",
    "usage": "Show what was used, by whom, and what it cost and saved.",
    "usage-worker": "Write receipts from Redis to the usage database, until SIGTERM or Ctrl-C.",
    "usage-db": "The database of receipts and their sums: SQLite or PostgreSQL, as `usage.url` of config.yaml says.",
    "reconcile": "Show what engines cost by the hour, and what requests were charged for them at token rates.",
    "plan": (
        "Say how many teacher and student GPUs a load needs, what they cost and how long callers wait; and the same "
        "for the teacher alone."
    ),
    "backup": "Write callers' keys, budgets and receipts to one file, while gateways and usage workers run.",
    "restore": "Write what a backup holds to Redis and the usage database, as config.yaml names them.",
    "queue": "Show what waits for each teacher and what is in flight, over the whole fleet.",
    "version": "Say which version this is.",
}
"""Names and summaries."""


class _Commands(LazyGroup):
    summaries = COMMANDS
    prefix = "gateway.cli."
    renamed: ClassVar = {"archive": "usage-db"}


app = typer.Typer(
    name="gkt-gateway",
    cls=_Commands,
    help=(
        "A gateway that speaks OpenAI's API, in which a large teacher model opens every answer and a small student "
        "finishes it.\n\nStart with `gkt-gateway demo`: real models on this machine, one guided answer. Then write "
        "config.yaml and policies/, `gkt-gateway check` them, and `gkt-gateway serve`."
    ),
    no_args_is_help=True,
    **SETTINGS,
)


@app.callback()
def _all() -> None: ...
