"""Construction of a run's record from an answer, its receipt and its score."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Protocol

from gateway.errors import EngineError
from gateway.evaluation.judging import Unscored
from gateway.evaluation.record import Example, ScoredAnswer

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt
    from gateway.evaluation.question import Question
    from gateway.evaluation.staged import QuestionAnswer

_ZERO = Decimal(0)


class QuestionScorer(Protocol):
    """Scorer of an answer to a question."""

    async def __call__(self, answer: str, question: Question) -> ScoredAnswer:
        """Return the score. Raises Unscored, and EngineErrors of a judge."""
        ...


async def scored_example(
    setting: str, question: Question, answered: QuestionAnswer, score: QuestionScorer, total_s: float | None = None
) -> Example:
    """Return the record of an answer. An answer that cannot be scored keeps its text and gets an error label.

    Args:
        setting: Name of the setting.
        question: The question.
        answered: The answer with its receipt.
        score: Scorer of the answer and of the guidance alone.
        total_s: Seconds as measured by the client of a live run.
    """
    verdict, guidance_verdict, error = ScoredAnswer(0.0), ScoredAnswer(0.0), None
    try:
        verdict = await score(answered.text, question)
        if answered.guidance:
            guidance_verdict = await score(answered.guidance, question)
    except (Unscored, EngineError) as failure:
        verdict, error = ScoredAnswer(0.0), failure.label
    receipt = answered.receipt
    teacher = receipt.teacher
    student = [share for share in (receipt.student, receipt.probe) if share is not None]
    return Example(
        setting=setting,
        question=question.id,
        mode=receipt.mode,
        score=verdict.score,
        found=verdict.found,
        text=answered.text,
        finish=receipt.finish_reason,
        unguided=receipt.unguided,
        guidance=answered.guidance,
        guidance_score=guidance_verdict.score,
        kept_tokens=_kept_tokens(receipt),
        teacher_input_tokens=0 if teacher is None else teacher.input_tokens,
        teacher_output_tokens=0 if teacher is None else teacher.output_tokens,
        student_input_tokens=sum(share.input_tokens for share in student),
        student_output_tokens=sum(share.output_tokens for share in student),
        cost_usd=receipt.cost_usd,
        teacher_usd=_ZERO if teacher is None else teacher.cost_usd,
        baseline_usd=receipt.baseline_usd,
        teacher_s=answered.teacher_s,
        student_s=answered.student_s,
        total_s=total_s,
        length=receipt.length,
        chosen_tokens=_chosen_tokens(receipt),
        error=error,
    )


def failed_example(setting: str, question: Question, label: str, mode: str) -> Example:
    """Return the record of a question without an answer. `label`: the error label."""
    return Example(
        setting=setting,
        question=question.id,
        mode=mode,
        score=0.0,
        text="",
        cost_usd=_ZERO,
        teacher_usd=_ZERO,
        baseline_usd=_ZERO,
        error=label,
    )


def _kept_tokens(receipt: Receipt) -> int:
    """Return the tokens of the answer that the teacher wrote."""
    if receipt.guidance is not None:
        return receipt.guidance.kept_tokens
    return receipt.teacher.output_tokens if receipt.mode == "teacher" and receipt.teacher is not None else 0


def _chosen_tokens(receipt: Receipt) -> int | None:
    """Return m if a rule chose it for this question."""
    if receipt.length is None:
        return None
    return 0 if receipt.guidance is None else receipt.guidance.tokens
