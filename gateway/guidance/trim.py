"""Cut a teacher's text so that it can be shown and continued. The kept text is exactly the text that is shown and sent.

Inference servers do not heal tokens, so a prefix that ends in a space or half a word biases the student's first token.
`trim` cuts back to a point from which a student with another vocabulary can continue. Only text, never token ids, is
passed from teacher to student (paper, sections 1 and 2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import regex

from gateway.guidance.json_opening import JsonOpening
from gateway.guidance.seam import first_stop
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.policy.guidance_rule import Boundary

SENTENCE_REACH_BYTES = 32
"""Bytes that boundary `sentence` may drop: about eight tokens. Bytes compare scripts better than characters do."""

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"
# A tag within quotes or backticks is text about the tag.
_OPENING = re.compile(r"""(?<![`"'])<think>|<think>(?![`"'])""")
_CLOSING = re.compile(r"""(?<![`"'])</think>|</think>(?![`"'])""")

_JOINER = "\u200d"
_REGIONAL = frozenset(map(chr, range(0x1F1E6, 0x1F200)))
_BEGINNINGS = "\\" + _JOINER
_CLUSTER = regex.compile(r"\X")
_WORD_BOUNDARY = regex.compile(r"(?w)\b")
# One letter, digit, katakana, pictograph and regional indicator. A word is unfinished if UAX #29 would join one of them
# to it. Ideographs, hiragana and Thai join none, so those texts keep all their characters.
_CONTINUATIONS = ("a", "0", "\u30a2", "\U0001f469", "\U0001f1eb")
# A longer text without a boundary is no word, but a hash or an encoded file.
LONGEST_WORD_CHARS = 128
_SENTENCE_MARKS = frozenset(".:\uff0e\uff1a\u00b7\u2024\u2027")

_FENCE_LINE = re.compile(r"^[ \t>]*(?P<mark>`{3,}|~{3,})(?P<info>.*)(?P<end>\n?)", re.MULTILINE)
_FENCE_AT_END = re.compile(r"^[ \t>]*(?:`{3}|~{3}).*\Z", re.MULTILINE)
# A longer run of marks is a line of its own, such as a table's or a title's.
_MARKS_AT_END = re.compile(
    r"(?<![!-/:-@\[-`{-~])[!-/:-@\[-`{-~\u2026\u201d\u2019\u3001\u3002\u300d\u300f\uff01\uff09\uff0c\uff1a\uff1b\uff1f]{1,4}\Z"
)
_JSON_FENCE = re.compile(r"\s*(?:json[5lc]?|jsonlines|geojson)\b", re.IGNORECASE)
_HALF_FENCE = re.compile(r"(?:^|\n)[ \t>]*(?P<mark>`{1,2}|~{1,2})\Z")

# The end of a line, and the end of a sentence with closing characters after its mark.
# "1." at a line's beginning numbers a list.
_LINE_END = regex.compile(r"(?=\s*\n)(?<=\S)")
_PROSE_END = regex.compile(
    r"(?<!^[ \t>*#-]*\d+)[.!?\u2026]+[\"'\u201d\u2019\u00bb)\]*_]*(?=\s|\Z)"
    r"|[\u3002\uff01\uff1f\uff61]+[\u300d\u300f\u201d\u2019\uff09]*"
    r"|(?=\s*\n)(?<=\S)",
    regex.MULTILINE,
)

# U+FFFD is a decoder's replacement for a character cut in two; a lone surrogate results from JSON escapes.
_BROKEN = "\ufffd" + "".join(map(chr, range(0xD800, 0xE000)))


class TrimmedText(Record, frozen=True):
    """A teacher's text in three parts: `text + pending_space + dropped`, without reasoning and leading whitespace.

    If the answer is complete (the teacher finished, or `stopped`), `text + pending_space` is that answer verbatim.
    """

    text: str  # the guidance, exactly as it is shown and sent; never ends in whitespace; may be empty
    pending_space: str  # the whitespace that followed; `SeamJoin` inserts it for a student that strips its own
    dropped: str  # the text cut off after that, including a stop string
    stopped: bool  # one of the caller's stop strings was found, so that the answer ends here without a student


def trim(text: str, *, cut: bool, stop: Sequence[str] = (), boundary: Boundary = "word") -> TrimmedText:
    """Trim a teacher's text.

    Leading whitespace is always stripped, and so is reasoning, which is not part of the answer. Reasoning is complete
    leading `<think>` blocks, and all text up to a `</think>` without an opening tag (the template opened it in the
    prompt). All text from an unclosed block on is dropped, also mid-answer; a complete block mid-answer is kept. Tags
    within quotes or backticks are text. Trailing whitespace and broken characters are cut.

    If `cut`, the text also loses:

    - an unfinished tag, backslash escape or emoji;
    - an incomplete opening line of a code fence, while an open fence with a complete opening line is kept;
    - the punctuation before a line end that is cut off;
    - in JSON, a key or number that may continue.

    The rest depends on `boundary`:

    - word: a last word that may continue is dropped. By UAX #29, "don't" and "3.5" are one word; "3." may continue,
      "end." may not.
    - sentence: in addition, text after the last end of a sentence or line is dropped, if it has at most
      `SENTENCE_REACH_BYTES`. In code and JSON only lines count.
    - token: nothing else is dropped. The last word may be incomplete.

    Args:
        cut: whether the teacher was stopped by its length limit, so that its last word may be incomplete.
        stop: the caller's stop strings; empty ones are ignored. The first one completed counts, as in an engine that
            searches while it generates. A stop string within the leading whitespace does not count: the teacher's
            engine would have ended there.
    """
    return divide(without_leading_reasoning(text), cut=cut, stop=stop, boundary=boundary)


def without_begun(
    trimmed: TrimmedText, token_starts: Iterable[int], words: Sequence[str], boundary: Boundary
) -> TrimmedText:
    """Move an end that may begin one of the words from the text to the dropped part.

    vLLM compares `bad_words`, with and without a space before them, with the tokens of one call. A student would
    complete such a word. `token_starts` has the number of characters before each token of the text.
    """
    forms = [form for word in words for form in (word.lstrip(), " " + word.lstrip())]
    longest = max(map(len, forms), default=0)
    starts, text = list(token_starts), trimmed.text

    def begins_word(at: int) -> bool:
        end = text[at:]
        return any(form.startswith(end) and form != end for form in forms)

    while True:
        near = (at for at in starts if max(0, len(text) - longest) <= at < len(text))
        if (begun := next(filter(begins_word, near), None)) is None:
            break
        begun += len(text[begun:]) - len(text[begun:].lstrip())  # a space shows that the word before it is complete
        text = trim(text[:begun], cut=True, boundary=boundary).text
    rest = trimmed.text[len(text) :] + trimmed.pending_space + trimmed.dropped
    dropped = rest.lstrip()
    return TrimmedText(text, rest[: len(rest) - len(dropped)], dropped, trimmed.stopped)


def divide(answer: str, *, cut: bool, stop: Sequence[str], boundary: Boundary) -> TrimmedText:
    """Divide an answer as `trim` does, without removing leading reasoning."""
    body = answer.lstrip()
    lead = len(answer) - len(body)
    limit = open_reasoning(body)
    found = first_stop(answer[: lead + limit], stop, ends_after=lead) if stop else None
    if found is not None:
        limit = max(0, found[0] - lead)
    elif cut and limit == len(body):
        limit = last_complete(body, boundary, TextContext())
    kept = rstrip(body[:limit])
    rest = body[len(kept) : limit] if found is not None else body[len(kept) :]
    pending_space = rest[: len(rest) - len(rest.lstrip())]
    return TrimmedText(kept, pending_space, body[len(kept) + len(pending_space) :], found is not None)


def without_leading_reasoning(text: str) -> str:
    """Return the text without the reasoning at its beginning."""
    if CLOSE_TAG not in text:
        return text
    closing = _CLOSING.search(text)
    start_tag = _OPENING.search(text)
    if closing is not None and (start_tag is None or closing.start() < start_tag.start()):
        text = text[closing.end() :]
    while text.lstrip().startswith(OPEN_TAG):
        closing = _CLOSING.search(text)
        if closing is None:
            break
        text = text[closing.end() :]
    return text


def open_reasoning(body: str) -> int:
    """Return where an unclosed `<think>` begins; else the length of the text."""
    if OPEN_TAG not in body:
        return len(body)
    closed = 0
    for closing in _CLOSING.finditer(body):
        closed = closing.end()
    start_tag = _OPENING.search(body, closed)
    return len(body) if start_tag is None else start_tag.start()


class CodeFence(NamedTuple):
    """The opening line of a code fence."""

    mark: str
    info: str  # the text after the mark
    end: int  # the start of the next line


@dataclass(slots=True)
class TextContext:
    """The context of a piece of text."""

    begin: int = 0  # number of characters of the piece that are shown already; they only help to read the rest
    fence: CodeFence | None = None  # the fence that is open at the beginning of the piece
    json: JsonOpening | None = None  # the reader of the shown text, if that is JSON, or of the JSON in the open fence
    since_bytes: int | None = None  # bytes shown since the last sentence or line ended; None: none has ended


def last_complete(body: str, boundary: Boundary, before: TextContext) -> int:
    """Return the number of characters that are certainly complete in a text that was cut for length."""
    begin = before.begin
    kept = body.rstrip(_BROKEN) if body[-1:] in _BROKEN else body
    kept = kept[: _half_tag(kept)]
    words = kept[begin:]
    # By the rule of words, two halves of a flag with a joiner between them are one word; a reader sees no flag.
    whole = _unfinished_cluster(words)
    kept = kept[: begin + (whole if boundary == "token" else min(whole, _unfinished_word(words)))]
    # The rest of "</div" or of "\frac" is no better than half a word.
    while kept and (kept[-1] in _BEGINNINGS or _half_tag(kept) < len(kept)):
        kept = kept[: _half_tag(kept)].rstrip(_BEGINNINGS)
    fence, unfinished = fences(body, before.fence)
    kept = rstrip(kept[:unfinished])
    # The rest of "`wor" at a line's beginning may become a fence too.
    if (
        kept.endswith(("`", "~"))
        and (half := _HALF_FENCE.search(kept)) is not None
        and not body[len(kept) : len(kept) + 1].isspace()
    ):
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
        # Do not cut back to a bracket alone, or into a block of reasoning.
        if (begin or any(map(str.isalnum, ended))) and open_reasoning(ended) == len(ended):
            kept = _settled(ended, body, begin, json, json_begin)
    # A cut must not open a block of reasoning that was closed.
    return min(len(kept), open_reasoning(kept))


def _settled(kept: str, body: str, begin: int, json: JsonOpening | None, json_begin: int) -> str:
    """Cut until neither the punctuation before a line end nor the rules of JSON require a further cut."""
    settled = None
    while settled != kept:
        settled = kept
        kept = rstrip(kept[: max(begin, _without_marks_of_a_line(kept, body))])
        if json is not None and json_begin <= len(kept):
            kept = rstrip(kept[: json_begin + json.limit(kept[json_begin:])])
    return kept


def _without_marks_of_a_line(kept: str, body: str) -> int:
    """Return where the punctuation before a line end begins, if the text is cut at that line end; else its length.

    Most vocabularies have one token for ":" and the line end after it. A student that reads ":" alone does not generate
    a line end next; one that reads only the word before generates both.
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
    """Return where the last word begins if it may continue; else the length of the text."""
    if not text or text[-1].isspace():
        return len(text)
    # No word contains whitespace, so only the text after the last whitespace is examined.
    tail = text[-LONGEST_WORD_CHARS:].split()[-1]
    if tail.isascii() and tail.isalnum() and len(tail) < LONGEST_WORD_CHARS:
        return len(text) - len(tail)  # the usual case: one word, without a boundary
    for more in _CONTINUATIONS:
        if more == "a" and tail[-1] in _SENTENCE_MARKS:
            # "foo." could become "foo.bar", but it usually ends a sentence.
            continue
        boundaries: list[int] = [match.start() for match in _WORD_BOUNDARY.finditer(tail + more)]
        if len(tail) not in boundaries:
            begin = max((at for at in boundaries if at < len(tail)), default=0)
            return len(text) if begin == 0 and len(tail) == LONGEST_WORD_CHARS else len(text) - len(tail) + begin
    return len(text)


def _unfinished_cluster(text: str) -> int:
    """Return where the last grapheme cluster begins if it is an incomplete emoji or flag; else the text's length."""
    end = len(text)
    while end and (text[end - 1] == _JOINER or text[end - 1] in _REGIONAL):
        tail = text[max(0, end - LONGEST_WORD_CHARS) : end]
        begin = min([one.start() for one in _CLUSTER.finditer(tail + more)][-1] for more in _CONTINUATIONS[-2:])
        if begin == len(tail) and tail[-1] != _JOINER:
            break
        # A joiner that joins nothing is dropped as well; the text before it may be half a flag.
        end = end - len(tail) + begin if begin < len(tail) else len(text[:end].rstrip(_JOINER))
    return end


def _last_end(text: str, before: TextContext, *, in_prose: bool) -> int:
    """Return where the last sentence or line of a trimmed text ended, if that is within reach; else its length."""
    at = ended_at(text, max(before.begin, len(text) - SENTENCE_REACH_BYTES), len(text), in_prose=in_prose)
    if at:
        lost_bytes = size_bytes(text[at:])
    elif before.since_bytes is not None:
        at, lost_bytes = before.begin, before.since_bytes + size_bytes(text[before.begin :])
    else:
        return len(text)
    return at if lost_bytes <= SENTENCE_REACH_BYTES else len(text)


def ended_at(text: str, begin: int, end: int, *, in_prose: bool) -> int | None:
    """Return the last end of a sentence or line between `begin` and `end`; None: there is none."""
    ends = [one.end() for one in (_PROSE_END if in_prose else _LINE_END).finditer(text, begin)]
    return max((one for one in ends if one <= end), default=None)


def size_bytes(text: str) -> int:
    """Return the size of a text in UTF-8, including lone surrogates."""
    return len(text.encode("utf-8", "surrogatepass"))


def holds_json(fence: CodeFence) -> bool:
    """Return whether the fence's info string declares JSON."""
    return _JSON_FENCE.match(fence.info) is not None


def fences(body: str, fence: CodeFence | None = None) -> tuple[CodeFence | None, int]:
    """Return the code fence that is open at the end, and the start of an incomplete opening line of a fence.

    Without such a line, the second value is the length of the text. `fence` is open at the beginning.
    """
    unfinished = len(body)
    if "`" not in body and "~" not in body:
        return fence, unfinished
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
    """Return the text without trailing whitespace and broken characters."""
    while text and (text[-1].isspace() or text[-1] in _BROKEN):
        text = text.rstrip().rstrip(_BROKEN)
    return text
