"""Guidance that arrives piece by piece: what of it can be shown before the rest is known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.engines.stops import StopFilter
from gateway.guidance.trim import Trimmed, trim

if TYPE_CHECKING:
    from collections.abc import Sequence


class GrowingTrim:
    """Feed it the teacher's text as it comes; it returns what may be shown. What was shown is never taken back."""

    def __init__(self, *, stop: Sequence[str] = ()) -> None:
        self._stop = stop
        self._text = ""
        self._shown = ""

    def feed(self, piece: str) -> str:
        """Take a piece; return what may be shown now: not a last word that may be half, nor a stop text begun."""
        self._text += piece
        held = StopFilter(self._stop)
        safe = held.feed(trim(self._text, cut=True, stop=self._stop).text)
        if not safe.startswith(self._shown) or len(safe) == len(self._shown):
            return ""
        more, self._shown = safe[len(self._shown) :], safe
        return more

    def finish(self, *, cut: bool) -> Trimmed:
        """The teacher has ended, or was cut: its text as `trim` leaves it, and never less than was shown."""
        done = trim(self._text, cut=cut, stop=self._stop)
        return (
            done
            if done.text.startswith(self._shown)
            else replace(done, text=self._shown, owed="", dropped=self._text[len(self._shown) :])
        )
