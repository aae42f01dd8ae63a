"""Replies of the admin API while the usage database cannot be read."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from redis.asyncio import Redis

from gateway.admin.guidance import GUIDANCE
from gateway.admin.quality import QUALITY, show_quality
from gateway.admin.receipts import list_receipts, show_receipt
from gateway.admin.reconciliation import reconciliation
from gateway.admin.reliability import show_reliability
from gateway.admin.usage import show_usage
from gateway.api.error_body import render_errors
from gateway.api.keys import ADMISSION, METRICS, REDIS, USAGE, USAGE_DATABASE
from gateway.policy.guidance_off import GuidanceSwitches
from gateway.quality.book import QualityStore
from gateway.quality.switches import GuidanceSwitchStore, SwitchFollower
from gateway.redis.keys import RedisKeys
from gateway.telemetry.metrics import Metrics
from gateway.usage.database_reader import DatabaseReader
from gateway.usage.engine import UsageEngine
from gateway.usage.reader import UsageReader
from gateway.usage.sums import Retention
from gateway.usage.threads import QueryThreads

if TYPE_CHECKING:
    from pathlib import Path

DAYS_S = 400 * 86_400.0
KEPT = Retention(minute=3600, hour=86_400, day=DAYS_S)
PATHS = {
    "/usage": show_usage,
    "/usage?by=tenant": show_usage,
    "/usage?tenant=acme&format=csv": show_usage,
    "/receipts": list_receipts,
    "/receipts?tenant=acme": list_receipts,
    "/receipts/req_000000000000000000000000": show_receipt,
    "/reconciliation": reconciliation,
    "/reliability": show_reliability,
    "/quality": show_quality,
}


@pytest.mark.parametrize("path", PATHS)
async def test_usage_is_unavailable_with_the_reason(path: str, tmp_path: Path) -> None:
    (tmp_path / "usage.db").mkdir()  # no database can be there
    threads = QueryThreads(UsageEngine(f"sqlite:///{tmp_path}/usage.db").reading)
    app = web.Application(middlewares=[render_errors])
    app.add_routes([web.get(path.partition("?")[0].replace("req_" + "0" * 24, "{id}"), PATHS[path])])
    app[METRICS] = Metrics()
    app[ADMISSION] = cast("Any", SimpleNamespace(draining=False, retiring=False))
    app[REDIS] = cast("Any", SimpleNamespace(now=time.time))
    app[USAGE_DATABASE] = DatabaseReader(threads)
    app[USAGE] = UsageReader(app[USAGE_DATABASE], KEPT)
    app[QUALITY] = QualityStore(Redis(), RedisKeys("none"))
    switches = GuidanceSwitchStore(Redis(), RedisKeys("none"))
    app[GUIDANCE] = SwitchFollower(switches, GuidanceSwitches(), app[METRICS].guidance_off)
    async with TestClient(TestServer(app)) as client:
        reply = await client.get(path)
        error = (await reply.json())["error"]
    threads.close()
    assert (reply.status, error["code"], error["type"]) == (503, "store_unavailable", "server_error")
    assert error["message"] == "The usage database cannot be read now. Try again."
    assert reply.headers["Retry-After"] == "1"
