"""Classify guidance and the text after it at the seam. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from load_tests.seam_engine import UNREPORTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from load_tests.seam_engine import Written

Why = Literal["template", "white space", "half token", "tokenisation", "arithmetic"]
WHYS: dict[Why, str] = {
    "template": "the chat template changed the text",
    "white space": "the teacher's token contains white space that was removed at the seam",
    "half token": "the text was cut within a token of the teacher",
    "tokenisation": "the tokenization of the text differs from the teacher's tokens",
    "arithmetic": "the tokens are equal: the engine's rounding differs between processing and generating a text",
}
_WORD_AT_END = re.compile(r"\w+\Z")
_WORD_AT_BEGIN = re.compile(r"\w*")
_FIRST_IDEOGRAPHIC = "\u2e80"  # the first character of scripts without spaces


@dataclass(frozen=True)
class SeamCase:
    """A prompt with one m and one boundary: the kept text of the teacher, and the guided answer.

    Attributes:
        kept_tokens: the number of the teacher's tokens that are completely within `kept`.
        expected: the teacher's own answer.
        got: the guided answer, as far as it was read.
        why: the cause of a difference; None if the answers are equal.
    """

    kind: str
    question: str
    m: int
    boundary: str
    kept: str
    kept_tokens: int
    expected: str
    got: str
    why: Why | None


def differs(expected: str, got: str, *, complete: bool) -> bool:
    """Return whether an answer differs from the teacher's, up to the shorter length.

    Args:
        complete: whether both texts are complete.
    """
    shared = min(len(expected), len(got))
    return expected[:shared] != got[:shared] or (complete and expected != got)


def reason(written: Written, kept: str, *, prompt: str, sent: str, sent_ids: Sequence[int]) -> Why:
    """Return the cause of a difference between the continuation of `kept` and the model's own text.

    Args:
        prompt, sent: the chat as rendered by the template, without and with the guidance.
    """
    if sent != prompt + kept:
        return "template"
    lead = len(written.text) - len(written.text.lstrip())
    if lead:
        return "white space"
    tokens = tokens_within(written, len(kept))
    begin = written.ends[tokens - 1] if tokens else 0
    if begin < len(kept):
        return "white space" if written.text[len(kept) : len(kept) + 1].isspace() else "half token"
    own = [*written.prompt_ids, *written.ids[:tokens]]
    same = len(own) == len(sent_ids) and all(
        mine in (UNREPORTED, theirs) for mine, theirs in zip(own, sent_ids, strict=True)
    )
    return "arithmetic" if same else "tokenisation"


def tokens_within(written: Written, chars: int) -> int:
    """Return the number of tokens that end at or before this character."""
    return sum(1 for end in written.ends if end <= chars)


def seam_word(before: str, after: str) -> str:
    """Return the word across the end of one text and the beginning of another; "" without one."""
    head = _WORD_AT_END.search(before)
    return "" if head is None else head[0] + _WORD_AT_BEGIN.match(after)[0]  # type: ignore[index]


def words_of(texts: Sequence[str]) -> set[str]:
    """Return the lowercase words of these texts, without the last one of each, which may be incomplete."""
    return {word.lower() for text in texts for word in re.findall(r"\w+(?=\W)", text)}


def is_within_a_word(case: SeamCase) -> bool:
    """Return whether the seam is within a word of the teacher's text. Scripts without spaces do not count."""
    at = len(case.kept)
    around = case.expected[at - 1 : at + 1]
    return len(around) == 2 and around.isalnum() and all(char < _FIRST_IDEOGRAPHIC for char in around)


def is_doubtful(case: SeamCase, vocabulary: set[str]) -> bool:
    """Return whether the word at the seam is neither the teacher's nor in the texts' vocabulary."""
    word = seam_word(case.kept, case.got[len(case.kept) :])
    own = seam_word(case.kept, case.expected[len(case.kept) :])
    if not word or word == own or word.isdigit() or any(char >= _FIRST_IDEOGRAPHIC for char in word):
        return False
    return word.lower() not in vocabulary
