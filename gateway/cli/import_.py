"""`gkt-gateway import`: convert the configuration of another gateway."""

from __future__ import annotations

from typing import ClassVar

import typer

from gateway.cli.lazy import SETTINGS, LazyGroup


class _Imports(LazyGroup):
    summaries: ClassVar = {"litellm": "Convert a LiteLLM proxy configuration to config.yaml and policies/default.yaml."}
    prefix = "gateway.cli.import_"


import_ = typer.Typer(
    name="import",
    cls=_Imports,
    help="Convert the configuration of another gateway to config.yaml and a policy.\n\nSee `gkt-gateway docs litellm`.",
    **SETTINGS,
)


@import_.callback()
def _all() -> None: ...
