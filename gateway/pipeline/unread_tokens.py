"""Bound the tokens that an engine generates between the last read of a stream and its end. Pure.

The gateway closes the connection of a canceled call. An engine that stops on disconnect generates for `stops_within_s`
more at most. Its speed is measured in the stream itself, as twice the fastest rate of a quarter of a second. A stream
becomes faster when others end. A stream without a measured rate has `MAX_TOKENS_PER_S`.
"""

from __future__ import annotations

import math

MAX_TOKENS_PER_S = 1000
"""Upper bound on the tokens per second of one choice, for an engine that stops on disconnect."""
MIN_UNREAD_TOKENS = 16
"""Tokens of one choice that may be in transit at any time: a step of speculative decoding, and buffers."""
_MARGIN = 2
_CHARS_PER_TOKEN = 3  # of one choice; a piece of several tokens has more characters
_WINDOW_S = 0.25
_WAITED_S = 0.005  # a read that lasts longer waited for the engine: no earlier text was left


class UnreadTokens:
    """The reads of one stream, whose call was sent at `now`.

    A caller that reads slowly delays the reads, and text waits in buffers. Time that passed in `hold` counts as unread
    until a read waits for the engine.
    """

    __slots__ = ("_held_s", "_max_per_s", "_read_at", "_resumed_at", "_window")

    def __init__(self, now: float) -> None:
        self._read_at = self._resumed_at = now
        self._held_s = self._max_per_s = 0.0
        self._window: tuple[float, float] | None = None  # begin, and the tokens until then

    def read(self, now: float, pieces: int, chars: int) -> None:
        """Record a read at `now`. `pieces` and `chars` count the text of all choices so far."""
        if now - self._resumed_at > _WAITED_S:
            self._held_s = 0.0
        self._read_at = self._resumed_at = now
        if self._window is None:
            self._window = now, _most_tokens(pieces, chars)
        elif (passed_s := now - self._window[0]) >= _WINDOW_S:
            tokens = _most_tokens(pieces, chars)
            self._max_per_s = max(self._max_per_s, (tokens - self._window[1]) / passed_s)
            self._window = now, tokens

    def hold(self, began: float, ended: float) -> None:
        """Record that nothing was read meanwhile, because the caller took its text."""
        self._held_s += ended - began
        self._resumed_at = ended

    def bound(self, now: float, stops_within_s: float, choices: int) -> int:
        """Return the largest number of unread tokens of all choices, for a call that was canceled at `now`."""
        fastest = MAX_TOKENS_PER_S * choices
        per_s = min(fastest, self._max_per_s) if self._max_per_s else fastest
        seconds = now - self._read_at + self._held_s + stops_within_s
        return max(MIN_UNREAD_TOKENS * choices, math.ceil(seconds * per_s))


def _most_tokens(pieces: int, chars: int) -> float:
    return max(_MARGIN * pieces, chars / _CHARS_PER_TOKEN)
