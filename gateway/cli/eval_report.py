"""`gkt-gateway eval report`: what a run found, to read, to show and for machines."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads the annotations
from typing import Annotated

import typer

from gateway.cli.eval_options import of_the_extra
from gateway.errors import StartupError

_MOST_REMARKS = 5


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders that `gkt-gateway eval run` wrote.", metavar="FOLDER...")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to write.", metavar="FOLDER", show_default="FOLDER/report"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap: the same seed gives the same intervals.", min=0)] = 1,
) -> None:
    """Say whether guidance pays: accuracy, tokens, cost and time of every setting of a run.

    It writes report.html (one file, figures included), report.md with figures/ beside it, and report.json. A run that
    is not over is told as far as it is. With several folders each is a chapter, a table over all comes first, and
    --out must say where.

    docs/evaluation.md explains the columns and figures.
    """
    if out is None and len(folders) > 1:
        raise StartupError("a report of several folders belongs to none of them: say with --out where to write it")
    with of_the_extra():
        from gateway.evaluation.reporting.rendering import write_report
        from gateway.evaluation.reporting.report import section
        from gateway.evaluation.run_records import read_run
    runs = [read_run(folder) for folder in folders]
    written = write_report([section(run, seed) for run in runs], out or folders[0] / "report", seed)
    for run in runs:
        for remark in run.remarks[:_MOST_REMARKS]:
            typer.echo(f"{run.path}: {remark}", err=True)
        if more := len(run.remarks[_MOST_REMARKS:]):
            typer.echo(f"{run.path}: and {more} more such remarks, which the report has.", err=True)
    for file in written[:3]:
        typer.echo(file)
