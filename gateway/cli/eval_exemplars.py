"""`gkt-gateway eval exemplars`: find a few exemplars for projection `primed`, made of your own questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.eval_options import (
    DATA,
    Concurrency,
    Config,
    Data,
    Judge,
    Scorer,
    SkipBad,
    SlotTokens,
    Student,
    Teacher,
    of_the_extra,
    pair_of,
)

NONE_HELPS = 3
"""The exit status where no exemplars help."""
_SEARCH = "The search"


def exemplars(
    folder: Annotated[
        Path, typer.Option(help="Where every text is kept. The same folder goes on where it stopped.")
    ] = Path("exemplar-search"),
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("exemplars.yaml"),
    force: Annotated[
        bool, typer.Option("--force", help="Write over the file; write the best there is where none helps.")
    ] = False,
    data: Data = "generated",
    offset: Annotated[
        int, typer.Option(min=0, help="Leave the first alone, for an evaluation.", rich_help_panel=DATA)
    ] = 0,
    evaluated: Annotated[
        Path | None,
        typer.Option(help="A folder of `eval run`: leave its questions alone.", rich_help_panel=DATA),
    ] = None,
    skip_bad: SkipBad = False,
    scorer: Scorer = None,
    judge: Judge = None,
    exemplars_file: Annotated[
        Path | None,
        typer.Option("--exemplars", help="Exemplars of your own, to race with the others.", rich_help_panel=DATA),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, max=4096, help="m: the guidance they are to be good for.", rich_help_panel=_SEARCH)
    ] = 40,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="The limit on an answer, guidance included.", rich_help_panel=_SEARCH)
    ] = 300,
    pool: Annotated[
        int, typer.Option(min=1, help="Questions of which exemplars are made.", rich_help_panel=_SEARCH)
    ] = 16,
    select: Annotated[
        int, typer.Option(min=2, help="Questions on which they are compared.", rich_help_panel=_SEARCH)
    ] = 40,
    check: Annotated[
        int, typer.Option(min=0, help="Questions on which what was found is checked.", rich_help_panel=_SEARCH)
    ] = 40,
    most: Annotated[int, typer.Option(min=1, max=32, help="At most so many exemplars.", rich_help_panel=_SEARCH)] = 8,
    max_answer_tokens: Annotated[
        int, typer.Option(min=1, help="The longest answer of an exemplar.", rich_help_panel=_SEARCH)
    ] = 60,
    calls: Annotated[
        int, typer.Option(min=1, help="At most so many calls of engines.", rich_help_panel=_SEARCH)
    ] = 1500,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.", rich_help_panel=_SEARCH)] = 0,
    config: Config = None,
    teacher: Teacher = None,
    student: Student = None,
    concurrency: Concurrency = 16,
    slot_tokens: SlotTokens = 2048,
) -> None:
    """Find a few exemplars that make the teacher's first words tell more, and write them into a file.

    With projection `primed` the teacher alone sees exemplars as earlier turns of the chat, and begins its answer as
    they do. Here they are made of your questions and the teacher's own correct answers, in several styles: as it wrote
    them, with the result first, last, or alone. Sets of them race on other questions; what wins is checked on others
    again. None of these is ever an exemplar: leave an evaluation's own questions out with --offset or --evaluated.

    The file is for `exemplars:` in a policy, and for `gkt-gateway eval run --exemplars`. Ctrl-C or a kill cost no
    answer: the same command goes on. Leaves with 3 where no exemplars help; then there is no file, unless --force.
    """
    with of_the_extra():
        import gateway.evaluation.statistics  # noqa: F401  sets are compared with it in the end
    from gateway.cli.eval_exemplars_sitting import ExemplarSession, seek
    from gateway.evaluation.priming.finding import SearchLimits
    from gateway.evaluation.setting import Setting

    if tokens > max_tokens:
        raise typer.BadParameter("is a part of the answer: no more than --max-tokens", param_hint="--tokens")
    sought = ExemplarSession(
        folder=folder,
        out=out,
        force=force,
        data=data,
        offset=offset,
        evaluated=evaluated,
        skip_bad=skip_bad,
        scorer=scorer,
        judge=judge,
        own=exemplars_file,
        setting=Setting(mode="guided", tokens=tokens, max_tokens=max_tokens),
        pool=pool,
        select=select,
        check=check,
        limits=SearchLimits(
            calls=calls, max_exemplars=most, max_tokens=max_answer_tokens, pool_answer_tokens=max_tokens
        ),
        seed=seed,
        pair=pair_of(config, teacher, student, concurrency, slot_tokens),
        concurrency=concurrency,
    )
    if not seek(sought):
        raise typer.Exit(NONE_HELPS)
