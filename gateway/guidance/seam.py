"""The seam: where the teacher's words end and the student's begin.

    trimmed = trim(teacher_text, cut=True, stop=stop)            # trimmed.text is shown, and sent to the student
    seam = SeamJoin(trimmed.text, pending_space=trimmed.pending_space, stop=stop)
    emit(seam.opening())                                         # before the student has said a word
    for delta in student: emit(seam.feed(delta))
    emit(seam.finish())

Engines differ in how they continue a partial answer: some repeat it first, some strip the blank their
continuation begins with, some can only be asked to write it again. `SeamJoin` hides that, in any chunking, without
I/O. `trim` is in `trim.py`, and not imported here: devices join without it (`gateway/edge`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.guidance.stops import first_stop

if TYPE_CHECKING:
    from collections.abc import Sequence

ECHO_DETECTION_MIN_BYTES = 32
"""How long guidance must be, in UTF-8 bytes, before a student that begins with it must be repeating it.

About six English words or eleven ideographs: bytes weigh scripts more evenly than characters do.
"""


class SeamJoin:
    """Joins a student's text deltas to the guidance they continue: what it returns, in order, is the answer.

    guidance: what the student was sent, as `trim` left it.
    pending_space: the whitespace that followed the guidance (`TrimmedText.pending_space`).
    echo: does this engine repeat the guidance before it continues? True: drop exactly that, and whitespace before
        it, from the student's text; if the text does not begin so, it is passed on as it is. False: never drop
        anything. None: unknown, so find out where `echo_detectable` says that this can be found out, else pass on.
        While the student's text is still a beginning of the guidance it is held back. A student that honestly
        begins its continuation with the whole of a long guidance cannot be told from an echo.
    strips_leading_space: this engine strips the whitespace its continuation begins with. Then `owed` is paid
        before the first student text that is not empty, unless that text begins with whitespace. Otherwise
        nothing is ever inserted. `owed` is all that is known: when the teacher was cut within the whitespace, or
        right before it, the part of it that the engine stripped is lost.
    stop: the caller's stop strings; empty ones are ignored. Only those that begin before the student's own text
        matter here, for those wholly inside it are the engine's work. Of several the one completed first counts;
        of those completed together, the longest. An engine withholds the stop string it met itself: if that
        overlaps one across the seam, the latter is not seen, and its beginning stays in the answer.
    written_again: the student was asked to write the guidance itself before it goes on (`Continuation.writes_again`).
        Then nothing is emitted before it has, and from there on all of it; whitespace before it is dropped. If it
        says anything else, or ends before it has said it all, its own text is the answer, as it is: no answer begins
        twice. All that is emitted is the student's own, so `owed` and `stop` have no part in it: the engine keeps to
        the latter. `echo` and `strips_leading_space` mean nothing then.
    """

    def __init__(
        self,
        guidance: str,
        *,
        pending_space: str = "",
        echo: bool | None = None,
        strips_leading_space: bool = False,
        stop: Sequence[str] = (),
        written_again: bool = False,
    ) -> None:
        self.guidance = guidance
        expect_echo = written_again or (echo_detectable(guidance) if echo is None else echo)
        self._echo = guidance.lstrip() if expect_echo else ""
        self._reply = ""  # student text that may yet turn out to be the echo
        self._written_again = written_again
        self._pending_space = pending_space if strips_leading_space and not written_again else ""
        self._stop = () if written_again else tuple(filter(None, stop))
        self._held = ""  # text that may yet turn out to be the beginning of a stop string
        self._reach = 0  # how many of the held characters stand before the student's own
        self._stopped = False
        self._echoed = False
        self._restarted = False
        self._opening = "" if written_again else self._pass_on(guidance, foreign_chars=len(guidance))

    @property
    def stopped(self) -> bool:
        """A stop string was met: the answer up to it has been emitted, and what follows is swallowed."""
        return self._stopped

    @property
    def echoed(self) -> bool:
        """The student repeated the guidance; the repetition was dropped, but with `written_again`."""
        return self._echoed

    @property
    def restarted(self) -> bool:
        """With `written_again`: the student did not write the guidance, and its own text alone is the answer.

        False while that is open; true for good once it is, at the latest after `finish`.
        """
        return self._restarted

    def opening(self) -> str:
        """The part of the guidance that may be emitted at once; the rest may be the beginning of a stop string.

        Empty with `written_again`.
        """
        return self._opening

    def feed(self, delta: str) -> str:
        """Take student text, from nothing up to all of it; return what may be emitted now."""
        return self._continue(self._without_echo(delta))

    def finish(self) -> str:
        """The student has ended: return what was still held back."""
        self._restarted = self._restarted or (self._written_again and bool(self._echo))
        reply, self._reply, self._echo = self._reply, "", ""
        emitted = self._continue(reply)
        held, self._held, self._reach = self._held, "", 0
        return emitted + held

    def _without_echo(self, delta: str) -> str:
        if not self._echo:
            return delta
        self._reply += delta
        text = self._reply.lstrip()
        if text.startswith(self._echo):
            rest, self._echoed = text if self._written_again else text[len(self._echo) :], True
        elif self._echo.startswith(text):
            return ""
        else:
            rest, self._restarted = self._reply, self._written_again
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
        if self._stopped:
            return ""
        if foreign_chars:
            self._reach = len(self._held) + foreign_chars
        text = self._held + text
        found = first_stop(text, self._stop, begins_before=self._reach)
        if found is not None:
            self._stopped = True
            self._held, self._reach = "", 0
            return text[: found[0]]
        safe = self._safe(text)
        self._held = text[safe:]
        self._reach = max(0, self._reach - safe)
        return text[:safe]

    def _safe(self, text: str) -> int:
        longest = max(map(len, self._stop), default=0)
        for start in range(max(0, len(text) - longest + 1), min(self._reach, len(text))):
            tail = text[start:]
            if any(one.startswith(tail) for one in self._stop):
                return start
        return len(text)


def join(
    guidance: str,
    student_text: str,
    *,
    pending_space: str = "",
    echo: bool | None = None,
    strips_leading_space: bool = False,
    stop: Sequence[str] = (),
    written_again: bool = False,
) -> tuple[str, bool]:
    """Join a whole reply, as `SeamJoin` does its deltas; returns the answer and whether a stop string ended it."""
    seam = SeamJoin(
        guidance,
        pending_space=pending_space,
        echo=echo,
        strips_leading_space=strips_leading_space,
        stop=stop,
        written_again=written_again,
    )
    answer = seam.opening() + seam.feed(student_text) + seam.finish()
    return answer, seam.stopped


def echo_detectable(guidance: str) -> bool:
    """Can a student's repetition of this guidance be told from a coincidence?

    Not when it is shorter than `ECHO_DETECTION_MIN_BYTES`, and not when it is itself a repetition ("ha ha ha"),
    since whoever continues that begins with it again.
    """
    if len(guidance.encode("utf-8", "surrogatepass")) < ECHO_DETECTION_MIN_BYTES:
        return False
    border = _longest_border(guidance)
    middle = guidance[border : len(guidance) - border]
    # The blank between two rounds is in the middle, as trimmed guidance does not end in one.
    return bool(middle.strip())


def _longest_border(text: str) -> int:
    """The length of the longest proper prefix of `text` that is also a suffix (Knuth, Morris, Pratt)."""
    borders = [0] * len(text)
    length = 0
    for at in range(1, len(text)):
        while length and text[at] != text[length]:
            length = borders[length - 1]
        if text[at] == text[length]:
            length += 1
        borders[at] = length
    return borders[-1] if borders else 0
