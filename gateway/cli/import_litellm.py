"""`gkt-gateway import litellm`: convert a LiteLLM proxy configuration."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli import new_files
from gateway.cli.tables import counted
from gateway.config.yaml_source import display_path
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.migration.litellm import Conversion


def litellm(
    file: Annotated[Path, typer.Argument(help="The proxy's configuration file.", metavar="FILE", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the new files.", metavar="FOLDER")] = Path(),
    teacher: Annotated[
        str | None,
        typer.Option(help="With --student: guide the route of this model_name. Default: no guidance.", metavar="NAME"),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="With --teacher: this model_name completes the answers.", metavar="NAME")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files. Keeps copies: FILE.bak.")] = False,
) -> None:
    """Convert a LiteLLM proxy configuration to config.yaml and policies/default.yaml.

    - `gkt-gateway import litellm litellm.yaml --out gateway`: a route for each model_name, without guidance.
    - `gkt-gateway import litellm litellm.yaml --teacher claude --student small`: the route claude is guided.

    Models, weights, fallbacks, aliases, the Redis connection and the master key are converted. All other settings are
    listed with their lines. Secrets are not copied: the new files refer to environment variables, whose names are
    printed. LiteLLM's database, with its keys, teams and spend, is not read.

    Exits with 0 also if there are such settings, and with 1 if the file is not valid. See `gkt-gateway docs litellm`.
    """
    # Imported here: `--help` does not need it.
    from gateway.migration.litellm import convert_litellm
    from gateway.migration.litellm_routes import RequestedGuidance

    if (teacher is None) != (student is None):
        raise typer.BadParameter("--teacher and --student need each other", param_hint="--teacher")
    if student is not None and student == teacher:
        raise typer.BadParameter("must differ from --teacher", param_hint="--student")
    guidance = None if teacher is None or student is None else RequestedGuidance(teacher, student)
    result = convert_litellm(file, guidance)
    files = {out / name: text for name, text in result.files.items()}
    new_files.require_writable(out)
    if own := next((path for path in files if path.exists() and path.samefile(file)), None):
        raise StartupError(f"{display_path(own)} is LiteLLM's file: choose another folder with --out")
    new_files.require_new(files, force=force)
    _print(result, list(files), new_files.write_all(files))


def _print(result: Conversion, files: Iterable[Path], copies: Iterable[Path]) -> None:
    """Print the new files, the next commands, and the list of what was not converted."""
    config, policy = map(display_path, files)
    option = f"--config {shlex.quote(config)}"
    lines = [
        f"written: {config} ({counted(result.models, 'model')})",
        f"written: {policy} ({counted(result.routes, 'route')})",
        *(f"kept, a replaced file: {display_path(copy)}" for copy in copies),
        f"set these environment variables: {', '.join(result.variables) or 'none'}",
        "then:",
        f"  gkt-gateway check {option}",
        f"  gkt-gateway serve {option}",
        f"  gkt-gateway keys create --tenant default --id app {option}",
        f"not converted, see `gkt-gateway docs litellm`: {counted(len(result.not_converted), 'setting')}",
        *map(str, result.not_converted),
    ]
    typer.echo("\n".join(lines))
