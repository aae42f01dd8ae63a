"""The seam: the position where the teacher's text ends and the student's text begins.

    trimmed = trim(teacher_text, cut=True, stop=stop)            # trimmed.text is shown, and sent to the student
    seam = SeamJoin(trimmed.text, pending_space=trimmed.pending_space, stop=stop)
    emit(seam.initial_text)                                      # before the student's first text
    for delta in student: emit(seam.feed(delta))
    emit(seam.finish())

Engines differ in how they continue a partial answer. Some repeat it first, some strip the space with which their
continuation begins, and some can only be asked to write it again. `SeamJoin` hides these differences, for any chunking
and without I/O. This module does not import `trim.py`, because devices join text without it (`gateway/edge`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ECHO_DETECTION_MIN_BYTES = 32
"""Length of guidance, in UTF-8 bytes, from which a student that begins with it must be repeating it.

About six English words or eleven ideographs: bytes compare scripts better than characters do.
"""


class SeamJoin:
    """Join a student's text deltas to the guidance that they continue. The returned texts, in order, are the answer.

    Args:
        guidance: the text that was sent to the student, as `trim` returned it.
        lead: the whitespace before the guidance in the teacher's text. It is emitted first, and was not sent.
        pending_space: the whitespace that followed the guidance (`TrimmedText.pending_space`).
        echo: whether the engine repeats the guidance before it continues. True: drop exactly the guidance, and
            whitespace before it, from the student's text. A text that begins differently is passed on unchanged. False:
            drop nothing. None: unknown; detect an echo where `echo_detectable` allows it, else drop nothing. Text that
            is still a beginning of the guidance is held back. A continuation that really begins with the whole of long
            guidance cannot be distinguished from an echo.
        strips_leading_space: whether the engine strips the whitespace with which its continuation begins. If so,
            `pending_space` is inserted before the first student text, unless that text begins with whitespace.
            Otherwise nothing is ever inserted. If the teacher was cut within or right before the whitespace, the part
            that the engine stripped is lost.
        stop: the caller's stop strings; empty ones are ignored. Only those that begin before the student's own text
            matter here, unless `all_stops` is set; the engine handles the others. Of several, the first one completed
            counts; of those completed together, the longest. An engine does not return the stop string that it found:
            if that overlaps one across the seam, the latter is not detected, and its beginning stays in the answer.
        written_again: whether the student was asked to write the guidance itself before it continues
            (`Continuation.writes_again`). Nothing is emitted until it has, and everything from there on; whitespace
            before it is dropped. If the student writes anything else, or ends too early, its own text is the whole
            answer. All emitted text is then the student's own, so `pending_space` and `stop` are not used: the engine
            applies the latter. `echo` and `strips_leading_space` are ignored.
        all_stops: whether the engine does not get the stop strings, so that all of them are detected here.
        sent: text of the answer that the caller already has, which begins with the lead and the guidance. It is not
            returned again, except `initial_text`. Whitespace after the guidance is dropped if the student repeats it.

    Attributes:
        initial_text: the part of the guidance that may be emitted at once; empty with `written_again`. The rest may
            begin a stop string.
        stopped: whether a stop string was found: the answer up to it was emitted, and later text is dropped.
        stopped_by: the stop string that was found; None: none was.
        echoed: whether the student repeated the guidance. The repetition was dropped, except with `written_again`.
        restarted: whether the student was to write the guidance again and did not, so that its own text is the answer.
            False while that is undecided; it is decided by `finish` at the latest.
    """

    def __init__(
        self,
        guidance: str,
        *,
        lead: str = "",
        pending_space: str = "",
        echo: bool | None = None,
        strips_leading_space: bool = False,
        stop: Sequence[str] = (),
        written_again: bool = False,
        all_stops: bool = False,
        sent: str = "",
    ) -> None:
        self.guidance = guidance
        expect_echo = written_again or (echo_detectable(guidance) if echo is None else echo)
        self._echo = guidance.lstrip() if expect_echo else ""
        self._reply = ""  # student text that may be the echo
        self._written_again = written_again
        self._pending_space = pending_space if strips_leading_space and not written_again else ""
        self._stop = () if written_again else tuple(filter(None, stop))
        self._all_stops = all_stops
        self._held = ""  # text that may begin a stop string
        self._reach = 0  # the number of held characters before the student's own text
        self.stopped = self.echoed = self.restarted = False
        self.stopped_by: str | None = None
        self.initial_text = "" if written_again else lead + self._pass_on(guidance, foreign_chars=len(guidance))
        self._sent = sent[len(self.initial_text) :]

    @property
    def is_settled(self) -> bool:
        """Return whether all further text is passed on as it is."""
        if self._all_stops or self.stopped:
            return False
        return not (self._echo or self._pending_space or self._held or self._reach or self._sent)

    def feed(self, delta: str) -> str:
        """Read student text of any length. Return what may be emitted now."""
        text = self._continue(self._without_echo(delta))
        return self._without_sent(text) if self._sent else text

    def finish(self) -> str:
        """Return the text that was held back, after the student has ended."""
        self.restarted = self.restarted or (self._written_again and bool(self._echo))
        reply, self._reply, self._echo = self._reply, "", ""
        emitted = self._continue(reply)
        held, self._held, self._reach = self._held, "", 0
        return self._without_sent(emitted + held)

    def _without_sent(self, text: str) -> str:
        again = next((n for n, pair in enumerate(zip(text, self._sent, strict=False)) if pair[0] != pair[1]), len(text))
        again = min(again, len(self._sent))
        self._sent = self._sent[again:] if again == len(text) else ""
        return text[again:]

    def _without_echo(self, delta: str) -> str:
        if not self._echo:
            return delta
        self._reply += delta
        text = self._reply.lstrip()
        if text.startswith(self._echo):
            rest, self.echoed = text if self._written_again else text[len(self._echo) :], True
        elif self._echo.startswith(text):
            return ""
        else:
            rest, self.restarted = self._reply, self._written_again
        self._reply = self._echo = ""
        return rest

    def _continue(self, text: str) -> str:
        if not text:
            return ""
        pending_space, self._pending_space = self._pending_space, ""
        if text[0].isspace():
            pending_space = ""
        return self._pass_on(pending_space + text, foreign_chars=len(pending_space))

    def _pass_on(self, text: str, *, foreign_chars: int) -> str:
        """Return what cannot become part of a stop string that begins before the student's own text."""
        if not self._stop:
            return text
        if self.stopped:
            return ""
        if foreign_chars:
            self._reach = len(self._held) + foreign_chars
        text = self._held + text
        if self._all_stops:
            self._reach = len(text)
        found = first_stop(text, self._stop, begins_before=self._reach)
        if found is not None:
            self.stopped, self.stopped_by = True, text[slice(*found)]
            self._held, self._reach = "", 0
            return text[: found[0]]
        safe = possible_stop(text, self._stop, begins_before=self._reach)
        self._held = text[safe:]
        self._reach = max(0, self._reach - safe)
        return text[:safe]


