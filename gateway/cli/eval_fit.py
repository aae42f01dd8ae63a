"""`gkt-gateway eval fit`: fit a model of the guidance length per request to a run."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.eval_options import of_the_extra
from gateway.errors import StartupError

if TYPE_CHECKING:
    from gateway.evaluation.advice.fit import FitTables, LengthFamily
    from gateway.policy.length_model import FitFigures, FittedLengths

NO_BETTER = 3
"""Exit status if the model is not significantly better than a fixed length. The file is written anyway."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,48}", re.ASCII)


def fit(
    folder: Annotated[Path, typer.Argument(help="Folder of `eval run`.", metavar="FOLDER")],
    out: Annotated[
        Path, typer.Option(help="File to write, for guidance.auto.model of a policy.", metavar="FILE")
    ] = Path("lengths/lengths.json"),
    data: Annotated[
        str | None,
        typer.Option(
            help="Questions of the run: a data set's name, or a file.", metavar="DATA", show_default="that of run.json"
        ),
    ] = None,
    setting: Annotated[
        str | None,
        typer.Option(
            help="Use the setting whose description contains this text.",
            metavar="TEXT",
            show_default="the one with the most lengths",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the cross-validation.", min=0, metavar="N")] = 0,
) -> None:
    """Fit a model of the guidance length per request to a run, and compare it with fixed lengths.

    The run must include the student alone and guidance of two or more lengths, on the same questions. The model is
    evaluated by cross-validation, at the cost of the best fixed length. Exits with 3 if it is not significantly
    better: then use the fixed length. See docs/policies.md.
    """
    if not _NAME.fullmatch(out.stem) or out.suffix != ".json":
        raise StartupError(f"--out {out}: use a name like lengths/chat.json, of letters, digits and any of . _ -")
    with of_the_extra():
        from gateway.evaluation.advice.fit import compare, families, tables_of
        from gateway.evaluation.advice.fit import fit as fitted
        from gateway.evaluation.questions.data import load
        from gateway.evaluation.record import read_run, replace_file
    run = read_run(folder)
    manifest = run.manifest
    questions = load(data or manifest.data, count=max(1, manifest.questions), seed=manifest.seed).questions
    matching = [family for family in families(manifest, run.examples, questions) if (setting or "") in family.name]
    if not matching:
        raise StartupError(f"--setting: no setting with lengths has '{setting}' in its description.")
    family = matching[0]
    model = fitted(family, manifest, out.stem, int(time.time()), seed=seed)
    tables = tables_of(family)
    rows = [compare(tables, family.lengths, tokens, seed=seed) for tokens in family.lengths if tokens]
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, model.model_dump_json(indent=1).encode() + b"\n")  # a gateway may watch the file
    show(family, tables, rows, model, out)
    if model.figures is None or not model.figures.beats:
        raise typer.Exit(NO_BETTER)


def show(family: LengthFamily, tables: FitTables, rows: list[FitFigures], model: FittedLengths, out: Path) -> None:
    console = Console(highlight=False)
    console.print(f"{len(family.questions)} questions; {family.name}")
    table = Table("length", "correct", "USD per answer", "auto at that cost", "USD", "difference, 95 %", box=None)
    compared = {one.fixed_tokens: one for one in rows}
    for tokens, right, usd in zip(family.lengths, tables.right.T, tables.usd.T, strict=True):
        cells = [""] * 3
        if (one := compared.get(tokens)) is not None:
            difference = f"{one.difference:+.1%} ({one.low:+.1%} to {one.high:+.1%})"
            cells = [f"{one.auto_right:.1%}", f"{one.auto_usd:.3g}", difference]
        table.add_row(str(tokens or "student alone"), f"{right.mean():.1%}", f"{usd.mean():.3g}", *cells)
    console.print(table)
    figures = model.figures
    assert figures is not None, "set by fit()"
    console.print(
        f"In cross-validation, auto has {figures.auto_right:.1%} correct answers at {figures.auto_usd:.3g} USD; the "
        f"best fixed length ({figures.fixed_tokens}) has {figures.fixed_right:.1%} at {figures.fixed_usd:.3g} USD."
    )
    keep = f"tokens: {figures.fixed_tokens}" if figures.fixed_tokens else "mode: student"
    advice = f"It is not significantly better than the fixed length: use {keep}. {out} was written anyway."
    if figures.beats:
        advice = f"It is better than the fixed length. Set guidance.auto.model to {out}."
    console.print(advice)
