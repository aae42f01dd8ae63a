"""`gkt-gateway eval fit`: learn from a run how long guidance should be, request by request."""

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
    from gateway.evaluation.advice.auto import LengthFamily, LengthResult
    from gateway.evaluation.advice.fit import FitComparison
    from gateway.policy.length_model import FittedLengths

NO_BETTER = 3
"""How the command leaves when the chosen lengths are not surely better than a fixed one: the file is there all the
same."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,48}", re.ASCII)


def fit(
    folder: Annotated[Path, typer.Argument(help="What `eval run` has filled.", metavar="FOLDER")],
    out: Annotated[
        Path, typer.Option(help="Where to write it; a policy names it under guidance.auto.model.", metavar="FILE")
    ] = Path("lengths/lengths.json"),
    data: Annotated[
        str | None,
        typer.Option(
            help="The questions of the run: a data set's name, or a file.",
            metavar="DATA",
            show_default="as run.json says",
        ),
    ] = None,
    setting: Annotated[
        str | None,
        typer.Option(
            help="Of several settings with lengths, the one that has this in its description.",
            metavar="WORDS",
            show_default="that with the most lengths",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the folds.", min=0, metavar="N")] = 0,
) -> None:
    """Learn from a run how long guidance should be, request by request, and say whether that pays.

    The run must have the student alone and guidance of two lengths or more, on the same questions. What comes of it is
    judged on questions that it was not fitted on, at the cost of the best fixed length. Leaves with 3 where it is not
    surely better: then keep the fixed length. docs/policies.md tells how it decides.
    """
    if not _NAME.fullmatch(out.stem) or out.suffix != ".json":
        raise StartupError(f"--out {out}: name a file like lengths/chat.json, of letters, digits and any of . _ -")
    with of_the_extra():
        from gateway.evaluation.advice.auto import families, fixed_lengths
        from gateway.evaluation.advice.fit import compare, tables_of
        from gateway.evaluation.advice.fit import fit as fitted
        from gateway.evaluation.questions.data import load
        from gateway.evaluation.run_records import read_run
    run = read_run(folder)
    manifest = run.manifest
    questions = load(data or manifest.data, count=max(1, manifest.questions), seed=manifest.seed).questions
    found = [one for one in families(manifest, run.examples, questions) if (setting or "") in one.name]
    if not found:
        raise StartupError(f"--setting: no setting with lengths has '{setting}' in its description.")
    family = found[0]
    model = fitted(family, manifest, out.stem, int(time.time()), seed=seed)
    tables = tables_of(family)
    rows = [compare(tables, family.lengths, tokens, seed=seed) for tokens in family.lengths if tokens]
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}")
    new.write_text(model.model_dump_json(indent=1) + "\n")
    new.replace(out)  # whole: a gateway may be watching it
    show(family, fixed_lengths(family), rows, model, out)
    if model.figures is None or not model.figures.beats:
        raise typer.Exit(NO_BETTER)


def show(
    family: LengthFamily, fixed: dict[int, LengthResult], rows: list[FitComparison], model: FittedLengths, out: Path
) -> None:
    """What was found, for a terminal."""
    console = Console()
    console.print(f"{len(family.questions)} questions; {family.name}", highlight=False)
    table = Table("length", "right", "USD an answer", "auto at that cost", "USD", "difference, 95 %", box=None)
    compared = {one.fixed_tokens: one for one in rows}
    for tokens, gave in fixed.items():
        beside = compared.get(tokens)
        cells = (
            ["", "", ""]
            if beside is None
            else [
                f"{beside.auto_right:.1%}",
                f"{beside.auto_usd:.3g}",
                f"{beside.difference:+.1%} ({beside.low:+.1%} to {beside.high:+.1%})",
            ]
        )
        table.add_row("student alone" if not tokens else str(tokens), f"{gave.right:.1%}", f"{gave.usd:.3g}", *cells)
    console.print(table)
    figures = model.figures
    assert figures is not None, "fit() brings them"
    console.print(
        f"On questions it was not fitted on, auto is right {figures.auto_right:.1%} of the time at "
        f"{figures.auto_usd:.3g} USD; the best fixed length ({figures.fixed_tokens}) {figures.fixed_right:.1%} at "
        f"{figures.fixed_usd:.3g} USD.",
        highlight=False,
    )
    if figures.beats:
        console.print(f"It beats the fixed length. {out} is for guidance.auto.model.", highlight=False)
    else:
        keep = f"tokens: {figures.fixed_tokens}" if figures.fixed_tokens else "mode: student"
        console.print(
            f"It does not surely beat the fixed length: keep {keep}. {out} was written all the same.", highlight=False
        )
