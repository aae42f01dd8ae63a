"""What a report says, as data: a row for each setting, beside the teacher and the student that were asked the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gateway.evaluation.reporting.comparison import SettingComparison, compared, gap_closed, kept
from gateway.evaluation.reporting.frontier import FrontierPoint, best
from gateway.evaluation.reporting.labels import answered_by, asked_in_words, label
from gateway.evaluation.reporting.times import QuestionTimes, StageTime, stage_times, times
from gateway.evaluation.statistics import holm
from gateway.evaluation.summary import reference, summaries, summarised

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
    """A setting's cost and tokens beside the teacher alone, on the questions that both answered.

    Attributes:
        cost_usd: the setting's on those questions; `teacher_usd` the teacher's, who answered them alone.
        token_share: output tokens of the teacher as part of those it writes alone (the paper's 52 %).
        speed_up: how many times as fast as the teacher alone; None where times are missing.
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
    """One setting.

    Attributes:
        label: its short name, unlike any other's of the run; `who` leaves out how the question was put.
        student, teacher: against either, where it was asked the same; `*_p` is the p adjusted after Holm.
        kept: the accuracy as a share of the teacher's; gap: the part of the way from the student to the teacher.
    """

    summary: SettingSummary
    label: str
    who: str
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
    """The settings that were asked the same, the teacher and the student first.

    Attributes:
        common: by name, those that can be held against each other in a plane: on the questions that all of them
            answered. One that has answered less than half of what another has is not among them: what is answered first
            is no fair part of the questions, but those that the teacher ended by itself.
        best: of the guided ones in `common`.
    """

    title: str
    rows: tuple[ReportRow, ...]
    common: Mapping[str, SettingSummary]
    best: BestSetting | None

    def on_common(self, row: ReportRow) -> SettingSummary:
        """Its summary on the common questions; on its own where it is none of them."""
        return self.common.get(row.summary.name, row.summary)

    @property
    def comparable(self) -> list[ReportRow]:
        """The rows of `common`."""
        return [row for row in self.rows if row.summary.name in self.common]

    @property
    def questions(self) -> int:
        """How many are common."""
        return next((summary.n for summary in self.common.values()), 0)

    def one(self, mode: Mode) -> ReportRow | None:
        """The teacher or the student alone."""
        return next((row for row in self.rows if row.summary.mode == mode), None)

    @property
    def guided(self) -> list[ReportRow]:
        return [row for row in self.rows if row.summary.mode == "guided"]

    @property
    def best_row(self) -> ReportRow | None:
        return next((row for row in self.rows if self.best is not None and row.summary.name == self.best.name), None)

    @property
    def points(self) -> list[FrontierPoint]:
        """In the plane of cost and accuracy."""
        return [points(summary) for summary in self.common.values()]


@dataclass(frozen=True, slots=True)
class ReportSection:
    """One run."""

    run: RunRecords
    answers: Mapping[str, Answers]
    groups: tuple[ReportGroup, ...]
    stages: tuple[StageTime, ...]
    labels: Mapping[str, str]

    @property
    def rows(self) -> list[ReportRow]:
        return [row for group in self.groups for row in group.rows]


def points(summary: SettingSummary) -> FrontierPoint:
    """A setting in the plane of cost and accuracy."""
    return FrontierPoint(summary.name, summary.mode, summary.cost_per_answer, summary.accuracy)


def section(run: RunRecords, seed: int) -> ReportSection:
    """Compare all settings of a run. The same seed gives the same intervals."""
    answers: dict[str, dict[str, Example]] = {}
    for one in run.examples:
        answers.setdefault(one.setting, {})[one.question] = one
    found = summaries(run.manifest.settings, run.examples)
    plain = [summary.setting for summary in found]
    rows = [_row(summary, found, answers, run, seed) for summary in found]
    rows = [replace(row, label=label(row.summary.setting, plain)) for row in rows]
    rows = [replace(row, who=answered_by(row.summary.setting, plain)) for row in rows]
    adjusted = list(_adjusted(rows))
    stages = tuple(stage_times(run.stages))
    labels = {row.summary.name: row.label for row in adjusted}
    return ReportSection(run, answers, tuple(_groups(adjusted, answers)), stages, labels)


def _row(
    summary: SettingSummary, among: Sequence[SettingSummary], answers: Mapping[str, Answers], run: RunRecords, seed: int
) -> ReportRow:
    own = answers[summary.name]
    row = ReportRow(summary=summary, label="", who="", times=times(summary, run.stages))
    student, teacher = (reference(summary, mode, among) for mode in ("student", "teacher"))
    if summary.mode != "student" and student is not None:
        row = replace(row, student=compared(own, answers[student.name]))
    if summary.mode != "teacher" and teacher is not None:
        taught = answers[teacher.name]
        row = replace(
            row,
            teacher=compared(own, taught),
            kept=kept(own, taught, seed),
            measured=_measured(summary, own, teacher, taught, run),
        )
        if summary.mode == "guided" and student is not None:
            row = replace(row, gap=gap_closed(own, answers[student.name], taught, seed))
    return row


def _measured(
    summary: SettingSummary, own: Answers, teacher: SettingSummary, taught: Answers, run: RunRecords
) -> MeasuredCost | None:
    shared = [question for question in own if question in taught]
    if not shared:
        return None
    here = summarised(summary.setting, [own[question] for question in shared])
    alone = summarised(teacher.setting, [taught[question] for question in shared])
    wrote = alone.teacher_output_tokens
    return MeasuredCost(
        n=len(shared),
        cost_usd=here.cost_usd,
        teacher_usd=alone.cost_usd,
        token_share=here.teacher_output_tokens / wrote if wrote else None,
        speed_up=times(here, run.stages).speed_up(times(alone, run.stages)),
    )


def _adjusted(rows: Sequence[ReportRow]) -> Iterator[ReportRow]:
    """With Holm's p among all guided settings of the run: one family against the student, one against the teacher."""
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
    by_asked: dict[object, list[ReportRow]] = {}
    for row in rows:
        by_asked.setdefault(row.summary.asked, []).append(row)
    order = ("teacher", "student", "guided")
    for some in by_asked.values():
        some.sort(key=lambda row: order.index(row.summary.mode))
        common = _common(some, answers)
        found = best([points(summary) for summary in common.values()])
        yield ReportGroup(asked_in_words(some[0].summary.setting), tuple(some), common, found)


def _common(rows: Sequence[ReportRow], answers: Mapping[str, Answers]) -> dict[str, SettingSummary]:
    """By name, those with at least half of the most questions, on the questions that all of these answered."""
    most = max(row.summary.n for row in rows)
    enough = [row for row in rows if 2 * row.summary.n >= most]
    shared = [
        question
        for question in enough[0].summary.questions
        if all(question in answers[row.summary.name] for row in enough)
    ]
    if not shared:
        return {}
    return {
        row.summary.name: summarised(row.summary.setting, [answers[row.summary.name][one] for one in shared])
        for row in enough
    }
