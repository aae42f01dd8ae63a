"""From what streams of a running engine told to a curve's numbers."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.planning.curve import CurvePrefill, DecodeStep

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_STEPS = 8
"""Of decoding together, for a mean to be worth keeping."""


@dataclass(frozen=True, slots=True)
class StreamTiming:
    """One streamed answer, in seconds of one clock: when it was asked for, and when each event with text came.

    Tokens are as the engine counted them; an event may bring several.
    """

    asked_s: float
    events_s: tuple[float, ...]
    input_tokens: int
    output_tokens: int

    @property
    def first_s(self) -> float:
        """From the question to the first word."""
        return self.events_s[0] - self.asked_s


def step_of(answers: Sequence[StreamTiming]) -> DecodeStep | None:
    """The mean step while all of these answers were being decoded; None where that was for too few steps.

    Answers that were still being read, or had ended, would make a smaller batch: so it begins when the last of them has
    its first word, and ends when the first of them has its last.
    """
    begin = max(answer.events_s[0] for answer in answers)
    end = min(answer.events_s[-1] for answer in answers)
    tokens = [_tokens_between(answer, begin, end) for answer in answers]
    steps = statistics.fmean(tokens)
    if end <= begin or steps < LEAST_STEPS:
        return None
    return DecodeStep(batch=len(answers), step_s=round((end - begin) / steps, 6))


def _tokens_between(answer: StreamTiming, begin: float, end: float) -> float:
    events = sum(begin < moment <= end for moment in answer.events_s)
    return events * answer.output_tokens / len(answer.events_s)


def gaining(steps: Sequence[DecodeStep]) -> tuple[DecodeStep, ...]:
    """The batches, smallest first, up to the one from which a larger one writes no more tokens in a second."""
    kept: list[DecodeStep] = []
    for step in sorted(steps, key=lambda one: one.batch):
        if kept and step.step_s / step.batch > kept[-1].step_s / kept[-1].batch:
            break
        kept.append(step)
    return tuple(kept)


def prefill_of(lengths: Sequence[Sequence[StreamTiming]], alone_s: float) -> CurvePrefill | None:
    """How fast prompts are read: from several answers to each of some lengths of prompts, all asked one at a time.

    Of each length the quickest counts, since whatever else goes on only delays. Through these runs a line by least
    squares: its slope is the time of a token, and where it begins that of a pass with the step that it shares, which
    takes `alone_s`. None where longer prompts did not take longer.
    """
    quickest = [min(answers, key=lambda answer: answer.first_s) for answers in lengths]
    tokens = [float(answer.input_tokens) for answer in quickest]
    if len(set(tokens)) < 2:
        return None
    slope, start_s = statistics.linear_regression(tokens, [answer.first_s for answer in quickest])
    if slope <= 0:
        return None
    return CurvePrefill(tokens_per_s=round(1 / slope, 1), pass_s=round(max(0.0, start_s - alone_s), 6))


def context_of(answers: Sequence[StreamTiming]) -> int:
    """Tokens that each of these answers held on average while it was decoded."""
    return max(1, round(statistics.fmean(answer.input_tokens + answer.output_tokens / 2 for answer in answers)))
