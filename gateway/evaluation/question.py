"""A question of an evaluation with its correct answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a data set.

    Attributes:
        text: The text for the model, including choices.
        answer: The correct answer as its scorer reads it: a number, a choice's letter, a text.
        scorer: Name of the scorer (`scoring.SCORERS`).
        options: Parameters of the scorer: the choices by letter, a pattern.
        steps: Number of steps to the answer, if known.
    """

    id: str
    text: str
    answer: str
    scorer: str
    options: tuple[tuple[str, str], ...] = ()
    steps: int | None = None


def with_choices(question: str, choices: Mapping[str, str]) -> str:
    """Return the question with its choices by letter, as models read it (paper, Appendix D)."""
    return f"{question} Answer Choices: {' '.join(f'({letter}) {text}' for letter, text in choices.items())}"
