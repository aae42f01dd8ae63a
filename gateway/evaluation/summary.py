"""What a setting came to over its questions: the examples of a run, added up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gateway.evaluation.statistics import wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from gateway.evaluation.record import Example
    from gateway.evaluation.setting import Mode
    from gateway.evaluation.statistics import Interval

_NOUGHT = Decimal(0)
# What the caller sends: settings that agree in it were asked the same.
_ASKED = ("form", "shots", "max_tokens", "temperature", "top_p", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingSummary:
    """One setting over n questions. Sums are over all of them; money is USD.

    Attributes:
        setting: as `Setting.as_dict`.
        questions: their ids, in the order of the run.
        correct: how many were right; an error is not.
        score: the mean score, which differs from the accuracy where a judge gives something between 0 and 1.
        opening_correct: how often the guidance alone was right (paper, Table 2: ACC_teacher); None unless guided.
        cost_usd, teacher_usd: what the answers cost, and of it the teacher's part.
        baseline_usd: the teacher alone on these prompts and these answers, as receipts have it.
        teacher_s, student_s, total_s: seconds, the mean over the questions that have them; None where none has.
        teacher_timed, student_timed: how many have them.
        modes, errors, unguided: what happened how often, by the words of receipts.
        cut: answers that ended at their limit.
        lengths: where m was chosen for each question: by what, and how many tokens (0: none), how often.
    """

    setting: Mapping[str, Any]
    questions: tuple[str, ...]
    correct: int
    score: float
    opening_correct: int | None
    kept_tokens: int
    teacher_input_tokens: int
    teacher_output_tokens: int
    student_input_tokens: int
    student_output_tokens: int
    cost_usd: Decimal
    teacher_usd: Decimal
    baseline_usd: Decimal
    teacher_s: float | None
    student_s: float | None
    total_s: float | None
    teacher_timed: int
    student_timed: int
    modes: Mapping[str, int]
    errors: Mapping[str, int]
    unguided: Mapping[str, int]
    cut: int
    lengths: Mapping[tuple[str, int], int]

    @property
    def name(self) -> str:
        return str(self.setting["name"])

    @property
    def mode(self) -> Mode:
        """Who was to answer; `modes` tells who did."""
        mode: Mode = self.setting["mode"]
        return mode

    @property
    def asked(self) -> tuple[Any, ...]:
        """Form, shots, limit and sampling: the teacher and the student that agree in it are what to compare with."""
        return asked(self.setting)

    @property
    def n(self) -> int:
        return len(self.questions)

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        """Of the accuracy: Wilson, 95 %."""
        return wilson(self.correct, self.n)

    @property
    def cost_per_answer(self) -> Decimal:
        """USD."""
        return self.cost_usd / self.n

    @property
    def output_tokens(self) -> int:
        """Of teacher and student, whether the caller sees them or not."""
        return self.teacher_output_tokens + self.student_output_tokens

    @property
    def teacher_token_share(self) -> float | None:
        """The teacher's part of all output tokens; None where nothing was written."""
        return self.teacher_output_tokens / self.output_tokens if self.output_tokens else None


def asked(setting: Mapping[str, Any]) -> tuple[Any, ...]:
    """As `SettingSummary.asked`, of a setting as a dict."""
    return tuple(setting.get(name) for name in _ASKED)


def summarised(setting: Mapping[str, Any], examples: Sequence[Example]) -> SettingSummary:
    """Add up the examples of one setting: all of them, or a part, as in a cross-validation.

    Raises ValueError where there are none, or where one is another setting's.
    """
    if not examples:
        raise ValueError(f"no examples of {setting['name']}")
    for one in examples:
        if one.setting != setting["name"]:
            raise ValueError(f"an example of {one.setting} among those of {setting['name']}")

    def money(of: Callable[[Example], Decimal]) -> Decimal:
        return sum((of(one) for one in examples), _NOUGHT)

    guided = setting["mode"] == "guided"
    return SettingSummary(
        setting=setting,
        questions=tuple(one.question for one in examples),
        correct=sum(one.correct for one in examples),
        score=sum(one.score for one in examples) / len(examples),
        opening_correct=sum(one.opening_score >= 0.5 for one in examples) if guided else None,
        kept_tokens=sum(one.kept_tokens for one in examples),
        teacher_input_tokens=sum(one.teacher_input_tokens for one in examples),
        teacher_output_tokens=sum(one.teacher_output_tokens for one in examples),
        student_input_tokens=sum(one.student_input_tokens for one in examples),
        student_output_tokens=sum(one.student_output_tokens for one in examples),
        cost_usd=money(lambda one: one.cost_usd),
        teacher_usd=money(lambda one: one.teacher_usd),
        baseline_usd=money(lambda one: one.baseline_usd),
        teacher_s=_mean([one.teacher_s for one in examples]),
        student_s=_mean([one.student_s for one in examples]),
        total_s=_mean([one.total_s for one in examples]),
        teacher_timed=sum(one.teacher_s is not None for one in examples),
        student_timed=sum(one.student_s is not None for one in examples),
        modes=Counter(one.mode for one in examples),
        errors=Counter(one.error for one in examples if one.error is not None),
        unguided=Counter(one.unguided for one in examples if one.unguided is not None),
        cut=sum(one.finish == "length" for one in examples),
        lengths=Counter(chosen for one in examples if (chosen := _chosen(one)) is not None),
    )


def summaries(settings: Sequence[Mapping[str, Any]], examples: Collection[Example]) -> list[SettingSummary]:
    """One for each setting of the run that has examples, in the run's order; one that is there twice counts once."""
    by_setting: dict[str, list[Example]] = {}
    for one in examples:
        by_setting.setdefault(one.setting, []).append(one)
    once = {setting["name"]: setting for setting in settings}
    return [summarised(setting, found) for name, setting in once.items() if (found := by_setting.get(name))]


def reference(of: SettingSummary, mode: Mode, among: Sequence[SettingSummary]) -> SettingSummary | None:
    """The teacher or the student alone that was asked the same as `of`; None where there is none."""
    return next((one for one in among if one.mode == mode and one.asked == of.asked), None)


def _chosen(one: Example) -> tuple[str, int] | None:
    """By what, and how many tokens."""
    if one.length is None or one.chosen_tokens is None:
        return None
    named = one.length.rule or one.length.model
    return f"{one.length.by} {named}" if named else one.length.by, one.chosen_tokens


def _mean(found: Sequence[float | None]) -> float | None:
    given = [one for one in found if one is not None]
    return sum(given) / len(given) if given else None
