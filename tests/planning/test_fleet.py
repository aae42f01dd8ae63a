"""Fleet sizes: the fewest replicas that keep the headroom."""

from __future__ import annotations

from decimal import Decimal
from math import inf

import pytest

from gateway.errors import StartupError
from gateway.planning.plan import fleet
from gateway.planning.replica import RequestWork, replica_s
from tests.planning.curves import curve

WORK = RequestWork(500, 101)
RPS = Decimal(40)


def test_one_replica_fewer_would_not_keep_the_headroom() -> None:
    found = fleet("teacher", curve(), WORK, RPS, 0.3)
    assert found.replicas is not None
    # 40 requests/s at 0.25 s of a full replica each, with 70 % of it used: 14.3 replicas.
    assert found.replicas == 15
    assert found.gpus == 30
    assert found.utilization == pytest.approx(40 * 0.25 / 15)
    assert found.met
    fewer = fleet("teacher", curve(), WORK, RPS, 0.3, replicas=14)
    assert not fewer.met
    assert fewer.utilization == pytest.approx(40 * 0.25 / 14)


def test_a_small_load_takes_one_replica() -> None:
    assert fleet("teacher", curve(), WORK, Decimal("0.001"), 0.3).replicas == 1


def test_hourly_costs_include_all_gpus_and_answers_have_their_exact_share() -> None:
    found = fleet("teacher", curve(), WORK, RPS, 0.3)
    assert found.usd_per_hour == Decimal(90)
    assert found.usd_per_1000 == Decimal(90) * 1000 / (40 * 3600)
    assert found.max_rps == pytest.approx(15 * 0.7 / replica_s(curve(), WORK))


def test_an_engine_paid_by_the_token_costs_its_tokens_and_takes_no_gpus() -> None:
    sold = curve(price={"input_per_1m": 1, "output_per_1m": 4, "cached_input_per_1m": Decimal("0.1")})
    found = fleet("teacher", sold, RequestWork(500, 100, cached=1000), RPS, 0.3)
    assert found.replicas is None
    assert found.gpus is None
    assert found.usd_per_1000 == Decimal("0.5") + Decimal("0.4") + Decimal("0.1")
    assert found.usd_per_hour == Decimal(1) / 1000 * 40 * 3600
    assert found.max_rps == inf
    assert found.met


def test_an_unknown_price_is_an_issue_and_not_zero() -> None:
    with pytest.raises(StartupError, match=r"student's curve has no price: .*--student-usd-per-hour"):
        fleet("student", curve(price=None), WORK, RPS, 0.3)
    assert fleet("student", curve(price=None).priced(Decimal("1.5")), WORK, RPS, 0.3).usd_per_hour == Decimal(45)


def test_a_load_beyond_all_reason_is_refused() -> None:
    with pytest.raises(StartupError, match="replicas of m: correct --rps"):
        fleet("teacher", curve(), WORK, Decimal(10**8), 0.3)
