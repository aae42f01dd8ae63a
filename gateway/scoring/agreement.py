"""How far one answer says what another says: in its words, its text, its number, its choice. Pure.

None of it reads a question: what is scored is an answer alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from gateway.scoring.choices import letter
from gateway.scoring.numbers import equal, result
from gateway.scoring.texts import folded, shared_words, stated_text

if TYPE_CHECKING:
    from collections.abc import Callable

Comparison = Literal["words", "exact", "numeric", "choice"]


def agreement(comparison: Comparison, answer: str, reference: str) -> float | None:
    """How far `answer` agrees with `reference`, from 0 to 1.

    None where the reference has nothing of the kind that is compared: no number, no choice, no word. An answer without
    it agrees with nothing.
    """
    return _COMPARISONS[comparison](answer, reference)


def _same_text(answer: str, reference: str) -> float | None:
    wanted = folded(stated_text(reference))
    return float(folded(stated_text(answer)) == wanted) if wanted else None


def _same_number(answer: str, reference: str) -> float | None:
    wanted = result(reference)
    if wanted is None:
        return None
    found = result(answer)
    # Either may say "60%" where the other says 0.6.
    return float(found is not None and (equal(found, wanted) or equal(wanted, found)))


def _same_choice(answer: str, reference: str) -> float | None:
    wanted = letter(reference)
    return float(letter(answer) == wanted) if wanted is not None else None


_COMPARISONS: dict[Comparison, Callable[[str, str], float | None]] = {
    "words": shared_words,
    "exact": _same_text,
    "numeric": _same_number,
    "choice": _same_choice,
}