def possible_stop(text: str, stop: Sequence[str], *, begins_before: int | None = None) -> int:
    """Return where the end of the text may begin a stop string, before `begins_before`; else the text's length."""
    longest = max(map(len, stop), default=0)
    end = len(text) if begins_before is None else min(begins_before, len(text))
    for start in range(max(0, len(text) - longest + 1), end):
        tail = text[start:]
        if any(one.startswith(tail) for one in stop):
            return start
    return len(text)


def ends_within_stop(text: str, stop: Sequence[str]) -> bool:
    """Return whether the end of the text may begin a stop string."""
    return bool(text and stop) and possible_stop(text, stop) < len(text)


def first_stop(
    text: str, stop: Sequence[str], *, ends_after: int = 0, begins_before: int | None = None
) -> tuple[int, int] | None:
    """Find the stop string that is completed first; of those completed together, the longest.

    Only occurrences that end after the character `ends_after` and begin before `begins_before` count. Return the start
    and the end in characters, or None.
    """
    found: list[tuple[int, int]] = []
    for one in filter(None, stop):
        last = len(text) if begins_before is None else begins_before - 1 + len(one)
        start = text.find(one, max(0, ends_after - len(one) + 1), max(0, last))
        if start >= 0:
            found.append((start + len(one), start))
    end, start = min(found, default=(0, 0))
    return (start, end) if found else None


def echo_detectable(guidance: str) -> bool:
    """Return whether a student's repetition of this guidance can be distinguished from a coincidence.

    It cannot for guidance shorter than `ECHO_DETECTION_MIN_BYTES`. It cannot for guidance that repeats itself
    ("ha ha ha"), because its continuation begins with the same text.
    """
    if len(guidance.encode("utf-8", "surrogatepass")) < ECHO_DETECTION_MIN_BYTES:
        return False
    border = _longest_border(guidance)
    middle = guidance[border : len(guidance) - border]
    # The space between two repetitions is in the middle: trimmed guidance does not end in one.
    return bool(middle.strip())


def _longest_border(text: str) -> int:
    """Return the length of the longest proper prefix of `text` that is also a suffix (Knuth, Morris, Pratt)."""
    borders = [0] * len(text)
    length = 0
    for at in range(1, len(text)):
        while length and text[at] != text[length]:
            length = borders[length - 1]
        if text[at] == text[length]:
            length += 1
        borders[at] = length
    return borders[-1] if borders else 0
