"""The contents of a report as data: a row for each setting, compared with the teacher and the student alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from gateway.evaluation.reporting.comparison import SettingComparison, best, compare, gap_closed, kept_share
from gateway.evaluation.reporting.wording import answered_by, label, request_in_words
from gateway.evaluation.statistics import holm
from gateway.evaluation.summary import (
    cache_hits,
    reference,
    request_key,
    roles_with_cache_reads,
    summaries,
    summarize,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from decimal import Decimal

    from gateway.evaluation.record import Example, RunRecords, StageRecord
    from gateway.evaluation.reporting.comparison import BestSetting, ShareInterval
    from gateway.evaluation.setting import Mode
    from gateway.evaluation.summary import SettingSummary

    Answers = Mapping[str, Example]


class QuestionTimes(NamedTuple):
    """Mean seconds of one question; None without records. The client of a live run measures `total_s`."""

    teacher_wait_s: float | None
    student_wait_s: float | None
    teacher_concurrency: int | None
    student_concurrency: int | None
    total_s: float | None

    @property
    def teacher_s(self) -> float | None:
        """Return the engine time of the teacher: the wait divided by the number of concurrent requests."""
        return _divide(self.teacher_wait_s, self.teacher_concurrency)

    @property
    def student_s(self) -> float | None:
        return _divide(self.student_wait_s, self.student_concurrency)

    @property
    def busy_s(self) -> float | None:
        """Return the engine time of both stages: the paper's time of the whole set, for one question."""
        parts = [one for one in (self.teacher_s, self.student_s) if one is not None]
        waited = [one for one in (self.teacher_wait_s, self.student_wait_s) if one is not None]
        return sum(parts) if parts and len(parts) == len(waited) else None

    @property
    def parts(self) -> tuple[float, float] | None:
        """Return the teacher's and the student's seconds of an answer: waits in a live run, else engine times."""
        teacher_s, student_s = self.teacher_s, self.student_s
        if self.total_s is not None:
            teacher_s, student_s = self.teacher_wait_s, self.student_wait_s
        elif self.busy_s is None:
            return None
        return None if teacher_s is None and student_s is None else (teacher_s or 0.0, student_s or 0.0)

    def speed_up(self, over: QuestionTimes) -> float | None:
        """Return the speed-up over `over`, by the client's times in a live run, else by engine times."""
        own, other = (self.total_s, over.total_s) if self.total_s is not None else (self.busy_s, over.busy_s)
        return other / own if own and other else None


class StageTime(NamedTuple):
    """All sessions of one stage under one setting at one concurrency."""

    stage: str
    setting: str
    concurrency: int
    sessions: int
    calls: int
    seconds: float

    @property
    def seconds_per_call(self) -> float | None:
        return self.seconds / self.calls if self.calls else None


def times(summary: SettingSummary, stages: Sequence[StageRecord]) -> QuestionTimes:
    return QuestionTimes(
        teacher_wait_s=summary.teacher_s,
        student_wait_s=summary.student_s,
        teacher_concurrency=None if summary.mode == "student" else _concurrency("teacher", summary.name, stages),
        student_concurrency=None if summary.mode == "teacher" else _concurrency("student", summary.name, stages),
        total_s=summary.total_s,
    )


def stage_times(stages: Sequence[StageRecord]) -> list[StageTime]:
    """Add up the records by stage, setting and concurrency, in order of appearance."""
    found: dict[tuple[str, str, int], list[StageRecord]] = {}
    for stage in stages:
        found.setdefault((stage.stage, stage.setting, stage.concurrency), []).append(stage)
    return [
        StageTime(*key, len(group), sum(one.calls for one in group), sum(one.seconds for one in group))
        for key, group in found.items()
    ]


def _concurrency(stage: str, setting: str, stages: Sequence[StageRecord]) -> int | None:
    """Return the concurrency with most calls: of this setting, or of any if its guidance was cut from a longer one."""
    of_stage = [one for one in stages if one.stage == stage and one.calls and one.concurrency]
    own = [one for one in of_stage if one.setting == setting] or of_stage
    calls: Counter[int] = Counter()
    for one in own:
        calls[one.concurrency] += one.calls
    return max(calls, key=lambda concurrency: (calls[concurrency], -concurrency)) if calls else None


def _divide(waited_s: float | None, concurrency: int | None) -> float | None:
    return None if waited_s is None or not concurrency else waited_s / concurrency


