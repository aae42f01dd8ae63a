"""A table as every form of a report has it, and the tables that a run makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.evaluation.reporting import wording as w

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.evaluation.reporting.comparison import SettingComparison
    from gateway.evaluation.reporting.report import ReportRow, ReportSection


_NO_TEACHER = "no teacher to compare with"


@dataclass(frozen=True, slots=True)
class ReportTable:
    """Cells are text as it is; whoever shows them escapes. The first of a row names it.

    note: how to read it; empty where it needs none.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def accuracy(rows: Sequence[ReportRow]) -> ReportTable:
    """How often each was right, and how near that is to the teacher."""
    return ReportTable(
        "Accuracy",
        ("setting", "n", "right", "accuracy", "95 %", "guidance alone", "kept of the teacher's", "gap closed"),
        tuple(
            (
                row.label,
                f"{row.summary.n:,}",
                f"{row.summary.correct:,}",
                w.percent(row.summary.accuracy),
                w.percents(row.summary.interval),
                w.percent(_opening(row)),
                w.part(row.kept),
                w.part(row.gap),
            )
            for row in rows
        ),
        "95 %: Wilson's interval. Guidance alone: how often the teacher's kept words were right by themselves (the "
        "paper's ACC_teacher). Gap closed: (guided - student) / (teacher - student), only where the teacher is surely "
        "better. In brackets: paired bootstrap, 95 %; none where no question tells the two apart.",
    )


def comparisons(rows: Sequence[ReportRow]) -> ReportTable:
    """Each against the student and the teacher alone."""
    found = [
        (row.label, against, *_compared(comparison, holm))
        for row in rows
        for against, comparison, holm in (
            ("student", row.student, row.student_p),
            ("teacher", row.teacher, row.teacher_p),
        )
        if comparison is not None
    ]
    return ReportTable(
        "Against the student and the teacher alone",
        (
            "setting",
            "against",
            "pairs",
            "difference",
            "95 %",
            "only this right",
            "only that right",
            "p",
            "p (Holm)",
        ),
        tuple(found),
        "On the same questions, in percentage points. Only the questions that one of the two alone got right tell them "
        "apart: p is McNemar's, exact and two-sided. p (Holm) is adjusted for all guided settings of the run that are "
        "held against a student, or against a teacher. 95 %: Agresti and Min's interval for pairs.",
    )


def tokens(rows: Sequence[ReportRow]) -> ReportTable:
    """What was read and written for one answer."""
    return ReportTable(
        "Tokens",
        (
            "setting",
            "teacher read + wrote",
            "of it kept",
            "student read + wrote",
            "of the teacher alone's output",
            "of all output",
        ),
        tuple(
            (
                row.label,
                _tokens(row, "teacher"),
                w.mean(row.summary.kept_tokens, row.summary.n) if row.summary.mode == "guided" else w.NONE,
                _tokens(row, "student"),
                w.percent(None if row.measured is None else row.measured.token_share),
                w.percent(row.summary.teacher_token_share),
            )
            for row in rows
        ),
        "Mean of one answer, as the engines counted. Of the teacher alone's output: the tokens the teacher wrote as a "
        "part of those it writes when it answers alone, which is what the paper calls cost (52 %). Of all output: as a "
        "part of what both wrote. Neither is the cost: that is in the next table.",
    )


def lengths(rows: Sequence[ReportRow]) -> ReportTable:
    """What m was chosen, by what, where a rule chooses it for each question."""
    return ReportTable(
        "Chosen lengths",
        ("setting", "chosen by", "m", "questions"),
        tuple(
            (row.label, by, str(m) if m else "none", f"{count:,}")
            for row in rows
            for (by, m), count in sorted(row.summary.lengths.items())
        ),
        "Of m=auto. None: the question was answered without guidance; why, stands under What happened.",
    )


def money(rows: Sequence[ReportRow]) -> ReportTable:
    """What one answer cost, and what the teacher alone would have cost."""
    return ReportTable(
        "Cost in USD per 1,000 answers",
        (
            "setting",
            "cost",
            "of it teacher",
            "teacher alone, measured",
            "saved",
            "cost share",
            "teacher alone, on this answer",
            "saved on that",
            "cost share of that",
        ),
        tuple(_money(row) for row in rows),
        "Prompts and answers of both models. Measured: what the teacher alone cost on the same questions with its own "
        "answers. On this answer: what it would have cost to write the answer that was given, as receipts have it. "
        "The cost share is the whole cost as a part of either.",
    )


