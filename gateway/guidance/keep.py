"""Keep a part of a teacher's text: drop its introductory boilerplate, keep m tokens, and trim the rest. Pure.

Sentences are matched whole, one at a time. No part of a sentence is passed on before it is certain that it is kept.
Text that was passed on is therefore never taken back, and the result does not depend on the sizes of the pieces.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from gateway.guidance.growing import GrowingTrim
from gateway.guidance.trim import CLOSE_TAG, OPEN_TAG, trim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.guidance.trim import TrimmedText
    from gateway.policy.guidance_rule import Boundary
    from gateway.policy.projections import SkipRule

MAX_SENTENCES = 4
"""Number of leading sentences that are matched."""
MAX_SENTENCE_CHARS = 300
"""Longest sentence that is matched: the caller waits for its end."""

# A punctuation mark with closing characters and whitespace, or the end of a line.
_SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)[.!?:]+[\"'\u201d\u2019)*_]*(?=\s)|[\u3002\uff01\uff1f\uff1a]|(?=\n)"
)
# An approximation of tokens: a word with the space before it, the rest of a long word, a digit, a mark. Where a piece
# begins does not depend on later text, so text can be counted as it arrives.
_PIECE = re.compile(r" ?(?:[A-Za-z]{1,10}|\d|[\u2e80-\U0003ffff]|[^\W\dA-Za-z_]{1,2}|[^\w\s]|_)|\s+")


class GrowingSkip:
    """Read a teacher's text in pieces of any size, and return the text to pass on to the seam.

    Leading whitespace is dropped. Complete leading `<think>` blocks are passed on unchanged and are not counted. Then,
    up to MAX_SENTENCES times, the longest beginning of the first sentence that a pattern matches is dropped, with the
    whitespace after it. A sentence ends with its mark if whitespace follows, with its line, or with the text. A
    sentence longer than MAX_SENTENCE_CHARS is not boilerplate. `tokens` is m, the number of kept tokens to pass on. The
    count is the gateway's own and rather too high than too low: the teacher's count is unknown while it generates.
    """

    def __init__(self, skip: SkipRule, tokens: int) -> None:
        self._skip = skip
        self._tokens_left = tokens
        self._sentences_left = MAX_SENTENCES
        self._held = ""
        self._in_reasoning = False
        self._received_chars = 0  # number of characters that were read
        self._counted = ""  # the last piece that was counted, which may continue
        self.dropped = False  # whether any text was dropped
        self.begins_at: int | None = None  # characters before the counted part; None: nothing was counted yet
        self.cut_at: int | None = None  # characters after which the text exceeded m tokens; None: it did not

    def feed(self, piece: str) -> str:
        """Read the teacher's next text. Return what is passed on."""
        self._received_chars += len(piece)
        if not self._sentences_left:
            return self._count_tokens(piece)
        self._held += piece
        return self._advance(ended=False)

    def finish(self) -> str:
        """Return the held text that is passed on, after the teacher has ended."""
        return self._advance(ended=True) if self._sentences_left else ""

    def _advance(self, *, ended: bool) -> str:
        passed = ""
        while self._sentences_left:
            passed += self._take_reasoning(ended=ended)
            if self._in_reasoning or (not ended and OPEN_TAG.startswith(self._held)):
                return passed
            sentence = _sentence(self._held, ended=ended)
            if sentence is None:
                return passed
            end = self._boilerplate_chars(sentence)
            self._sentences_left = self._sentences_left - 1 if end else 0
            if end:
                self.dropped = True
                self._held = self._held[end:].lstrip()
        rest, self._held = self._held, ""
        return passed + self._count_tokens(rest)

    def _take_reasoning(self, *, ended: bool) -> str:
        """Return the complete reasoning at the beginning of the held text, and open reasoning if the text has ended."""
        passed = ""
        while True:
            self._held = self._held if self._in_reasoning else self._held.lstrip()
            self._in_reasoning = self._in_reasoning or self._held.startswith(OPEN_TAG)
            if not self._in_reasoning:
                return passed
            end = self._held.find(CLOSE_TAG) + len(CLOSE_TAG)
            if end < len(CLOSE_TAG):
                if ended:
                    passed, self._held = passed + self._held, ""
                return passed
            passed, self._held, self._in_reasoning = passed + self._held[:end], self._held[end:], False

    def _boilerplate_chars(self, sentence: str) -> int:
        """Return the number of characters at the beginning of the sentence that are boilerplate."""
        raw = sentence.encode("utf-8", "replace")
        found = (pattern.compiled.match(raw) for pattern in self._skip.patterns)
        end = max((one.end() for one in found if one is not None), default=0)
        return len(raw[:end].decode("utf-8", "ignore"))

    def _count_tokens(self, text: str) -> str:
        """Return the part of the text that has room within m tokens. The text ends all text that was read."""
        if self.begins_at is None:
            text = text.lstrip()
            self.begins_at = self._received_chars - len(text) if text else None
        if self.cut_at is not None or not text:
            return ""
        begin = len(self._counted)
        counted_text = self._counted + text
        last = 0
        for number, piece in enumerate(_PIECE.finditer(counted_text)):
            if number or not begin:
                if not self._tokens_left:
                    self.cut_at = self._received_chars - len(counted_text) + piece.start()
                    return counted_text[begin : piece.start()]
                self._tokens_left -= 1
            last = piece.start()
        self._counted = counted_text[last:]
        return text


