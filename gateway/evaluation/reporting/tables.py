"""The tables of a report, as text cells for all formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.evaluation.reporting import wording as w

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.evaluation.reporting.comparison import SettingComparison
    from gateway.evaluation.reporting.report import ReportRow, ReportSection


_NO_TEACHER = "no teacher alone"


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table of unescaped text; the first cell of a row names the row.

    `note`: explanation of the columns; may be empty.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def accuracy(rows: Sequence[ReportRow]) -> ReportTable:
    """Return the accuracies, and their relation to the teacher's."""
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
                w.percent(_guidance_accuracy(row)),
                w.part(row.kept),
                w.part(row.gap),
            )
            for row in rows
        ),
        "95 %: Wilson's interval. Guidance alone: accuracy of the teacher's kept tokens alone (the paper's "
        "ACC_teacher). Gap closed: (guided - student) / (teacher - student), only if the teacher is significantly "
        "better. In parentheses: paired bootstrap, 95 %; omitted if no question distinguishes the two.",
    )


def comparisons(rows: Sequence[ReportRow]) -> ReportTable:
    """Return the comparisons with the student and the teacher alone."""
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
        "Comparison with the student and the teacher alone",
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
        "On common questions, in percentage points. p is McNemar's, exact and two-sided, from the questions that only "
        "one of the two answers correctly. p (Holm) is adjusted for all guided settings of the run that are compared "
        "with a student, or with a teacher. 95 %: Agresti and Min's interval for pairs.",
    )


def tokens(rows: Sequence[ReportRow]) -> ReportTable:
    """Return the mean input and output tokens of an answer."""
    return ReportTable(
        "Tokens",
        (
            "setting",
            "teacher input + output",
            "teacher kept",
            "student input + output",
            "part of the teacher alone's output",
            "part of all output",
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
        "Mean of one answer, as counted by the engines. Part of the teacher alone's output: the teacher's output "
        "tokens relative to the teacher alone, which the paper calls cost (52 %). Part of all output: relative to the "
        "output of both models. Neither is the cost, which the next table has.",
    )


def lengths(rows: Sequence[ReportRow]) -> ReportTable:
    """Return the lengths m that a rule chose, by rule."""
    return ReportTable(
        "Chosen lengths",
        ("setting", "chosen by", "m", "questions"),
        tuple(
            (row.label, by, str(m) if m else "none", f"{count:,}")
            for row in rows
            for (by, m), count in sorted(row.summary.lengths.items())
        ),
        "For m=auto. None: the question was answered without guidance, for a reason listed under Outcomes.",
    )


def money(rows: Sequence[ReportRow]) -> ReportTable:
    """Return the mean cost of an answer, compared with the teacher alone."""
    return ReportTable(
        "Cost in USD per 1,000 answers",
        (
            "setting",
            "cost",
            "teacher's part",
            "teacher alone, measured",
            "savings",
            "cost share",
            "teacher alone, this answer",
            "savings, this answer",
            "cost share, this answer",
        ),
        tuple(_money(row) for row in rows),
        "Prompts and answers of both models. Measured: cost of the teacher alone for the same questions with its own "
        "answers. This answer: its estimated cost for the answer given, as in receipts. The cost share is the whole "
        "cost relative to either one.",
    )


def waits(rows: Sequence[ReportRow]) -> ReportTable | None:
    """Return the seconds of an answer; None without times."""
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
                _wait(row.times.teacher_wait_s, row.times.teacher_concurrency),
                _wait(row.times.student_wait_s, row.times.student_concurrency),
                w.seconds(row.times.teacher_s),
                w.seconds(row.times.student_s),
                w.seconds(row.times.busy_s),
                w.seconds(row.times.total_s),
                w.times(None if row.measured is None else row.measured.speed_up),
            )
            for row in rows
        ),
        "Waited: time until the text of the engine was complete, with concurrent requests. Stage: that wait divided by "
        "the number of concurrent requests, which is the engine time of one answer. Speed-up: time of the teacher "
        "alone divided by that of the setting, for whole answers in a live run, else for both stages.",
    )


def stages(section: ReportSection) -> ReportTable | None:
    """Return the durations of the stages; None without records."""
    if not section.stages:
        return None
    return ReportTable(
        "Stages",
        ("setting", "stage", "concurrency", "sittings", "calls", "wall seconds", "seconds per call"),
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
        "Only new calls count: stored texts are not requested again, and guidance of one length is cut from that of a "
        "longer one.",
    )


def events(rows: Sequence[ReportRow]) -> ReportTable:
    """Return outcomes other than a regular answer."""
    return ReportTable(
        "Outcomes",
        ("setting", "answered", "unguided", "errors", "truncated"),
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
        "With the values of receipts. An error counts as a wrong answer. Truncated: answers that ended at their token "
        "limit.",
    )


def overview(sections: Sequence[ReportSection]) -> ReportTable:
    """Return one row for each run and request form, with its best guided setting."""
    found = []
    for section in sections:
        for group in section.groups:
            teacher, student, row = group.alone("teacher"), group.alone("student"), group.best_row
            found.append(
                (
                    f"{section.run.manifest.data} ({section.run.path.name}): {group.title}",
                    w.percent(None if student is None else group.on_common(student).accuracy),
                    w.percent(None if teacher is None else group.on_common(teacher).accuracy),
                    (_NO_TEACHER if teacher is None else "none pays") if row is None else row.short_label,
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
            "part of the teacher's output",
            "cost share",
        ),
        tuple(found),
        "Best: the cheapest guided setting that keeps 95 % of the teacher's accuracy, else the most accurate one that "
        "is cheaper than the teacher and better than the student. The selection uses the same questions.",
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


def _guidance_accuracy(row: ReportRow) -> float | None:
    return None if row.summary.guidance_correct is None else row.summary.guidance_correct / row.summary.n


def _tokens(row: ReportRow, role: str) -> str:
    read, written = (getattr(row.summary, f"{role}_{way}_tokens") for way in ("input", "output"))
    return f"{w.mean(read, row.summary.n)} + {w.mean(written, row.summary.n)}" if read or written else w.NONE


def _money(row: ReportRow) -> tuple[str, ...]:
    own, comparison = row.summary, row.measured
    measured = (w.NONE, w.NONE, w.NONE)
    if comparison is not None:
        measured = (
            w.per_thousand(comparison.teacher_usd / comparison.n),
            w.per_thousand(comparison.savings_usd / comparison.n),
            w.percent(comparison.cost_share),
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


def _wait(waited_s: float | None, concurrency: int | None) -> str:
    return w.seconds(waited_s) + (f" (at {concurrency})" if waited_s is not None and concurrency else "")
