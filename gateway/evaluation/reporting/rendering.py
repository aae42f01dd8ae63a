"""A report written: Markdown with its figures beside it, HTML in one file, and JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gateway.errors import StartupError
from gateway.evaluation.reporting import drawing, tables
from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.beside import CAVEAT, PublishedComparison, beside
from gateway.evaluation.reporting.excerpts import flips
from gateway.evaluation.reporting.figure_parts import Figure, OmittedFigure
from gateway.evaluation.reporting.figures import figures
from gateway.evaluation.reporting.plain_report import as_plain
from gateway.evaluation.statistics import LEAST_QUESTIONS
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gateway.evaluation.reporting.excerpts import Flips
    from gateway.evaluation.reporting.report import ReportGroup, ReportSection
    from gateway.evaluation.reporting.tables import ReportTable

FIGURES = "figures"
_BLANKS = re.compile(r"[^\S\u00a0]+")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$!])")


@dataclass(frozen=True, slots=True)
class ReportChapter:
    """One run, as a page shows it: `facts` are what was run, `beside` the paper's figures or why there are none."""

    anchor: str
    title: str
    facts: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    headline: tuple[str, ...]
    tables: tuple[ReportTable, ...]
    figures: tuple[Figure, ...]
    left_out: tuple[OmittedFigure, ...]
    flips: tuple[Flips, ...]
    beside: PublishedComparison | None


def write_report(sections: Sequence[ReportSection], out: Path, seed: int) -> list[Path]:
    """All files of a report; the first is the HTML. Raises StartupError where they cannot be written."""
    chapters = [_chapter(section, number) for number, section in enumerate(sections, 1)]
    overview = tables.overview(sections) if len(sections) > 1 else None
    common = {
        "title": "Does guidance pay?" if len(sections) > 1 else f"Does guidance pay? {chapters[0].title}",
        "chapters": chapters,
        "overview": overview,
        "caveat": CAVEAT,
        "seed": seed,
        "version": __version__,
        "folder": FIGURES,
    }
    html = _pages(autoescape=True)
    html.filters["svg"] = Markup  # drawn here, and every text in it escaped
    html.globals |= {"light": drawing.colours("light"), "dark": drawing.colours("dark")}
    marked = _pages(autoescape=False)
    marked.filters["md"] = markdown
    files = {
        "report.html": html.get_template("report.html").render(common),
        "report.md": marked.get_template("report.md").render(common),
        "report.json": orjson.dumps(as_plain(sections, seed), option=orjson.OPT_INDENT_2).decode() + "\n",
    }
    for chapter in chapters:
        files |= {f"{FIGURES}/{one.name}.svg": drawing.alone(one.svg, one.alt) for one in chapter.figures}
    try:
        (out / FIGURES).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, "utf-8")
    except OSError as error:
        raise StartupError(f"{out} cannot be written: {error.strerror}. Name another folder with --out.") from error
    return [out / name for name in files]


def markdown(text: str) -> str:
    """Text as it is, in one line: no mark of it is Markdown's or HTML's."""
    one_line = _BLANKS.sub(" ", text).strip()
    return _MARKDOWN.sub(r"\\\1", one_line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _pages(*, autoescape: bool) -> Environment:
    made = Environment(
        loader=PackageLoader("gateway.evaluation.reporting"),
        autoescape=autoescape,  # noqa: S701  of Markdown, the filter `md` escapes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["unbroken"] = w.unbroken
    return made


def _chapter(section: ReportSection, number: int) -> ReportChapter:
    manifest = section.run.manifest
    drawn = list(figures(section, f"run{number}"))
    rows = section.rows
    found = (
        tables.accuracy(rows),
        tables.comparisons(rows),
        tables.tokens(rows),
        tables.lengths(rows),
        tables.money(rows),
        tables.waits(rows),
        tables.stages(section),
        tables.events(rows),
    )
    return ReportChapter(
        anchor=f"run{number}",
        title=f"{manifest.data}: {manifest.teacher} over {manifest.student}",
        facts=tuple(_facts(section)),
        remarks=section.run.remarks,
        headline=tuple(_headline(section)),
        tables=tuple(table for table in found if table is not None and table.rows),
        figures=tuple(one for one in drawn if isinstance(one, Figure)),
        left_out=tuple(one for one in drawn if isinstance(one, OmittedFigure)),
        flips=tuple(flips(section)),
        beside=beside(section),
    )


def _facts(section: ReportSection) -> Iterator[tuple[str, str]]:
    manifest = section.run.manifest
    yield "Folder", section.run.path.name
    yield "Data", f"{manifest.data}, {manifest.questions:,} questions (SHA-256 {manifest.data_sha256[:12]}\u2026)"
    yield "Teacher", manifest.teacher
    yield "Student", manifest.student
    for role, (read, wrote) in manifest.prices.items():
        yield f"Price of the {role}", f"{w.usd(read)} USD per 1M tokens read, {w.usd(wrote)} written"
    way = "live, through a whole gateway" if manifest.live else "in two stages: the guidance first, then the answers"
    yield "How", way
    yield "Settings", f"{len(section.rows):,} of {len(manifest.settings):,} with answers"
    for group in section.groups:
        yield "Asked", f"{group.title}: {len(group.rows):,} settings"
    yield "Seed of the run", str(manifest.seed)
    begun = datetime.fromtimestamp(manifest.created, UTC)
    yield "Begun", f"{begun:%Y-%m-%d %H:%M} UTC, gkt-gateway {manifest.version}"


def _headline(section: ReportSection) -> Iterator[str]:
    for group in section.groups:
        alone = [
            f"{row.who} {w.percent(group.on_common(row).accuracy)}"
            for row in group.rows
            if row.summary.mode != "guided"
        ]
        where = f"{group.title[0].upper()}{group.title[1:]}"
        yield " ".join([f"{where}: {', '.join(alone) or 'only guided'}.", *_best(group)])


def _best(group: ReportGroup) -> Iterator[str]:
    row = group.best_row
    if group.one("teacher") is None:
        yield "No teacher was asked alone, so nothing can be said of what guidance saves."
    elif not group.guided:
        yield "No guided setting was asked."
    elif not any(row.summary.mode == "guided" for row in group.comparable):
        yield "No guided setting has answered enough of the questions to say more."
    elif row is None or group.best is None:
        yield "No guided setting is both cheaper than the teacher and better than the student: none pays" + (
            "." if group.questions >= LEAST_QUESTIONS else ", as far as so few questions tell."
        )
    else:
        accuracy = group.on_common(row).accuracy
        yield f"Best guided: {row.who} with {w.percent(accuracy)}, {group.best.why}."
        if row.kept is not None and row.measured is not None:
            yield (
                f"It keeps {w.part(row.kept)} of the teacher's accuracy at {w.percent(row.measured.cost_share)} of its "
                f"whole cost and {w.percent(row.measured.token_share)} of its output tokens."
            )
        if group.best.mixture is not None:
            pays = "less" if group.best.beats_mixture(accuracy) else "no less"
            yield (
                f"Without guidance the same cost buys {w.percent(group.best.mixture)}, by sending some questions to "
                f"the teacher alone and the rest to the student alone: {pays} than with it."
            )
