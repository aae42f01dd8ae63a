"""Extraction of the choice that an answer names, by letter or by text. Pure functions.

The texts of the choices are known, the question is not. An answer may give a choice's text in place of its letter.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from gateway.scoring.statements import first_answer, is_complete, plain, sentences, statements

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_CONCLUDES = re.compile(
    r"\b(?:so|thus|therefore|hence|only|best|closest|most (?:likely|suitable|appropriate|common|logical)|correct"
    r"|in conclusion|would choose|choose|i pick)\b",
    re.IGNORECASE,
)
_DUTY = re.compile(r"\banswer\s+(?:should|must|has to)\b", re.IGNORECASE)
_DENIED = re.compile(r"(?:\bnot|n't|\bnor|\bthan|\bopposed to|\binstead of)\s+(?:the\s+)?\Z", re.IGNORECASE)
_DENIAL = re.compile(r"[\s,:*]*(?:(?:is|are|was|were|would|does|do|can|could)(?:\s+not|n't)|cannot)\b", re.IGNORECASE)
_GAP = re.compile(r"[\s:*]*")
_LOOKBEHIND_CHARS = 24
_QUESTION = re.compile(r"(?:\A|(?<=[.!?\n]))[^.!?\n]*+\?")
_LINE_HEAD = re.compile(r"^[ \t*>-]*+", re.MULTILINE)
_LEADING = re.compile(r"(?:(?:the|a|an|option|choice|letter|answer)\s+|[\"'\u201c(\[]\s*)+", re.IGNORECASE)


def choice(text: str, choices: Mapping[str, str]) -> str | None:
    """Return the letter of the choice that an answer names; None if it names none or several without a conclusion.

    The rules apply in this order:

    1. The last statement ("The answer is (c)", "Answer: C", a LaTeX box) that names a choice.
    2. The only letter in the answer.
    3. The letter at the start of the answer, unless the answer discusses the choices in turn.
    4. The last concluding sentence ("so", "only", "most likely") that names a choice.
    5. An answer that consists of a choice, or a complete answer that contains the text of exactly one choice.

    `choices` has the text of each choice by its letter, written as in the question.
    """
    return _choice(text, _ChoiceParser(choices))


def letter(text: str) -> str | None:
    """Return the letter from a to j that an answer names when the choices are unknown; None as in `choice`."""
    return _choice(text, _ANY_LETTER)


def _choice(text: str, reader: _ChoiceParser) -> str | None:
    text = plain(first_answer(text))
    for statement in reversed(statements(text)):
        found = reader.from_statement(statement.text, by_text=not statement.prescriptive)
        if found is not None:
            return found
    text = reader.bare(text)
    mentioned = reader.letters(text)
    if len(set(mentioned)) == 1:
        return mentioned[0]
    leading = reader.leading(text)
    if leading is not None and not reader.enumerates(text):
        return leading
    for sentence in reversed(sentences(text)):
        if _CONCLUDES.search(sentence) and not _DUTY.search(sentence):
            found = _only(reader.letters(sentence)) or _only(reader.named(sentence))
            if found is not None:
                return found
    found = reader.only_choice(text)
    if found is None and not reader.has_letters(text) and is_complete(text):
        # Skip restated questions and sentences about the form of the answer.
        assertions = [sentence for sentence in sentences(_QUESTION.sub(".", text)) if not _DUTY.search(sentence)]
        found = _only(reader.named(". ".join(assertions)))
    return found


def _only(found: Iterable[str]) -> str | None:
    different = set(found)
    return different.pop() if len(different) == 1 else None


class _ChoiceParser:
    def __init__(self, choices: Mapping[str, str]) -> None:
        self._letters = {letter.lower(): letter for letter in choices}
        counts = Counter(map(_normalize, choices.values()))
        # A text that two choices share names neither.
        self._texts = {_normalize(one): letter for letter, one in choices.items() if counts[_normalize(one)] == 1}
        any_letter = "|".join(sorted(map(re.escape, choices), key=len, reverse=True))
        # Longest first, so that "bus station" does not match as "bus".
        spaced = (r"\s+".join(map(re.escape, text.split())) for text in self._texts)
        longest = "|".join(sorted(spaced, key=len, reverse=True))
        named = rf"\b(?:{longest})(?:e?s)?\b" if longest else r"(?!)"
        self._named = re.compile(named, re.IGNORECASE)
        # "(c)"; "option c"; "c)" and "C." at the start of a word or line. "A:" alone announces an answer.
        self._marked = re.compile(
            rf"(?<!\w)\(\s*({any_letter})\s*\)|\b(?:option|choice)\s+({any_letter})\b"
            rf"|(?<![^\s\"'])({any_letter})\)|^[ \t>*-]*({any_letter})(?:\.(?=\s|\Z)|:(?=\s*{named}))",
            re.IGNORECASE | re.MULTILINE,
        )
        self._first = re.compile(rf"({any_letter})(?=[)\].:,;\"'\u201d]|\s*\Z|\s+(?:because|since|-))", re.IGNORECASE)
        self._alone = re.compile(rf"\W*({any_letter})\W*", re.IGNORECASE)
        self._bold = re.compile(rf"\*\*\s*({any_letter})\s*\*\*", re.IGNORECASE)
        self._capital = re.compile(rf"({any_letter})\b", re.IGNORECASE)

    def bare(self, text: str) -> str:
        """Return the text without bold marks. A bold letter becomes a letter in parentheses."""
        return self._bold.sub(r"(\1)", text).replace("**", "").strip()

    def letters(self, text: str) -> list[str]:
        """Return the letters that the text mentions and does not deny, in order, with repetitions."""
        return [self._letter(mark) for mark in self._marked.finditer(text) if not self._is_denied(mark, text)]

    def has_letters(self, text: str) -> bool:
        """Return whether the text mentions any letter, denied or not."""
        return self._marked.search(text) is not None

    def enumerates(self, text: str) -> bool:
        """Return whether lines begin with different letters, or the first letters are in the order of the choices."""
        every = [(self._letter(mark), mark.start()) for mark in self._marked.finditer(text)]
        begun = {at for head in _LINE_HEAD.finditer(text) for at in head.span()}
        heads = {letter for letter, at in every if at in begun}
        first = list(self._letters.values())[:3]
        return len(heads) > 1 or [letter for letter, _ in every[:3]] == first

    def named(self, text: str) -> list[str]:
        """Return the letters of the choices whose texts occur in `text`, in order."""
        return [letter for mark in self._named.finditer(text) if (letter := self._of(mark[0])) is not None]

    def leading(self, text: str) -> str | None:
        """Return the letter at the start of the text if the first sentence has no other letter."""
        first = next(iter(sentences(text)), "")
        mark = self._marked.match(text)
        return _only(self.letters(text[: max(len(first) + 1, mark.end())])) if mark is not None else None

    def from_statement(self, text: str, *, by_text: bool) -> str | None:
        """Return the choice that a statement names: its leading letter, its only letter, or its first or only text."""
        text = text.replace("**", "").strip()
        head = _LEADING.sub("", text, count=1) if _LEADING.match(text) else text
        for start in (text.lstrip("([\"'\u201c "), head):
            mark = self._first.match(start)
            if mark is not None:
                return self._letters[mark[1].lower()]
        mark = self._capital.match(head)
        # "A bank" and "I" are words, not letters.
        if mark is not None and mark[1].isupper() and mark[1] not in {"A", "I"}:
            return self._letters[mark[1].lower()]
        found = _only(self.letters(text))
        if found is not None or not by_text:
            return found
        named = self._named.match(head)
        return self._of(named[0]) if named is not None else _only(self.named(text))

    def only_choice(self, text: str) -> str | None:
        """Return the choice whose letter or text is the whole of `text`, ignoring articles and punctuation."""
        alone = self._alone.fullmatch(text)
        if alone is not None:
            return self._letters[alone[1].lower()]
        bare = _LEADING.sub("", text, count=1) if _LEADING.match(text) else text
        mark = self._named.match(bare)
        return self._of(mark[0]) if mark is not None and not bare[mark.end() :].strip(" .!\"')\u201d\n") else None

    def _letter(self, mark: re.Match[str]) -> str:
        return self._letters[next(filter(None, mark.groups())).lower()]

    def _is_denied(self, mark: re.Match[str], text: str) -> bool:
        """Return whether a mention is negated, as in "not (a)" or "(a) harbor is not"."""
        if _DENIED.search(text[max(0, mark.start() - _LOOKBEHIND_CHARS) : mark.start()]):
            return True
        gap = _GAP.match(text, mark.end())
        own = self._named.match(text, gap.end() if gap is not None else mark.end())
        return _DENIAL.match(text, own.end() if own is not None else mark.end()) is not None

    def _of(self, text: str) -> str | None:
        folded = _normalize(text)
        for ending in ("", "s", "es"):
            if folded.endswith(ending) and (letter := self._texts.get(folded.removesuffix(ending))) is not None:
                return letter
        return None


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())


_ANY_LETTER = _ChoiceParser(dict.fromkeys("abcdefghij", ""))
