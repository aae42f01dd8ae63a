"""A gateway whose clock is two days ahead: receipts and usage queries have the clock of Redis."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.admin.dashboard_world import ADMIN_KEY, dashboard_world
from tests.fakes import FakeEngine, says
from tests.gateway_process import COMMAND, KEY, STUDENT_ONLY, beginning_with, model, running_gateway
from tests.prometheus_world import until
from tests.usage.databases import receipt

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86_400
HEADERS = {"Authorization": f"Bearer {KEY}"}
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


def shifted(days: int, folder: Path) -> dict[str, str]:
    """Return the environment in which all processes of a gateway have a shifted clock."""
    return beginning_with(f"import time; now = time.time; time.time = lambda: now() + {days * DAY_S}", folder)


@pytest.mark.parametrize("days", [2, -2])
def test_receipts_of_a_gateway_with_a_shifted_clock_are_in_the_usage(redis_url: str, tmp_path: Path, days: int) -> None:
    settings: dict[str, Any] = {
        "redis_url": redis_url,
        "redis": {"prefix": f"skew{days % 7}"},
        "admin": {"key": "env:THE_ADMIN_KEY"},
        "environ": {"THE_ADMIN_KEY": ADMIN_KEY},
        "routes": [STUDENT_ONLY],
    }
    body = {"model": "chat-student", "messages": [{"role": "user", "content": "Write."}]}
    with FakeEngine(says("Well.")).running() as engine:
        settings["models"] = [
            model(name, "openai", f"{engine.url}/v1", continuation="trailing", echo=False) for name in ("big", "small")
        ]
        environ = settings["environ"] | shifted(days, tmp_path / "site")
        with (
            running_gateway(tmp_path / "right", usage={"run": "host"}, **settings) as right,
            running_gateway(tmp_path / "wrong", entry=COMMAND, **settings | {"environ": environ}) as wrong,
        ):
            skew = wrong.wait_for_log("clock_skew")
            reply = httpx.post(f"{wrong.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=60)
            assert reply.status_code == 200, reply.text
            until(lambda: usage_of(right.url) == 1, "the usage of the last hour has the receipt")
            made = httpx.get(f"{wrong.url}/v1/receipts/{reply.headers['x-request-id']}", headers=HEADERS).json()
            ready = httpx.get(f"{wrong.admin_url}/readyz").json()
            metrics = httpx.get(f"{wrong.admin_url}/metrics").text
            assert not [line for line in right.log if line["event"] == "clock_skew"]
            assert len([line for line in wrong.log if line["event"] == "clock_skew"]) == 1
    assert abs(skew["skew_s"] - days * DAY_S) < 2
    assert abs(made["created"] - time.time()) < 600
    assert abs(int(reply.headers["x-request-id"][4:12], 16) - time.time()) < 600
    assert abs(ready["redis"]["clock_skew_s"] - days * DAY_S) < 2
    found = re.search(r"^gkt_clock_skew_seconds (\S+)$", metrics, re.MULTILINE)
    assert found is not None
    assert abs(float(found[1]) - days * DAY_S) < 2


def usage_of(url: str) -> int | None:
    """Return the requests of the last hour; None while the usage database cannot be read."""
    reply = httpx.get(f"{url}/v1/usage", params={"since": "1h"}, headers=HEADERS, timeout=60)
    requests: int | None = reply.json().get("total", {}).get("requests")
    return requests


@pytest.mark.parametrize("days", [2, -2])
def test_queries_of_a_gateway_with_a_shifted_clock_find_receipts(redis_url: str, tmp_path: Path, days: int) -> None:
    environ = {"THE_ADMIN_KEY": ADMIN_KEY, "THE_USAGE_URL": "sqlite", **shifted(days, tmp_path / "site")}
    with dashboard_world(tmp_path, redis_url, entry=COMMAND, environ=environ) as world:
        world.gateway.wait_for_log("clock_skew")
        world.add(receipt(int(time.time()) - 60))
        assert usage_of(world.gateway.url) == 1
        assert world.get("/usage", since="1h")["total"]["requests"] == 1
        assert world.get("/summary", since="1h")["requests"]["total"] == 1
        assert world.get("/reliability", since="1h")["requests"] == 1
        assert len(world.get("/receipts", since="1h")["data"]) == 1
