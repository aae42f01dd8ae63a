"""Files of a report: Markdown with figures, HTML in one file, and JSON."""

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
from gateway.evaluation.reporting.beside import CAVEAT, PublishedComparison, compare_with_paper
from gateway.evaluation.reporting.excerpts import flips
from gateway.evaluation.reporting.figure_parts import Figure, OmittedFigure
from gateway.evaluation.reporting.figures import figures
from gateway.evaluation.reporting.plain_report import as_plain
from gateway.evaluation.statistics import MIN_QUESTIONS
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
    """A run on a page: `facts` describe the run, `paper` compares it with the paper if possible."""

    anchor: str
    title: str
    facts: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    headline: tuple[str, ...]
    tables: tuple[ReportTable, ...]
    figures: tuple[Figure, ...]
    omitted: tuple[OmittedFigure, ...]
    flips: tuple[Flips, ...]
    paper: PublishedComparison | None


def write_report(sections: Sequence[ReportSection], out: Path, seed: int) -> list[Path]:
    """Write all files of a report and return their paths, the HTML first. Raises StartupError if writing fails."""
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
    html.filters["svg"] = Markup  # generated here, with all texts escaped
    html.globals |= {"light": drawing.colors("light"), "dark": drawing.colors("dark")}
    marked = _pages(autoescape=False)
    marked.filters["md"] = markdown
    files = {
        "report.html": html.get_template("report.html").render(common),
        "report.md": marked.get_template("report.md").render(common),
        "report.json": orjson.dumps(as_plain(sections, seed), option=orjson.OPT_INDENT_2).decode() + "\n",
    }
    for chapter in chapters:
        files |= {f"{FIGURES}/{one.name}.svg": drawing.standalone(one.svg, one.alt) for one in chapter.figures}
    try:
        (out / FIGURES).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, "utf-8")
    except OSError as error:
        raise StartupError(f"{out} cannot be written: {error.strerror}. Name another folder with --out.") from error
    return [out / name for name in files]


def markdown(text: str) -> str:
    """Escape text for Markdown and HTML, in one line."""
    one_line = _BLANKS.sub(" ", text).strip()
    return _MARKDOWN.sub(r"\\\1", one_line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _pages(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("gateway.evaluation.reporting"),
        autoescape=autoescape,  # noqa: S701  the filter `md` escapes Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = w.unbroken
    return environment


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
        omitted=tuple(one for one in drawn if isinstance(one, OmittedFigure)),
        flips=tuple(flips(section)),
        paper=compare_with_paper(section),
    )


def _facts(section: ReportSection) -> Iterator[tuple[str, str]]:
    manifest = section.run.manifest
    yield "Folder", section.run.path.name
    yield "Data", f"{manifest.data}, {manifest.questions:,} questions (SHA-256 {manifest.data_sha256[:12]}\u2026)"
    yield "Teacher", manifest.teacher
    yield "Student", manifest.student
    for role, (read, wrote) in manifest.prices.items():
        yield f"Price of the {role}", f"{w.usd(read)} USD per 1M input tokens, {w.usd(wrote)} per 1M output tokens"
    path = "live, through a whole gateway" if manifest.live else "in two stages: first the guidance, then the answers"
    yield "Path", path
    yield "Settings", f"{len(section.rows):,} of {len(manifest.settings):,} with answers"
    for group in section.groups:
        yield "Requests", f"{group.title}: {len(group.rows):,} settings"
    yield "Seed of the run", str(manifest.seed)
    started = datetime.fromtimestamp(manifest.created, UTC)
    yield "Started", f"{started:%Y-%m-%d %H:%M} UTC, gkt-gateway {manifest.version}"


def _headline(section: ReportSection) -> Iterator[str]:
    for group in section.groups:
        alone = [
            f"{row.short_label} {w.percent(group.on_common(row).accuracy)}"
            for row in group.rows
            if row.summary.mode != "guided"
        ]
        title = f"{group.title[0].upper()}{group.title[1:]}"
        yield " ".join([f"{title}: {', '.join(alone) or 'only guided settings'}.", *_best(group)])


def _best(group: ReportGroup) -> Iterator[str]:
    row = group.best_row
    if group.alone("teacher") is None:
        yield "The run lacks the teacher alone, so the savings of guidance are unknown."
    elif not group.guided:
        yield "The run has no guided setting."
    elif not any(row.summary.mode == "guided" for row in group.comparable):
        yield "No guided setting has answered enough questions for a comparison."
    elif row is None or group.best is None:
        yield "No guided setting is both cheaper than the teacher and better than the student: none pays" + (
            "." if group.questions >= MIN_QUESTIONS else ", but the questions are few."
        )
    else:
        accuracy = group.on_common(row).accuracy
        yield f"Best guided: {row.short_label} with {w.percent(accuracy)}, {group.best.why}."
        if row.kept is not None and row.measured is not None:
            yield (
                f"It keeps {w.part(row.kept)} of the teacher's accuracy at {w.percent(row.measured.cost_share)} of its "
                f"whole cost and {w.percent(row.measured.token_share)} of its output tokens."
            )
        if group.best.mixture is not None:
            pays = "less" if group.best.beats_mixture(accuracy) else "no less"
            yield (
                f"Without guidance the same cost yields {w.percent(group.best.mixture)}, with some questions to the "
                f"teacher alone and the rest to the student alone: {pays} than with it."
            )
