"""GET /quality: the stored rows, the totals of a route, and invalid queries."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from decimal import Decimal
from itertools import count
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.asyncio import Redis

from gateway.local.redis import EmbeddedRedis
from gateway.quality.book import ComparisonScope, QualityStore
from gateway.quality.comparison import SCALE, Comparison
from gateway.redis.keys import RedisKeys
from gateway.usage.database import add_comparisons
from tests.gateway_process import STUDENT_ONLY, GatewayProcess, model, running_gateway
from tests.usage.databases import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ADMIN_KEY = "an-admin-key-for-tests"
NOWHERE = [model(name, "openai", "http://127.0.0.1:9/v1", continuation="trailing") for name in ("big", "small")]


def get_quality(gateway: GatewayProcess, query: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.get(f"{gateway.admin_url}/quality{query}", headers=headers, timeout=20)


class Samples:
    """Comparisons in the usage database of a gateway."""

    def __init__(self, folder: Path) -> None:
        self._address = f"sqlite:///{folder}/data/usage.db"
        self._ids = count()

    def add(self, *of_rows: tuple[ComparisonScope, float, float]) -> None:
        now = int(time.time())
        comparisons = [
            Comparison(
                id=f"req_{next(self._ids):024x}",
                created=now,
                **row._asdict(),
                guided=round(guided * SCALE),
                student=round(student * SCALE),
            )
            for row, guided, student in of_rows
        ]
        with opened(self._address) as engine, engine.writing() as connection:
            add_comparisons(connection, comparisons)


@asynccontextmanager
async def kept(folder: Path, redis_url: str) -> AsyncIterator[tuple[GatewayProcess, QualityStore]]:
    """Run a gateway; yield it with its store of daily budgets."""
    prefix = folder.name.replace("-", "_")[:32]
    with running_gateway(
        folder,
        redis_url=redis_url,
        redis={"prefix": prefix, "timeout": "300ms"},
        admin={"key": "env:QUALITY_ADMIN_KEY"},
        environ={"QUALITY_ADMIN_KEY": ADMIN_KEY},
        models=NOWHERE,
        routes=[STUDENT_ONLY],
    ) as gateway:
        async with Redis.from_url(redis_url) as redis:
            yield gateway, QualityStore(redis, RedisKeys(prefix))


def row(found: dict[str, Any], **fields: str) -> dict[str, Any]:
    (one,) = [row for row in found["rows"] if all(row[name] == value for name, value in fields.items())]
    return dict(one)


@pytest.mark.long
async def test_rows_exist_by_route_and_length_and_for_all_lengths(tmp_path: Path, redis_url: str) -> None:
    async with kept(tmp_path, redis_url) as (gateway, book):
        assert get_quality(gateway).json()["rows"] == []
        samples = Samples(tmp_path)
        for number in range(6):
            samples.add(
                (ComparisonScope("acme", "words", "32", "chat"), 0.75, 0.5),
                (ComparisonScope("acme", "words", "128", "chat"), 0.25 + number / 100, 0.5),
            )
        samples.add(
            (ComparisonScope("acme", "judge", "32", "chat"), 1, 0),
            (ComparisonScope("globex", "words", "32", "chat"), 0, 0),
        )
        await book.take("acme", "chat", Decimal("0.25"), Decimal(1))
        found = await asyncio.to_thread(lambda: get_quality(gateway, "?days=2").json())
        places = [(one["tenant"], one["compare"], one["length"]) for one in found["rows"]]
        assert places == [
            ("acme", "judge", "32"),
            ("acme", "judge", "all"),
            ("acme", "words", "32"),
            ("acme", "words", "128"),
            ("acme", "words", "all"),
            ("globex", "words", "32"),
            ("globex", "words", "all"),
        ]
        part, whole = (row(found, tenant="acme", compare="words", length=length) for length in ("32", "all"))
        assert (part["samples"], part["guided_teacher"], part["student_teacher"]) == (6, 0.75, 0.5)
        assert (part["difference"], part["low"], part["high"]) == (0.25, None, None), "too few for an interval"
        assert (whole["samples"], whole["difference"]) == (12, pytest.approx(0.0125))
        assert whole["low"] < 0 < whole["high"]
        assert found["spent_today"] == [{"tenant": "acme", "route": "chat", "usd": "0.25"}]
        assert found["since"] < found["until"]
        for query in ("?days=0", "?days=35", "?days=x", "?days=-1", "?day=1"):
            assert get_quality(gateway, query).status_code == 400, query
        async with httpx.AsyncClient() as stranger:
            assert (await stranger.get(f"{gateway.admin_url}/quality")).status_code == 401


async def test_without_redis_the_page_reports_an_error(tmp_path: Path) -> None:
    async with EmbeddedRedis() as redis, kept(tmp_path, redis.url) as (gateway, _):
        assert get_quality(gateway).status_code == 200
        await redis.stop()
        refused = await asyncio.to_thread(get_quality, gateway)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
