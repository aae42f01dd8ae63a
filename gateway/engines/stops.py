"""Stop strings, taken out of a text that comes in any split. Sans-io.

For engines that leave the stop string in what they write; OpenAI's callers never see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopFilter:
    """Feed it text as it comes; it returns what stands before the first stop string, and then nothing more.

    Of several stop strings the one completed first counts; of those completed together, the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(filter(None, stops))
        self._held = ""  # what may yet turn out to be the beginning of a stop string
        self.met = False

    def feed(self, text: str) -> str:
        """Return what may be shown now."""
        if self.met:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.met, self._held = True, ""
            return text[: min(found)[1]]
        begun = min((len(text) - _begun(stop, text) for stop in self._stops), default=len(text))
        self._held = text[begun:]
        return text[:begun]

    def finish(self) -> str:
        """The text has ended: return what was held back."""
        held, self._held = self._held, ""
        return held


def _begun(stop: str, text: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    at = max(0, len(text) - len(stop) + 1)
    while (at := text.find(stop[0], at)) >= 0 and not stop.startswith(text[at:]):
        at += 1
    return 0 if at < 0 else len(text) - at


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A whole text without its stop string and what follows it; and whether there was one."""
    seen = StopFilter(stops)
    return seen.feed(text) + seen.finish(), seen.met
