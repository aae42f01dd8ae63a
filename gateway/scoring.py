"""How far one answer says what another says: in its last number, its choice, its words. Pure.

None of it reads a question: what is scored is an answer alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Comparison = Literal["words", "exact", "numeric", "choice"]

# A sign belongs to a number where nothing stands before it that it could take away from; digits in a name are none.
_NUMBER = r"(?<![\w.])(?:(?<![)\]])[-\u2212])?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SAID = r"(?:\\boxed\{|####|\banswer\b\s*(?:\bis\b|[:=]))"
_BEFORE = r"[\s:*$\u20ac\u00a3\\({]{0,8}"
_STATED_NUMBER = re.compile(rf"{_SAID}{_BEFORE}({_NUMBER})", re.IGNORECASE)
_ANY_NUMBER = re.compile(_NUMBER)
# Outside of brackets a small letter may be a word: "the answer is a dog".
_STATED_CHOICE = re.compile(rf"(?i:{_SAID})[\s:*\\{{]{{0,8}}(?:\(([A-Za-z])\)|([A-Z])(?![\w']))")
_BRACKETED = re.compile(r"(?<!\w)\(([A-Za-z])\)")
_FIRST_CHOICE = re.compile(r"\W{0,4}([A-Za-z])\W{0,4}|\(?([A-Z])[).:](?:\s.*)?", re.DOTALL)
# Of scripts that are written without spaces each sign counts as a word.
_SPACELESS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")


def agreement(comparison: Comparison, answer: str, reference: str) -> float | None:
    """How far `answer` agrees with `reference`, from 0 to 1.

    None where the reference has nothing of the kind that is compared: no number, no choice, no word. An answer without
    it agrees with nothing.
    """
    return _COMPARISONS[comparison](answer, reference)


def stated_number(text: str) -> Decimal | None:
    """The number that a text ends with: the last stated one ("answer is 18", "#### 18", "boxed{18}"), else the last."""
    found = _STATED_NUMBER.findall(text) or _ANY_NUMBER.findall(text)
    if not found:
        return None
    return Decimal(found[-1].replace(",", "").replace("$", "").replace("\u2212", "-"))


def stated_choice(text: str) -> str | None:
    """The letter that a text chooses, as a capital: the last after "answer is", else the only one in brackets.

    A text that begins with its letter ("C", "C) a lake") chooses that.
    """
    stated = _STATED_CHOICE.findall(text)
    if stated:
        return "".join(stated[-1]).upper()
    if first := _FIRST_CHOICE.fullmatch(text.strip()):
        return (first[1] or first[2]).upper()
    bracketed = {letter.upper() for letter in _BRACKETED.findall(text)}
    return bracketed.pop() if len(bracketed) == 1 else None


def normalised(text: str) -> str:
    """A text without what says nothing: capitals, runs of blanks, and the marks at its end."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(plain.split()).rstrip(" .!?;:,")


def shared_words(answer: str, reference: str) -> float | None:
    """F1 of the words that both have, each as often as in both; None where the reference has none."""
    ours, theirs = (Counter(_WORD.findall(normalised(text))) for text in (answer, reference))
    if not theirs:
        return None
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def _same(read: Callable[[str], object | None]) -> Callable[[str, str], float | None]:
    def compare(answer: str, reference: str) -> float | None:
        wanted = read(reference)
        return None if wanted is None else float(read(answer) == wanted)

    return compare


_COMPARISONS: dict[Comparison, Callable[[str, str], float | None]] = {
    "words": shared_words,
    "exact": _same(lambda text: normalised(text) or None),
    "numeric": _same(stated_number),
    "choice": _same(stated_choice),
}
