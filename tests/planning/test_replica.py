"""A replica under a load: by hand where that is easy, else against the modelled engine of the load tests."""

from __future__ import annotations

import statistics
from itertools import pairwise
from math import inf

import pytest

from gateway.planning.replica import RequestWork, idle_first_s, replica_s, stand
from tests.planning.curves import curve
from tests.planning.simulation import curve_of, engine, simulated

# What docs/planning.md says of the planner's figures, up to a utilisation of 70 %.
FIRST_WITHIN, P95_WITHIN, TOTAL_WITHIN = 0.15, 0.30, 0.20


def test_a_request_takes_its_reading_and_its_share_of_the_steps_of_a_full_batch() -> None:
    # 500 tokens are read in 50 ms; 100 steps after the first token take 20 ms each, for ten at once.
    assert replica_s(curve(), RequestWork(500, 101)) == pytest.approx(0.05 + 100 * 0.02 / 10)


def test_what_each_pass_takes_is_shared_by_those_that_end_in_one_step() -> None:
    told = curve(prefill={"tokens_per_s": 10_000, "seconds_per_pass": 0.03})
    # Five steps each, ten at once: two end and two begin with each step.
    assert replica_s(told, RequestWork(500, 6)) == pytest.approx(0.05 + 0.03 / 2 + 5 * 0.02 / 10)


def test_where_a_pass_holds_few_prompts_the_batch_is_never_full() -> None:
    told = curve(prefill={"tokens_per_s": 10_000, "tokens_per_pass": 500})
    # One begins with each step, so that five are decoded together, of places for ten.
    assert replica_s(told, RequestWork(500, 6)) == pytest.approx(0.05 + told.step_s(5))


def test_memory_bounds_the_batch() -> None:
    told = curve(cache_tokens=3_000)
    assert told.places(600) == 5
    assert replica_s(told, RequestWork(500, 100)) == pytest.approx(0.05 + 99 * told.step_s(5) / 5)


def test_a_load_of_nothing_waits_for_nothing() -> None:
    standing = stand(curve(), RequestWork(500, 101), 1e-6)
    assert standing.first_s == pytest.approx(0.05 + 0.01, rel=1e-3)  # its pass shares a step
    assert standing.first_s == pytest.approx(idle_first_s(curve(), RequestWork(500, 101)), rel=1e-3)
    assert standing.total_s == pytest.approx(0.06 + 100 * 0.01, rel=1e-3)
    assert standing.batch == pytest.approx(1, rel=1e-3)


def test_a_load_that_is_more_than_it_bears_has_waits_without_end() -> None:
    most = 1 / replica_s(curve(), RequestWork(500, 101))
    assert stand(curve(), RequestWork(500, 101), most * 0.99).stable
    standing = stand(curve(), RequestWork(500, 101), most * 1.01)
    assert not standing.stable
    assert standing.first_s == standing.total_s == standing.queued == inf


def test_the_requests_there_are_the_rate_times_how_long_each_stays() -> None:
    """Little's law, for those that are decoded: nothing else was put in."""
    rate = 0.6 / replica_s(curve(), RequestWork(500, 101))
    standing = stand(curve(), RequestWork(500, 101), rate)
    decoded_s = standing.total_s - standing.first_s
    # While it decodes; and it does so nearly always at this load.
    assert rate * decoded_s == pytest.approx(standing.batch, rel=0.05)


@pytest.mark.parametrize(
    "work", [RequestWork(500, 101), RequestWork(4000, 20), RequestWork(20, 400), RequestWork(100, 1)]
)
def test_more_load_is_never_quicker(work: RequestWork) -> None:
    most = 1 / replica_s(curve(), work)
    standings = [stand(curve(), work, most * part / 20) for part in range(1, 20)]
    for name in ("first_s", "first_p95_s", "total_s", "utilisation", "queue_s"):
        values = [getattr(one, name) for one in standings]
        assert all(later >= earlier - 1e-9 for earlier, later in pairwise(values)), name


@pytest.mark.parametrize(
    ("name", "work", "utilisation"),
    [
        ("teacher", RequestWork(600, 40), 0.4),
        ("teacher", RequestWork(600, 40), 0.7),
        ("teacher", RequestWork(600, 300), 0.7),
        ("teacher", RequestWork(3000, 40), 0.5),
        ("student", RequestWork(640, 260), 0.7),
        ("student", RequestWork(4000, 100), 0.7),
    ],
)
def test_waits_are_those_of_the_simulated_engine(name: str, work: RequestWork, utilisation: float) -> None:
    """Prompts that dominate and prompts that do not, passes that hold up decoding and passes that share its steps."""
    told = curve_of(engine(name))
    rate = utilisation / replica_s(told, work)
    seen, standing = simulated(engine(name), work, rate, 1200), stand(told, work, rate)
    assert standing.first_s == pytest.approx(statistics.fmean(seen.first_s), rel=FIRST_WITHIN)
    assert standing.first_p95_s == pytest.approx(statistics.quantiles(seen.first_s, n=20)[-1], rel=P95_WITHIN)
    assert standing.total_s == pytest.approx(statistics.fmean(seen.total_s), rel=TOTAL_WITHIN)


def test_where_places_are_short_the_queue_is_no_shorter_than_the_simulated_one() -> None:
    """And not more than twice as long: it is reckoned for lengths that differ, and here all are even."""
    few = engine("student").model_copy(update={"max_batch_size": 16})
    told, work = curve_of(few), RequestWork(200, 120)
    rate = 0.85 / replica_s(told, work)
    seen, standing = simulated(few, work, rate, 3000), stand(told, work, rate)
    assert standing.queue_s > 0.05
    waited_s = statistics.fmean(seen.first_s) - (standing.first_s - standing.queue_s)
    assert waited_s <= standing.queue_s <= 2.5 * waited_s
