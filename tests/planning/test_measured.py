"""Conversion of stream timings to a curve, from streams with known timings."""

from __future__ import annotations

import pytest

from gateway.planning.curve import (
    DecodeStep,
    StreamTiming,
    context_of,
    improving_steps,
    median_step,
    prefill_of,
    step_of,
)
from tests.planning.curves import curve


def stream(
    first_s: float, step_s: float, tokens: int, *, started_s: float = 0.0, read: int = 100, per_event: int = 1
) -> StreamTiming:
    events = tuple(first_s + step_s * number for number in range(0, tokens, per_event))
    return StreamTiming(started_s, events, read, tokens)


def test_a_step_is_the_time_between_tokens_while_all_sequences_are_decoded() -> None:
    # Steps are shorter before the last answer begins and after the first answer ends.
    early = StreamTiming(0.0, (0.0, 0.5, *(1 + 0.02 * number for number in range(51))), 100, 53)
    late = StreamTiming(0.0, (*(1 + 0.02 * number for number in range(51)), 2.001, 2.002), 100, 53)
    found = step_of([early, late])
    assert found is not None
    assert found.batch == 2
    assert found.step_s == pytest.approx(0.02)


def test_events_that_bring_several_tokens_count_as_many() -> None:
    found = step_of([stream(1.0, 0.02, 100, per_event=4)] * 3)
    assert found is not None
    assert found.step_s == pytest.approx(0.02, rel=0.05)


def test_answers_with_little_overlap_are_ignored() -> None:
    assert step_of([stream(1.0, 0.02, 10), stream(1.15, 0.02, 10)]) is None
    assert step_of([stream(1.0, 0.02, 10), stream(9.0, 0.02, 10)]) is None
    assert step_of([stream(1.0, 0.02, 1)]) is None


def test_batches_from_which_on_nothing_is_gained_are_left_out() -> None:
    steps = curve(decode=[{"batch": 1, "seconds_per_step": 0.01}, {"batch": 4, "seconds_per_step": 0.02}]).decode
    slower = steps[1].model_copy(update={"batch": 8, "step_s": 0.05})
    assert improving_steps([slower, *steps]) == steps


@pytest.mark.parametrize(
    ("samples", "median"),
    [
        ([0.02], 0.02),
        ([0.09, 0.02, 0.03], 0.03),
        ([0.02, 0.03], 0.025),
        ([None, 0.02, 0.04], 0.03),
        ([None, 0.02], None),
        ([None], None),
    ],
)
def test_the_median_of_repeated_measurements_counts(samples: list[float | None], median: float | None) -> None:
    """A size that was decoded together in half of its measurements or fewer has none."""
    steps = [None if step_s is None else DecodeStep(batch=4, step_s=step_s) for step_s in samples]
    found = median_step(steps)
    assert (None if found is None else (found.batch, found.step_s)) == (None if median is None else (4, median))


def test_reading_is_the_slope_of_first_tokens_over_lengths_of_prompts() -> None:
    read = [[stream(0.05 + length / 5000, 0.01, 2, read=length)] for length in (100, 400, 800)]
    found = prefill_of(read, 0.01)
    assert found is not None
    assert found.tokens_per_s == pytest.approx(5000, rel=1e-3)
    assert found.pass_s == pytest.approx(0.04, rel=1e-3)


def test_a_delay_of_one_call_does_not_count() -> None:
    read = [
        [stream(0.05 + length / 5000 + delay_s, 0.01, 2, read=length) for delay_s in (0.3, 0.0, 0.1)]
        for length in (100, 400, 800)
    ]
    found = prefill_of(read, 0.01)
    assert found is not None
    assert found.tokens_per_s == pytest.approx(5000, rel=1e-3)


def test_prompts_whose_time_does_not_grow_are_ignored() -> None:
    assert prefill_of([[stream(0.1, 0.01, 2, read=length)] for length in (100, 400)], 0.01) is None
    assert prefill_of([[stream(0.1, 0.01, 2)], [stream(0.2, 0.01, 2)]], 0.01) is None


def test_the_average_context_of_an_answer_is_its_prompt_and_half_of_its_tokens() -> None:
    assert context_of([stream(1.0, 0.01, 50, read=100), stream(1.0, 0.01, 100, read=200)]) == 188
