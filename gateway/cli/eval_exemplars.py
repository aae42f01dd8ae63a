"""`gkt-gateway eval exemplars`: search exemplars for projection `primed` from your own questions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli import eval_options

NONE_HELPS = 3
"""Exit status if no exemplars help."""
_search = partial(typer.Option, rich_help_panel="Search")


def exemplars(
    folder: Annotated[Path, typer.Option(help="Folder of the search. An existing search is resumed.")] = Path(
        "exemplar-search"
    ),
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("exemplars.yaml"),
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the file, and write the best exemplars even if none help.")
    ] = False,
    data: eval_options.Data = "generated",
    offset: Annotated[int, eval_options.data_option(min=0, help="Exclude this many questions, for an evaluation.")] = 0,
    evaluated: Annotated[
        Path | None, eval_options.data_option(help="Folder of `eval run` whose questions are excluded.")
    ] = None,
    skip_bad: eval_options.SkipBad = False,
    scorer: eval_options.Scorer = None,
    judge: eval_options.Judge = None,
    exemplars_file: Annotated[
        Path | None, eval_options.data_option("--exemplars", help="File with additional exemplars to compare.")
    ] = None,
    tokens: Annotated[int, _search(min=1, max=4096, help="Guidance tokens (m) to optimize for.")] = 40,
    max_tokens: Annotated[int, _search(min=1, help="Token limit of an answer, guidance included.")] = 300,
    pool: Annotated[int, _search(min=1, help="Questions that exemplars are made from.")] = 16,
    select: Annotated[int, _search(min=2, help="Questions for comparing sets of exemplars.")] = 40,
    check: Annotated[int, _search(min=0, help="Questions for validating the result.")] = 40,
    most: Annotated[int, _search(min=1, max=32, help="Most exemplars.")] = 8,
    max_answer_tokens: Annotated[int, _search(min=1, help="Most tokens of an exemplar's answer.")] = 60,
    calls: Annotated[int, _search(min=1, help="Most calls of engines.")] = 1500,
    seed: Annotated[int, _search(min=0, help="Random seed.")] = 0,
    config: eval_options.Config = None,
    teacher: eval_options.Teacher = None,
    student: eval_options.Student = None,
    concurrency: eval_options.Concurrency = 16,
    slot_tokens: eval_options.SlotTokens = 2048,
) -> None:
    """Search exemplars that improve the teacher's guidance, and write them to a file.

    With projection `primed` the teacher gets exemplars as earlier turns of the chat, and begins its answer like them.
    Exemplars are made from your questions and the teacher's correct answers, in several styles: as written, with the
    result first, last, or alone. Sets of exemplars are compared on other questions, and the best set is validated on
    further ones. Exclude the questions of an evaluation with --offset or --evaluated.

    The file is for `exemplars:` in a policy and for `gkt-gateway eval run --exemplars`. After Ctrl-C or a kill, the
    same command resumes. Exits with 3 if no exemplars help; then no file is written without --force.
    """
    with eval_options.of_the_extra():
        import gateway.evaluation.statistics  # noqa: F401  needed at the end of the search
    from gateway.cli.eval_exemplars_session import ExemplarSession, seek
    from gateway.evaluation.priming.finding import SearchLimits
    from gateway.evaluation.setting import Setting

    if tokens > max_tokens:
        raise typer.BadParameter("must not be more than --max-tokens", param_hint="--tokens")
    session = ExemplarSession(
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
        sizes={"pool": pool, "select": select, "check": check},
        limits=SearchLimits(
            calls=calls, max_exemplars=most, max_tokens=max_answer_tokens, pool_answer_tokens=max_tokens
        ),
        seed=seed,
        pair=eval_options.pair_of(config, teacher, student, concurrency, slot_tokens),
        concurrency=concurrency,
    )
    if not seek(session):
        raise typer.Exit(NONE_HELPS)
