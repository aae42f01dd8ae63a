"""`gkt-gateway eval prices`: report whether guidance pays at the list prices of several models."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.cli import eval_options
from gateway.cli.eval_options import confidence_level, of_the_extra
from gateway.cli.tables import JsonOption, console_for, in_json, plain_table
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.evaluation.advice.price_sheets import PricedSetting, SheetResult
    from gateway.evaluation.record import Manifest
    from gateway.evaluation.summary import SettingSummary


def prices(
    folder: Annotated[Path, typer.Argument(help="Folder of `eval run`.", metavar="FOLDER")],
    sheets: Annotated[
        Path | None,
        typer.Option(help="YAML file of price sheets.", metavar="FILE", show_default="those of this package"),
    ] = None,
    request_form: Annotated[
        str | None,
        typer.Option("--asked", help="Form of requests that callers use, if the run has several.", metavar="'chat'"),
    ] = None,
    cache_hits: Annotated[
        str | None,
        typer.Option(
            help="Part of the exemplars' tokens that the teacher reads from its prompt cache. 0%: there is no cache. "
            "measured: what the engines of the run reported.",
            metavar="95%",
            show_default="that of the sheets",
        ),
    ] = None,
    cache_ttl: Annotated[
        Literal["5m", "1h"], typer.Option(help="Time to live of cache writes, where a sheet has a price for each.")
    ] = "5m",
    confidence: Annotated[
        str, typer.Option(help="Simultaneous confidence of the claims for all settings.", metavar="80%")
    ] = "80%",
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    every: Annotated[bool, typer.Option("--all", help="Show all guided settings, not only the best one.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Report whether guidance pays at the list prices of several teachers.

    `gkt-gateway eval prices runs/mine`

    The accuracies and tokens are those of the run's models. Each sheet has the prices of another teacher and student.
    Guidance pays if it is more accurate than a random mixture of teacher and student at the same cost. It must beat
    each configuration of the teacher alone that the run has: with and without exemplars, and with each limit.

    The break-even is the smallest ratio of the teacher's output price to the student's at which guidance pays as
    measured. See `gkt-gateway docs evaluation#list-prices`.
    """
    with of_the_extra():
        from gateway.evaluation.advice.price_sheets import at_list_prices, read_price_sheets
        from gateway.evaluation.record import read_run

    run, known = read_run(folder), read_price_sheets(sheets)
    hits = known.cache_hits if cache_hits is None else eval_options.cache_hits(cache_hits)
    results = list(at_list_prices(run, known, request_form, hits, confidence_level(confidence), seed, cache_ttl))
    if not results[0].settings:
        raise StartupError(f"{folder} has no guided setting: add some to the grid of `gkt-gateway eval run`")
    if as_json:
        facts = {
            "date": known.date.isoformat(),
            "cache_hits": "measured" if hits is None else hits,
            "cache_ttl": cache_ttl,
        }
        typer.echo(in_json({**facts, "sheets": [_plain(one) for one in results]}))
        return
    console = console_for(pipe_width=200)
    for line in _facts(run.manifest, results[0]):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    titles = (
        "prices",
        "ratio",
        "guided setting",
        "right",
        "USD/1000",
        "against",
        "of its cost",
        "over mixture, points",
    )
    table = plain_table(*titles, "pays", "break-even", right=slice(3, None))
    table.columns[titles.index("against")].justify = "left"
    for one in results:
        for priced in one.settings if every else one.settings[:1]:
            table.add_row(*_cells(one, priced))
    console.print(table)
    last = f"Prices of {known.date}. Claims have {confidence} confidence."
    console.print(last, soft_wrap=True, markup=False, highlight=False)


def _facts(manifest: Manifest, result: SheetResult) -> Iterator[str]:
    from gateway.evaluation.advice.explanation import incomplete
    from gateway.evaluation.summary import COST_NOTE

    evidence = result.evidence
    yield f"{', '.join(evidence.sources)}: {len(evidence.questions)} questions, {evidence.request_form}"
    for index in (*evidence.teachers, evidence.student):
        one = evidence.candidates[index]
        model = manifest.student if index == evidence.student else manifest.teacher
        tokens = one.teacher_output_tokens + one.student_output_tokens
        yield f"{_name(one)} ({model}): {one.accuracy:.1%} right, {tokens / one.n:.0f} output tokens, {incomplete(one)}"
    yield COST_NOTE
    yield from evidence.notes


def _name(one: SettingSummary) -> str:
    return one.name.replace(", prefix", "")


def _cells(one: SheetResult, priced: PricedSetting) -> Iterator[str]:
    setting, teacher = one.evidence.candidates[priced.setting], one.evidence.candidates[priced.pays.teacher]
    claim = priced.pays.claim
    yield one.teacher.model
    yield f"{one.price_ratio:.0f}"
    yield _name(setting)
    yield f"{setting.accuracy:.1%}"
    yield f"{setting.cost_per_answer * 1000:.3f}"
    yield _name(teacher)
    yield f"{setting.cost_usd / teacher.cost_usd:.0%}" if teacher.cost_usd else ""
    yield f"{claim.point * 100:+.1f} (at least {claim.bound * 100:+.1f})"
    yield priced.pays.answer
    yield "never" if priced.break_even is None else f"{priced.break_even:.1f}"


def _plain(one: SheetResult) -> dict[str, Any]:
    candidates = one.evidence.candidates
    settings = [
        {
            "setting": setting.name,
            "accuracy": setting.accuracy,
            "interval": setting.interval,
            "cost_usd": setting.cost_per_answer,
            "truncated": setting.cut,
            "failed": sum(setting.errors.values()),
        }
        for setting in candidates
    ]
    guided = [
        {
            "setting": candidates[priced.setting].name,
            "against": candidates[priced.pays.teacher].name,
            "pays": priced.pays.claim._asdict(),
            "answer": priced.pays.answer,
            "break_even": priced.break_even,
        }
        for priced in one.settings
    ]
    models = {"teacher": one.teacher.model_dump(mode="json"), "student": one.student.model_dump(mode="json")}
    return {**models, "price_ratio": one.price_ratio, "settings": settings, "guided": guided}
