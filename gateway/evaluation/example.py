"""From an answer, its receipt and its score to the line that a run keeps of it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from gateway.evaluation.record import Example

if TYPE_CHECKING:
    from gateway.evaluation.question import Question
    from gateway.evaluation.record import Verdict
    from gateway.evaluation.staged import Answered
    from gateway.ledger.receipt import Receipt

_NOTHING = Decimal(0)


def example_of(
    setting: str,
    question: Question,
    answered: Answered,
    verdict: Verdict,
    alone: Verdict | None,
    total_s: float | None = None,
) -> Example:
    """One line.

    Args:
        setting: its name.
        alone: what the opening scores by itself; None without one.
        total_s: as a caller saw it, in a live run.
    """
    receipt = answered.receipt
    teacher, student = receipt.teacher, receipt.student
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
        opening_score=0.0 if alone is None else alone.score,
        kept_tokens=_kept(receipt),
        teacher_input_tokens=0 if teacher is None else teacher.input_tokens,
        teacher_output_tokens=0 if teacher is None else teacher.output_tokens,
        student_input_tokens=0 if student is None else student.input_tokens,
        student_output_tokens=0 if student is None else student.output_tokens,
        cost_usd=receipt.cost_usd,
        teacher_usd=_NOTHING if teacher is None else teacher.cost_usd,
        baseline_usd=receipt.baseline_usd,
        teacher_s=answered.teacher_s,
        student_s=answered.student_s,
        total_s=total_s,
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
