"""The ids and ends of periods equal those of the script."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from importlib.resources import files

import pytest
from redis.asyncio import Redis

from gateway.accounting.budgets import period_end, period_id

# The longest budgets (config/limits.py), and lengths that divide no larger unit.
LONGEST = {"h": 8784, "d": 366, "w": 52, "mo": 12}
PERIODS = [(unit, count) for unit, longest in LONGEST.items() for count in (1, 2, 5, longest)]


@pytest.mark.parametrize(
    ("unit", "count", "now", "end"),
    [
        ("mo", 1, "2026-11-25T10:00:00", "2026-12-01T00:00:00"),
        ("mo", 1, "2026-12-31T23:59:59", "2027-01-01T00:00:00"),
        ("mo", 3, "2026-11-25T10:00:00", "2027-01-01T00:00:00"),
        ("mo", 12, "2028-02-29T00:00:00", "2029-01-01T00:00:00"),
        ("w", 1, "2026-11-25T10:00:00", "2026-11-30T00:00:00"),
        ("w", 1, "2026-11-30T00:00:00", "2026-12-07T00:00:00"),
        ("d", 1, "2026-11-25T10:00:00", "2026-11-26T00:00:00"),
        ("h", 12, "2026-11-25T13:00:00", "2026-11-26T00:00:00"),
    ],
)
def test_callers_get_the_end_of_the_period(unit: str, count: int, now: str, end: str) -> None:
    at = int(datetime.fromisoformat(now + "+00:00").timestamp())
    assert datetime.fromtimestamp(period_end(unit, count, at), UTC).isoformat() == end + "+00:00"


async def test_the_script_calls_a_period_the_same(redis_url: str) -> None:
    """Redis runs the script's own functions at chosen times: ends of days, weeks, months, years, and random times."""
    source = files("gateway.accounting").joinpath("exchange.lua").read_text("utf-8")
    names = ("whole", "month_of", "period_of")
    found = [re.search(rf"^local function {name}\(.*?^end$", source, re.DOTALL | re.MULTILINE) for name in names]
    script = "\n".join(one[0] for one in found if one) + (
        "\nreturn period_of({ unit = ARGV[2], count = tonumber(ARGV[3]) })"
    )
    script = "local now, second = tonumber(ARGV[1]) * 1000000, 1000000\n" + script
    drawn = random.Random(7)
    edges = [datetime(year, month, 1, tzinfo=UTC) for year in (1970, 2000, 2026, 2028, 2100) for month in (1, 3, 12)]
    moments = [int(edge.timestamp()) + by for edge in edges for by in (0, 86_399, 30 * 86_400)]
    moments += [int(edge.timestamp()) - 1 for edge in edges[3:]] + [drawn.randrange(4_200_000_000) for _ in range(30)]
    async with Redis.from_url(redis_url) as redis:
        run = redis.register_script(script)
        for unit, count in PERIODS:
            for now_s in moments:
                period = (await run(args=[now_s, unit, count])).decode()
                assert period_id(unit, count, now_s) == period, (unit, count, now_s)


@pytest.mark.parametrize(("unit", "count"), PERIODS)
def test_a_period_ends_where_the_next_begins(unit: str, count: int) -> None:
    drawn = random.Random(11)
    for now_s in (drawn.randrange(4_200_000_000) for _ in range(200)):
        end_s = period_end(unit, count, now_s)
        assert end_s > now_s
        assert period_id(unit, count, end_s - 1) == period_id(unit, count, now_s) != period_id(unit, count, end_s)
