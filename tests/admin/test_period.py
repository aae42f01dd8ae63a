"""The period to compare with: as long as the period, and for a month the same part of the month before."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.admin.period import filters_of, period_of, previous_of
from gateway.errors import InvalidRequest
from gateway.usage.span import rfc3339
from gateway.usage.sums import Retention

DAY_S = 86_400
KEPT = Retention(minute=6 * 3600, hour=14 * DAY_S, day=400 * DAY_S)
NOW = datetime(2026, 11, 25, 15, 33, tzinfo=UTC).timestamp()


def compared(query: str, now: float = NOW) -> tuple[str | None, tuple[str, str], tuple[str, str] | None]:
    period = period_of(make_mocked_request("GET", f"/summary?{query}"), KEPT, now, since="this_month")
    before = previous_of(period, KEPT, now)
    shown = None if before is None else (rfc3339(before.sums.since), rfc3339(before.sums.until))
    return period.month, (rfc3339(period.sums.since), rfc3339(period.sums.until)), shown


@pytest.mark.parametrize(
    ("query", "month", "period", "before"),
    [
        (
            "since=24h",
            None,
            ("2026-11-24T15:00:00Z", "2026-11-25T15:33:00Z"),
            ("2026-11-23T14:00:00Z", "2026-11-24T15:00:00Z"),
        ),
        (
            "since=2026-11-23&until=2026-11-24",
            None,
            ("2026-11-23T00:00:00Z", "2026-11-25T00:00:00Z"),
            ("2026-11-21T00:00:00Z", "2026-11-23T00:00:00Z"),
        ),
        (
            "",
            "2026-11",
            ("2026-11-01T00:00:00Z", "2026-11-25T15:33:00Z"),
            ("2026-10-01T00:00:00Z", "2026-10-26T00:00:00Z"),  # days are the only sums of October
        ),
        (
            "since=last_month&until=last_month",
            "2026-10",
            ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z"),
            ("2026-09-01T00:00:00Z", "2026-10-01T00:00:00Z"),
        ),
        (
            "since=2026-11-01&until=2026-11-07",  # a part of a month
            None,
            ("2026-11-01T00:00:00Z", "2026-11-08T00:00:00Z"),
            ("2026-10-25T00:00:00Z", "2026-11-01T00:00:00Z"),
        ),
    ],
)
def test_the_previous_period(query: str, month: str | None, period: object, before: object) -> None:
    assert compared(query) == (month, period, before)


def test_the_length_is_that_of_the_sums() -> None:
    """Costs of both periods are divided by their lengths. Of October only whole days are left."""
    for query, lengths in (
        ("", (24 * DAY_S + 15.55 * 3600, 25 * DAY_S)),
        ("since=2026-10-01&until=2026-10-05T12:00:00Z", (5 * DAY_S, 5 * DAY_S)),
    ):
        period = period_of(make_mocked_request("GET", f"/summary?{query}"), KEPT, NOW, since="this_month")
        before = previous_of(period, KEPT, NOW)
        assert before is not None
        assert (period.seconds, before.seconds) == lengths


@pytest.mark.parametrize("since", ["999999d", f"{'9' * 400}d", "0001-01-01"])
def test_a_start_before_the_epoch_has_expired(since: str) -> None:
    with pytest.raises(InvalidRequest, match="older than the retained usage"):
        compared(f"since={since}")


def test_the_same_part_of_a_shorter_month_ends_with_it() -> None:
    now = datetime(2026, 3, 30, 12, tzinfo=UTC).timestamp()
    assert compared("", now)[2] == ("2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z")


def test_a_period_whose_sums_have_expired_is_none() -> None:
    assert compared("since=300d")[2] is None


def test_empty_filters_are_ignored_and_unknown_parameters_refused() -> None:
    assert filters_of(make_mocked_request("GET", "/x?tenant=acme&route=&key=ci")) == {"tenant": "acme", "key": "ci"}
    with pytest.raises(InvalidRequest, match="'tenants': unknown parameter"):
        filters_of(make_mocked_request("GET", "/x?tenants=acme"))
