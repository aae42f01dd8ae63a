"""Make a teacher's text fit to be shown and continued: what is kept is exactly what is emitted and sent.

No inference server heals tokens, so a prefix that ends in a blank or in half a word biases the student's first
token. `trim` cuts back to a point from which a student with another vocabulary can go on. Text, never token ids,
crosses from teacher to student (paper, sections 1 and 2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import regex

from gateway.guidance.json_opening import JsonOpening
from gateway.guidance.stops import first_stop
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.policy.schema import Boundary

SENTENCE_REACH_BYTES = 32
"""How much boundary `sentence` may throw away: about eight tokens. Bytes weigh scripts more evenly than characters."""

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"
# A tag within quotes or backticks is talk about the tag, not the tag.
_OPENING = re.compile(r"""(?<![`"'])<think>|<think>(?![`"'])""")
_CLOSING = re.compile(r"""(?<![`"'])</think>|</think>(?![`"'])""")

_JOINER = "\u200d"
_REGIONAL = frozenset(map(chr, range(0x1F1E6, 0x1F200)))
_BEGINNINGS = "\\" + _JOINER
_CLUSTER = regex.compile(r"\X")
_WORD_BOUNDARY = regex.compile(r"(?w)\b")
# One letter, digit, katakana, pictograph and regional indicator. A word is unfinished when UAX #29 would let it
# absorb one of them; ideographs, hiragana and Thai absorb none, so those texts keep all their characters.
_CONTINUATIONS = ("a", "0", "\u30a2", "\U0001f469", "\U0001f1eb")
# What runs on for longer without a boundary is no word: a hash, an encoded file.
LONGEST_WORD_CHARS = 128
_SENTENCE_MARKS = frozenset(".:\uff0e\uff1a\u00b7\u2024\u2027")

_FENCE_LINE = re.compile(r"^[ \t>]*(?P<mark>`{3,}|~{3,})(?P<info>.*)(?P<end>\n?)", re.MULTILINE)
_FENCE_AT_END = re.compile(r"^[ \t>]*(?:`{3}|~{3}).*\Z", re.MULTILINE)
# More of them are a line of their own: a table's, a title's.
_MARKS_AT_END = re.compile(
    r"(?<![!-/:-@\[-`{-~])[!-/:-@\[-`{-~\u2026\u201d\u2019\u3001\u3002\u300d\u300f\uff01\uff09\uff0c\uff1a\uff1b\uff1f]{1,4}\Z"
)
_JSON_FENCE = re.compile(r"\s*(?:json[5lc]?|jsonlines|geojson)\b", re.IGNORECASE)
_HALF_FENCE = re.compile(r"(?:^|\n)[ \t>]*(?P<mark>`{1,2}|~{1,2})\Z")

# U+FFFD is what a decoder leaves of a character cut in two; a lone surrogate is what JSON escapes leave of one.
# The end of a line; of a sentence, with what closes after its mark. "1." at a line's beginning numbers a list.
_LINE_END = regex.compile(r"(?=\s*\n)(?<=\S)")
_PROSE_END = regex.compile(
    r"(?<!^[ \t>*#-]*\d+)[.!?\u2026]+[\"'\u201d\u2019\u00bb)\]*_]*(?=\s|\Z)"
    r"|[\u3002\uff01\uff1f\uff61]+[\u300d\u300f\u201d\u2019\uff09]*"
    r"|(?=\s*\n)(?<=\S)",
    regex.MULTILINE,
)

_BROKEN = "\ufffd" + "".join(map(chr, range(0xD800, 0xE000)))


class TrimmedText(Record, frozen=True):
    """A teacher's text, divided: `text + owed + dropped` is what it wrote (without reasoning and leading blanks).

    text: the guidance, exactly as it is shown and sent; never ends in whitespace; may be empty.
    owed: the whitespace that followed `text`; `SeamJoin` pays it for a student that strips its own. When the
        answer is at its end (the teacher finished, or `stopped`), `text + owed` is that answer verbatim.
    dropped: everything cut off after that, a stop string included.
    stopped: one of the caller's stop strings was met, so the answer ends here and no student is needed.
    """

    text: str
    pending_space: str
    dropped: str
    stopped: bool


def trim(text: str, *, cut: bool, stop: Sequence[str] = (), boundary: Boundary = "word") -> TrimmedText:
    """Trim what a teacher wrote.

    text: the teacher's text as decoded.
    cut: the teacher was stopped by length, so its last word may be half.
    stop: the caller's stop strings; empty ones are ignored. Of several the one completed first counts, as in an
        engine that looks for them while it writes; one that lies in the leading whitespace alone does not count,
        because the caller never sees that whitespace.
    boundary: where a text that was cut may end.

    Always: leading whitespace is stripped, and so is reasoning, which is not part of the answer: complete leading
    `<think>` blocks, and all up to a `</think>` that nothing opened (its template opened it in the prompt). From a
    block left open on, all is dropped, also mid-answer; a complete block mid-answer stays as it is. Tags within
    quotes or backticks are text. Trailing whitespace and broken characters are cut.

    When `cut`, the text also loses the beginning of a tag, of a backslash escape and of an emoji, the opening line of
    a code fence that is not complete (an open fence whose opening line is complete stays), the marks before a line's
    end that is cut off, and, where it opens as JSON, a key or number that may go on. Then, by `boundary`:

    word: a last word that may go on (UAX #29, so "don't" and "3.5" are one word; "3." may go on, "end." may not).
    sentence: that, and what follows the last end of a sentence or line, if it is no more than `SENTENCE_REACH_BYTES`.
        In code and JSON only lines count.
    token: nothing else. The last word may be half.
    """
    return divide(without_leading_reasoning(text), cut=cut, stop=stop, boundary=boundary)


def divide(answer: str, *, cut: bool, stop: Sequence[str], boundary: Boundary) -> TrimmedText:
    """`trim` without its look for leading reasoning."""
    body = answer.lstrip()
    lead = len(answer) - len(body)
    limit = open_reasoning(body)
    found = first_stop(answer[: lead + limit], stop, ends_after=lead)
    if found is not None:
        limit = max(0, found[0] - lead)
    elif cut and limit == len(body):
        limit = last_complete(body, boundary, TextContext())
    kept = rstrip(body[:limit])
    rest = body[len(kept) : limit] if found is not None else body[len(kept) :]
    pending_space = rest[: len(rest) - len(rest.lstrip())]
    return TrimmedText(kept, pending_space, body[len(kept) + len(pending_space) :], found is not None)


def without_leading_reasoning(text: str) -> str:
    if CLOSE_TAG not in text:
        return text
    closing = _CLOSING.search(text)
    opening = _OPENING.search(text)
    if closing is not None and (opening is None or closing.start() < opening.start()):
        text = text[closing.end() :]
    while text.lstrip().startswith(OPEN_TAG):
        closing = _CLOSING.search(text)
        if closing is None:
            break
        text = text[closing.end() :]
    return text


def open_reasoning(body: str) -> int:
    """Where a `<think>` begins that is never closed; else the length of the text."""
    if OPEN_TAG not in body:
        return len(body)
    closed = 0
    for closing in _CLOSING.finditer(body):
        closed = closing.end()
    opening = _OPENING.search(body, closed)
    return len(body) if opening is None else opening.start()


class CodeFence(NamedTuple):
    """The opening line of a code fence: its mark, what follows the mark, and where the line after it begins."""

    mark: str
    info: str
    end: int


@dataclass(slots=True)
class TextContext:
    """What is known of the text before a piece of it.

    begin: how many characters of the piece are shown already: they are there to tell how the rest is to be read.
    fence: the fence that is open at the beginning of the piece.
    json: has read what is shown, where that is JSON, or the JSON of the open fence.
    since_bytes: how much is shown since the last sentence or line ended; None: none has.
    """

    begin: int = 0
    fence: CodeFence | None = None
    json: JsonOpening | None = None
    since_bytes: int | None = None


def last_complete(body: str, boundary: Boundary, before: TextContext) -> int:
    """How many characters of a text that was cut for length surely are complete."""
    begin = before.begin
    kept = body.rstrip(_BROKEN)
    kept = kept[: _half_tag(kept)]
    words = kept[begin:]
    # The rule of words takes two halves of a flag with a joiner between for one word; a reader sees no flag.
    whole = _unfinished_cluster(words)
    kept = kept[: begin + (whole if boundary == "token" else min(whole, _unfinished_word(words)))]
    # What is left of "</div" or of "\frac" is no better than half a word.
    while kept and (kept[-1] in _BEGINNINGS or _half_tag(kept) < len(kept)):
        kept = kept[: _half_tag(kept)].rstrip(_BEGINNINGS)
    fence, unfinished = fences(body, before.fence)
    kept = rstrip(kept[:unfinished])
    # What is left of "`wor" at a line's beginning may become a fence too.
    if (half := _HALF_FENCE.search(kept)) is not None and not body[len(kept) : len(kept) + 1].isspace():
        kept = rstrip(kept[: half.start("mark")])
    json, json_begin = before.json, begin
    if fence is not None and fence.end > begin:
        json, json_begin = JsonOpening() if holds_json(fence) else None, fence.end
    elif begin == 0 and fence is None and kept.startswith(("{", "[")):
        json = JsonOpening()
    blank = body[len(kept) : len(body) - len(body[len(kept) :].lstrip())]
    kept = _settled(kept, body, begin, json, json_begin)
    if boundary == "sentence" and "\n" not in blank:
        in_json = json is not None and replace(json).reads(kept[json_begin:])
        ended = kept[: _last_end(kept, before, in_prose=fence is None and not in_json)]
        # Nor back to a bracket alone, nor into a block of reasoning.
        if (begin or any(map(str.isalnum, ended))) and open_reasoning(ended) == len(ended):
            kept = _settled(ended, body, begin, json, json_begin)
    # No cut may open a block of reasoning that was closed.
    return min(len(kept), open_reasoning(kept))


def _settled(kept: str, body: str, begin: int, json: JsonOpening | None, json_begin: int) -> str:
    """Cut until neither a line's marks nor the rules of JSON want less."""
    settled = None
    while settled != kept:
        settled = kept
        kept = rstrip(kept[: max(begin, _without_marks_of_a_line(kept, body))])
        if json is not None and json_begin <= len(kept):
            kept = rstrip(kept[: json_begin + json.limit(kept[json_begin:])])
    return kept


def _without_marks_of_a_line(kept: str, body: str) -> int:
    """Where the marks begin with which a line ends, if that is where the text is cut; else its length.

    Most vocabularies write ":" and the line's end after it as one token. A student that is shown ":" alone does not
    take a line's end for what follows; one that is shown the word before writes both.
    """
    if body[len(kept) : len(kept) + 1] not in {"\n", "\r"} or _FENCE_AT_END.search(kept):
        return len(kept)
    marks = _MARKS_AT_END.search(kept)
    return len(kept) if marks is None or not kept[: marks.start()].strip() else marks.start()


def _half_tag(text: str) -> int:
    if "<" not in text[1 - len(CLOSE_TAG) :]:
        return len(text)
    for tag in (CLOSE_TAG, OPEN_TAG):
        for length in range(len(tag) - 1, 0, -1):
            if text.endswith(tag[:length]):
                return len(text) - length
    return len(text)


def _unfinished_word(text: str) -> int:
    """Where the last word begins if it may go on; else the length of the text."""
    if not text or text[-1].isspace():
        return len(text)
    # No word spans whitespace, so only what follows the last of it needs a look.
    tail = text[-LONGEST_WORD_CHARS:].split()[-1]
    for more in _CONTINUATIONS:
        if more == "a" and tail[-1] in _SENTENCE_MARKS:
            # "foo." could become "foo.bar", but far more often it is the end of a sentence.
            continue
        boundaries: list[int] = [match.start() for match in _WORD_BOUNDARY.finditer(tail + more)]
        if len(tail) not in boundaries:
            begin = max((at for at in boundaries if at < len(tail)), default=0)
            return len(text) if begin == 0 and len(tail) == LONGEST_WORD_CHARS else len(text) - len(tail) + begin
    return len(text)


def _unfinished_cluster(text: str) -> int:
    """Where the last character as readers see it begins, if it is an emoji or a flag of which a part is missing."""
    end = len(text)
    while end and (text[end - 1] == _JOINER or text[end - 1] in _REGIONAL):
        tail = text[max(0, end - LONGEST_WORD_CHARS) : end]
        begin = min(_last_cluster(tail + more) for more in _CONTINUATIONS[-2:])
        if begin == len(tail) and tail[-1] != _JOINER:
            break
        # A joiner that joins nothing is dropped as well; what stood before it may be half a flag.
        end = end - len(tail) + begin if begin < len(tail) else len(text[:end].rstrip(_JOINER))
    return end


def _last_cluster(text: str) -> int:
    begin = 0
    for cluster in _CLUSTER.finditer(text):
        begin = cluster.start()
    return begin


def _last_end(text: str, before: TextContext, *, in_prose: bool) -> int:
    """Where the last sentence or line of a trimmed text has ended, if that is within reach; else its length."""
    at = ended_at(text, max(before.begin, len(text) - SENTENCE_REACH_BYTES), len(text), in_prose=in_prose)
    if at:
        lost_bytes = size_bytes(text[at:])
    elif before.since_bytes is not None:
        at, lost_bytes = before.begin, before.since_bytes + size_bytes(text[before.begin :])
    else:
        return len(text)
    return at if lost_bytes <= SENTENCE_REACH_BYTES else len(text)


def ended_at(text: str, begin: int, end: int, *, in_prose: bool) -> int | None:
    """Where the last sentence or line has ended that does so between the two; None: none has."""
    found = None
    for one in (_PROSE_END if in_prose else _LINE_END).finditer(text, begin):
        if one.end() <= end:
            found = one.end()
    return found


def first_end(text: str, begin: int, *, in_prose: bool) -> int | None:
    """Where the first sentence or line ends that does so after `begin`, and after which more follows; None: none does.

    What follows tells a sentence's end from the point of a number.
    """
    for one in (_PROSE_END if in_prose else _LINE_END).finditer(text, begin):
        end: int = one.end()
        if begin < end < len(text):
            return end
    return None


def size_bytes(text: str) -> int:
    """As UTF-8; what is broken counts too."""
    return len(text.encode("utf-8", "surrogatepass"))


def holds_json(fence: CodeFence) -> bool:
    """Whether the fence says that its text is JSON."""
    return _JSON_FENCE.match(fence.info) is not None


def fences(body: str, fence: CodeFence | None = None) -> tuple[CodeFence | None, int]:
    """The fence that is open at the end, where `fence` was at the beginning; and where the last line begins if it is,
    or may become, an opening line that has not ended, else the length of the text.
    """
    unfinished = len(body)
    for line in _FENCE_LINE.finditer(body):
        mark, info = line["mark"], line["info"]
        if fence is not None:
            if mark.startswith(fence.mark) and not info.strip():
                fence = None
        elif not (mark[0] == "`" and "`" in info):
            if line["end"]:
                fence = CodeFence(mark, info, line.end())
            else:
                unfinished = line.start("mark")
    half = _HALF_FENCE.search(body)
    return fence, unfinished if half is None else half.start("mark")


def rstrip(text: str) -> str:
    """The text without the whitespace and the broken characters at its end."""
    while text and (text[-1].isspace() or text[-1] in _BROKEN):
        text = text.rstrip().rstrip(_BROKEN)
    return text
