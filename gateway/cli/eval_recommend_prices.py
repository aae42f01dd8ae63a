"""The part of `gkt-gateway eval recommend --sheets`: whether guidance pays at the list prices of several models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.cli.tables import console_for, plain_table
from gateway.errors import StartupError
from gateway.evaluation.advice.price_sheets import at_list_prices, read_price_sheets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date
    from decimal import Decimal
    from pathlib import Path

    from gateway.evaluation.advice.price_sheets import CacheTtl, PricedSetting, SheetResult
    from gateway.evaluation.record import RunRecords
    from gateway.evaluation.summary import SettingSummary


class PriceOptions(NamedTuple):
    """Options of the command. `sheets` is a file; None: the one of this package."""

    sheets: Path | None
    cache_hits: Decimal | None
    cache_ttl: CacheTtl
    request_form: str | None
    confidence: float
    seed: int


class ListPrices(NamedTuple):
    """The results of a run at the prices of each sheet, of which there is at least one."""

    date: date
    options: PriceOptions
    results: list[SheetResult]


def list_prices(run: RunRecords, options: PriceOptions) -> ListPrices:
    """Charge the answers of a run at list prices. Raises StartupError if the run has no guided setting."""
    known = read_price_sheets(options.sheets)
    results = list(
        at_list_prices(
            run,
            known,
            options.request_form,
            options.cache_hits,
            options.confidence,
            options.seed,
            options.cache_ttl,
        )
    )
    if not results[0].settings:
        raise StartupError(f"{run.path} has no guided setting: add some to the grid of `gkt-gateway eval run`")
    return ListPrices(known.date, options, results)


def print_list_prices(found: ListPrices) -> None:
    """Print the guided setting with the largest advantage at the prices of each sheet."""
    console = console_for(pipe_width=200)
    evidence = found.results[0].evidence
    head = f"{', '.join(evidence.sources)} at list prices of {found.date}"
    console.print(head, soft_wrap=True, markup=False, highlight=False)
    for note in evidence.notes:
        console.print(f"  {note}", soft_wrap=True, markup=False, highlight=False)
    titles = ("prices", "ratio", "guided setting", "right", "USD/1000", "against", "of its cost")
    table = plain_table(*titles, "over mixture, points", "pays", "break-even", right=slice(3, None))
    table.columns[titles.index("against")].justify = "left"
    for sheet in found.results:
        table.add_row(*_cells(sheet, sheet.settings[0]))
    console.print(table)


def _name(setting: SettingSummary) -> str:
    return setting.name.replace(", prefix", "")


def _cells(sheet: SheetResult, priced: PricedSetting) -> Iterator[str]:
    setting, teacher = sheet.evidence.candidates[priced.setting], sheet.evidence.candidates[priced.pays.teacher]
    claim = priced.pays.claim
    yield sheet.teacher.model
    yield f"{sheet.price_ratio:.0f}"
    yield _name(setting)
    yield f"{setting.accuracy:.1%}"
    yield f"{setting.cost_per_answer * 1000:.3f}"
    yield _name(teacher)
    yield f"{setting.cost_usd / teacher.cost_usd:.0%}" if teacher.cost_usd else ""
    yield f"{claim.point * 100:+.1f} (at least {claim.bound * 100:+.1f})"
    yield priced.pays.answer
    yield "never" if priced.break_even is None else f"{priced.break_even:.1f}"


def plain_list_prices(found: ListPrices) -> dict[str, Any]:
    """Return the results of a run for JSON, with every guided setting."""
    hits = found.options.cache_hits
    return {
        "sources": found.results[0].evidence.sources,
        "date": found.date.isoformat(),
        "cache_hits": "measured" if hits is None else hits,
        "cache_ttl": found.options.cache_ttl,
        "notes": found.results[0].evidence.notes,
        "sheets": [_plain(sheet) for sheet in found.results],
    }


def _plain(sheet: SheetResult) -> dict[str, Any]:
    candidates = sheet.evidence.candidates
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
        for priced in sheet.settings
    ]
    models = {"teacher": sheet.teacher.model_dump(mode="json"), "student": sheet.student.model_dump(mode="json")}
    return {**models, "price_ratio": sheet.price_ratio, "settings": settings, "guided": guided}
