"""From an answer, its receipt and its score to the line that a run keeps of it."""

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

_NOTHING = Decimal(0)


class QuestionScorer(Protocol):
    """Holds an answer against its question."""

    async def __call__(self, answer: str, question: Question) -> ScoredAnswer:
        """Raises Unscored, and EngineErrors of a judge."""
        ...


async def scored_example(
    setting: str, question: Question, answered: QuestionAnswer, score: QuestionScorer, total_s: float | None = None
) -> Example:
    """One line. An answer whose worth is not known keeps its text, and an error's label.

    Args:
        setting: its name.
        total_s: as a caller saw it, in a live run.
    """
    verdict, alone, error = ScoredAnswer(0.0), ScoredAnswer(0.0), None
    try:
        verdict = await score(answered.text, question)
        if answered.opening:
            alone = await score(answered.opening, question)
    except (Unscored, EngineError) as failed:
        verdict, error = ScoredAnswer(0.0), failed.label
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
        opening=answered.opening,
        opening_score=alone.score,
        kept_tokens=_kept(receipt),
        teacher_input_tokens=0 if teacher is None else teacher.input_tokens,
        teacher_output_tokens=0 if teacher is None else teacher.output_tokens,
        student_input_tokens=sum(share.input_tokens for share in student),
        student_output_tokens=sum(share.output_tokens for share in student),
        cost_usd=receipt.cost_usd,
        teacher_usd=_NOTHING if teacher is None else teacher.cost_usd,
        baseline_usd=receipt.baseline_usd,
        teacher_s=answered.teacher_s,
        student_s=answered.student_s,
        total_s=total_s,
        length=receipt.length,
        chosen_tokens=_chosen(receipt),
        error=error,
    )


def failed_example(setting: str, question: Question, label: str, mode: str) -> Example:
    """One line for a question that nobody answered. `label`: what went wrong."""
    return Example(
        setting=setting,
        question=question.id,
        mode=mode,
        score=0.0,
        text="",
        cost_usd=_NOTHING,
        teacher_usd=_NOTHING,
        baseline_usd=_NOTHING,
        error=label,
    )


def _kept(receipt: Receipt) -> int:
    """All that the teacher alone wrote is the answer."""
    if receipt.guidance is not None:
        return receipt.guidance.kept_tokens
    return receipt.teacher.output_tokens if receipt.mode == "teacher" and receipt.teacher is not None else 0


def _chosen(receipt: Receipt) -> int | None:
    """m, where it was chosen for this question."""
    if receipt.length is None:
        return None
    return 0 if receipt.guidance is None else receipt.guidance.tokens
