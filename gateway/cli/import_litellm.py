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
    from collections.abc import Mapping, Sequence

    from gateway.migration.litellm import Conversion


def litellm(
    file: Annotated[Path, typer.Argument(help="The proxy's configuration file.", metavar="FILE", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the new files.", metavar="FOLDER")] = Path(),
    teacher: Annotated[
        str | None,
        typer.Option(help="Guide the other routes by this model_name. Default: no guidance.", metavar="NAME"),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="With --teacher: guide the teacher's route alone. This model_name completes the answers.",
            metavar="NAME",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the new files instead of writing them.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files. Keeps copies: FILE.bak.")] = False,
) -> None:
    """Convert a LiteLLM proxy configuration to config.yaml and policies/default.yaml.

    - `gkt-gateway import litellm litellm.yaml --out gateway`: a route for each model_name and alias, without guidance.
    - `gkt-gateway import litellm litellm.yaml --teacher claude --student small`: the route claude is guided.

    Settings without an equivalent are listed on standard error with their lines and replacements. Secrets are not
    copied: the new files refer to environment variables, whose names are printed. LiteLLM's database, with its keys,
    teams and spend, is not read.

    Exits with 0 also if there are such settings, and with 1 if the file is not valid. See `gkt-gateway docs litellm`.
    """
    # Imported here: `--help` does not need it.
    from gateway.config.settings import environment
    from gateway.migration.litellm import convert_litellm
    from gateway.migration.litellm_routes import RequestedGuidance

    if student is not None and teacher is None:
        raise typer.BadParameter("needs --teacher", param_hint="--student")
    if student is not None and student == teacher:
        raise typer.BadParameter("must differ from --teacher", param_hint="--student")
    guidance = None if teacher is None else RequestedGuidance(teacher, student)
    result = convert_litellm(file, environment(), guidance)
    files = {out / name: text for name, text in result.files.items()}
    if not dry_run:
        _check_targets(files, result.sources, out, force=force)
    for notice in result.notices:
        typer.echo(str(notice), err=True)
    if dry_run:
        for path, text in files.items():
            typer.echo(f"# {display_path(path)}\n{text}")
    copies = [] if dry_run else new_files.write_all(files)
    _print_summary(result, files, copies, is_guided=guidance is not None, dry_run=dry_run)


def _check_targets(files: Mapping[Path, str], sources: Sequence[Path], out: Path, *, force: bool) -> None:
    """Raise StartupError if a file to write is one of LiteLLM's, exists without `force`, or cannot be written."""
    new_files.require_writable(out)
    for path in files:
        if path.exists() and any(path.samefile(source) for source in sources):
            raise StartupError(f"{display_path(path)} is LiteLLM's file: choose another folder with --out")
    new_files.require_new(files, force=force)


def _print_summary(
    result: Conversion, files: Mapping[Path, str], copies: Sequence[Path], *, is_guided: bool, dry_run: bool
) -> None:
    config, policy = map(display_path, files)
    lines = [f"{counted(len(result.notices), 'notice')}: settings without an equivalent, and remarks"]
    if not dry_run:
        lines += [
            f"written: {config} ({counted(result.models, 'model')})",
            f"written: {policy} ({counted(len(result.modes), 'route')})",
        ]
        lines += [f"kept, a replaced file: {display_path(copy)}" for copy in copies]
        others = sorted({*Path(policy).parent.glob("*.yaml")} - {Path(policy)})
        lines += [f"read by the gateway, too: {one}" for one in others]
    if result.left_out:
        lines.append(f"entries not imported, see the notices: {', '.join(result.left_out)}")
    if result.missing:
        lines.append(f"fill in: {', '.join(result.missing)}")
    if result.variables:
        lines.append(f"set these environment variables: {', '.join(result.variables)}")
    if not is_guided:
        lines.append("no route is guided. To guide the routes by one of these models, import with --teacher NAME")
    else:
        guided = [route for route, mode in result.modes.items() if mode == "guided"]
        lines.append(f"guided routes: {', '.join(guided) or 'none'}")
    config, policy = shlex.quote(config), shlex.quote(policy)
    create = "(echo keys:; gkt-gateway keys create --tenant default --id app --print-yaml)"
    lines += [
        "not read: LiteLLM's database, with its virtual keys, teams and spend",
        "then:",
        f"  grep -q '^keys:' {policy} || {create} >> {policy}",  # a second run leaves the file as it is
        f"  gkt-gateway check --config {config}",
        f"  gkt-gateway serve --config {config}",
    ]
    for line in lines:
        typer.echo(line, err=dry_run)
