"""Extraction of the number that an answer arrives at, and comparison of numbers. Pure functions."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from gateway.scoring.statements import first_answer, is_complete, plain, sentences, statements

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
_LOOKBEHIND_CHARS = 8
_ADDS = re.compile(r"\s[-+*/]\s")
_DIGIT = re.compile(r"[0-9]")
_SIGNS = frozenset("-+*/=")
_EXACT = Fraction(0)
_MAX_CHARS = 100  # characters; longer runs of digits are not results
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
# Text after a number that is only an operand, or a coefficient of an unknown.
_CONTINUES = re.compile(r"[)\s]*[-+*/^]|\s+x\s|[xyn]\b")
# Start of a sentence that restates a result, or that a limit cut off before its result.
_RESTATES = re.compile(
    r"\W*(?:so|thus|therefore|hence|this (?:means|gives)|the(?: answer(?: is)?)?\Z)\b", re.IGNORECASE
)
# Numbers of list items, headings and steps.
_NUMBERED = re.compile(
    r"^[ \t>#*-]*[0-9]{1,2}[.)](?=\s|\*)|\b(?:step|part|question|example)\s+[0-9]{1,2}\b", re.IGNORECASE | re.MULTILINE
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
    """A number as written in an answer, and its value. The value of a percentage is the number before the sign."""

    written: str
    value: Fraction
    percent: bool = False


def result(text: str) -> NumberValue | None:
    """Return the number that an answer arrives at; None if there is none.

    A statement ("The answer is", "####", a LaTeX box) takes precedence, and the last statement over earlier ones.
    Without a statement, the last paragraph with a number counts: its last number in bold, else its last number. In a
    sentence with equals signs, the number after the last sign that has a complete result counts. A truncated text has
    the last number after an equals sign, unless it continued with another topic. Numbers of lists and steps, ordinals
    and program code do not count.
    """
    own = first_answer(text)
    text = plain(own)
    for statement in reversed(statements(text)):
        found = _whole(statement.text) if statement.marked else _stated(statement.text)
        if found is not None:
            return found
    text = _NUMBERED.sub(" ", text)
    if not is_complete(text) and not is_complete(own):
        return _result_of_truncated(sentences(text))
    for paragraph in reversed(re.split(r"\n\s*\n", text)):
        for mark in reversed(list(_BOLD.finditer(paragraph))):
            if (found := _whole(mark[1])) is not None:
                return found
        for sentence in reversed(sentences(paragraph)):
            if (found := _concluded(sentence)) is not None:
                return found
    return None


def _result_of_truncated(parts: list[str]) -> NumberValue | None:
    if not parts or _ends_with_operator(parts[-1]) or _substitutes_numbers(parts[-1]):
        return None
    for sentence in reversed(parts):
        if (found := _behind_equals(sentence)) is not None:
            return found
        if not _RESTATES.match(sentence):
            break
    return _concluded(parts[-1]) if len(parts) == 1 or _RESTATES.match(parts[-1]) else None


def _ends_with_operator(sentence: str) -> bool:
    """Return whether the sentence ends with an operator whose right operand is missing."""
    return next((char in _SIGNS for char in reversed(sentence) if char in _SIGNS or char.isalnum()), False)


def _substitutes_numbers(sentence: str) -> bool:
    """Return whether the final number may be the first operand of a sum stated in words: "fish + fowl = 20"."""
    parts, sign, last = sentence.rpartition("=")
    parts = parts.rpartition("=")[2]
    in_words = _ADDS.search(parts) is not None and _DIGIT.search(parts) is None
    return sign != "" and in_words and _NUMBER.fullmatch(last.strip()) is not None


def equal(found: NumberValue, expected: NumberValue, within: Fraction = _EXACT) -> bool:
    """Return whether two numbers have equal values within a tolerance: 60 % equals both 60 and 0.6."""
    values = {found.value, found.value / 100} if found.percent and not expected.percent else {found.value}
    return any(abs(value - expected.value) <= within for value in values)


def number(text: str) -> NumberValue:
    """Parse a number of a data set: "18", "-2.5", "$1,200", "3/4". Raises ValueError for any other text."""
    found = _whole(plain(text))
    if found is None:
        raise ValueError("not a number")
    return found


def _stated(text: str) -> NumberValue | None:
    found = _behind_equals(text)
    if found is not None:
        return found
    first = next(_located(text), None)
    if first is not None:
        amount, start, _ = first
        # "is clear after 5 steps: 42"
        behind_words = _whole(text.rpartition(":")[2]) if start > 0 else None
        return behind_words or amount
    word = text.lower().partition(" ")[0].strip(",;:")
    return NumberValue(word, Fraction(_WORDS[word])) if word in _WORDS else None


def _concluded(sentence: str) -> NumberValue | None:
    # Search backwards: a text may hold thousands of numbers, and evaluating one costs more than finding it.
    matches = reversed(list(_NUMBER.finditer(sentence)))
    return _behind_equals(sentence) or next(filter(None, (_amount(match, sentence) for match in matches)), None)


def _behind_equals(sentence: str) -> NumberValue | None:
    """Return the first number after the last equals sign that is followed by a number and not by a sum."""
    for part in reversed(sentence.split("=")[1:]):
        found = next(_located(part), None)
        if found is not None and not _CONTINUES.match(part, found[2]):
            return found[0]
    return None


def _whole(text: str) -> NumberValue | None:
    """Return the number if the text is a number with an optional unit; with an equals sign, the part after it."""
    text = text.replace("**", "").strip()
    if "=" in text:
        text = text.rpartition("=")[2].strip()
    found = next(_located(text), None)
    if found is None:
        return None
    amount, start, end = found
    return amount if start == 0 and _UNITS.fullmatch(text, end) else None


def _located(text: str) -> Iterator[tuple[NumberValue, int, int]]:
    for match in _NUMBER.finditer(text):
        amount = _amount(match, text)
        if amount is not None:
            yield amount, match.start(), match.end()


def _amount(match: re.Match[str], text: str) -> NumberValue | None:
    value = _value(match, text)
    if value is None:
        return None
    # After an operand, the dash is a minus operator or joins words.
    sign = match["sign"] is not None and not _OPERAND.search(_before(match, text))
    written = match[0].strip() if sign or match["sign"] is None else match[0][1:].strip()
    negative = sign or match["inner"] is not None
    return NumberValue(written, -value if negative else value, match["percent"] is not None)


def _value(match: re.Match[str], text: str) -> Fraction | None:
    """Return the value without its sign; None for an ordinal or a time of day that is not a full hour."""
    if len(match[0]) > _MAX_CHARS or _ORDINAL.match(text, match.end()) or _LATE_PART.search(_before(match, text)):
        return None
    time = _TIME.match(text, match.end())
    if time is not None and time["minutes"] != "00":
        return None
    denominator = int(match["below"] or 1)
    if not denominator:
        return None
    digits, _, decimals = match["number"].replace(",", "").partition(".")
    exponent = int(match["power"] or 0) - len(decimals)
    whole = int(digits + decimals)
    return Fraction(whole * 10**exponent, denominator) if exponent > 0 else Fraction(whole, 10**-exponent * denominator)


def _before(match: re.Match[str], text: str) -> str:
    """Return the few characters before the match: searching the whole text would take quadratic time."""
    return text[max(0, match.start() - _LOOKBEHIND_CHARS) : match.start()]
