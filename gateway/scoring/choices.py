"""The choice that an answer names, by its letter or its text. Pure.

The choices' texts are known, so that an answer may give one in place of its letter; the question is not.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from gateway.scoring.statements import is_whole, own_part, plain, sentences, statements

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
_LOOK_BACK = 24
_ASKED = re.compile(r"(?:\A|(?<=[.!?\n]))[^.!?\n]*+\?")
_LINE_HEAD = re.compile(r"^[ \t*>-]*+", re.MULTILINE)
_LEADING = re.compile(r"(?:(?:the|a|an|option|choice|letter|answer)\s+|[\"'\u201c(\[]\s*)+", re.IGNORECASE)


def choice(text: str, choices: Mapping[str, str]) -> str | None:
    """The letter of the choice that an answer names; None where it names none, or several without a word for one.

    In this order: the last statement ("The answer is (c)", "Answer: C", a LaTeX box) that names one; the one letter
    that it mentions at all; the one that it begins with, unless it takes one after the other; the last sentence that
    concludes ("so", "only", "most likely") and names one; an answer that is nothing but a choice, or that is whole and
    has the text of one alone.

    choices: their texts by letter, as the question writes the letters.
    """
    return _choice(text, _Reader(choices))


def letter(text: str) -> str | None:
    """The letter from a to j that an answer names, where the choices are not known; None as `choice`."""
    return _choice(text, _any_letter())


def _choice(text: str, reader: _Reader) -> str | None:
    text = plain(own_part(text))
    for statement in reversed(statements(text)):
        found = reader.stated(statement.said, by_text=not statement.duty)
        if found is not None:
            return found
    text = reader.bare(text)
    mentioned = reader.letters(text)
    if len(set(mentioned)) == 1:
        return mentioned[0]
    begins = reader.begins(text)
    if begins is not None and not reader.goes_through(text):
        return begins
    for sentence in reversed(sentences(text)):
        if _CONCLUDES.search(sentence) and not _DUTY.search(sentence):
            found = _only(reader.letters(sentence)) or _only(reader.named(sentence))
            if found is not None:
                return found
    found = reader.whole(text)
    if found is None and not reader.has_letters(text) and is_whole(text):
        # Not of a question told again, nor of what an answer should be.
        told = [said for said in sentences(_ASKED.sub(".", text)) if not _DUTY.search(said)]
        found = _only(reader.named(". ".join(told)))
    return found


def _only(found: Iterable[str]) -> str | None:
    different = set(found)
    return different.pop() if len(different) == 1 else None


def _behind_gap(text: str, at: int) -> int:
    gap = _GAP.match(text, at)
    return gap.end() if gap is not None else at


class _Reader:
    """Finds one question's choices in texts."""

    def __init__(self, choices: Mapping[str, str]) -> None:
        self._letters = {letter.lower(): letter for letter in choices}
        said = Counter(map(_folded, choices.values()))
        # A text that two of them have names neither.
        self._texts = {_folded(one): letter for letter, one in choices.items() if said[_folded(one)] == 1}
        some = "|".join(sorted(map(re.escape, choices), key=len, reverse=True))
        # The longest first: "bus station" is not "bus".
        longest = "|".join(sorted(map(_loosely, self._texts), key=len, reverse=True))
        named = rf"\b(?:{longest})(?:e?s)?\b" if longest else r"(?!)"
        self._named = re.compile(named, re.IGNORECASE)
        # "(c)"; "option c"; "c)" and "C." where a word or a line begins. "A:" alone announces an answer.
        self._marked = re.compile(
            rf"(?<!\w)\(\s*({some})\s*\)|\b(?:option|choice)\s+({some})\b"
            rf"|(?<![^\s\"'])({some})\)|^[ \t>*-]*({some})(?:\.(?=\s|\Z)|:(?=\s*{named}))",
            re.IGNORECASE | re.MULTILINE,
        )
        self._first = re.compile(rf"({some})(?=[)\].:,;\"'\u201d]|\s*\Z|\s+(?:because|since|-))", re.IGNORECASE)
        self._alone = re.compile(rf"\W*({some})\W*", re.IGNORECASE)
        self._bold = re.compile(rf"\*\*\s*({some})\s*\*\*", re.IGNORECASE)
        self._capital = re.compile(rf"({some})\b", re.IGNORECASE)

    def bare(self, text: str) -> str:
        """The text without bold marks; a letter in bold is one in brackets."""
        return self._bold.sub(r"(\1)", text).replace("**", "").strip()

    def letters(self, text: str) -> list[str]:
        """The letters that it mentions as such and does not deny, in order, again where again."""
        return [self._letter(mark) for mark in self._marked.finditer(text) if not self._is_denied(mark, text)]

    def has_letters(self, text: str) -> bool:
        """Whether it mentions any, denied or not."""
        return self._marked.search(text) is not None

    def goes_through(self, text: str) -> bool:
        """Whether it takes one choice after the other: lines begin with several letters, or the first are in order."""
        every = [(self._letter(mark), mark.start()) for mark in self._marked.finditer(text)]
        begun = {at for head in _LINE_HEAD.finditer(text) for at in head.span()}
        heads = {letter for letter, at in every if at in begun}
        first = list(self._letters.values())[:3]
        return len(heads) > 1 or [letter for letter, _ in every[:3]] == first

    def named(self, text: str) -> list[str]:
        """The choices whose texts it holds, in order."""
        return [letter for mark in self._named.finditer(text) if (letter := self._of(mark[0])) is not None]

    def begins(self, text: str) -> str | None:
        """The letter that it begins with, alone in its sentence."""
        first = next(iter(sentences(text)), "")
        mark = self._marked.match(text)
        return _only(self.letters(text[: max(len(first) + 1, mark.end())])) if mark is not None else None

    def stated(self, said: str, *, by_text: bool) -> str | None:
        """What a statement names: a letter that it begins with, its only letter, its first or only text."""
        said = said.replace("**", "").strip()
        head = _LEADING.sub("", said, count=1) if _LEADING.match(said) else said
        for start in (said.lstrip("([\"'\u201c "), head):
            mark = self._first.match(start)
            if mark is not None:
                return self._letters[mark[1].lower()]
        mark = self._capital.match(head)
        # "A bank" and "I" are words.
        if mark is not None and mark[1].isupper() and mark[1] not in {"A", "I"}:
            return self._letters[mark[1].lower()]
        found = _only(self.letters(said))
        if found is not None or not by_text:
            return found
        named = self._named.match(head)
        return self._of(named[0]) if named is not None else _only(self.named(said))

    def whole(self, text: str) -> str | None:
        """The choice whose letter or text is all of it, articles and marks aside."""
        alone = self._alone.fullmatch(text)
        if alone is not None:
            return self._letters[alone[1].lower()]
        bare = _LEADING.sub("", text, count=1) if _LEADING.match(text) else text
        mark = self._named.match(bare)
        return self._of(mark[0]) if mark is not None and not bare[mark.end() :].strip(" .!\"')\u201d\n") else None

    def _letter(self, mark: re.Match[str]) -> str:
        return self._letters[next(filter(None, mark.groups())).lower()]

    def _is_denied(self, mark: re.Match[str], text: str) -> bool:
        """ "not (a)", "(a) harbour is not"."""
        if _DENIED.search(text[max(0, mark.start() - _LOOK_BACK) : mark.start()]):
            return True
        own = self._named.match(text, _behind_gap(text, mark.end()))
        return _DENIAL.match(text, own.end() if own is not None else mark.end()) is not None

    def _of(self, said: str) -> str | None:
        folded = _folded(said)
        for ending in ("", "s", "es"):
            if folded.endswith(ending) and (letter := self._texts.get(folded.removesuffix(ending))) is not None:
                return letter
        return None


def _folded(said: str) -> str:
    return " ".join(said.lower().split())


def _loosely(said: str) -> str:
    return r"\s+".join(map(re.escape, said.split()))


@lru_cache(maxsize=1)
def _any_letter() -> _Reader:
    return _Reader(dict.fromkeys("abcdefghij", ""))
