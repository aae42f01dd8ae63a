"""Totals of a run's examples by setting."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.evaluation.setting import REQUEST_PARAMETERS
from gateway.evaluation.statistics import wilson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from gateway.evaluation.record import Example, RunRecords
    from gateway.evaluation.setting import Mode
    from gateway.evaluation.statistics import Interval


class SettingSummary(NamedTuple):
    """Totals of one setting (as `Setting.as_dict`) over its examples, in the order of the run. Money is USD.

    Attributes:
        correct: Number of correct answers; errors are not correct.
        score: Mean score, which differs from the accuracy if a judge gives scores between 0 and 1.
        guidance_correct: Number of questions that the guidance alone answers (paper, Table 2: ACC_teacher); None unless
            guided.
        guidance_logprob: Mean of the log-probabilities of guidance under the student; None if none was requested.
        cost_usd, teacher_usd: Cost of the answers, and the teacher's part of it.
        baseline_usd: Cost of the teacher alone for these prompts and answers, from receipts.
        teacher_s, student_s: Mean seconds of a question, 0 for a question without a call; None if no question has one.
        total_s: Mean seconds of the questions with a measured time; None if no question has one.
        modes, errors, unguided: Number of questions by the receipt's values.
        cut: Number of answers that ended at their limit.
        lengths: If a rule chose m: number of questions by rule and m in tokens (0: none).
    """

    setting: Mapping[str, Any]
    examples: tuple[Example, ...]
    correct: int
    score: float
    guidance_correct: int | None
    guidance_logprob: float | None
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
        """Return the requested mode; `modes` counts the actual ones."""
        mode: Mode = self.setting["mode"]
        return mode

    @property
    def guided(self) -> bool:
        return self.mode == "guided"

    @property
    def n(self) -> int:
        return len(self.examples)

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        return wilson(self.correct, self.n)

    @property
    def cost_per_answer(self) -> Decimal:
        """Return the mean cost of an answer in USD."""
        return self.cost_usd / self.n

    @property
    def guidance_accuracy(self) -> float | None:
        return None if self.guidance_correct is None else self.guidance_correct / self.n

    @property
    def savings_usd(self) -> Decimal:
        """Return the savings relative to the teacher alone with the same answers."""
        return self.baseline_usd - self.cost_usd

    @property
    def cost_share(self) -> float | None:
        """Return the cost as a part of that of the teacher alone with the same answers; None if that is 0."""
        return float(self.cost_usd / self.baseline_usd) if self.baseline_usd else None

    @property
    def teacher_token_share(self) -> float | None:
        """Return the teacher's part of all output tokens, visible to the caller or not; None without output."""
        output_tokens = self.teacher_output_tokens + self.student_output_tokens
        return self.teacher_output_tokens / output_tokens if output_tokens else None


def request_key(setting: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return form, shots, limit and sampling of a setting as a dict; settings must share them for a comparison."""
    return tuple(setting.get(name) for name in REQUEST_PARAMETERS)


def summarize(setting: Mapping[str, Any], examples: Sequence[Example]) -> SettingSummary:
    """Add up the examples of one setting, at least one: all of them, or a part, as in a cross-validation."""
    guided = setting["mode"] == "guided"
    summed = [name for name in SettingSummary._fields if name.endswith(("_tokens", "_usd"))]
    sums: dict[str, Any] = {name: sum(getattr(one, name) for one in examples) for name in summed}
    return SettingSummary(
        setting=setting,
        examples=tuple(examples),
        correct=sum(one.correct for one in examples),
        score=sum(one.score for one in examples) / len(examples),
        guidance_correct=sum(one.guidance_score >= 0.5 for one in examples) if guided else None,
        guidance_logprob=_mean([one.guidance_logprob for one in examples]),
        teacher_s=_mean([one.teacher_s for one in examples], len(examples)),
        student_s=_mean([one.student_s for one in examples], len(examples)),
        total_s=_mean([one.total_s for one in examples]),
        modes=Counter(one.mode for one in examples),
        errors=Counter(one.error for one in examples if one.error is not None),
        unguided=Counter(one.unguided for one in examples if one.unguided is not None),
        cut=sum(one.finish == "length" for one in examples),
        lengths=Counter(chosen for one in examples if (chosen := _chosen(one)) is not None),
        **sums,
    )


def summaries(run: RunRecords) -> list[SettingSummary]:
    """Return the totals of each setting with examples, in the order of the run and without repetitions."""
    settings = {setting["name"]: setting for setting in run.manifest.settings}
    found = ((setting, run.by_setting.get(name)) for name, setting in settings.items())
    return [summarize(setting, list(examples.values())) for setting, examples in found if examples]


def reference(of: SettingSummary, mode: Mode, among: Sequence[SettingSummary]) -> SettingSummary | None:
    """Return the teacher or the student alone with the same requests as `of`; None if there is none."""
    key = request_key(of.setting)
    return next((one for one in among if one.mode == mode and request_key(one.setting) == key), None)


def _chosen(one: Example) -> tuple[str, int] | None:
    if one.length is None or one.chosen_tokens is None:
        return None
    named = one.length.rule or one.length.model
    return f"{one.length.by} {named}" if named else one.length.by, one.chosen_tokens


def _mean(found: Sequence[float | None], count: int = 0) -> float | None:
    given = [one for one in found if one is not None]
    return sum(given) / (count or len(given)) if given else None
