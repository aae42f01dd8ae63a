"""Conversion of timings of a running engine's streams to the numbers of a curve."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.planning.curve import CurvePrefill, DecodeStep

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_STEPS = 8
"""The fewest steps of joint decoding for a usable mean."""


@dataclass(frozen=True, slots=True)
class StreamTiming:
    """Timing of one streamed answer, in seconds of one clock.

    An event may carry several tokens.

    Attributes:
        started_s: When the request was sent.
        events_s: When each event with text arrived.
        input_tokens, output_tokens: As counted by the engine.
    """

    started_s: float
    events_s: tuple[float, ...]
    input_tokens: int
    output_tokens: int

    @property
    def first_s(self) -> float:
        """Return the time from the request to the first text, in seconds."""
        return self.events_s[0] - self.started_s


def step_of(answers: Sequence[StreamTiming]) -> DecodeStep | None:
    """Return the mean step while all of these answers were decoded together; None for too few steps.

    The period begins when the last answer has its first token, and ends when the first answer has its last token.
    Outside it the batch is smaller.
    """
    begin = max(answer.events_s[0] for answer in answers)
    end = min(answer.events_s[-1] for answer in answers)
    tokens = [_tokens_between(answer, begin, end) for answer in answers]
    steps = statistics.fmean(tokens)
    if end <= begin or steps < MIN_STEPS:
        return None
    return DecodeStep(batch=len(answers), step_s=round((end - begin) / steps, 6))


def _tokens_between(answer: StreamTiming, begin: float, end: float) -> float:
    events = sum(begin < moment <= end for moment in answer.events_s)
    return events * answer.output_tokens / len(answer.events_s)


def improving_steps(steps: Sequence[DecodeStep]) -> tuple[DecodeStep, ...]:
    """Return the batches, smallest first, up to the first one that no longer increases tokens per second."""
    kept: list[DecodeStep] = []
    for step in sorted(steps, key=lambda one: one.batch):
        if kept and step.step_s / step.batch > kept[-1].step_s / kept[-1].batch:
            break
        kept.append(step)
    return tuple(kept)


def prefill_of(lengths: Sequence[Sequence[StreamTiming]], alone_s: float) -> CurvePrefill | None:
    """Return the speed of prefill from several answers for each of some prompt lengths, requested one at a time.

    The fastest answer of each length counts, since other activity can only add time. A least-squares line through these
    gives the time per token (slope) and the fixed time of a pass plus the step that it shares (intercept).

    Args:
        lengths: The answers for each prompt length.
        alone_s: The step with the smallest batch, in seconds; subtracted from the intercept.

    Returns:
        The speed, or None if longer prompts did not take longer.
    """
    fastest = [min(answers, key=lambda answer: answer.first_s) for answers in lengths]
    tokens = [float(answer.input_tokens) for answer in fastest]
    if len(set(tokens)) < 2:
        return None
    slope, start_s = statistics.linear_regression(tokens, [answer.first_s for answer in fastest])
    if slope <= 0:
        return None
    return CurvePrefill(tokens_per_s=round(1 / slope, 1), pass_s=round(max(0.0, start_s - alone_s), 6))


def context_of(answers: Sequence[StreamTiming]) -> int:
    """Return the mean number of tokens that each of these answers held during decoding."""
    return max(1, round(statistics.fmean(answer.input_tokens + answer.output_tokens / 2 for answer in answers)))
