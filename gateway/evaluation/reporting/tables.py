"""The tables of a report, as text cells for all formats, and the questions on which two settings differ."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, NamedTuple

from gateway.evaluation.reporting import wording as w
from gateway.evaluation.reporting.report import stage_times
from gateway.evaluation.summary import COST_NOTE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gateway.evaluation.record import Example
    from gateway.evaluation.reporting.report import MeasuredCost, ReportRow, ReportSection

MAX_WORDS = 20
MAX_CHARS = 160
"""Limit for texts without spaces, in which 20 words may be the whole text."""
MAX_QUESTIONS = 3
"""Maximum questions per direction."""
# Control characters, writing directions, surrogates: some of them would corrupt a page.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


class ReportTable(NamedTuple):
    """A table of unescaped text; the first cell of a row names the row. `note` explains the columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class _SettingTable(NamedTuple):
    title: str
    cells: Mapping[str, Callable[[ReportRow], str]]
    note: str

    def of(self, rows: Sequence[ReportRow]) -> ReportTable:
        texts = tuple((row.label, *(cell(row) for cell in self.cells.values())) for row in rows)
        return ReportTable(self.title, ("setting", *self.cells), texts, self.note)


_ACCURACY = _SettingTable(
    "Accuracy",
    {
        "n": lambda row: f"{row.summary.n:,}",
        "right": lambda row: f"{row.summary.correct:,}",
        "accuracy": lambda row: w.percent(row.summary.accuracy),
        "95 %": lambda row: w.percents(row.summary.interval),
        "guidance alone": lambda row: w.percent(row.summary.guidance_accuracy),
        "kept of the teacher's": lambda row: w.part(row.kept),
        "gap closed": lambda row: w.part(row.gap),
    },
    "95 %: Wilson's interval. Guidance alone: accuracy of the teacher's kept tokens alone (the paper's ACC_teacher). "
    "Gap closed: (guided - student) / (teacher - student), only if the teacher is significantly better. In "
    "parentheses: paired bootstrap, 95 %; omitted if no question distinguishes the two.",
)
_PREFERENCE = _SettingTable(
    "Preference over the teacher's answer",
    {
        "n": lambda row: f"{row.summary.preference.n:,}",
        "preferred": lambda row: f"{row.summary.preference.preferred:,}",
        "tie": lambda row: f"{row.summary.preference.ties:,}",
        "share preferred": lambda row: w.percent(row.summary.preference.share),
        "95 %": lambda row: w.percents(row.summary.preference.interval),
    },
    "A judge model compared each answer with that of the teacher alone, in both orders; contradictory verdicts are a "
    "tie. Share preferred: the mean of both orders, where a tie counts as half, so 50 % is as good as the teacher. It "
    "is no accuracy. 95 %: Agresti and Min's interval for pairs. A missing answer is not preferred; comparisons that "
    "failed are left out.",
)
_TOKENS = _SettingTable(
    "Tokens",
    {
        "teacher input + output": lambda row: _tokens(row, "teacher"),
        "teacher kept": lambda row: _if_guided(row, w.mean(row.summary.kept_tokens, row.summary.n)),
        "student input + output": lambda row: _tokens(row, "student"),
        "part of the teacher alone's output": lambda row: w.percent(row.token_share),
        "part of all output": lambda row: w.percent(row.summary.teacher_token_share),
    },
    "Mean of one answer, as counted by the engines. Part of the teacher alone's output: the teacher's output tokens "
    "relative to the teacher alone, which the paper calls cost (52 %). Part of all output: relative to the output of "
    "both models. Neither is the cost, which the next table has.",
)
_CACHE = _SettingTable(
    "Prompt cache",
    {
        "teacher": lambda row: _cache_hits(row, "teacher"),
        "student": lambda row: _cache_hits(row, "student"),
    },
    "Part of the input tokens that the engine read from its prompt cache, and the mean input of an answer. A run "
    "repeats questions and prompts, so other traffic has other parts. Not reported: the engine sent no number, not "
    "even 0 (TGI; vLLM without --enable-prompt-tokens-details).",
)
_COST = _SettingTable(
    "Cost in USD per 1,000 answers",
    {
        "cost": lambda row: w.per_thousand(row.summary.cost_per_answer),
        "teacher's part": lambda row: w.per_thousand(row.summary.teacher_usd / row.summary.n),
        "teacher alone, measured": lambda row: _measured(row, lambda one: w.per_thousand(one.teacher_usd / one.n)),
        "savings": lambda row: _measured(row, lambda one: w.per_thousand(one.savings_usd / one.n)),
        "cost share": lambda row: w.percent(row.cost_share),
        "teacher alone, this answer": lambda row: w.per_thousand(row.summary.baseline_usd / row.summary.n),
        "savings, this answer": lambda row: w.per_thousand(row.summary.savings_usd / row.summary.n),
        "cost share, this answer": lambda row: w.percent(row.summary.cost_share),
    },
    f"{COST_NOTE} Prompts and answers of both models count. Measured: cost of the teacher alone for the same questions "
    "with its own answers. This answer: its estimated cost for the answer given, as in receipts. The cost share is the "
    "whole cost relative to either one.",
)
_SECONDS = _SettingTable(
    "Seconds per answer",
    {
        "waited for teacher": lambda row: _wait(row.times.teacher_wait_s, row.times.teacher_concurrency),
        "waited for student": lambda row: _wait(row.times.student_wait_s, row.times.student_concurrency),
        "teacher stage": lambda row: w.seconds(row.times.teacher_s),
        "student stage": lambda row: w.seconds(row.times.student_s),
        "both stages": lambda row: w.seconds(row.times.busy_s),
        "whole answer, live": lambda row: w.seconds(row.times.total_s),
        "speed-up": lambda row: w.times(row.speed_up),
    },
    "Waited: time until the text of the engine was complete, with concurrent requests. Stage: that wait divided by the "
    "number of concurrent requests, which is the engine time of one answer. Speed-up: time of the teacher alone "
    "divided by that of the setting, for whole answers in a live run, else for both stages.",
)
_ERRORS_ARE_WRONG = "An error counts as a wrong answer. "
_OUTCOMES = _SettingTable(
    "Outcomes",
    {
        "answered": lambda row: w.counted(row.summary.modes),
        "unguided": lambda row: _if_guided(row, w.counted(row.summary.unguided)),
        "errors": lambda row: w.counted(row.summary.errors),
        "truncated": lambda row: f"{row.summary.cut:,}",
    },
    f"With the values of receipts. {_ERRORS_ARE_WRONG}Truncated: answers that ended at their token limit.",
)


