"""`gkt-gateway schema`: what config.yaml, policy files, projections and curves may say, as JSON Schema, for editors."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import orjson
import typer

from gateway.reference.json_schema import json_schema
from gateway.reference.markdown import reference


class SchemaName(StrEnum):
    """The files that there is a schema of."""

    CONFIG = "config"
    POLICY = "policy"
    PROJECTION = "projection"
    CURVE = "curve"


def schema(
    which: Annotated[
        SchemaName,
        typer.Argument(
            help="**config**: of config.yaml. **policy**: of the files in policies/. **projection**: of those in "
            "policies/projections/. **curve**: of what `gkt-gateway plan` reads."
        ),
    ],
    *,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The same for eyes: a page of all keys, in Markdown.")
    ] = False,
) -> None:
    """Print a JSON Schema, with which editors complete and check what you write.

    Save it, and name it in the first line of the file:

    `gkt-gateway schema policy > policy.schema.json`

    `# yaml-language-server: $schema=policy.schema.json`

    What depends on more than one place, such as a model that config.yaml does not have, `gkt-gateway check` tells.
    """
    typer.echo(reference(which.value) if markdown else printed(which.value), nl=False)


def printed(which: str) -> str:
    """The schema as it is printed, and kept under docs/schema."""
    return orjson.dumps(json_schema(which), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
