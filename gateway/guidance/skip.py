"""Drop what a teacher writes before it says anything, and keep m tokens of what follows. Before the seam's trim. Pure.

growing = GrowingSkip(skip, tokens=40)
for piece in teacher: trim.feed(growing.feed(piece))
trim.feed(growing.finish())

A sentence at a time is looked at, whole: nothing of it goes on before it is known that it stays. So what went on is
never taken back, and what a text becomes does not depend on the pieces that it comes in.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.guidance.trim import CLOSE_TAG, OPEN_TAG

if TYPE_CHECKING:
    from gateway.policy.projections import SkipRule

MAX_SENTENCES = 4
MAX_SENTENCE_CHARS = 300
"""What runs on for longer is not looked at: the caller waits for its end."""

# A mark with what closes after it, and white space; or the end of a line.
_SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)[.!?:]+[\"'\u201d\u2019)*_]*(?=\s)|[\u3002\uff01\uff1f\uff1a]|(?=\n)"
)
# About what tokenizers make of a text: a word with the blank before it, its rest where it is long, a digit, a mark. The
# next piece begins where it begins whatever follows, so a text can be counted as it comes.
_PIECE = re.compile(r" ?(?:[A-Za-z]{1,10}|\d|[\u2e80-\U0003ffff]|[^\W\dA-Za-z_]{1,2}|[^\w\s]|_)|\s+")


class GrowingSkip:
    """Takes a teacher's text in pieces of any size, and gives back what goes on to the seam.

    tokens: m, how many tokens of what stays go on, by a count of our own that errs on the side of fewer: the teacher's
        is not known while it writes.

    Leading blanks are dropped, complete leading `<think>` blocks go on as they are and are not counted. Then up to
    MOST_SENTENCES times: the longest beginning of the first sentence that a pattern matches is dropped, with the blanks
    behind it. A sentence ends with its mark where white space follows, with its line, or with the text; one of more
    than MOST_SENTENCE_CHARS is no boilerplate.
    """

    def __init__(self, skip: SkipRule, tokens: int) -> None:
        self._skip = skip
        self._tokens_left = tokens
        self._sentences_left = MAX_SENTENCES
        self._held = ""
        self._in_reasoning = False
        self._received_chars = 0  # how many characters did
        self._counted = ""  # the last piece that was counted: it may go on
        self.dropped = False
        """Something was."""
        self.begins_at: int | None = None
        """Before how many characters of the text stands what is counted; None: nothing is yet."""
        self.cut_at: int | None = None
        """After how many there was more than m tokens; None: there was not."""

    @property
    def cut(self) -> bool:
        """There was more than m tokens."""
        return self.cut_at is not None

    def feed(self, piece: str) -> str:
        """Take the teacher's next text; return what goes on."""
        self._received_chars += len(piece)
        if not self._sentences_left:
            return self._count_tokens(piece)
        self._held += piece
        return self._advance(ended=False)

    def finish(self) -> str:
        """The teacher has ended; return what was held back and goes on."""
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
        """The complete reasoning that the held text begins with; of a text that ended, one that is open as well."""
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
        """How much of it, from its beginning, is boilerplate."""
        raw = sentence.encode("utf-8", "replace")
        found = (pattern.compiled.match(raw) for pattern in self._skip.patterns)
        end = max((one.end() for one in found if one is not None), default=0)
        return len(raw[:end].decode("utf-8", "ignore"))

    def _count_tokens(self, text: str) -> str:
        """As much of the text, which ends all that came, as there is room for."""
        if self.begins_at is None:
            text = text.lstrip()
            self.begins_at = self._received_chars - len(text) if text else None
        if self.cut or not text:
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


def skipped(text: str, skip: SkipRule, tokens: int) -> tuple[str, GrowingSkip]:
    """What a whole text becomes, and what was done to it."""
    growing = GrowingSkip(skip, tokens)
    return growing.feed(text) + growing.finish(), growing


def _sentence(held: str, *, ended: bool) -> str | None:
    """The first sentence; "" where it is too long to be looked at, None where it has not ended yet."""
    found = _SENTENCE_END.search(held, 0, MAX_SENTENCE_CHARS + 1)
    if found is not None:
        return held[: found.end()]
    if len(held) > MAX_SENTENCE_CHARS:
        return ""
    return held.rstrip() if ended else None
