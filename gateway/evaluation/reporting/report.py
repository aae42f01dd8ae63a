"""The contents of a report as data: a row for each setting, compared with the teacher and the student alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gateway.evaluation.reporting.comparison import SettingComparison, compare, gap_closed, kept_share
from gateway.evaluation.reporting.frontier import FrontierPoint, best
from gateway.evaluation.reporting.labels import answered_by, label, request_in_words
from gateway.evaluation.reporting.times import QuestionTimes, StageTime, stage_times, times
from gateway.evaluation.statistics import holm
from gateway.evaluation.summary import reference, summaries, summarize

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from decimal import Decimal

    from gateway.evaluation.record import Example
    from gateway.evaluation.reporting.comparison import ShareInterval
    from gateway.evaluation.reporting.frontier import BestSetting
    from gateway.evaluation.run_records import RunRecords
    from gateway.evaluation.setting import Mode
    from gateway.evaluation.summary import SettingSummary

    Answers = Mapping[str, Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCost:
    """Cost and tokens of a setting compared with the teacher alone, on their common questions.

    Attributes:
        n: Number of these questions.
        cost_usd, teacher_usd: Costs of the setting, and of the teacher alone with its own answers.
        token_share: Teacher output tokens as a part of those of the teacher alone (the paper's 52 %).
        speed_up: Speed-up over the teacher alone; None without times.
    """

    n: int
    cost_usd: Decimal
    teacher_usd: Decimal
    token_share: float | None
    speed_up: float | None

    @property
    def cost_share(self) -> float | None:
        return float(self.cost_usd / self.teacher_usd) if self.teacher_usd else None

    @property
    def savings_usd(self) -> Decimal:
        return self.teacher_usd - self.cost_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """The figures of one setting.

    Attributes:
        label: Label, unique in the run; `short_label` omits the request form.
        student, teacher: Comparison with either one for equal requests; `*_p` is the p-value adjusted by Holm's method.
        kept: Accuracy as a share of the teacher's.
        gap: Part of the accuracy gap between student and teacher that is closed.
    """

    summary: SettingSummary
    label: str
    short_label: str
    times: QuestionTimes
    student: SettingComparison | None = None
    teacher: SettingComparison | None = None
    student_p: float | None = None
    teacher_p: float | None = None
    kept: ShareInterval | None = None
    gap: ShareInterval | None = None
    measured: MeasuredCost | None = None


@dataclass(frozen=True, slots=True)
class ReportGroup:
    """Settings with equal requests, the teacher and the student first.

    Attributes:
        title: The request form.
        common: The comparable settings by name, on the questions that all of them answered. A setting with less than
            half of the questions of another one is excluded, since the first answers are not a fair sample: they are
            those that the teacher ended by itself.
        best: The best guided setting in `common`.
    """

    title: str
    rows: tuple[ReportRow, ...]
    common: Mapping[str, SettingSummary]
    best: BestSetting | None

    def on_common(self, row: ReportRow) -> SettingSummary:
        """Return a row's summary on the common questions, or on its own if it is not comparable."""
        return self.common.get(row.summary.name, row.summary)

    @property
    def comparable(self) -> list[ReportRow]:
        """Return the rows of `common`."""
        return [row for row in self.rows if row.summary.name in self.common]

    @property
    def questions(self) -> int:
        """Return the number of common questions."""
        return next((summary.n for summary in self.common.values()), 0)

    def alone(self, mode: Mode) -> ReportRow | None:
        """Return the teacher or the student alone."""
        return next((row for row in self.rows if row.summary.mode == mode), None)

    @property
    def guided(self) -> list[ReportRow]:
        return [row for row in self.rows if row.summary.mode == "guided"]

    @property
    def best_row(self) -> ReportRow | None:
        return next((row for row in self.rows if self.best is not None and row.summary.name == self.best.name), None)

    @property
    def points(self) -> list[FrontierPoint]:
        """Return the comparable settings by cost and accuracy."""
        return [points(summary) for summary in self.common.values()]


@dataclass(frozen=True, slots=True)
class ReportSection:
    """The figures of one run."""

    run: RunRecords
    answers: Mapping[str, Answers]
    groups: tuple[ReportGroup, ...]
    stages: tuple[StageTime, ...]
    labels: Mapping[str, str]

    @property
    def rows(self) -> list[ReportRow]:
        return [row for group in self.groups for row in group.rows]


def points(summary: SettingSummary) -> FrontierPoint:
    """Return a setting by cost and accuracy."""
    return FrontierPoint(summary.name, summary.mode, summary.cost_per_answer, summary.accuracy)


def section(run: RunRecords, seed: int) -> ReportSection:
    """Compare all settings of a run. Intervals are reproducible for a seed."""
    answers: dict[str, dict[str, Example]] = {}
    for one in run.examples:
        answers.setdefault(one.setting, {})[one.question] = one
    found = summaries(run.manifest.settings, run.examples)
    plain = [summary.setting for summary in found]
    rows = [_row(summary, found, answers, run, seed) for summary in found]
    rows = [replace(row, label=label(row.summary.setting, plain)) for row in rows]
    rows = [replace(row, short_label=answered_by(row.summary.setting, plain)) for row in rows]
    adjusted = list(_adjusted(rows))
    stages = tuple(stage_times(run.stages))
    labels = {row.summary.name: row.label for row in adjusted}
    return ReportSection(run, answers, tuple(_groups(adjusted, answers)), stages, labels)


def _row(
    summary: SettingSummary, among: Sequence[SettingSummary], answers: Mapping[str, Answers], run: RunRecords, seed: int
) -> ReportRow:
    own = answers[summary.name]
    row = ReportRow(summary=summary, label="", short_label="", times=times(summary, run.stages))
    student, teacher = (reference(summary, mode, among) for mode in ("student", "teacher"))
    if summary.mode != "student" and student is not None:
        row = replace(row, student=compare(own, answers[student.name]))
    if summary.mode != "teacher" and teacher is not None:
        by_teacher = answers[teacher.name]
        row = replace(
            row,
            teacher=compare(own, by_teacher),
            kept=kept_share(own, by_teacher, seed),
            measured=_measured(summary, own, teacher, by_teacher, run),
        )
        if summary.mode == "guided" and student is not None:
            row = replace(row, gap=gap_closed(own, answers[student.name], by_teacher, seed))
    return row


def _measured(
    summary: SettingSummary, own: Answers, teacher: SettingSummary, by_teacher: Answers, run: RunRecords
) -> MeasuredCost | None:
    shared = [question for question in own if question in by_teacher]
    if not shared:
        return None
    summary_here = summarize(summary.setting, [own[question] for question in shared])
    alone = summarize(teacher.setting, [by_teacher[question] for question in shared])
    teacher_tokens = alone.teacher_output_tokens
    return MeasuredCost(
        n=len(shared),
        cost_usd=summary_here.cost_usd,
        teacher_usd=alone.cost_usd,
        token_share=summary_here.teacher_output_tokens / teacher_tokens if teacher_tokens else None,
        speed_up=times(summary_here, run.stages).speed_up(times(alone, run.stages)),
    )


def _adjusted(rows: Sequence[ReportRow]) -> Iterator[ReportRow]:
    """Set Holm's p-values of all guided settings: one family against the student, one against the teacher."""
    against: dict[str, dict[str, float]] = {}
    for mode in ("student", "teacher"):
        tests = {
            row.summary.name: found.test.p
            for row in rows
            if row.summary.mode == "guided" and (found := row.student if mode == "student" else row.teacher)
        }
        against[mode] = dict(zip(tests, holm(list(tests.values())), strict=True))
    for row in rows:
        name = row.summary.name
        yield replace(row, student_p=against["student"].get(name), teacher_p=against["teacher"].get(name))


def _groups(rows: Sequence[ReportRow], answers: Mapping[str, Answers]) -> Iterator[ReportGroup]:
    by_request: dict[object, list[ReportRow]] = {}
    for row in rows:
        by_request.setdefault(row.summary.request_key, []).append(row)
    order = ("teacher", "student", "guided")
    for some in by_request.values():
        some.sort(key=lambda row: order.index(row.summary.mode))
        common = _common(some, answers)
        found = best([points(summary) for summary in common.values()])
        yield ReportGroup(request_in_words(some[0].summary.setting), tuple(some), common, found)


def _common(rows: Sequence[ReportRow], answers: Mapping[str, Answers]) -> dict[str, SettingSummary]:
    """Return the comparable settings by name, with at least half of the maximum of questions, on the common ones."""
    max_questions = max(row.summary.n for row in rows)
    enough = [row for row in rows if 2 * row.summary.n >= max_questions]
    shared = [
        question
        for question in enough[0].summary.questions
        if all(question in answers[row.summary.name] for row in enough)
    ]
    if not shared:
        return {}
    return {
        row.summary.name: summarize(row.summary.setting, [answers[row.summary.name][one] for one in shared])
        for row in enough
    }
