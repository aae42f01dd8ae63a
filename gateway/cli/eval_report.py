"""`gkt-gateway eval report`: write a report of runs as Markdown and JSON."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads the annotations
from typing import Annotated

import typer

from gateway.cli.eval_options import of_the_extra
from gateway.errors import StartupError

_MAX_REMARKS = 5


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders that `gkt-gateway eval run` wrote.", metavar="FOLDER...")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write.", metavar="FOLDER", show_default="FOLDER/report"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap intervals.", min=0)] = 1,
) -> None:
    """Write a report of a run: accuracy, tokens, cost and time of every setting.

    It writes report.md with a folder figures/, and report.json. A report of an unfinished run covers its answers so
    far. With several folders each is a chapter after a common table, and --out is required.

    `gkt-gateway docs evaluation` explains the columns and figures.
    """
    if out is None and len(folders) > 1:
        raise StartupError("A report of several folders needs --out FOLDER.")
    with of_the_extra():
        from gateway.evaluation.record import read_run
        from gateway.evaluation.reporting.rendering import write_report
        from gateway.evaluation.reporting.report import section
    runs = [read_run(folder) for folder in folders]
    written = write_report([section(run, seed) for run in runs], out or folders[0] / "report", seed)
    for run in runs:
        for remark in run.remarks[:_MAX_REMARKS]:
            typer.echo(f"{run.path}: {remark}", err=True)
        if more := len(run.remarks[_MAX_REMARKS:]):
            typer.echo(f"{run.path}: {more} more remarks are in the report.", err=True)
    for file in written[:2]:
        typer.echo(file)
