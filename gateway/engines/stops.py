"""Cuts a text at its first stop string, which some engines include, unlike OpenAI. Performs no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopFilter:
    """Returns the text before the first stop string, in any split.

    The stop string that is complete first applies, or the longest of several that end at the same character.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(filter(None, stops))
        self._held = ""  # text that may be the start of a stop string
        self.met = False  # whether a stop string was found

    def feed(self, text: str) -> str:
        """Return the text that can be shown now."""
        if self.met:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.met, self._held = True, ""
            return text[: min(found)[1]]
        end = min((len(text) - _partial_length(stop, text) for stop in self._stops), default=len(text))
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """End the text, and return the part that was held back."""
        held, self._held = self._held, ""
        return held


def _partial_length(stop: str, text: str) -> int:
    """Return the number of characters at the end of `text` that may be the start of `stop`."""
    at = max(0, len(text) - len(stop) + 1)
    while (at := text.find(stop[0], at)) >= 0 and not stop.startswith(text[at:]):
        at += 1
    return 0 if at < 0 else len(text) - at


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop string, and whether there is one."""
    if not stops:
        return text, False
    stop_filter = StopFilter(stops)
    return stop_filter.feed(text) + stop_filter.finish(), stop_filter.met
