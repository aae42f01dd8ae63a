"""Totals of a run's examples by setting."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.evaluation.scoring import NO_REFERENCE
from gateway.evaluation.setting import REQUEST_PARAMETERS
from gateway.evaluation.statistics import Interval, agresti_min, wilson

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from decimal import Decimal

    from gateway.evaluation.record import Example, RunRecords
    from gateway.evaluation.setting import Mode


class Preference(NamedTuple):
    """Comparisons of a setting's answers with the teacher's by a judge.

    `share` is the part of the comparisons that the setting wins. A tie is half of one: 0.5 is as good as the teacher.
    `interval` is Agresti and Min's for pairs, at 95 %.
    """

    n: int
    preferred: int
    ties: int
    share: float | None
    interval: Interval


COST_NOTE = "Costs are the tokens of these models at assigned prices, not bills."
"""Each output with costs contains this sentence."""


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
    def preference(self) -> Preference:
        """Return the result of a run of preferences."""
        # A comparison that failed says nothing. A missing answer is not preferred to one of the teacher.
        scores = [
            one.score for one in self.examples if one.error is None or (not one.text and one.error != NO_REFERENCE)
        ]
        low, high = agresti_min([2 * score - 1 for score in scores])
        return Preference(
            n=len(scores),
            preferred=sum(score > 0.5 for score in scores),
            ties=sum(score == 0.5 for score in scores),
            share=sum(scores) / len(scores) if scores else None,
            interval=Interval((1 + low) / 2, (1 + high) / 2),
        )

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
        **sums,
    )


def summaries(run: RunRecords) -> list[SettingSummary]:
    """Return the totals of each setting with examples, in the order of the run and without repetitions."""
    settings = {setting["name"]: setting for setting in run.manifest.settings}
    found = ((setting, run.by_setting.get(name)) for name, setting in settings.items())
    return [summarize(setting, list(examples.values())) for setting, examples in found if examples]


def roles_with_cache_reads(examples: Iterable[Example]) -> frozenset[str]:
    """Return the roles whose engine reported a number of cached tokens, possibly 0, with at least one answer.

    The other answers of such an engine count as 0: earlier versions of vLLM omit the number if it is 0.
    """
    return frozenset(
        role for one in examples for role in ("teacher", "student") if getattr(one, f"{role}_cached_tokens") is not None
    )


def cache_hits(examples: Collection[Example], reported: Collection[str]) -> dict[str, float | None]:
    """Return the part of the input tokens that each role with input read from its prompt cache.

    The part is None for a role that is not in `reported` (`roles_with_cache_reads` of the run).
    """
    found: dict[str, float | None] = {}
    for role in ("teacher", "student"):
        if read := sum(getattr(one, f"{role}_input_tokens") for one in examples):
            cached = sum(getattr(one, f"{role}_cached_tokens") or 0 for one in examples)
            found[role] = cached / read if role in reported else None
    return found


def reference(of: SettingSummary, mode: Mode, among: Sequence[SettingSummary]) -> SettingSummary | None:
    """Return the teacher or the student alone with the same requests as `of`; None if there is none."""
    key = request_key(of.setting)
    return next((one for one in among if one.mode == mode and request_key(one.setting) == key), None)


def _mean(found: Sequence[float | None], count: int = 0) -> float | None:
    given = [one for one in found if one is not None]
    return sum(given) / (count or len(given)) if given else None
