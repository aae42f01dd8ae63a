"""The number that an answer comes to, and whether it is the right one. Pure."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from gateway.scoring.statements import is_whole, own_part, plain, sentences, statements

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^])(?<!\^\{)"
    r"(?P<sign>-)?(?P<currency>[$\u20ac\u00a3]\s?(?P<inner>-)?)?"
    r"(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE](?P<power>[+-]?[0-9]{1,2})(?![A-Za-z0-9]))?"
    r"(?:/(?P<below>[0-9]+)(?![0-9/.]))?"
    r"(?P<percent>\s?%)?"
)
_TIME = re.compile(r":(?P<minutes>[0-9]{2})(?![0-9])")
_LATE_PART = re.compile(r"[0-9]:\Z")
_OPERAND = re.compile(r"(?:\w|[0-9)%]\s+|[)%])\Z")
_LOOK_BACK = 8
_ADDS = re.compile(r"\s[-+*/]\s")
_DIGIT = re.compile(r"[0-9]")
_SIGNS = frozenset("-+*/=")
_NOTHING = Fraction(0)
_LONGEST = 100  # characters; what is longer is no number that anybody asked for
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
# What follows a number that is but a part of a sum, or counts an unknown.
_GOES_ON = re.compile(r"[)\s]*[-+*/^]|\s+x\s|[xyn]\b")
# Begins a sentence that only tells a result again, or is cut off before it tells anything.
_TELLS_AGAIN = re.compile(
    r"\W*(?:so|thus|therefore|hence|this (?:means|gives)|the(?: answer(?: is)?)?\Z)\b", re.IGNORECASE
)
# The number of a list's item, of a heading's, of a step.
_NUMBERED = re.compile(
    r"^[ \t>#*-]*[0-9]{1,2}[.)](?=\s|\*)|\b(?:step|part|question|example)\s+[0-9]{1,2}\b",
    re.IGNORECASE | re.MULTILINE,
)
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_UNITS = re.compile(r"\s*+[A-Za-z/ ]{0,24}+[\s.]*+")
_WORDS = {
    word: value
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
}


class NumberValue(NamedTuple):
    """A number as an answer writes it, and what it is worth. A percentage is worth what stands before the sign."""

    written: str
    value: Fraction
    percent: bool = False


def result(text: str) -> NumberValue | None:
    """The number that an answer comes to; None where there is none.

    What it states ("The answer is", "####", a LaTeX box) wins, and the last statement over earlier ones. Without a
    statement: of the last paragraph with a number, the last one in bold, else the last number; in a sentence with
    equals signs the one behind the last sign that has a whole result. A text that breaks off has the last number
    behind an equals sign, and none where it went on to something else since. Numbers of lists and steps, ordinals and
    program code do not count.
    """
    own = own_part(text)
    text = plain(own)
    for statement in reversed(statements(text)):
        found = _whole(statement.said) if statement.marked else _stated(statement.said)
        if found is not None:
            return found
    text = _NUMBERED.sub(" ", text)
    if not is_whole(text) and not is_whole(own):
        return _on_the_way(sentences(text))
    for paragraph in reversed(re.split(r"\n\s*\n", text)):
        for mark in reversed(list(_BOLD.finditer(paragraph))):
            if (found := _whole(mark[1])) is not None:
                return found
        for sentence in reversed(sentences(paragraph)):
            if (found := _concluded(sentence)) is not None:
                return found
    return None


def _on_the_way(told: list[str]) -> NumberValue | None:
    """What a text that breaks off had come to."""
    if not told or _dangles(told[-1]) or _puts_numbers_in(told[-1]):
        return None
    for sentence in reversed(told):
        if (found := _behind_equals(sentence)) is not None:
            return found
        if not _TELLS_AGAIN.match(sentence):
            break
    return _concluded(told[-1]) if len(told) == 1 or _TELLS_AGAIN.match(told[-1]) else None


def _dangles(sentence: str) -> bool:
    """Whether it ends with a sign of a sum, whose other side is still to come."""
    for char in reversed(sentence):
        if char in _SIGNS or char.isalnum():
            return char in _SIGNS
    return False


def _puts_numbers_in(sentence: str) -> bool:
    """Whether the number that it ends with may be the first of a sum that stood there in words: "fish + fowl = 20"."""
    told, sign, last = sentence.rpartition("=")
    told = told.rpartition("=")[2]
    in_words = _ADDS.search(told) is not None and _DIGIT.search(told) is None
    return sign != "" and in_words and _NUMBER.fullmatch(last.strip()) is not None


def equal(found: NumberValue, wanted: NumberValue, within: Fraction = _NOTHING) -> bool:
    """Whether it is the wanted number, by value and within a tolerance: 60 % is as good as 60 and as 0.6."""
    values = {found.value, found.value / 100} if found.percent and not wanted.percent else {found.value}
    return any(abs(value - wanted.value) <= within for value in values)


def number(text: str) -> NumberValue:
    """What a data set gives as a number: "18", "-2.5", "$1,200", "3/4". Raises ValueError where it is none."""
    found = _whole(plain(text))
    if found is None:
        raise ValueError("not a number")
    return found


def _stated(said: str) -> NumberValue | None:
    found = _behind_equals(said)
    if found is not None:
        return found
    first = next(_placed(said), None)
    if first is not None:
        amount, start, _ = first
        # "is clear after 5 steps: 42"
        behind_words = _whole(said.rpartition(":")[2]) if start > 0 else None
        return behind_words or amount
    word = said.lower().partition(" ")[0].strip(",;:")
    return NumberValue(word, Fraction(_WORDS[word])) if word in _WORDS else None


def _concluded(sentence: str) -> NumberValue | None:
    # Backwards, since a text may be thousands of numbers, and it takes much longer to work one out than to find it.
    matches = reversed(list(_NUMBER.finditer(sentence)))
    return _behind_equals(sentence) or next(filter(None, (_amount(match, sentence) for match in matches)), None)


def _behind_equals(sentence: str) -> NumberValue | None:
    """The first number behind the last equals sign that has one and no sum."""
    for part in reversed(sentence.split("=")[1:]):
        found = next(_placed(part), None)
        if found is not None and not _GOES_ON.match(part, found[2]):
            return found[0]
    return None


def _whole(text: str) -> NumberValue | None:
    """The number, where the text is one and nothing else but a unit; what stands behind an equals sign, with one."""
    text = text.replace("**", "").strip()
    if "=" in text:
        text = text.rpartition("=")[2].strip()
    found = next(_placed(text), None)
    if found is None:
        return None
    amount, start, end = found
    return amount if start == 0 and _UNITS.fullmatch(text, end) else None


def _placed(text: str) -> Iterator[tuple[NumberValue, int, int]]:
    """Each number with where it stands."""
    for match in _NUMBER.finditer(text):
        amount = _amount(match, text)
        if amount is not None:
            yield amount, match.start(), match.end()


def _amount(match: re.Match[str], text: str) -> NumberValue | None:
    value = _value(match, text)
    if value is None:
        return None
    sign = match["sign"] is not None and not _is_minus(match, text)
    written = match[0].strip() if sign or match["sign"] is None else match[0][1:].strip()
    negative = sign or match["inner"] is not None
    return NumberValue(written, -value if negative else value, match["percent"] is not None)


def _value(match: re.Match[str], text: str) -> Fraction | None:
    """Without its sign; None where it is an ordinal, or part of a time that is no whole hour."""
    if len(match[0]) > _LONGEST or _ORDINAL.match(text, match.end()) or _LATE_PART.search(_before(match, text)):
        return None
    time = _TIME.match(text, match.end())
    if time is not None and time["minutes"] != "00":
        return None
    below = int(match["below"] or 1)
    if not below:
        return None
    digits, _, behind = match["number"].replace(",", "").partition(".")
    tens = int(match["power"] or 0) - len(behind)
    whole = int(digits + behind)
    return Fraction(whole * 10**tens, below) if tens > 0 else Fraction(whole, 10**-tens * below)


def _is_minus(match: re.Match[str], text: str) -> bool:
    """Whether the dash takes away from what stands before it, or joins words."""
    return _OPERAND.search(_before(match, text)) is not None


def _before(match: re.Match[str], text: str) -> str:
    """The little that stands before it: a whole text would make reading it take the square of its length."""
    return text[max(0, match.start() - _LOOK_BACK) : match.start()]
