"""`gkt-gateway schema`: JSON Schemas of config.yaml, policies, projections and curves."""

from __future__ import annotations

from typing import Annotated, Literal

import orjson
import typer

from gateway.cli.json_schema import editor_schema


def schema(
    which: Annotated[
        Literal["config", "policy", "projection", "curve"],
        typer.Argument(
            help="**config**: config.yaml. **policy**: files in policies/. **projection**: files in "
            "policies/projections/. **curve**: files that `gkt-gateway plan` reads."
        ),
    ],
) -> None:
    """Print a JSON Schema, for completion and validation in editors.

    Save it, and name it in the first line of the file:

    `gkt-gateway schema policy > policy.schema.json`

    `# yaml-language-server: $schema=policy.schema.json`

    Rules that concern several values or files, such as an unknown model in a policy, need `gkt-gateway check`.
    """
    typer.echo(schema_json(which), nl=False)


def schema_json(which: str) -> str:
    """Return a schema as JSON text, as in docs/schema."""
    return orjson.dumps(editor_schema(which), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
