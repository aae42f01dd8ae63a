"""Classify guidance and the text after it at the seam. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from load_tests.seam_engine import UNTOLD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from load_tests.seam_engine import Written

Why = Literal["template", "white space", "half token", "tokenisation", "arithmetic"]
WHYS: dict[Why, str] = {
    "template": "the chat template changed the text that was sent",
    "white space": "the teacher's token held white space that the seam has cut off",
    "half token": "the cut went through a token of the teacher's",
    "tokenisation": "the same text became other tokens than the teacher wrote",
    "arithmetic": "the tokens were the same: the engine's sums differ between reading a text and writing it",
}
_WORD_AT_END = re.compile(r"\w+\Z")
_WORD_AT_BEGIN = re.compile(r"\w*")
_FIRST_IDEOGRAPHIC = "\u2e80"  # from here on, scripts without spaces


@dataclass(frozen=True)
class SeamCase:
    """One prompt, one m, one boundary: what was kept of the teacher's text, and what the whole became.

    Attributes:
        kept_tokens: how many of the teacher's tokens lie wholly within `kept`.
        got: the guided answer, as far as it was read.
        why: None where it equals the teacher's own.
    """

    kind: str
    question: str
    m: int
    boundary: str
    kept: str
    kept_tokens: int
    wanted: str
    got: str
    why: Why | None


def differs(wanted: str, got: str, *, complete: bool) -> bool:
    """Return whether an answer differs from the teacher's, up to the shorter length.

    complete: nothing follows either text.
    """
    shared = min(len(wanted), len(got))
    return wanted[:shared] != got[:shared] or (complete and wanted != got)


def reason(written: Written, kept: str, *, prompt: str, sent: str, sent_ids: Sequence[int]) -> Why:
    """Why a model did not go on from `kept` as it had gone on by itself.

    prompt, sent: as the chat template rendered the chat without, and with, the opening.
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
        mine in (UNTOLD, theirs) for mine, theirs in zip(own, sent_ids, strict=True)
    )
    return "arithmetic" if same else "tokenisation"


def tokens_within(written: Written, chars: int) -> int:
    """How many of the tokens end at or before this character."""
    return sum(1 for end in written.ends if end <= chars)


def seam_word(before: str, after: str) -> str:
    """The word that stands across the end of one text and the beginning of another; "" if none does."""
    head = _WORD_AT_END.search(before)
    return "" if head is None else head[0] + _WORD_AT_BEGIN.match(after)[0]  # type: ignore[index]


def words_of(texts: Sequence[str]) -> set[str]:
    """Every word of these texts, in lower case, but for the last of each, which may be half."""
    return {word.lower() for text in texts for word in re.findall(r"\w+(?=\W)", text)}


def is_within_a_word(case: SeamCase) -> bool:
    """Return whether the seam is within a word of the teacher's text. Scripts without spaces do not count."""
    at = len(case.kept)
    around = case.wanted[at - 1 : at + 1]
    return len(around) == 2 and around.isalnum() and all(char < _FIRST_IDEOGRAPHIC for char in around)


def is_doubtful(case: SeamCase, vocabulary: set[str]) -> bool:
    """Return whether the word at the seam is neither the teacher's nor in the texts' vocabulary."""
    word = seam_word(case.kept, case.got[len(case.kept) :])
    own = seam_word(case.kept, case.wanted[len(case.kept) :])
    if not word or word == own or word.isdigit() or any(char >= _FIRST_IDEOGRAPHIC for char in word):
        return False
    return word.lower() not in vocabulary