class MeasuredCost(NamedTuple):
    """Cost and tokens of a setting compared with the teacher alone and its own answers, on their n common questions.

    `token_share`: the teacher's output tokens as a part of those of the teacher alone (the paper's 52 %).
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


class ReportRow(NamedTuple):
    """The figures of one setting, compared with `student` and `teacher` for equal requests.

    `label` is unique in the run; `short_label` omits the request form. `*_p` are p-values adjusted by Holm's method.
    `kept` is the accuracy as a share of the teacher's, `gap` the closed part of the gap between student and teacher.
    `cache_hits` are the parts of the input that each model read from its prompt cache; None: not reported.
    """

    summary: SettingSummary
    label: str
    short_label: str
    times: QuestionTimes
    cache_hits: Mapping[str, float | None]
    student: SettingComparison | None = None
    teacher: SettingComparison | None = None
    student_p: float | None = None
    teacher_p: float | None = None
    kept: ShareInterval | None = None
    gap: ShareInterval | None = None
    measured: MeasuredCost | None = None

    @property
    def guided(self) -> bool:
        return self.summary.guided

    @property
    def token_share(self) -> float | None:
        return None if self.measured is None else self.measured.token_share

    @property
    def cost_share(self) -> float | None:
        return None if self.measured is None else self.measured.cost_share

    @property
    def speed_up(self) -> float | None:
        return None if self.measured is None else self.measured.speed_up


class ReportGroup(NamedTuple):
    """Settings with equal requests (`title`), the teacher and the student first, and the best guided one of `common`.

    `common` has the comparable settings by name, on the questions that all of them answered. A setting with less than
    half of the questions of another one is excluded: the first answers are those that the teacher ended by itself.
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
        return [row for row in self.rows if row.summary.name in self.common]

    @property
    def questions(self) -> int:
        return next((summary.n for summary in self.common.values()), 0)

    def alone(self, mode: Mode) -> ReportRow | None:
        return next((row for row in self.rows if row.summary.mode == mode), None)

    @property
    def guided(self) -> list[ReportRow]:
        return [row for row in self.rows if row.guided]

    @property
    def best_row(self) -> ReportRow | None:
        return next((row for row in self.rows if self.best is not None and row.summary.name == self.best.name), None)


class ReportSection(NamedTuple):
    """The figures of one run."""

    run: RunRecords
    groups: tuple[ReportGroup, ...]

    @property
    def rows(self) -> list[ReportRow]:
        return [row for group in self.groups for row in group.rows]

    @property
    def is_preference(self) -> bool:
        """Return whether the scores are preferences, so that no answer is correct or wrong."""
        return self.run.manifest.metric == "preference"


def section(run: RunRecords, seed: int) -> ReportSection:
    """Compare all settings of a run. Intervals are reproducible for a seed."""
    found = summaries(run)
    rows = list(_adjusted([_row(summary, found, run, seed) for summary in found]))
    return ReportSection(run, tuple(_groups(rows, run.by_setting)))


def _row(summary: SettingSummary, among: Sequence[SettingSummary], run: RunRecords, seed: int) -> ReportRow:
    plain = [one.setting for one in among]
    row = ReportRow(
        summary=summary,
        label=label(summary.setting, plain),
        short_label=answered_by(summary.setting, plain),
        times=times(summary, run.stages),
        cache_hits=cache_hits(summary.examples, roles_with_cache_reads(run.examples)),
    )
    own = run.by_setting[summary.name]
    student, teacher = (reference(summary, mode, among) for mode in ("student", "teacher"))
    if summary.mode != "student" and student is not None:
        row = row._replace(student=compare(own, run.by_setting[student.name]))
    if summary.mode != "teacher" and teacher is not None:
        by_teacher = run.by_setting[teacher.name]
        by_student = None if student is None else run.by_setting[student.name]
        kept, measured = kept_share(own, by_teacher, by_student, seed), _measured(summary, teacher, run)
        row = row._replace(teacher=compare(own, by_teacher), kept=kept, measured=measured)
        if row.guided and student is not None:
            row = row._replace(gap=gap_closed(own, run.by_setting[student.name], by_teacher, seed))
    return row


def _measured(summary: SettingSummary, teacher: SettingSummary, run: RunRecords) -> MeasuredCost | None:
    own, by_teacher = run.by_setting[summary.name], run.by_setting[teacher.name]
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
    guided = [row for row in rows if row.guided]
    student = {row.summary.name: row.student.p for row in guided if row.student is not None}
    teacher = {row.summary.name: row.teacher.p for row in guided if row.teacher is not None}
    student, teacher = (dict(zip(ps, holm(list(ps.values())), strict=True)) for ps in (student, teacher))
    for row in rows:
        name = row.summary.name
        yield row._replace(student_p=student.get(name), teacher_p=teacher.get(name))


def _groups(rows: Sequence[ReportRow], answers: Mapping[str, Answers]) -> Iterator[ReportGroup]:
    by_request: dict[object, list[ReportRow]] = {}
    for row in rows:
        by_request.setdefault(request_key(row.summary.setting), []).append(row)
    order = ("teacher", "student", "guided")
    for some in by_request.values():
        some.sort(key=lambda row: order.index(row.summary.mode))
        common = _common(some, answers)
        found = best(common.values())
        yield ReportGroup(request_in_words(some[0].summary.setting), tuple(some), common, found)


def _common(rows: Sequence[ReportRow], answers: Mapping[str, Answers]) -> dict[str, SettingSummary]:
    """Return the comparable settings by name, with at least half of the maximum of questions, on the common ones."""
    max_questions = max(row.summary.n for row in rows)
    enough = {row.summary.name: row.summary.setting for row in rows if 2 * row.summary.n >= max_questions}
    first = next(iter(enough))
    shared = [question for question in answers[first] if all(question in answers[name] for name in enough)]
    return {
        name: summarize(setting, [answers[name][one] for one in shared]) for name, setting in enough.items() if shared
    }
