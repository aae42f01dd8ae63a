"""`trim` for text that arrives in pieces: determine what can be shown before the teacher is done.

growing = GrowingTrim(boundary="word", stop=stop)
for piece in teacher: emit(growing.feed(piece))
trimmed = growing.finish(cut=True)
emit(trimmed.text[growing.shown_chars :])                    # the held text that is kept
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import regex

from gateway.guidance.json_opening import JsonOpening
from gateway.guidance.seam import first_stop, possible_stop
from gateway.guidance.trim import (
    CLOSE_TAG,
    LONGEST_WORD_CHARS,
    OPEN_TAG,
    TextContext,
    TrimmedText,
    divide,
    ended_at,
    fences,
    holds_json,
    last_complete,
    open_reasoning,
    rstrip,
    size_bytes,
    trim,
    without_leading_reasoning,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.policy.guidance_rule import Boundary

# Characters that rules other than the rule of words depend on. Without them a piece is plain.
_SPECIAL = r"<`~\\\n\ufffd\ud800-\udfff"
# A line that is a fence's, or may become one. For any other line, later text depends only on its last character.
_FENCE_BEGUN = re.compile(r"[ \t>]*(?:(?:`{1,2}|~{1,2})?\Z|`{3}|~{3})")
_NO_FENCE = "x"
# A complete emoji; but the next piece may join another emoji, add a color, or form a flag.
_EMOJI_AT_END = regex.compile(r"[\p{Extended_Pictographic}\p{Emoji_Modifier}\p{Regional_Indicator}\ufe0f\u200d]+\Z")


class GrowingTrim:
    """Return, piece by piece, the part of a teacher's text that can be shown; at the end, the part that is kept.

    `shown_chars` counts the characters that `feed` has returned. Once a stop string was found (`stopped`), later text
    is not part of the answer, and the teacher can stop. Held back are:

    - the last word;
    - with boundary `sentence`, text that may follow the last end of a sentence or line;
    - anything else that `trim` would cut from a text that ended here;
    - an emoji that the next piece may join;
    - text that may begin a stop string, also one that a student completes;
    - leading reasoning, and text after a `<think>` until it is closed.

    A later `</think>` without an opening tag cannot be predicted. The text before it is therefore treated as the
    answer, and the tag as text.

    Shown text cannot be taken back. In a few cases `trim` would cut into it: after "foo." came "bar", after a number a
    list's dot, or such a tag. The text is kept then, and the guidance ends there at the earliest.

    The work for a piece depends on the length of the held text, not on the length of all text.
    """

    def __init__(self, *, boundary: Boundary = "word", stop: Sequence[str] = ()) -> None:
        self._boundary = boundary
        self._stop = tuple(filter(None, stop))
        first = "".join(re.escape(one[0]) for one in self._stop)
        self._special = re.compile(f"[{_SPECIAL}{first}]")
        self._pieces: list[str] = []
        self._shown: list[str] = []
        self.shown_chars = 0
        self.stopped = False
        self._held = ""  # text that was read and not shown
        self._line = ""  # the shown part of the last line, or a placeholder for it
        self._before = TextContext()
        self._in_reasoning = False

    def feed(self, piece: str) -> str:
        """Read the teacher's next text, of any length. Return what can be shown now."""
        self._pieces.append(piece)
        if self.stopped or not piece:
            return ""
        self._held += piece
        if self._in_reasoning:
            if CLOSE_TAG not in self._held[-len(piece) - len(CLOSE_TAG) - 1 :]:
                return ""
            self._in_reasoning = False
        if self.shown_chars:
            return self._show(self._safe_chars(self._held, 0))
        return self._show_first()

    def finish(self, *, cut: bool) -> TrimmedText:
        """Return the trimmed text after the teacher has ended, or was `cut` by its length limit.

        Its `text` begins with all shown text. The result is that of `trim`, unless that would take back shown text.
        """
        text, shown = "".join(self._pieces), "".join(self._shown)
        trimmed = trim(text, cut=cut, stop=self._stop, boundary=self._boundary)
        if trimmed.text.startswith(shown):
            return trimmed
        answer = shown + self._held
        trimmed = divide(answer, cut=cut, stop=self._stop, boundary=self._boundary)
        if trimmed.text.startswith(shown):
            return trimmed
        rest = answer[len(shown) :]
        pending_space = rest[: len(rest) - len(rest.lstrip())]
        return TrimmedText(shown, pending_space, rest[len(pending_space) :], trimmed.stopped)

    def _show_first(self) -> str:
        """Skip reasoning and whitespace, and show the beginning. Nothing was shown before."""
        if CLOSE_TAG in self._held:
            if self._held.endswith(CLOSE_TAG):
                return ""  # a quotation mark may follow; then the tag is text
            self._held = without_leading_reasoning(self._held)
        body = self._held.lstrip()
        if body.startswith(OPEN_TAG):
            self._in_reasoning = True
            return ""
        if not body or OPEN_TAG.startswith(body) or CLOSE_TAG.startswith(body):
            return ""
        self._before.json = JsonOpening() if body[0] in "{[" else None
        lead = len(self._held) - len(body)
        chars = self._safe_chars(body, lead)
        if chars:
            self._held = body
        return self._show(chars)

    def _safe_chars(self, held: str, lead: int) -> int:
        """Return the number of held characters that can be shown. `lead` characters of whitespace preceded them."""
        special = self._special.search(self._held) is not None
        in_prose = self._before.json is None and self._line.startswith(_NO_FENCE)
        if not special and self._boundary == "word" and in_prose:  # only the rule of words applies
            if held[-1].isspace():
                return len(held.rstrip())
            word = held.rsplit(None, 1)[-1]
            if word.isascii() and word.isalnum() and len(word) < LONGEST_WORD_CHARS:
                return len(held[: -len(word)].rstrip())
        text = self._line + held
        begin = len(self._line)
        limit = reasoning_at = open_reasoning(text)
        if special and self._stop:
            searched = self._held[:lead] + held[: limit - begin]
            found = first_stop(searched, self._stop, ends_after=lead)
            if found is not None:
                self.stopped = True
                return len(rstrip(held[: max(0, found[0] - lead)]))
            limit = min(limit, begin + max(0, possible_stop(searched, self._stop) - lead))
        if reasoning_at == len(text):
            self._before.begin = begin
            limit = min(limit, last_complete(text, self._boundary, self._before))
        else:
            # A quotation mark may follow the tag; then the tag is text.
            self._in_reasoning = CLOSE_TAG not in text[reasoning_at:] and len(text) > reasoning_at + len(OPEN_TAG)
        if limit == len(text) and (emoji := _EMOJI_AT_END.search(text)) is not None:
            limit = emoji.start()
        chars = max(0, len(rstrip(text[:limit])) - begin)
        # If the seam were here, a student could complete a stop string that begins before it.
        return min(chars, possible_stop(held[:chars], self._stop)) if special and self._stop else chars

    def _show(self, chars: int) -> str:
        if chars <= 0:
            return ""
        part, rest = self._held[:chars], self._held[chars:]
        if self._boundary == "sentence":
            self._note_end(chars)
        self._held = rest
        self._shown.append(part)
        self.shown_chars += chars
        before = self._before
        text = self._line + part
        end = text.rfind("\n") + 1
        fence = fences(text[:end], before.fence)[0] if end else before.fence
        if fence is not before.fence:
            before.fence = fence
            before.json = JsonOpening() if fence is not None and holds_json(fence) else None
            if before.json is not None and fence is not None:
                before.json.take(text[fence.end :])
        elif before.json is not None:
            before.json.take(part)
        if before.json is not None and not before.json.valid and before.fence is None:
            before.json = None
        line = text[end:]
        self._line = line if _FENCE_BEGUN.match(line) else _NO_FENCE + line[-1:]
        return part

    def _note_end(self, chars: int) -> None:
        before = self._before
        in_json = before.json is not None and before.json.valid
        text, begin = self._line + self._held, len(self._line)
        ended = ended_at(text, begin, begin + chars, in_prose=before.fence is None and not in_json)
        if ended is not None:
            before.since_bytes = size_bytes(text[ended : begin + chars])
        elif before.since_bytes is not None:
            before.since_bytes += size_bytes(self._held[:chars])
