"""The length of the answer in a baseline, by what the baseline model itself wrote on the route. Pure.

docs/cost.md states the rule. Measured lengths are per route, so the error of a sum of baselines is that of the measure.
"""

from __future__ import annotations

from heapq import nlargest
from math import ceil, sqrt
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Collection

LengthRule: TypeAlias = Literal["measured", "measured_mean", "at_limit", "repeats"]
"""The rule that a baseline's answer follows. "at_limit" and "repeats": nothing is measured, so it saves nothing."""
UNMEASURED: frozenset[LengthRule] = frozenset({"at_limit", "repeats"})
"""The rules by which an answer saves nothing."""

MIN_ANSWERS = 30
"""The number of the baseline model's own answers on a route from which their lengths are used."""
_STANDARD_ERRORS = 2.05  # Student's t for 95 %, at MIN_ANSWERS
_PASSAGES, _PASSAGE_CHARS, _MIN_OCCURRENCES = 16, 48, 3
_READ_CHARS = 8_192
_CHECKED_CHOICES = 16


class MeasuredLengths(Record, frozen=True):
    """The measured lengths of a route's answers. Each error has a confidence of 95 %.

    Attributes:
        mean_tokens: the mean length of the baseline model's own answers.
        ratio: the length of its own answers to that of the answers that callers got to the same prompts, at most 1.
    """

    mean_tokens: float
    mean_error: float
    ratio: float
    ratio_error: float


class RouteLengths(NamedTuple):
    """The measured lengths of a route for guided answers and for those of the student alone; None: too few answers."""

    guided: MeasuredLengths | None = None
    student: MeasuredLengths | None = None


class LengthSums(NamedTuple):
    """Sums over pairs of answers to one prompt: the baseline model's own (x) and the other one (y), in tokens."""

    pairs: int = 0
    x: int = 0
    y: int = 0
    xx: int = 0
    yy: int = 0
    xy: int = 0

    @classmethod
    def of(cls, x: int, y: int) -> LengthSums:
        """Return the sums of one pair."""
        return cls(1, x, y, x * x, y * y, x * y)

    def plus(self, other: LengthSums) -> LengthSums:
        return LengthSums(*map(int.__add__, self, other))

    def measured(self) -> MeasuredLengths | None:
        """Return the mean and the ratio with their errors; None below MIN_ANSWERS."""
        n, x, y, xx, yy, xy = self
        if n < MIN_ANSWERS or not y:
            return None
        mean, ratio = x / n, x / y
        mean_variance = max(0.0, xx - n * mean * mean) / (n - 1)
        ratio_variance = max(0.0, xx - 2 * ratio * xy + ratio * ratio * yy) / (n - 1)  # of x - ratio * y
        return MeasuredLengths(
            mean,
            _STANDARD_ERRORS * sqrt(mean_variance / n),
            min(1.0, ratio),
            _STANDARD_ERRORS * sqrt(ratio_variance / n) / (y / n),
        )


def apply_rule(
    tokens: int, error: int, doubt: LengthRule | None, measured: MeasuredLengths | None
) -> tuple[int, int, LengthRule | None]:
    """Return the length of the baseline's answer with its error, and the rule that it follows; None: its own length.

    Args:
        tokens: the counted length of the caller's answer, with its `error`.
        doubt: why the answer may be longer than the baseline model's own (`doubt_of`).
    """
    if measured is None:
        return tokens, error, doubt
    if doubt is None:
        return (
            round(tokens * measured.ratio),
            ceil(error * measured.ratio + tokens * measured.ratio_error),
            "measured",
        )
    return min(tokens, ceil(measured.mean_tokens)), ceil(measured.mean_error), "measured_mean"


def doubt_of(finish_reason: str | None, texts: Collection[str]) -> LengthRule | None:
    """Return why the length of an answer is no evidence of what the baseline model would write; None: it is.

    Args:
        texts: the text of each choice. Only the 16 longest are checked for repetition, which bounds the time.
    """
    if finish_reason == "length":
        return "at_limit"
    return "repeats" if any(map(repeats, nlargest(_CHECKED_CHOICES, texts, key=len))) else None


def repeats(text: str) -> bool:
    """Return whether a text repeats itself.

    At least half of 16 passages of 48 characters, evenly spread over its last 8,192 characters, occur three times.
    """
    text = text[-_READ_CHARS:]
    last = len(text) - _PASSAGE_CHARS
    if last < _PASSAGE_CHARS * (_MIN_OCCURRENCES - 1):
        return False
    passages = (text[start : start + _PASSAGE_CHARS] for start in (last * i // _PASSAGES for i in range(_PASSAGES)))
    repeated = sum(text.count(passage) >= _MIN_OCCURRENCES for passage in passages)
    return 2 * repeated >= _PASSAGES
