"""Agreement of two answers by shared words, exact text, number or choice. Pure functions.

The comparison reads the two answers only, never the question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gateway.scoring.choices import letter
from gateway.scoring.numbers import equal, result
from gateway.scoring.statements import normalize_text, shared_words, stated_text

if TYPE_CHECKING:
    from collections.abc import Callable

Comparison = Literal["words", "exact", "numeric", "choice"]


def agreement(comparison: Comparison, answer: str, reference: str) -> float | None:
    """Return how far `answer` agrees with `reference`, from 0 to 1; None if the reference has nothing to compare."""
    return _COMPARISONS[comparison](answer, reference)


def _same_text(answer: str, reference: str) -> float | None:
    expected = normalize_text(stated_text(reference))
    return float(normalize_text(stated_text(answer)) == expected) if expected else None


def _same_number(answer: str, reference: str) -> float | None:
    expected = result(reference)
    if expected is None:
        return None
    found = result(answer)
    # One answer may give "60%" and the other 0.6.
    return float(found is not None and (equal(found, expected) or equal(expected, found)))


def _same_choice(answer: str, reference: str) -> float | None:
    expected = letter(reference)
    return float(letter(answer) == expected) if expected is not None else None


_COMPARISONS: dict[Comparison, Callable[[str, str], float | None]] = {
    "words": shared_words,
    "exact": _same_text,
    "numeric": _same_number,
    "choice": _same_choice,
}
