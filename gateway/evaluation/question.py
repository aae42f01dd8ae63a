"""What is asked in an evaluation: a question with its answer, and questions answered beforehand as examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a data set.

    Attributes:
        id: its name in that data set; no two of one set have the same.
        text: as it is put to a model, choices included.
        answer: what is right, as its scorer reads it: a number, a choice's letter, a text.
        scorer: how an answer is held against it (`scoring.SCORERS`).
        options: what that scorer needs beside: the choices by letter, a pattern.
        steps: how many steps lead to the answer, where that is known.
    """

    id: str
    text: str
    answer: str
    scorer: str
    options: tuple[tuple[str, str], ...] = ()
    steps: int | None = None


def with_choices(question: str, choices: Mapping[str, str]) -> str:
    """The question as it is put to a model with its choices, by letter (paper, Appendix D)."""
    return f"{question} Answer Choices: {' '.join(f'({letter}) {said}' for letter, said in choices.items())}"
