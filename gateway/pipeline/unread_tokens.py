"""Bound the tokens that an engine generates between the last read of a stream and its end. Pure.

The gateway closes the connection of a canceled call. An engine that stops on disconnect generates for `stops_within_s`
more at most. Its speed is measured in the stream itself, as twice the most tokens of any quarter of a second. A stream
becomes faster when others end. A stream with too little text to be measured has `MAX_TOKENS_PER_S`.
"""

from __future__ import annotations

import math
from collections import deque

MAX_TOKENS_PER_S = 1000
"""Upper bound on the tokens per second of one choice, for an engine that stops on disconnect."""
MIN_UNREAD_TOKENS = 16
"""Tokens of one choice that may be in transit at any time: a step of speculative decoding, and buffers."""
_MARGIN = 2
_CHARS_PER_TOKEN = 3  # of one choice, in ASCII; a piece of several tokens has more characters
_WINDOW_S = 0.25
_WAITED_S = 0.005  # a read that lasts longer waited for the engine: no earlier text was left
_PAUSE_S = 0.05  # a longer time between two texts may be a pause of the engine, which shows no speed
_MEASURED_S = 0.75  # time with text: after three pauses, it contains 0.15 s without a pause


class UnreadTokens:
    """The reads of one stream, whose call was sent at `now`.

    A caller that reads slowly delays the reads, and text waits in buffers. Time that passed in `hold` counts as unread
    until a read waits for the engine.
    """

    __slots__ = ("_held_s", "_most_tokens", "_read_at", "_reads", "_resumed_at", "_text_s")

    def __init__(self, now: float) -> None:
        self._read_at = self._resumed_at = now
        self._held_s = self._text_s = 0.0
        self._most_tokens = 0.0  # of a window
        # Time, pieces, and tokens of the text so far, for each read of the window and the last before it.
        self._reads: deque[tuple[float, int, float]] = deque()

    def read(self, now: float, pieces: int, text_tokens: float) -> None:
        """Record a read at `now`. `pieces` counts the text of all choices so far, `text_tokens` by `max_tokens`."""
        if now - self._resumed_at > _WAITED_S:
            self._held_s = 0.0
        self._read_at = self._resumed_at = now
        reads = self._reads
        if not pieces or (reads and reads[-1][1:] == (pieces, text_tokens)):
            return  # no text
        if not reads or self._held_s >= _WINDOW_S:  # the first text may repeat a prefix; later text lay in buffers
            reads.clear()
            reads.append((now, pieces, text_tokens))
            return
        self._text_s += min(now - reads[-1][0], _PAUSE_S)
        reads.append((now, pieces, text_tokens))
        while reads[1][0] <= now - _WINDOW_S:
            reads.popleft()
        _, pieces_before, tokens_before = reads[0]
        tokens = max(_MARGIN * (pieces - pieces_before), text_tokens - tokens_before)
        self._most_tokens = max(self._most_tokens, tokens)

    def hold(self, began: float, ended: float) -> None:
        """Record that nothing was read meanwhile, because the caller took its text."""
        self._held_s += ended - began
        self._resumed_at = ended

    def bound(self, now: float, stops_within_s: float, choices: int) -> int:
        """Return the largest number of unread tokens of all choices, for a call that was canceled at `now`."""
        per_s = float(MAX_TOKENS_PER_S * choices)
        if self._text_s >= _MEASURED_S:
            per_s = min(per_s, self._most_tokens / _WINDOW_S)
        seconds = now - self._read_at + self._held_s + stops_within_s
        return max(MIN_UNREAD_TOKENS * choices, math.ceil(seconds * per_s))


def max_tokens(text: str) -> float:
    """Return an upper bound on the tokens of a piece of text that has several.

    Outside ASCII, a token may be a single byte of a character.
    """
    if text.isascii():
        return len(text) / _CHARS_PER_TOKEN
    ascii_chars = len(text.encode("ascii", "ignore"))
    return ascii_chars / _CHARS_PER_TOKEN + len(text.encode("utf-8", "replace")) - ascii_chars