def _sentence(held: str, *, ended: bool) -> str | None:
    """Return the first sentence; "" if it is too long to be matched, None if it has not ended."""
    found = _SENTENCE_END.search(held, 0, MAX_SENTENCE_CHARS + 1)
    if found is not None:
        return held[: found.end()]
    if len(held) > MAX_SENTENCE_CHARS:
        return ""
    return held.rstrip() if ended else None


class KeptGuidance(NamedTuple):
    """The kept part of a teacher's text."""

    trimmed: TrimmedText
    cut: bool  # the teacher was stopped by length, or wrote more than m tokens after the skipped text
    skipped: bool  # boilerplate was dropped from the beginning


class GrowingKeep:
    """`keep` for a text that arrives in pieces."""

    def __init__(self, skip: SkipRule | None, tokens: int, *, boundary: Boundary, stop: Sequence[str]) -> None:
        self._trim = GrowingTrim(boundary=boundary, stop=stop)
        self._skip = GrowingSkip(skip, tokens) if skip is not None else None

    def feed(self, piece: str) -> str:
        """Read the teacher's next text, of any length. Return what can be shown now."""
        return self._trim.feed(piece if self._skip is None else self._skip.feed(piece))

    def finish(self, *, cut: bool) -> KeptGuidance:
        """Return the kept part after the teacher has ended, or was `cut` by length. It begins with all shown text."""
        if self._skip is None:
            return KeptGuidance(self._trim.finish(cut=cut), cut, skipped=False)
        self._trim.feed(self._skip.finish())
        cut = cut or self._skip.cut_at is not None
        return KeptGuidance(self._trim.finish(cut=cut), cut, self._skip.dropped)


def keep(
    text: str, skip: SkipRule | None, tokens: int, *, cut: bool, stop: Sequence[str], boundary: Boundary
) -> KeptGuidance:
    """Return the kept part of a complete text; arguments as for GrowingSkip and `trim`. None skips nothing."""
    if skip is None:
        return KeptGuidance(trim(text, cut=cut, stop=stop, boundary=boundary), cut, skipped=False)
    skip_filter = GrowingSkip(skip, tokens)
    rest = skip_filter.feed(text) + skip_filter.finish()
    cut = cut or skip_filter.cut_at is not None
    return KeptGuidance(trim(rest, cut=cut, stop=stop, boundary=boundary), cut, skip_filter.dropped)
