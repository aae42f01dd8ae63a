"""Files of a report: Markdown with figures, HTML in one file, and JSON."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gateway.errors import StartupError
from gateway.evaluation.reporting import drawing
from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.comparison import ShareInterval, hull, pareto
from gateway.evaluation.reporting.drawing import Figure, OmittedFigure
from gateway.evaluation.reporting.figures import figures
from gateway.evaluation.reporting.published import CAVEAT, compare_with_paper
from gateway.evaluation.reporting.report import stage_times
from gateway.evaluation.reporting.tables import flips, overview, section_tables
from gateway.evaluation.setting import SAMPLING
from gateway.evaluation.statistics import MIN_QUESTIONS
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gateway.evaluation.reporting.comparison import SettingComparison
    from gateway.evaluation.reporting.report import ReportGroup, ReportRow, ReportSection

FIGURES = "figures"
_BLANKS = re.compile(r"[^\S\u00a0]+")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$!])")


def write_report(sections: Sequence[ReportSection], out: Path, seed: int) -> list[Path]:
    """Write all files of a report and return their paths, the HTML first. Raises StartupError if writing fails."""
    chapters = [_chapter(section, number) for number, section in enumerate(sections, 1)]
    several = len(sections) > 1
    common = {
        "title": "Does guidance pay?" if several else f"Does guidance pay? {chapters[0]['title']}",
        "chapters": chapters,
        "overview": overview(sections) if several else None,
        "caveat": CAVEAT,
        "seed": seed,
        "version": __version__,
        "folder": FIGURES,
    }
    plain = {"seed": seed, "runs": [_section(section) for section in sections]}
    html = _pages(autoescape=True)
    html.filters["svg"] = Markup  # generated here, with all texts escaped
    html.globals |= {"light": drawing.colors("light"), "dark": drawing.colors("dark")}
    marked = _pages(autoescape=False)
    marked.filters["md"] = markdown
    files = {
        "report.html": html.get_template("report.html").render(common),
        "report.md": marked.get_template("report.md").render(common),
        "report.json": orjson.dumps(plain, option=orjson.OPT_INDENT_2).decode() + "\n",
    }
    for chapter in chapters:
        files |= {f"{FIGURES}/{one.name}.svg": drawing.standalone(one.svg, one.alt) for one in chapter["figures"]}
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


def _chapter(section: ReportSection, number: int) -> dict[str, Any]:
    manifest = section.run.manifest
    drawn = list(figures(section, f"run{number}"))
    return {
        "anchor": f"run{number}",
        "title": f"{manifest.data}: {manifest.teacher} over {manifest.student}",
        "facts": list(_facts(section)),
        "remarks": section.run.remarks,
        "headline": list(_preferences(section) if section.is_preference else _headline(section)),
        "tables": section_tables(section),
        "figures": [one for one in drawn if isinstance(one, Figure)],
        "omitted": [one for one in drawn if isinstance(one, OmittedFigure)],
        "flips": list(flips(section)),
        "paper": None if section.is_preference else compare_with_paper(section),
    }


def _facts(section: ReportSection) -> Iterator[tuple[str, str]]:
    manifest = section.run.manifest
    yield "Folder", section.run.path.name
    yield "Data", f"{manifest.data}, {manifest.questions:,} questions (SHA-256 {manifest.data_sha256[:12]}\u2026)"
    yield "Teacher", manifest.teacher
    yield "Student", manifest.student
    for role, (read, wrote) in manifest.prices.items():
        yield f"Price of the {role}", f"{w.usd(read)} USD per 1M input tokens, {w.usd(wrote)} per 1M output tokens"
    stages = "in two stages: first the guidance, then the answers"
    yield "Path", "live, through a whole gateway" if manifest.live else stages
    yield "Settings", f"{len(section.rows):,} of {len(manifest.settings):,} with answers"
    for group in section.groups:
        yield "Requests", f"{group.title}: {len(group.rows):,} settings"
    yield "Seed of the run", str(manifest.seed)
    started = datetime.fromtimestamp(manifest.created, UTC)
    yield "Started", f"{started:%Y-%m-%d %H:%M} UTC, gkt-gateway {manifest.version}"


def _headline(section: ReportSection) -> Iterator[str]:
    for group in section.groups:
        alone = [
            f"{row.short_label} {w.percent(group.on_common(row).accuracy)}" for row in group.rows if not row.guided
        ]
        title = f"{group.title[0].upper()}{group.title[1:]}"
        text = " ".join([f"{title}: {', '.join(alone) or 'only guided settings'}.", *_best(group)])
        yield " ".join([text, *_better_teacher(group, section)])


def _better_teacher(group: ReportGroup, section: ReportSection) -> Iterator[str]:
    """Yield a sentence if the teacher alone is more accurate with other requests than with those of the group."""
    own = group.alone("teacher")
    if own is None or not group.guided:
        return
    teachers = [(one, row) for one in section.groups if (row := one.alone("teacher")) is not None]
    comparable = [(one, row) for one, row in teachers if _sampling(row) == _sampling(own)]
    best, row = max(comparable, key=lambda one: one[0].on_common(one[1]).accuracy)
    accuracy = best.on_common(row).accuracy
    if accuracy > group.on_common(own).accuracy:
        yield (
            f"The teacher alone is more accurate with other requests ({best.title}): {w.percent(accuracy)}. "
            "`eval recommend` compares with it, too."
        )


def _sampling(row: ReportRow) -> list[Any]:
    return [row.summary.setting.get(name) for name in SAMPLING]


def _preferences(section: ReportSection) -> Iterator[str]:
    for row in section.rows:
        if row.summary.mode != "teacher":
            found = row.summary.preference
            share = w.part(None if found.share is None else ShareInterval(found.share, found.interval))
            yield (
                f"{row.label}: preferred to the teacher's answer in {share} of {found.n:,} comparisons, at "
                f"{w.percent(row.cost_share)} of its cost. 50\u00a0% is as good as the teacher."
            )


def _best(group: ReportGroup) -> Iterator[str]:
    row = group.best_row
    if group.alone("teacher") is None:
        yield "The run lacks the teacher alone, so the savings of guidance are unknown."
    elif not group.guided:
        yield "The run has no guided setting."
    elif not any(row.guided for row in group.comparable):
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
                f"It keeps {w.part(row.kept)} of the teacher's accuracy at {w.percent(row.cost_share)} of its whole "
                f"cost and {w.percent(row.token_share)} of its output tokens."
            )
        if group.best.mixture is not None:
            pays = "less" if accuracy > group.best.mixture else "no less"
            yield (
                f"Without guidance the same cost yields {w.percent(group.best.mixture)}, with some questions to the "
                f"teacher alone and the rest to the student alone: {pays} than with it."
            )


def _section(section: ReportSection) -> dict[str, Any]:
    """Return a run for the JSON file, with unrounded numbers and money as exact text."""
    manifest = msgspec.to_builtins(section.run.manifest)
    manifest.pop("settings")
    preference = section.is_preference
    prices = section.run.manifest.prices
    manifest["prices"] = {role: [w.plain(one) for one in usd] for role, usd in prices.items()}
    return {
        "folder": section.run.path.name,
        "manifest": manifest,
        "remarks": list(section.run.remarks),
        "groups": [
            {
                "asked": group.title,
                "common_questions": group.questions,
                "settings": [_preference_row(row) if preference else _row(row) for row in group.rows],
                "pareto": [] if preference else [one.name for one in pareto(group.common.values())],
                "hull": [] if preference else [one.name for one in hull(group.common.values())],
                "best": None if group.best is None or preference else group.best._asdict(),
            }
            for group in section.groups
        ],
        "stages": [
            # `sittings` is the number of sessions; the key is that of earlier versions.
            {"sittings" if name == "sessions" else name: value for name, value in one._asdict().items()}
            | {"seconds_per_call": one.seconds_per_call}
            for one in stage_times(section.run.stages)
        ],
        "flips": [msgspec.to_builtins(one) for one in flips(section)],
    }


_OF_ACCURACY = ("correct", "accuracy", "accuracy_interval", "score", "opening_accuracy", "against_student",
                "against_teacher", "kept", "gap_closed")  # fmt: skip


def _preference_row(row: ReportRow) -> dict[str, Any]:
    """Return the fields of `_row` with the preferences in place of the accuracies."""
    plain = {name: value for name, value in _row(row).items() if name not in _OF_ACCURACY}
    found = None if row.summary.mode == "teacher" else row.summary.preference
    return plain | {"preference": found and found._asdict() | {"interval": list(found.interval)}}


def _row(row: ReportRow) -> dict[str, Any]:
    own, measured, times = row.summary, row.measured, row.times
    return {
        "setting": dict(own.setting),
        "label": row.label,
        "n": own.n,
        "correct": own.correct,
        "accuracy": own.accuracy,
        "accuracy_interval": list(own.interval),
        "score": own.score,
        "opening_accuracy": own.guidance_accuracy,
        "guidance_logprob": own.guidance_logprob,
        "against_student": _comparison(row.student, row.student_p),
        "against_teacher": _comparison(row.teacher, row.teacher_p),
        "kept": msgspec.to_builtins(row.kept),
        "gap_closed": msgspec.to_builtins(row.gap),
        "tokens": {
            "teacher": {"input": own.teacher_input_tokens, "output": own.teacher_output_tokens},
            "student": {"input": own.student_input_tokens, "output": own.student_output_tokens},
            "kept": own.kept_tokens,
        },
        "prompt_cache_hits": dict(row.cache_hits),
        "teacher_token_share": {"of_teacher_alone": row.token_share, "of_all_output": own.teacher_token_share},
        "cost_usd": w.plain(own.cost_usd),
        "teacher_usd": w.plain(own.teacher_usd),
        "measured": None
        if measured is None
        else {
            "n": measured.n,
            "cost_usd": w.plain(measured.cost_usd),
            "baseline_usd": w.plain(measured.teacher_usd),
            "savings_usd": w.plain(measured.savings_usd),
            "cost_share": measured.cost_share,
        },
        "on_this_answer": {
            "baseline_usd": w.plain(own.baseline_usd),
            "savings_usd": w.plain(own.savings_usd),
            "cost_share": own.cost_share,
        },
        "seconds": {
            "teacher_wait": times.teacher_wait_s,
            "student_wait": times.student_wait_s,
            "teacher_at": times.teacher_concurrency,
            "student_at": times.student_concurrency,
            "teacher_stage": times.teacher_s,
            "student_stage": times.student_s,
            "both_stages": times.busy_s,
            "whole_answer": times.total_s,
            "speed_up": row.speed_up,
        },
        "modes": dict(own.modes),
        "unguided": dict(own.unguided),
        "errors": dict(own.errors),
        "cut_for_length": own.cut,
    }


def _comparison(found: SettingComparison | None, holm: float | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "reference": found.reference,
        "pairs": found.n,
        "difference": found.difference,
        "interval": msgspec.to_builtins(found.interval),
        "only_this_right": len(found.won),
        "only_that_right": len(found.lost),
        "p": found.p,
        "p_holm": holm,
        "won": list(found.won),
        "lost": list(found.lost),
    }