def section_tables(section: ReportSection) -> list[ReportTable]:
    """Return the tables of a run that have rows."""
    rows = section.rows
    timed = any((row.times.teacher_wait_s, row.times.student_wait_s, row.times.total_s) != (None,) * 3 for row in rows)
    quality, outcomes = [_ACCURACY.of(rows), _comparisons(rows)], _OUTCOMES
    if section.is_preference:
        quality = [_PREFERENCE.of([row for row in rows if row.summary.mode != "teacher"])]
        outcomes = _OUTCOMES._replace(note=_OUTCOMES.note.replace(_ERRORS_ARE_WRONG, ""))
    found = (
        *quality,
        _TOKENS.of(rows),
        _CACHE.of(rows),
        _guidance(rows),
        _COST.of(rows),
        _SECONDS.of(rows if timed else ()),
        _stages(section),
        outcomes.of(rows),
    )
    return [table for table in found if table.rows]


def _comparisons(rows: Sequence[ReportRow]) -> ReportTable:
    cells = tuple(
        (
            *(row.label, against, f"{one.n:,}", w.points(one.difference), w.point_range(one.interval)),
            *(f"{len(one.won):,}", f"{len(one.lost):,}", w.p(one.p), w.p(holm)),
        )
        for row in rows
        for against, one, holm in (("student", row.student, row.student_p), ("teacher", row.teacher, row.teacher_p))
        if one is not None
    )
    only = ("only this right", "only that right")
    return ReportTable(
        "Comparison with the student and the teacher alone",
        ("setting", "against", "pairs", "difference", "95 %", *only, "p", "p (Holm)"),
        cells,
        "On common questions, in percentage points. p is McNemar's, exact and two-sided, from the questions that only "
        "one of the two answers correctly. p (Holm) is adjusted for all guided settings of the run that are compared "
        "with a student, or with a teacher. 95 %: Agresti and Min's interval for pairs.",
    )


def _guidance(rows: Sequence[ReportRow]) -> ReportTable:
    return ReportTable(
        "Guidance under the student",
        ("setting", "log-probability per token", "perplexity"),
        tuple(
            (row.label, f"{logprob:.3f}", f"{exp(-logprob):.2f}")
            for row in rows
            if (logprob := row.summary.guidance_logprob) is not None
        ),
        "How likely the student finds the teacher's kept tokens: the mean of the answers. Near 0, it would have "
        "written them itself.",
    )


def _stages(section: ReportSection) -> ReportTable:
    labels = {row.summary.name: row.label for row in section.rows}
    cells = tuple(
        (
            *(labels.get(one.setting, one.setting), one.stage),
            *(f"{one.concurrency:,}" if one.concurrency else w.NONE, f"{one.sessions:,}", f"{one.calls:,}"),
            *(w.seconds(one.seconds), w.seconds(one.seconds_per_call)),
        )
        for one in stage_times(section.run.stages)
    )
    return ReportTable(
        "Stages",
        ("setting", "stage", "concurrency", "sessions", "calls", "wall seconds", "seconds per call"),
        cells,
        "Only new calls count: stored texts are not requested again, and guidance of one length is cut from that of a "
        "longer one.",
    )


