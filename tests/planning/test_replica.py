"""The capacity of a replica, compared with calculations by hand."""

from __future__ import annotations

import pytest

from gateway.planning.replica import RequestWork, replica_s
from tests.planning.curves import curve


def test_a_request_takes_its_reading_and_its_share_of_the_steps_of_a_full_batch() -> None:
    # Prefill of 500 tokens takes 50 ms; 100 steps after the first token take 20 ms each, for ten answers.
    assert replica_s(curve(), RequestWork(500, 101)) == pytest.approx(0.05 + 100 * 0.02 / 10)


def test_the_time_of_a_pass_is_divided_by_its_finished_sequences() -> None:
    measured_curve = curve(prefill={"tokens_per_s": 10_000, "seconds_per_pass": 0.03})
    # Ten answers of five steps: two end and two begin with each step.
    assert replica_s(measured_curve, RequestWork(500, 6)) == pytest.approx(0.05 + 0.03 / 2 + 5 * 0.02 / 10)


def test_where_a_pass_holds_few_prompts_the_batch_is_never_full() -> None:
    measured_curve = curve(prefill={"tokens_per_s": 10_000, "tokens_per_pass": 500})
    # One answer begins with each step, so five are decoded together although ten fit.
    assert replica_s(measured_curve, RequestWork(500, 6)) == pytest.approx(0.05 + measured_curve.step_s(5))


def test_memory_bounds_the_batch() -> None:
    measured_curve = curve(cache_tokens=3_000)
    assert measured_curve.slots(600) == 5
    assert replica_s(measured_curve, RequestWork(500, 100)) == pytest.approx(0.05 + 99 * measured_curve.step_s(5) / 5)
