"""Make a teacher's text fit to be shown and continued: what is kept is exactly what is emitted and sent.

No inference server heals tokens, so a prefix that ends in a blank or in half a word biases the student's first
token. `trim` cuts back to a point from which a student with another vocabulary can go on. Text, never token ids,
crosses from teacher to student (paper, sections 1 and 2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from collections.abc import Sequence

_OPEN_TAG = "<think>"
# A tag within quotes or backticks is talk about the tag, not the tag.
_OPENING = re.compile(r"""(?<![`"'])<think>|<think>(?![`"'])""")
_CLOSING = re.compile(r"""(?<![`"'])</think>|</think>(?![`"'])""")

_WORD_BOUNDARY = regex.compile(r"(?w)\b")
# One letter, digit, katakana, pictograph and regional indicator. A word is unfinished when UAX #29 would let it
# absorb one of them; ideographs, hiragana and Thai absorb none, so those texts keep all their characters.
_CONTINUATIONS = ("a", "0", "\u30a2", "\U0001f469", "\U0001f1eb")
_SENTENCE_MARKS = frozenset(".:\uff0e\uff1a\u00b7\u2024\u2027")

_FENCE_LINE = re.compile(r"^[ \t>]*(?P<mark>`{3,}|~{3,})(?P<info>.*)(?P<end>\n?)", re.MULTILINE)
_HALF_FENCE = re.compile(r"(?:^|\n)[ \t>]*(?P<mark>`{1,2}|~{1,2})\Z")

# U+FFFD is what a decoder leaves of a character cut in two; a lone surrogate is what JSON escapes leave of one.
_BROKEN = "\ufffd" + "".join(map(chr, range(0xD800, 0xE000)))


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A teacher's text, divided: `text + owed + dropped` is what it wrote (without reasoning and leading blanks).

    text: the guidance, exactly as it is shown and sent; never ends in whitespace; may be empty.
    owed: the whitespace that followed `text`; `SeamJoin` pays it for a student that strips its own. When the
        answer is at its end (the teacher finished, or `stopped`), `text + owed` is that answer verbatim.
    dropped: everything cut off after that, a stop string included.
    stopped: one of the caller's stop strings was met, so the answer ends here and no student is needed.
    """

    text: str
    owed: str
    dropped: str
    stopped: bool


def trim(text: str, *, cut: bool, stop: Sequence[str] = ()) -> Trimmed:
    """Trim what a teacher wrote.

    text: the teacher's text as decoded.
    cut: the teacher was stopped by length, so its last word may be half.
    stop: the caller's stop strings; empty ones are ignored. Of several the one completed first counts, as in an
        engine that looks for them while it writes; one that lies in the leading whitespace alone does not count,
        because the caller never sees that whitespace.

    Always: leading whitespace is stripped, and so is reasoning, which is not part of the answer: complete leading
    `<think>` blocks, and all up to a `</think>` that nothing opened (its template opened it in the prompt). From a
    block left open on, all is dropped, also mid-answer; a complete block mid-answer stays as it is. Tags within
    quotes or backticks are text. Trailing whitespace and broken characters are cut.

    When `cut`, the text also loses: a last word that may go on (UAX #29, so "don't" and "3.5" are one word; "3."
    may go on, "end." may not), the beginning of a tag or of a backslash escape, and the opening line of a code
    fence that is not complete. An open fence whose opening line is complete stays. It is not cut back further, to
    the end of a sentence: that would throw away up to a fifth of what the teacher is paid for.
    """
    answer = _without_leading_reasoning(text)
    body = answer.lstrip()
    lead = len(answer) - len(body)
    limit = _open_reasoning(body)
    found = first_stop(answer[: lead + limit], stop, ends_after=lead)
    if found is not None:
        limit = max(0, found[0] - lead)
    elif cut and limit == len(body):
        limit = _last_complete(body)
    kept = _rstrip(body[:limit])
    rest = body[len(kept) : limit] if found is not None else body[len(kept) :]
    owed = rest[: len(rest) - len(rest.lstrip())]
    return Trimmed(kept, owed, body[len(kept) + len(owed) :], found is not None)


def first_stop(
    text: str, stop: Sequence[str], *, ends_after: int = 0, begins_before: int | None = None
) -> tuple[int, int] | None:
    """Find the stop string that is completed first; of those completed together, the longest.

    Returns (start, end) in characters, or None. Only occurrences count that end after `ends_after` and begin
    before `begins_before` (None: anywhere).
    """
    found: list[tuple[int, int]] = []
    for one in filter(None, stop):
        last = len(text) if begins_before is None else begins_before - 1 + len(one)
        start = text.find(one, max(0, ends_after - len(one) + 1), max(0, last))
        if start >= 0:
            found.append((start + len(one), start))
    if not found:
        return None
    end, start = min(found)
    return start, end


def _without_leading_reasoning(text: str) -> str:
    closing = _CLOSING.search(text)
    opening = _OPENING.search(text)
    if closing is not None and (opening is None or closing.start() < opening.start()):
        text = text[closing.end() :]
    while text.lstrip().startswith(_OPEN_TAG):
        closing = _CLOSING.search(text)
        if closing is None:
            break
        text = text[closing.end() :]
    return text


def _open_reasoning(body: str) -> int:
    """Where a `<think>` begins that is never closed; else the length of the text."""
    closed = 0
    for closing in _CLOSING.finditer(body):
        closed = closing.end()
    opening = _OPENING.search(body, closed)
    return len(body) if opening is None else opening.start()


def _last_complete(body: str) -> int:
    """How many characters of a text that was cut for length surely are complete."""
    kept = body.rstrip(_BROKEN)
    kept = kept[: _half_tag(kept)]
    kept = kept[: _unfinished_word(kept)]
    # "\frac" and "\n" begin with their backslash: what is left of one is no better than half a word.
    kept = kept.rstrip("\\")
    return min(len(kept), _unfinished_fence(body))


def _half_tag(text: str) -> int:
    for length in range(len(_OPEN_TAG) - 1, 0, -1):
        if text.endswith(_OPEN_TAG[:length]):
            return len(text) - length
    return len(text)


def _unfinished_word(text: str) -> int:
    """Where the last word begins if it may go on; else the length of the text."""
    if not text or text[-1].isspace():
        return len(text)
    # No word spans whitespace, so only what follows the last of it needs a look.
    tail = text.split()[-1]
    for more in _CONTINUATIONS:
        if more == "a" and tail[-1] in _SENTENCE_MARKS:
            # "foo." could become "foo.bar", but far more often it is the end of a sentence.
            continue
        boundaries: list[int] = [match.start() for match in _WORD_BOUNDARY.finditer(tail + more)]
        if len(tail) not in boundaries:
            return len(text) - len(tail) + max((at for at in boundaries if at < len(tail)), default=0)
    return len(text)


def _unfinished_fence(body: str) -> int:
    """Where the last line begins if it is, or may become, a fence's opening line that has not ended."""
    half = _HALF_FENCE.search(body)
    if half is not None:
        return half.start("mark")
    fence: str | None = None
    for line in _FENCE_LINE.finditer(body):
        mark, info = line["mark"], line["info"]
        if fence is not None:
            if mark.startswith(fence) and not info.strip():
                fence = None
        elif not (mark[0] == "`" and "`" in info):
            fence = mark
            if not line["end"]:
                return line.start("mark")
    return len(body)


def _rstrip(text: str) -> str:
    while text and (text[-1].isspace() or text[-1] in _BROKEN):
        text = text.rstrip().rstrip(_BROKEN)
    return text
