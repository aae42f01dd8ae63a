"""Comparison of measured figures with the paper's, for its two data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.evaluation.reporting import published
from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.tables import ReportTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.evaluation.reporting.report import ReportGroup, ReportRow, ReportSection

CAVEAT = (
    "Models, scale, prices and machines differ, so the figures need not agree: the paper's pairs have 3B to 70B and "
    "sample at temperature 0.8. Comparable are the direction and the size of the effect of guidance on the student."
)


@dataclass(frozen=True, slots=True)
class PublishedComparison:
    """Measured and published pairs, the paper's claims with measured values, and notes on errors in the paper."""

    pairs: ReportTable
    claims: ReportTable
    notes: tuple[str, ...]


def compare_with_paper(section: ReportSection) -> PublishedComparison | None:
    """Return the comparison; None if the paper does not use the data set."""
    data = published.data_set(section.run.manifest.data)
    if data is None:
        return None
    guided = [row.summary.setting for row in section.rows if row.summary.mode == "guided"]
    lengths = {setting["tokens"] for setting in guided if setting["tokens"] != "auto"}
    measured = [cells for group in section.groups for row in group.guided for cells in [_measured(section, group, row)]]
    pairs = ReportTable(
        "Pairs",
        (
            "pair",
            "m",
            "projection",
            "limit",
            "student",
            "teacher",
            "guidance alone",
            "guided",
            "above the student",
            "speed-up",
        ),
        (*measured, *(_published(data, one) for one in published.pairs(data, lengths))),
        f"Accuracy in percent, for {published.QUESTIONS[data]:,} questions in the paper and with "
        f"{published.EXEMPLARS[data]} exemplars in the prompt. Rows of the paper: those with a measured length of "
        "guidance, or all if there is none.",
    )
    notes = (*published.NOTES[data], published.NOTE_ON_TIMES)
    return PublishedComparison(
        pairs, ReportTable("Claims", ("claim", "paper", "measured"), tuple(_claims(section))), notes
    )


def _measured(section: ReportSection, group: ReportGroup, row: ReportRow) -> tuple[str, ...]:
    manifest, setting = section.run.manifest, row.summary.setting
    student, teacher = group.alone("student"), group.alone("teacher")
    guidance = row.summary.guidance_correct
    suffix = f" ({group.title})" if len(section.groups) > 1 else ""
    return (
        f"measured: {manifest.teacher} over {manifest.student}{suffix}",
        str(setting["tokens"]),
        setting["projection"],
        str(setting["max_tokens"]),
        w.percent(None if student is None else student.summary.accuracy),
        w.percent(None if teacher is None else teacher.summary.accuracy),
        w.percent(None if guidance is None else guidance / row.summary.n),
        w.percent(row.summary.accuracy),
        w.points(None if row.student is None else row.student.difference),
        w.times(None if row.measured is None else row.measured.speed_up),
    )


def _published(data: str, pair: published.PublishedPair) -> tuple[str, ...]:
    return (
        f"paper, Table {pair.table}: {pair.teacher} over {pair.student}",
        str(pair.m),
        pair.projection,
        str(pair.limit),
        _percent(published.alone(data, pair.student, pair.limit)),
        _percent(published.alone(data, pair.teacher, pair.limit)),
        _percent(pair.own),
        _percent(pair.accuracy),
        f"{pair.delta:+.2f}".replace("-", "\u2212"),
        w.times(pair.speed_up),
    )


def _claims(section: ReportSection) -> Iterator[tuple[str, str, str]]:
    """Yield the claims for the best guided setting; if none pays, for the most accurate one."""
    guided = [row for group in section.groups for row in group.guided]
    best_rows = [row for group in section.groups if (row := group.best_row) is not None]
    if not guided:
        return
    row = max(best_rows or guided, key=lambda one: one.summary.accuracy)
    token_share = None if row.measured is None else row.measured.token_share
    cost_share = None if row.measured is None else row.measured.cost_share
    kept, tokens = w.percent(published.KEPT), w.percent(published.TOKEN_SHARE)
    yield "kept part of the teacher's accuracy", f"{kept} (ChatGPT over Llama2-70B)", w.part(row.kept)
    yield "part of the teacher's output tokens", f"{tokens} (called cost)", w.percent(token_share)
    yield "part of the teacher's whole cost", "not reported", w.percent(cost_share)
    claimed = {"gsm8k": ("+14.2", "10.72\u00d7"), "csqa": ("+14.0", "7.73\u00d7")}
    gain, speed = claimed[published.data_set(section.run.manifest.data) or "gsm8k"]
    difference = None if row.student is None else row.student.difference
    yield "points above the student alone", f"{gain} (Llama2-70B over Llama2-7B)", w.points(difference)
    speed_up = None if row.measured is None else row.measured.speed_up
    yield "speed-up over the teacher alone", f"{speed} (the same pair)", w.times(speed_up)
    seconds = published.TRACE_S
    teacher = next((group.alone("teacher") for group in section.groups if row in group.rows), None)
    alone = None if teacher is None else teacher.times.busy_s
    stages = ", ".join(w.seconds(one) for one in (row.times.teacher_s, row.times.student_s, row.times.busy_s))
    listed = f"{seconds['guidance']}, {seconds['completion']}, {seconds['both']}; {seconds['teacher alone']}"
    yield (
        "seconds per answer: guidance, completion, both; the teacher alone",
        f"{listed} (GSM8K, Llama2-13B over Llama2-7B)",
        f"{stages}; {w.seconds(alone)}",
    )
    yield "measured with", "", row.label


def _percent(value: float | None) -> str:
    return w.NONE if value is None else f"{value:.2f}{w.PERCENT}"