def waits(rows: Sequence[ReportRow]) -> ReportTable | None:
    """How long one answer took; None where nothing is known of it."""
    if all(row.times.teacher_wait_s is row.times.student_wait_s is row.times.total_s is None for row in rows):
        return None
    return ReportTable(
        "Seconds per answer",
        (
            "setting",
            "waited for teacher",
            "waited for student",
            "teacher stage",
            "student stage",
            "both stages",
            "whole answer, live",
            "speed-up",
        ),
        tuple(
            (
                row.label,
                _at(row.times.teacher_wait_s, row.times.teacher_at),
                _at(row.times.student_wait_s, row.times.student_at),
                w.seconds(row.times.teacher_s),
                w.seconds(row.times.student_s),
                w.seconds(row.times.kept_s),
                w.seconds(row.times.total_s),
                w.times(None if row.measured is None else row.measured.speed_up),
            )
            for row in rows
        ),
        "Waited: until its text was there, with so many asked at once. A stage is that wait divided by how many waited "
        "at once: the time for which one answer kept the engine. Speed-up: the teacher alone's time over this one's, "
        "of whole answers in a live run, else of both stages.",
    )


def stages(section: ReportSection) -> ReportTable | None:
    """What was measured of the stages; None where nothing was."""
    if not section.stages:
        return None
    return ReportTable(
        "Stages as they ran",
        ("setting", "stage", "asked at once", "sittings", "calls", "wall seconds", "seconds per call"),
        tuple(
            (
                section.labels.get(one.setting, one.setting),
                one.stage,
                f"{one.concurrency:,}" if one.concurrency else w.NONE,
                f"{one.sittings:,}",
                f"{one.calls:,}",
                w.seconds(one.seconds),
                w.seconds(one.seconds_per_call),
            )
            for one in section.stages
        ),
        "Calls are those that were made: a text that was there was not asked for again, and guidance of one length is "
        "cut from that of a longer one.",
    )


def events(rows: Sequence[ReportRow]) -> ReportTable:
    """What happened that is not an answer as meant."""
    return ReportTable(
        "What happened",
        ("setting", "answered", "unguided", "errors", "cut for length"),
        tuple(
            (
                row.label,
                w.counted(row.summary.modes),
                w.counted(row.summary.unguided) if row.summary.mode == "guided" else w.NONE,
                w.counted(row.summary.errors),
                f"{row.summary.cut:,}",
            )
            for row in rows
        ),
        "By the words of receipts. An error counts as a wrong answer. Cut for length: answers that ended at their "
        "limit of tokens.",
    )


def overview(sections: Sequence[ReportSection]) -> ReportTable:
    """One row for each run and way to ask, with its best guided setting."""
    found = []
    for section in sections:
        for group in section.groups:
            teacher, student, row = group.one("teacher"), group.one("student"), group.best_row
            found.append(
                (
                    f"{section.run.manifest.data} ({section.run.path.name}): {group.title}",
                    w.percent(None if student is None else group.on_common(student).accuracy),
                    w.percent(None if teacher is None else group.on_common(teacher).accuracy),
                    (_NO_TEACHER if teacher is None else "none pays") if row is None else row.who,
                    w.percent(None if row is None else group.on_common(row).accuracy),
                    w.part(None if row is None else row.kept),
                    w.part(None if row is None else row.gap),
                    w.percent(None if row is None or row.measured is None else row.measured.token_share),
                    w.percent(None if row is None or row.measured is None else row.measured.cost_share),
                )
            )
    return ReportTable(
        "All runs",
        (
            "run",
            "student",
            "teacher",
            "best guided setting",
            "its accuracy",
            "kept",
            "gap closed",
            "of the teacher's output",
            "cost share",
        ),
        tuple(found),
        "Best: the cheapest guided setting that keeps 95 % of the teacher's accuracy, else the most accurate that is "
        "cheaper than the teacher and better than the student. It is chosen on the questions that it is shown with.",
    )


def _compared(found: SettingComparison, holm: float | None) -> tuple[str, ...]:
    return (
        f"{found.n:,}",
        w.points(found.difference),
        w.point_range(found.interval),
        f"{found.test.only_first:,}",
        f"{found.test.only_second:,}",
        w.p(found.test.p),
        w.p(holm),
    )


def _opening(row: ReportRow) -> float | None:
    return None if row.summary.opening_correct is None else row.summary.opening_correct / row.summary.n


def _tokens(row: ReportRow, role: str) -> str:
    read, wrote = (getattr(row.summary, f"{role}_{way}_tokens") for way in ("input", "output"))
    return f"{w.mean(read, row.summary.n)} + {w.mean(wrote, row.summary.n)}" if read or wrote else w.NONE


def _money(row: ReportRow) -> tuple[str, ...]:
    own, beside = row.summary, row.measured
    measured = (w.NONE, w.NONE, w.NONE)
    if beside is not None:
        measured = (
            w.per_thousand(beside.teacher_usd / beside.n),
            w.per_thousand(beside.savings_usd / beside.n),
            w.percent(beside.cost_share),
        )
    return (
        row.label,
        w.per_thousand(own.cost_per_answer),
        w.per_thousand(own.teacher_usd / own.n),
        *measured,
        w.per_thousand(own.baseline_usd / own.n),
        w.per_thousand((own.baseline_usd - own.cost_usd) / own.n),
        w.percent(float(own.cost_usd / own.baseline_usd) if own.baseline_usd else None),
    )


def _at(waited_s: float | None, at: int | None) -> str:
    return w.seconds(waited_s) + (f" (at {at})" if waited_s is not None and at else "")