def overview(sections: Sequence[ReportSection]) -> ReportTable:
    """Return one row for each run and request form, with its best guided setting."""
    found = []
    for section in sections:
        for group in section.groups:
            run = f"{section.run.manifest.data} ({section.run.path.name}): {group.title}"
            if section.is_preference:
                found.append((run, *(w.NONE,) * 2, "preferences: see the chapter", *(w.NONE,) * 5))
                continue
            alone = {row.summary.mode: group.on_common(row).accuracy for row in group.rows if not row.guided}
            best = (w.NONE,) * 5
            if (row := group.best_row) is not None:
                shares = (w.part(row.kept), w.part(row.gap), w.percent(row.token_share), w.percent(row.cost_share))
                best = (w.percent(group.on_common(row).accuracy), *shares)
            name = ("none pays" if "teacher" in alone else "no teacher alone") if row is None else row.short_label
            found.append((run, w.percent(alone.get("student")), w.percent(alone.get("teacher")), name, *best))
    best_columns = ("best guided setting", "its accuracy", "kept", "gap closed")
    return ReportTable(
        "All runs",
        ("run", "student", "teacher", *best_columns, "part of the teacher's output", "cost share"),
        tuple(found),
        "Best: the cheapest guided setting that keeps 95 % of the teacher's accuracy, else the most accurate one that "
        f"is cheaper than the teacher and better than the student. The selection uses the same questions. {COST_NOTE}",
    )


def _tokens(row: ReportRow, role: str) -> str:
    read, written = (getattr(row.summary, f"{role}_{way}_tokens") for way in ("input", "output"))
    return f"{w.mean(read, row.summary.n)} + {w.mean(written, row.summary.n)}" if read or written else w.NONE


def _cache_hits(row: ReportRow, role: str) -> str:
    if role not in row.cache_hits:
        return w.NONE
    hits = row.cache_hits[role]
    read = w.mean(getattr(row.summary, f"{role}_input_tokens"), row.summary.n)
    return "not reported" if hits is None else f"{w.percent(hits)} of {read}"


def _if_guided(row: ReportRow, cell: str) -> str:
    return cell if row.guided else w.NONE


def _measured(row: ReportRow, cell: Callable[[MeasuredCost], str]) -> str:
    return w.NONE if row.measured is None else cell(row.measured)


def _wait(waited_s: float | None, concurrency: int | None) -> str:
    return w.seconds(waited_s) + (f" (at {concurrency})" if waited_s is not None and concurrency else "")


@dataclass(frozen=True, slots=True)
class Flip:
    """A question with different results of two settings, and the ends of their answers."""

    question: str
    found: str | None
    reference_found: str | None
    text: str
    reference_text: str


@dataclass(frozen=True, slots=True)
class Flips:
    """Questions that only a guided setting or only its reference answers correctly; the first of `count` are `shown`.

    `against` is "teacher" or "student". `way` is "won" if the guided setting is right, "lost" if the reference is.
    """

    label: str
    against: str
    way: str
    count: int
    shown: tuple[Flip, ...]


def flips(section: ReportSection) -> Iterator[Flips]:
    """Yield the flips of the best guided setting of each group; if none pays, of the most accurate one.

    Preferences have none.
    """
    if section.is_preference:
        return
    for group in section.groups:
        row = group.best_row or max(group.guided, key=lambda one: one.summary.accuracy, default=None)
        if row is None:
            continue
        own = section.run.by_setting[row.summary.name]
        for against, found in (("student", row.student), ("teacher", row.teacher)):
            if found is None:
                continue
            other = section.run.by_setting[found.reference]
            for way, questions in (("won", found.won), ("lost", found.lost)):
                both = ((own[one], other[one]) for one in questions[:MAX_QUESTIONS])
                shown = tuple(
                    Flip(one.question, _result(one), _result(by), excerpt(one.text), excerpt(by.text))
                    for one, by in both
                )
                yield Flips(row.label, against, way, len(questions), shown)


def excerpt(text: str) -> str:
    """Return the last words of a text, which hold its result: at most `MAX_WORDS`, in one line and printable."""
    words = "".join(" " if unicodedata.category(char) in _INVISIBLE else char for char in text).split()
    short = " ".join(words[-MAX_WORDS:])
    cut = len(words) > MAX_WORDS or len(short) > MAX_CHARS
    return ("\u2026 " if cut else "") + short[-MAX_CHARS:]


def _result(one: Example) -> str | None:
    if one.error is not None:
        return f"error {one.error}"
    return None if one.found is None else excerpt(one.found)
