"""A replica under a load, compared with calculations by hand and with the modeled engine of the load tests."""

from __future__ import annotations

import statistics
from itertools import pairwise
from math import inf

import pytest

from gateway.planning.replica import RequestWork, idle_first_s, replica_load, replica_s
from tests.planning.curves import curve
from tests.planning.simulation import curve_of, engine, simulate

# The accuracy that docs/design/planning.md states, up to a utilization of 70 %.
FIRST_WITHIN, P95_WITHIN, TOTAL_WITHIN = 0.15, 0.30, 0.20


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


def test_a_load_of_nothing_waits_for_nothing() -> None:
    load = replica_load(curve(), RequestWork(500, 101), 1e-6)
    assert load.first_s == pytest.approx(0.05 + 0.01, rel=1e-3)  # its pass shares a step
    assert load.first_s == pytest.approx(idle_first_s(curve(), RequestWork(500, 101)), rel=1e-3)
    assert load.total_s == pytest.approx(0.06 + 100 * 0.01, rel=1e-3)
    assert load.batch == pytest.approx(1, rel=1e-3)


def test_an_overload_has_infinite_waits() -> None:
    max_rate = 1 / replica_s(curve(), RequestWork(500, 101))
    assert replica_load(curve(), RequestWork(500, 101), max_rate * 0.99).stable
    load = replica_load(curve(), RequestWork(500, 101), max_rate * 1.01)
    assert not load.stable
    assert load.first_s == load.total_s == load.queued == inf


def test_the_requests_there_are_the_rate_times_how_long_each_stays() -> None:
    """Little's law holds for the answers being decoded."""
    rate = 0.6 / replica_s(curve(), RequestWork(500, 101))
    load = replica_load(curve(), RequestWork(500, 101), rate)
    decoded_s = load.total_s - load.first_s
    # The batch is the mean while the replica decodes, which is nearly always at this load.
    assert rate * decoded_s == pytest.approx(load.batch, rel=0.05)


@pytest.mark.parametrize(
    "work", [RequestWork(500, 101), RequestWork(4000, 20), RequestWork(20, 400), RequestWork(100, 1)]
)
def test_more_load_is_never_quicker(work: RequestWork) -> None:
    max_rate = 1 / replica_s(curve(), work)
    loads = [replica_load(curve(), work, max_rate * part / 20) for part in range(1, 20)]
    for name in ("first_s", "first_p95_s", "total_s", "utilization", "queue_s"):
        values = [getattr(one, name) for one in loads]
        assert all(later >= earlier - 1e-9 for earlier, later in pairwise(values)), name


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "work", "utilization"),
    [
        ("teacher", RequestWork(600, 40), 0.4),
        ("teacher", RequestWork(600, 40), 0.7),
        ("teacher", RequestWork(600, 300), 0.7),
        ("teacher", RequestWork(3000, 40), 0.5),
        ("student", RequestWork(640, 260), 0.7),
        ("student", RequestWork(4000, 100), 0.7),
    ],
)
def test_waits_are_those_of_the_simulated_engine(name: str, work: RequestWork, utilization: float) -> None:
    """The cases cover long and short prompts, and passes that pause decoding or share its steps."""
    measured_curve = curve_of(engine(name))
    rate = utilization / replica_s(measured_curve, work)
    times, load = simulate(engine(name), work, rate, 1200), replica_load(measured_curve, work, rate)
    assert load.first_s == pytest.approx(statistics.fmean(times.first_s), rel=FIRST_WITHIN)
    assert load.first_p95_s == pytest.approx(statistics.quantiles(times.first_s, n=20)[-1], rel=P95_WITHIN)
    assert load.total_s == pytest.approx(statistics.fmean(times.total_s), rel=TOTAL_WITHIN)


def test_where_places_are_short_the_queue_is_no_shorter_than_the_simulated_one() -> None:
    """The queue is at most 2.5 times as long: the model assumes exponential lengths, and here all are equal."""
    small_engine = engine("student").model_copy(update={"max_batch_size": 16})
    measured_curve, work = curve_of(small_engine), RequestWork(200, 120)
    rate = 0.85 / replica_s(measured_curve, work)
    times, load = simulate(small_engine, work, rate, 3000), replica_load(measured_curve, work, rate)
    assert load.queue_s > 0.05
    waited_s = statistics.fmean(times.first_s) - (load.first_s - load.queue_s)
    assert waited_s <= load.queue_s <= 2.5 * waited_s
