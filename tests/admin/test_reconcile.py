"""Hourly costs are compared with charges, and the difference is reported."""

from __future__ import annotations

from decimal import Decimal

from gateway.admin.reconciliation import engine_view, reconciled_day, totals
from gateway.usage.uptime import DAY_S, EngineUptime

DAY = 20_000 * DAY_S
AFTER = float(DAY + 2 * DAY_S)


def pico(amount: str) -> int:
    return int(Decimal(amount).scaleb(12))


def test_engine_hours_are_charged_independent_of_requests() -> None:
    """The engine is up for 23 hours at 1.20, and requests were charged 3.45."""
    watched = {"small": EngineUptime(Decimal("1.20"), up_minutes=1_380, seen_minutes=1_400)}
    complete, engines = reconciled_day(DAY, AFTER, {"small": pico("3.45")}, watched)
    assert complete
    assert [engine_view(one) for one in engines] == [
        {
            "engine": "small",
            "usd_per_hour": "1.2",
            "minutes": {"up": 1_380, "down": 20, "unseen": 40},
            "wall_usd": "27.6",
            "charged_usd": "3.45",
            "difference_usd": "24.15",
            "utilization": 0.125,
        }
    ]


def test_an_engine_that_was_charged_more_than_it_cost_has_a_negative_difference() -> None:
    """The engine's token rates in config.yaml are too low for its throughput."""
    watched = {"small": EngineUptime(Decimal(1), 60, 60)}
    _, (one,) = reconciled_day(DAY, AFTER, {"small": pico("1.5")}, watched)
    view = engine_view(one)
    assert (view["difference_usd"], view["utilization"]) == ("-0.5", 1.5)


def test_engines_that_are_paid_by_the_token_have_no_hours_and_all_charges_are_in_the_sum() -> None:
    charged = {"small": pico("0.1"), "hosted": pico("0.000000000001")}
    _, engines = reconciled_day(
        DAY, AFTER, charged, {"small": EngineUptime(Decimal(3), 60, 60), "idle": EngineUptime(Decimal(2), 30, 60)}
    )
    assert [one.engine for one in engines] == ["hosted", "idle", "small"]
    hosted, idle, _ = map(engine_view, engines)
    assert (hosted["minutes"], hosted["wall_usd"], hosted["difference_usd"]) == (None, None, None)
    assert hosted["charged_usd"] == "0.000000000001"
    assert (idle["charged_usd"], idle["wall_usd"], idle["utilization"]) == ("0", "1", 0)
    assert totals([*engines, *engines]) == {
        "by_hour": {"wall_usd": "8", "charged_usd": "0.2", "difference_usd": "7.8", "utilization": 0.025},
        "by_token_usd": "0.000000000002",
        "charged_usd": "0.200000000002",
    }


def test_of_a_day_that_is_not_over_only_the_minutes_so_far_are_missed() -> None:
    now = DAY + 10 * 60 + 30.0
    complete, (one,) = reconciled_day(DAY, now, {}, {"small": EngineUptime(Decimal(1), 4, 9)})
    assert not complete
    assert engine_view(one)["minutes"] == {"up": 4, "down": 5, "unseen": 2}


def test_an_engine_that_was_never_up_has_no_utilization() -> None:
    _, (one,) = reconciled_day(DAY, AFTER, {}, {"small": EngineUptime(Decimal(1), 0, 1_440)})
    assert (engine_view(one)["wall_usd"], engine_view(one)["utilization"]) == ("0", None)


def test_an_hour_has_no_last_digit_and_is_rounded_to_the_picodollar() -> None:
    _, (one,) = reconciled_day(DAY, AFTER, {}, {"small": EngineUptime(Decimal(1), 1, 1)})
    assert engine_view(one)["wall_usd"] == "0.016666666667"
